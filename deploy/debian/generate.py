"""What the Debian package has beside the code, made from the settings and from the commands' own help.

`generate.py ROOT` writes the settings file, the man pages and the completion to their places below ROOT. The working
directory is the project's, and has to be in PYTHONPATH.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import BashComplete

from multicloud import settings
from multicloud.console.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROGRAMS = sorted(Path("multicloud", "bin").iterdir())
"""The commands that HAProxy or systemd starts."""

GROUPS = {
    "Where things are. Before the first section only": settings.GLOBAL_ONLY,
    "How a server is checked. Also in [backend] and in [backend/server]": settings.CHECK_SETTINGS,
    "What multicloud config writes. Also in [backend]": settings.CONFIG_SETTINGS,
    "How servers are ranked. Also in [backend]": settings.ALL_SETTINGS,
}
"""Each setting belongs to the first that has it."""

FORMAT = (
    "Each line is name = value. What is behind a # at the start of a line or behind a blank is a comment, and an empty "
    "value is the default. Below a line [backend] a setting is for the servers of that backend alone, and below "
    "[backend/server] for one of them."
)
EXAMPLE = ("[api]", "path = /healthz", "[api/eu.example.com]", "timeout = 3")


def grouped() -> Iterator[tuple[str, list[settings.Setting]]]:
    """The groups of settings, each setting once."""
    seen: set[str] = set()
    for heading, group in GROUPS.items():
        new = [setting for setting in group if setting.name not in seen]
        seen.update(setting.name for setting in new)
        yield heading, new


def settings_file() -> str:
    """The settings file: all settings with their defaults, and an example of sections, commented out."""
    lines = ["# The settings of multicloud: multicloud.conf(5). To change one, take away the # before its name.", ""]
    for heading, group in grouped():
        lines += [f"# {heading}.", ""]
        for setting in group:
            lines += textwrap.wrap(setting.meaning, 100, initial_indent="# ", subsequent_indent="# ")
            lines += [f"#{setting.name} = {setting.default}".rstrip(), ""]
    return "\n".join([*lines, "# Sections come last.", "", *(f"#{line}" for line in EXAMPLE), ""])


LITERAL = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga"})
"""What a man page would otherwise take for an escape, a hyphen or a typographer's quote."""


def escaped(text: str) -> str:
    """Text for a man page, to be copied from there as it is; no line of it is a command to the formatter."""
    return re.sub(r"^(?=\.)", r"\\&", text.translate(LITERAL), flags=re.MULTILINE)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of a help text; one that click leaves as it is begins with a line of one backspace."""
    for paragraph in re.split(r"\n{2,}", inspect.cleandoc(text)):
        if paragraph.startswith("\b\n"):
            yield f".PP\n.nf\n{escaped(paragraph[2:])}\n.fi"
        else:
            yield f".PP\n{escaped(' '.join(paragraph.split()))}"


def page(name: str, section: int, summary: str, body: Iterable[str]) -> str:
    """A man page; `summary` is its line in lists of them."""
    pages = [*(f"{program.name}(1)" for program in PROGRAMS), "multicloud(1)", "multicloud.conf(5)"]
    others = ", ".join(other for other in pages if other != f"{name}({section})")
    head = [f'.TH "{name.upper()}" {section} "" multicloud', ".SH NAME", rf"{escaped(name)} \- {escaped(summary)}"]
    foot = [".SH FILES", ".I /etc/multicloud.conf", ".SH SEE ALSO", escaped(others)]
    return "\n".join([*head, *body, *foot, ""])


def settings_page() -> str:
    """multicloud.conf(5)."""
    body = [".SH DESCRIPTION", escaped(FORMAT), ".SH SETTINGS"]
    for heading, group in grouped():
        body.append(f".SS {escaped(heading)}")
        for setting in group:
            default = f"Default: {setting.default or 'none'}. In the environment: {setting.variable}."
            meaning = f"{setting.meaning}. Accepted: {setting.accepts}. {default}"
            body += [".TP", rf"\fB{setting.name}\fR", escaped(meaning[0].upper() + meaning[1:])]
    return page("multicloud.conf", 5, "settings of multicloud", [*body, ".SH EXAMPLE", ".nf", *EXAMPLE, ".fi"])


def commands_page() -> str:
    """multicloud(1), with all its commands."""
    body = [".SH SYNOPSIS", r"\fBmulticloud\fR COMMAND [OPTIONS]", ".SH DESCRIPTION", *paragraphs(cli.help or "")]
    variables = {setting.variable for setting in settings.ALL_SETTINGS}
    for name, command in cli.commands.items():
        context = click.Context(command, info_name=f"multicloud {name}", **cli.context_settings)
        usage = " ".join([context.info_name, *command.collect_usage_pieces(context)])
        body += [f".SH {escaped(usage)}", *paragraphs(command.help or "")]
        from_settings = []
        for parameter in command.get_params(context):
            record = parameter.get_help_record(context)
            if record and variables & set(re.findall(r"\[(\w+);", record[1])):
                from_settings.append(parameter.opts[0])
            elif record:
                body += [".TP", rf"\fB{escaped(record[0])}\fR", escaped(record[1])]
        if from_settings:
            body += [".TP", rf"\fB{escaped(', '.join(from_settings))}\fR", "The settings of multicloud.conf(5)."]
    return page("multicloud", 1, "latency routing for HAProxy", body)


def program_page(program: Path) -> str:
    """The page of a command that HAProxy or systemd starts, which is what its module says of itself."""
    module = Path("multicloud", program.name.removeprefix("multicloud-")).with_suffix(".py")
    summary, _, text = (ast.get_docstring(ast.parse(module.read_text())) or "").partition("\n\n")
    return page(program.name, 1, " ".join(summary.split()).rstrip("."), [".SH DESCRIPTION", *paragraphs(text)])


def main(root: Path) -> None:
    """Write all of it."""
    files = {
        "etc/multicloud.conf": settings_file(),
        "usr/share/bash-completion/completions/multicloud": BashComplete(
            cli, {}, "multicloud", "_MULTICLOUD_COMPLETE"
        ).source(),
        "usr/share/man/man1/multicloud.1": commands_page(),
        "usr/share/man/man5/multicloud.conf.5": settings_page(),
        **{f"usr/share/man/man1/{path.name}.1": program_page(path) for path in PROGRAMS},
    }
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
