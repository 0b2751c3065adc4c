"""HAProxy's configuration files, as far as latency routing depends on them (its configuration manual, chapter 2).

Words, quotes, comments, environment variables and what a proxy inherits from its `defaults` are read as HAProxy reads
them. Of its conditional blocks those are decided whose condition is a version; of any other one all branches count. A
proxy that is `disabled` is left out.
"""

import glob
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from multicloud.light import UsageError, reason

SECTIONS = (
    *("global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "program"),
    *("http-errors", "cache", "ring", "log-forward", "fcgi-app", "crt-store", "traces", "log-profile", "acme"),
)
PROXIES = ("frontend", "backend", "listen")
ONCE_ONLY = (*PROXIES, "defaults", "resolvers")  # the sections of which each name stands once
# A part of a word, a word or a comment, and what stands for something else, outside of double quotes and in them.
PARTS = r"""'(?P<strong>[^']*)'?|"(?P<weak>(?:[^"\\]|\\.)*)"?|(?:[^\s#'"\\]|\\.?)+"""
PART, WORD = (re.compile(each, re.ASCII | re.DOTALL) for each in (PARTS, f"#.*|(?:{PARTS})+"))
ESCAPED = r"""\\(x[0-9a-fA-F]{2}|[ \\#'"nrt]"""
UNQUOTED = re.compile(f"{ESCAPED})")
QUOTED = re.compile(rf"{ESCAPED}|\$)|\$(?:(\w+)|\{{(\w+)(\[\*\])?(?:-([^}}]{{0,1000}}+))?\}})", re.ASCII)
LINE_ENDS = {"n": "\n", "r": "\r", "t": "\t"}
CONDITION = re.compile(r"(!*)\s*(version_atleast|version_before)\(\s*([^()\s]*)\s*\)")


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

    def places(self) -> list[str]:
        """Where its `bind` lines listen."""
        return [place for kind, *words in self.lines if kind == "bind" and words for place in places(words)]

    def is_disabled(self) -> bool:
        """Whether it is a proxy that is left out."""
        return self.kind in PROXIES and last_of((line[0] for line in self.lines), "enabled", "disabled") == "disabled"


class Configuration(NamedTuple):
    """What the files say."""

    sections: Sequence[Section] = ()  # in their order
    undecided: Sequence[str] = ()  # the conditions (`.if …`) that were not decided, so that all branches count
    lines: Mapping[tuple[str, str], list[str]] = MappingProxyType({})  # of each server, by backend and name: its words

    def global_section(self) -> Section:
        """All sections `global` as one."""
        lines = [line for section in self.sections if section.kind == "global" for line in section.lines]
        return Section("global", "", lines)

    def proxies(self) -> list[Section]:
        """The sections that have servers."""
        return [section for section in self.sections if section.kind in ("backend", "listen")]

    def twice(self) -> Iterator[str]:
        """Whether two sections listen at one address, which share its connections, or have one name."""
        places: dict[str, list[str]] = {}
        names = [f"{each.kind} {each.name}" for each in self.sections if each.kind in ONCE_ONLY and each.name]
        for section in self.sections:
            for place in section.places():
                places.setdefault(re.sub("^:", "port ", place), []).append(f"{section.kind} {section.name}")
        for place, listening in places.items():
            if len(set(listening)) > 1:
                yield (
                    f"{' and '.join(dict.fromkeys(listening))} listen at {place}, and each gets a part of its "
                    "connections: give one of them another port"
                )
        for name in [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            yield f"`{name}` stands {names.count(name)} times in the configuration: leave out all but one"


def read(paths: Sequence[str], environ: Mapping[str, str], version: str | None = None) -> Configuration:
    """What the files say, and the files of directories; nothing without any. Raises ConfigurationError."""
    texts = []
    for path in files(paths):
        try:
            with open(path, encoding="utf-8", errors="replace", newline="\n") as file:
                texts.append(file.read())
        except OSError as error:
            raise ConfigurationError(f"{path}: {reason(error)}") from None
    read = parse(texts, environ, version)
    if paths and not read.sections:
        raise ConfigurationError(f"{', '.join(paths)}: no section of a HAProxy configuration")
    return read


def parse(texts: Iterable[str], environ: Mapping[str, str], version: str | None = None) -> Configuration:
    """What the texts of files say, one after the other.

    `environ` and `version` are those of the HAProxy that reads them; the version is None where none is known.
    """
    environ = dict(environ)
    sections: list[Section] = []
    undecided: list[str] = []
    for text in texts:
        blocks: list[list[bool | None]] = []  # of each open one: which of its branches hold, up to the one that is read
        for line in text.split("\n"):
            words = split(line, environ)
            if words and words[0].startswith("."):
                undecided += _branch(words, blocks, version)
            elif not words or any(branches[-1] is False for branches in blocks):
                continue
            elif words[0] in SECTIONS:
                sections.append(Section(words[0], words[1] if len(words) > 1 else "", _inherited(words, sections)))
            elif sections:
                sections[-1].lines.append(words)
                match words:  # of the lines below it
                    case ["setenv", name, value, *_]:
                        environ[name] = value
                    case ["presetenv", name, value, *_]:
                        environ.setdefault(name, value)
    read = Configuration([each for each in sections if not each.is_disabled()], undecided)
    by_key = {(each.name, name): words for each in read.proxies() for name, words in options(each).items()}
    return read._replace(lines=by_key)


def files(paths: Iterable[str]) -> Iterator[str]:
    """The files, and of a directory those that HAProxy takes."""
    for path in paths:
        yield from sorted(glob.glob(f"{glob.escape(path)}/*.cfg")) if os.path.isdir(path) else [path]


def _branch(words: Sequence[str], blocks: list[list[bool | None]], version: str | None) -> list[str]:
    """Begin, go on with or end a block; the condition that could not be decided, if there is one."""
    keyword, condition = words[0], " ".join(words[1:])
    if keyword == ".if":
        blocks.append([])
    elif keyword == ".endif":
        del blocks[-1:]
    if keyword not in (".if", ".elif", ".else") or not blocks:
        return []
    *outer, branches = blocks
    passed = True in branches or any(each[-1] is False for each in outer)
    branches.append(not passed and (keyword == ".else" or holds(condition, version)))
    return [f"{keyword} {condition}"] if branches[-1] is None else []


def holds(condition: str, version: str | None) -> bool | None:
    """Whether a condition holds; None where that is not decided here."""
    match = CONDITION.fullmatch(condition.strip())
    if match is None or version is None:
        return None
    holding = (order(version) >= order(match[3])) == (match[2] == "version_atleast")
    return holding != bool(len(match[1]) % 2)


def order(version: str) -> tuple[int, ...]:
    """What orders versions as HAProxy does: 3.5-dev5 comes before 3.5, and 2.8.25-1 is 2.8.25."""
    numbers, _, tag = version.partition("-")
    digits = [*map(int, re.findall(r"\d{1,9}", numbers)), 0, 0, 0, 0][:4]
    match = re.match(r"(dev|rc|pre)(\d{0,9})", tag)
    stage = 2 if not match else 0 if match[1] == "dev" else 1
    return (*digits, stage, int(match[2] or 0) if match else 0)


def _inherited(words: Sequence[str], sections: Sequence[Section]) -> list[list[str]]:
    """The lines of the `defaults` that a section is `from`, or else of the last one before it."""
    kind, name = words[0], value(words, "from")
    if kind in PROXIES or (kind == "defaults" and name):
        for section in reversed(sections):
            if section.kind == "defaults" and name in ("", section.name):
                return list(section.lines)
    return []


def split(line: str, environ: Mapping[str, str]) -> list[str]:
    """The words of a line: quotes and backslashes taken away, and "${NAME-default}" replaced by its value.

    "${NAME[*]}" is as many words as its value has. A null ends the line.
    """

    def meant(found: re.Match[str]) -> str:
        if escaped := found[1]:
            return chr(int(escaped[1:], 16)) if escaped[1:] else LINE_ENDS.get(escaped, escaped)
        _, bare, name, several, default = found.groups()
        value = environ.get(bare or name, default or "")
        return "\0".join(value.split()) if several else value

    def read_part(part: re.Match[str]) -> str:
        if part["strong"] is not None:
            return part["strong"]
        return UNQUOTED.sub(meant, part[0]) if part["weak"] is None else QUOTED.sub(meant, part["weak"])

    words: list[str] = []
    for word in WORD.finditer(line.partition("\0")[0]):
        if word[0].startswith("#"):
            break
        words += PART.sub(read_part, word[0]).split("\0")
    return words


def options(section: Section) -> dict[str, list[str]]:
    """The words that hold for each server, by its name: of the `default-server` lines above it, then of its own."""
    default = ["source"] * (section.last("source") is not None)  # which the section may say for all
    by_name = {}
    for kind, *words in section.lines:
        if kind == "default-server":
            default = default + words
        elif kind == "server" and words:
            by_name[words[0]] = default + words[2:]
        elif kind == "server-template" and (numbers := re.fullmatch(r"(?:(\d{1,5})-)?(\d{1,5})", "".join(words[1:2]))):
            for number in range(int(numbers[1] or 1), int(numbers[2]) + 1):
                by_name[f"{words[0]}{number}"] = default + words[3:]
    return by_name


def places(words: Sequence[str]) -> list[str]:
    """Where a `bind` line with these words listens, each place in one way: `:80` is port 80 of all IPv4 addresses.

    With `v4v6` behind it, `:::80` is that, too. On one interface, or in a namespace, it is another place.
    """
    there = re.sub(r"(^|,)(ipv4@)?(\*|0\.0\.0\.0)?:(?!:)", r"\1:", words[0]).split(",")
    ports = [match[1] for each in there if (match := re.fullmatch(r"(?:ipv6@)?\[?::\]?:(.+)", each))]
    only = [f" {word} {value(words, word)}" for word in ("interface", "namespace") if word in words]
    return ["".join([place, *only]) for place in (*there, *(f":{port}" for port in ports if "v4v6" in words))]


def last_of(words: Iterable[str], *choices: str) -> str:
    """The last of the words that is one of these; "" where none is."""
    return next((word for word in reversed([*words]) if word in choices), "")


def value(words: Sequence[str], option: str) -> str:
    """What stands behind the last word of this name; "" where there is none."""
    return next((after for word, after in reversed([*itertools.pairwise(words)]) if word == option), "")
