"""HAProxy's configuration file, as far as external checks depend on it (its configuration manual, sections 2.1 to 2.4).

Words, quotes, comments, environment variables and what a proxy inherits from its `defaults` are read as HAProxy reads
them. Conditional blocks (`.if`) are not decided: all their branches are read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SECTIONS = (
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"),
    *("http-errors", "cache", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"),
)

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1e-3}

PART = r"""\\(?P<escaped>.)|'(?P<strong>[^']*)'|"(?P<weak>(?:\\.|[^"\\])*)"|(?P<plain>[^\s\\'"#]+)"""
WORD_OR_COMMENT = re.compile(f"(?:{PART})+|#.*")
VARIABLE = re.compile(r"\$(?:(?P<bare>\w+)|\{(?P<name>\w+)(?:-(?P<default>[^}]*))?\})")


class ConfigurationError(Exception):
    """A configuration file that cannot be read. The text says which and why."""


class Section(NamedTuple):
    """A section with its lines, each a list of words. The lines that it inherits come first."""

    kind: str
    name: str
    lines: list[list[str]]

    def last(self, *words: str) -> list[str] | None:
        """What follows `words` on the last line that begins with them; None where no line does."""
        found = None
        for line in self.lines:
            if line[: len(words)] == list(words):
                found = line[len(words) :]
            elif line[: len(words) + 1] == ["no", *words]:
                found = None
        return found


def read(paths: Iterable[str], environ: Mapping[str, str]) -> list[Section]:
    """The sections of the files, in order; `environ` is what HAProxy was started with. Raises ConfigurationError."""
    sections: list[Section] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise ConfigurationError(f"{path}: {(error.strerror or str(error)).lower()}") from None
        for line in lines:
            words = split(line, environ)
            if not words or words[0].startswith("."):
                continue
            if words[0] in SECTIONS:
                sections.append(Section(words[0], words[1] if len(words) > 1 else "", _inherited(words, sections)))
            elif sections:
                sections[-1].lines.append(words)
    if not sections:
        raise ConfigurationError(f"{', '.join(paths)}: no section of a HAProxy configuration")
    return sections


def _inherited(words: Sequence[str], sections: Sequence[Section]) -> list[list[str]]:
    """The lines of the `defaults` that a section is `from`, or else of the last one before it."""
    kind = words[0]
    named = words[words.index("from") + 1 :][:1] if "from" in words else []
    if kind not in ("frontend", "backend", "listen") and not (kind == "defaults" and named):
        return []
    for section in reversed(sections):
        if section.kind == "defaults" and (not named or section.name == named[0]):
            return list(section.lines)
    return []


def split(line: str, environ: Mapping[str, str]) -> list[str]:
    """The words of a line: quotes and backslashes taken away, and "${NAME-default}" replaced by its value."""
    words = [found[0] for found in WORD_OR_COMMENT.finditer(line) if not found[0].startswith("#")]
    return ["".join(_part(found, environ) for found in re.finditer(PART, word)) for word in words]


def _part(found: re.Match[str], environ: Mapping[str, str]) -> str:
    """What a part of a word stands for: an escaped character, a quoted text or a plain one."""
    text = found[found.lastgroup or 0]
    if found.lastgroup != "weak":
        return text
    return re.sub(r"\\(.)", r"\1", VARIABLE.sub(lambda variable: _value(variable, environ), text))


def _value(found: re.Match[str], environ: Mapping[str, str]) -> str:
    return environ.get(found["bare"] or found["name"], found["default"] or "")


def seconds(text: str) -> float | None:
    """A time as HAProxy writes it (`2s`, `500ms`, `500`); None where it is not one."""
    match = re.fullmatch(r"(\d+)(us|ms|s|m|h|d|)", text)
    return int(match[1]) * UNITS[match[2]] if match else None


def check_limit(section: Section) -> float:
    """Seconds after which HAProxy kills an external check of the section's servers, the shortest of them.

    That is `inter`; with both `timeout check` and `timeout connect` set, `timeout connect` if that is shorter.
    """
    limits = []
    default = 2.0
    for line in section.lines:
        if line[0] in ("default-server", "server") and "inter" in line[:-1]:
            inter = seconds(line[line.index("inter") + 1]) or default
            if line[0] == "default-server":
                default = inter
            else:
                limits.append(inter)
        elif line[0] == "server" and "check" in line:
            limits.append(default)
    limit = min(limits, default=default)
    connect, check = section.last("timeout", "connect"), section.last("timeout", "check")
    return min(limit, seconds(connect[0]) or limit) if connect and check else limit
