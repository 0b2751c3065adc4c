"""The manual is held against what it speaks of: its links, and the commands, options, settings and files that it shows.

What a page shows as code (fences and inline code) is what a reader will type, so that is what must exist.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from multicloud import settings
from multicloud.console.cli import cli

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(ROOT.glob("docs/*.md"))) if path.exists()]
FILES = [ROOT / "run_local.sh", *(ROOT / "multicloud").rglob("*"), *(ROOT / "tests").rglob("*")]
SETTINGS = settings.ALL_SETTINGS

FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|[\s`(]|bin/)multicloud (?!multicloud\b)([a-z]+)((?:\\\n|[^|;&`#\n])*)")
OPTION = re.compile(r"(?<![\w-])(--?[a-z][a-z-]*)")
NO_SHELL = ("python", "yaml", "haproxy")
"""Languages of fences in which no command is shown."""


def code(page: str) -> Iterator[str]:
    """The pieces of code of a page in which commands may be shown."""
    yield from (fence["text"] for fence in FENCE.finditer(page) if fence["language"] not in NO_SHELL)
    yield from INLINE.findall(FENCE.sub("", page))


def anchors(page: str) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", page), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        number = 0
        while (anchor := f"{slug}-{number}" if number else slug) in found:
            number += 1
        found.add(anchor)
    return found


def broken_links(path: Path, page: str) -> list[str]:
    """The relative links that lead to no file, or to no heading of it."""
    broken = []
    for link in LINK.findall(INLINE.sub("`", FENCE.sub("", page))):
        target, _, anchor = link.partition("#")
        goal = path.parent / target if target else path
        if "://" in link:
            continue
        text = page if goal == path else goal.read_text() if anchor and goal.is_file() else ""
        if not goal.exists() or (anchor and anchor not in anchors(text)):
            broken.append(link)
    return broken


def options(command: str) -> set[str]:
    """The options of a command; none where there is no such command."""
    found = cli.commands.get(command)
    parameters = found.get_params(click.Context(found, **cli.context_settings)) if found else []
    return {option for parameter in parameters for option in parameter.opts}


def unknown_commands(page: str) -> list[str]:
    """What is shown of the command `multicloud` but is not in it; under its heading, options stand without it."""
    shown = [(name, rest) for text in code(page) for name, rest in COMMAND.findall(text)]
    for section in re.split(r"^## ", FENCE.sub("", page), flags=re.MULTILINE):
        if section.startswith("multicloud "):
            name = section.split()[1]
            shown += [(name, text) for text in INLINE.findall(section) if text.startswith("-")]
    unknown = [name for name, _ in shown if name not in cli.commands]
    return unknown + [
        f"{name} {option}" for name, rest in shown for option in OPTION.findall(rest) if option not in options(name)
    ]


def unknown_variables(page: str) -> set[str]:
    """The variables that are neither a setting nor in haproxy.cfg nor in what the image starts."""
    files = (ROOT / "haproxy.cfg").read_text() + (ROOT / "deploy/start.sh").read_text()
    known = {settings.CONF, *(setting.variable for setting in SETTINGS)} | set(re.findall(r"\w+", files))
    return set(re.findall(r"\bMULTICLOUD_[A-Z_]+", page)) - known


def unknown_paths(page: str) -> list[str]:
    """The paths of the project, by their first directory or as the name of a program, that lead nowhere."""
    text = "\n".join(code(page))
    tops = [path.name for path in ROOT.iterdir() if path.is_dir()]
    words = [word.removeprefix("./").rstrip(".") for word in re.findall(r"(?<![\w/.~-])[\w.][\w./-]+", text)]
    paths = [word for word in words if "/" in word and word.split("/")[0] in tops]
    programs = [word for word in words if word not in paths and word.endswith((".py", ".sh"))]
    modules = re.findall(r"-m (tests[\w.]+)", text)
    return [
        *(path for path in paths if not (ROOT / path).exists()),
        *(name for name in programs if not any(f"/{file.relative_to(ROOT)}".endswith(f"/{name}") for file in FILES)),
        *(module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").exists()),
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name if path.parent == ROOT else f"docs/{path.name}")
def test_what_a_page_links_to_and_shows_exists(path: Path) -> None:
    page = path.read_text()
    assert broken_links(path, page) == []
    assert unknown_commands(page) == []
    assert unknown_variables(page) == set()
    assert unknown_paths(page) == []


def test_a_wrong_page_is_found_out() -> None:
    page = """
# One `two`, three
[a](#one-two-three) [b](#four) [c](docs/none.md) [d](docs/settings.md#none) [e](https://example.com/#none)
`multicloud stats` and `multicloud status --wach` and `MULTICLOUD_TIMS` and `tests/none.sh` and `none.py`
```console
# docker exec multicloud multicloud reweigh --dry --dry-run | cat --none
$ .venv/bin/python -m tests.bench.none
```
## multicloud check
`--conect`
"""
    assert broken_links(ROOT / "README.md", page) == ["#four", "docs/none.md", "docs/settings.md#none"]
    assert sorted(unknown_commands(page)) == ["check --conect", "reweigh --dry", "stats", "status --wach"]
    assert unknown_variables(page) == {"MULTICLOUD_TIMS"}
    assert sorted(unknown_paths(page)) == ["none.py", "tests.bench.none", "tests/none.sh"]


def test_every_command_has_its_section() -> None:
    headings = re.findall(r"^## multicloud (\w+)$", (ROOT / "docs" / "by-hand.md").read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(cli.commands)


def test_the_table_of_settings_is_what_settings_py_says() -> None:
    shown = re.findall(r"^\| `MULTICLOUD_.*\|$", (ROOT / "docs" / "settings.md").read_text(), re.MULTILINE)
    assert shown.pop(0).startswith(f"| `{settings.CONF}` | `{settings.CONF_DEFAULT}` | the settings file")
    assert shown == [
        f"| `{setting.variable}` | {f'`{setting.default}`' if setting.default else 'none'} | {setting.meaning} |"
        for setting in SETTINGS
    ]


def test_the_front_page_is_short_and_leads_to_every_other() -> None:
    page = (ROOT / "README.md").read_text()
    assert len(page.splitlines()) <= 150
    linked = {link.partition("#")[0] for link in LINK.findall(page)}
    assert {f"docs/{path.name}" for path in PAGES if path.parent != ROOT} - linked == {"docs/README.md"}
