"""HAProxy's configuration file, as far as latency routing depends on it (its configuration manual, chapter 2).

Words, quotes, comments, environment variables and what a proxy inherits from its `defaults` are read as HAProxy reads
them. Of its conditional blocks those are decided whose condition is a version, `defined` or a number; of any other one
all branches count.
"""

from __future__ import annotations

import itertools
import re
from math import inf
from typing import TYPE_CHECKING, NamedTuple

from multicloud.light import UsageError, reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

SECTIONS = (
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"),
    *("http-errors", "cache", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"),
)

TLS_OPTIONS = ("ca-file", "verify", "sni", "verifyhost")

UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "": 1e-3}

PART = r"""\\(?P<escaped>.)|'(?P<strong>[^']*)'|"(?P<weak>(?:\\.|[^"\\])*)"|(?P<plain>[^\s\\'"#]+)"""
WORD_OR_COMMENT = re.compile(f"(?:{PART})+|#.*")
CONDITION = re.compile(r"(!*)\s*(?:(version_atleast|version_before|defined)\(\s*([^()\s]*)\s*\)|(-?\d*))")
VARIABLE = re.compile(r"\$(?:(?P<bare>\w+)|\{(?P<name>\w+)(?:-(?P<default>[^}]*))?\})")

RELEASED = 3
TAGS = {"dev": 1, "rc": 2, "pre": 2}
"""Before the release of a version come its candidates, and before those what was under development."""


class ConfigurationError(UsageError):
    """A configuration file that cannot be read. The text says which and why."""


class Section(NamedTuple):
    """A section with its lines, each a list of words. The lines that it inherits come first."""

    kind: str
    name: str
    lines: list[list[str]]

    def last(self, *words: str) -> list[str] | None:
        """What follows `words` on the last line that begins with them; None where no line does."""
        rest = None
        for line in self.lines:
            if line[: len(words)] == list(words):
                rest = line[len(words) :]
            elif line[: len(words) + 1] == ["no", *words]:
                rest = None
        return rest

    def first_word(self, *words: str) -> str:
        """The first word of what `last` gives, or "" without one."""
        return (self.last(*words) or [""])[0]


class Configuration(NamedTuple):
    """The sections of the files, in order, and the conditions (`.if …`) that were not decided: all branches count."""

    sections: list[Section]
    undecided: list[str]

    def global_section(self) -> Section:
        """All sections `global` as one."""
        lines = [line for section in self.sections if section.kind == "global" for line in section.lines]
        return Section("global", "", lines)

    def proxies(self) -> list[Section]:
        """The sections that have servers."""
        return [section for section in self.sections if section.kind in ("backend", "listen")]


def read(paths: Iterable[str], environ: Mapping[str, str], version: str | None = None) -> Configuration:
    """What the files say. Raises ConfigurationError.

    `environ` and `version` are those of the HAProxy that reads them; the version is None where none is known.
    """
    sections: list[Section] = []
    undecided: list[str] = []
    for path in paths:
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                lines = file.read().splitlines()
        except OSError as error:
            raise ConfigurationError(f"{path}: {reason(error)}") from None
        blocks: list[tuple[bool, bool]] = []  # of each open one: whether its branch counts, and whether one was chosen
        for line in lines:
            words = split(line, environ)
            if words and words[0].startswith("."):
                undecided += _branch(words, blocks, environ, version)
            elif not words or not all(counts for counts, _ in blocks):
                continue
            elif words[0] in SECTIONS:
                sections.append(Section(words[0], words[1] if len(words) > 1 else "", _inherited(words, sections)))
            elif sections:
                sections[-1].lines.append(words)
    if not sections:
        raise ConfigurationError(f"{', '.join(paths)}: no section of a HAProxy configuration")
    return Configuration(sections, undecided)


def _branch(
    words: Sequence[str], blocks: list[tuple[bool, bool]], environ: Mapping[str, str], version: str | None
) -> list[str]:
    """Begin, go on with or end a block; the condition that could not be decided, if there is one."""
    keyword, condition = words[0], " ".join(words[1:])
    chosen = False
    if keyword in (".elif", ".else", ".endif") and blocks:
        chosen = blocks.pop()[1]
    if keyword not in (".if", ".elif", ".else"):
        return []
    decided: bool | None = False
    if not chosen and all(counts for counts, _ in blocks):
        decided = keyword == ".else" or holds(condition, environ, version)
    blocks.append((decided is not False, chosen or decided is True))
    return [f"{keyword} {condition}"] if decided is None else []


def holds(condition: str, environ: Mapping[str, str], version: str | None) -> bool | None:
    """Whether a condition holds; None where that is not decided here."""
    match = CONDITION.fullmatch(condition.strip())
    if match is None or (match[2] and version is None):
        return None
    if not match[2]:
        holding = match[4] not in ("", "-") and int(match[4]) != 0
    elif match[2] == "defined":
        holding = match[3] in environ
    else:
        holding = (_order(version or "") >= _order(match[3])) == (match[2] == "version_atleast")
    return holding != bool(len(match[1]) % 2)


def _order(version: str) -> tuple[int, ...]:
    """What orders versions as HAProxy does: 3.5-dev5 comes before 3.5, and 2.8.25-1 is 2.8.25."""
    numbers, _, tag = version.partition("-")
    digits = [*map(int, re.findall(r"\d+", numbers)), 0, 0, 0, 0][:4]
    match = re.match(r"(dev|rc|pre)(\d*)", tag)
    return (*digits, *((TAGS[match[1]], int(match[2] or 0)) if match else (RELEASED, 0)))


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
    words = [word[0] for word in WORD_OR_COMMENT.finditer(line) if not word[0].startswith("#")]
    return ["".join(_part(part, environ) for part in re.finditer(PART, word)) for word in words]


def _part(part: re.Match[str], environ: Mapping[str, str]) -> str:
    """What a part of a word stands for: an escaped character, a quoted text or a plain one."""
    text = part[part.lastgroup or 0]
    if part.lastgroup != "weak":
        return text
    return re.sub(r"\\(.)", r"\1", VARIABLE.sub(lambda variable: _value(variable, environ), text))


def _value(variable: re.Match[str], environ: Mapping[str, str]) -> str:
    return environ.get(variable["bare"] or variable["name"], variable["default"] or "")


def options(section: Section) -> dict[str, list[str]]:
    """The words that hold for each server, by its name: of the `default-server` lines above it, then of its own."""
    default: list[str] = []
    by_name = {}
    for kind, *words in section.lines:
        if kind == "default-server":
            default = default + words
        elif kind == "server" and words:
            by_name[words[0]] = default + words[2:]
    return by_name


def servers(section: Section) -> dict[str, dict[str, str]]:
    """The options of TLS of each server, by its name: those of TLS_OPTIONS, and "ssl" where it is on."""
    return {
        name: {word: value for word, value in itertools.pairwise(words) if word in TLS_OPTIONS}
        | ({"ssl": ""} if is_on(words, "ssl") else {})
        for name, words in options(section).items()
    }


def is_on(words: Sequence[str], option: str) -> bool:
    """Whether the last word that says so has the option on (`check`), and not off (`no-check`)."""
    said = [word for word in words if word in (option, f"no-{option}")]
    return said[-1:] == [option]


def seconds(text: str) -> float | None:
    """A time as HAProxy writes it (`2s`, `500ms`, `500`); None where it is not one."""
    match = re.fullmatch(r"(\d+)(us|ms|s|m|h|d|)", text)
    return int(match[1]) * UNITS[match[2]] if match else None


def check_limits(section: Section) -> dict[str, float]:
    """Seconds after which HAProxy kills an external check, by the name of each server of the section that is checked.

    That is `inter`; with both `timeout check` and `timeout connect` set, `timeout connect` if that is shorter.
    """
    connect = section.first_word("timeout", "connect") if section.last("timeout", "check") else ""
    longest = seconds(connect) or inf
    limits = {}
    for name, words in options(section).items():
        if is_on(words, "check"):
            inters = [seconds(value) for word, value in itertools.pairwise(words) if word == "inter"]
            limits[name] = min([2.0, *filter(None, inters)][-1], longest)
    return limits
