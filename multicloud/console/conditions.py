"""Which lines of a HAProxy configuration count: its conditional blocks (its configuration manual, section 2.4).

Decided is what an operator writes most: `version_atleast`, `version_before`, `defined`, numbers, and `!` before them.
Of a block whose condition is another one all branches count, and the condition is told.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

PREDICATE = re.compile(r"(version_atleast|version_before|defined)\(\s*([^()\s]*)\s*\)")
RELEASE = 3
TAGS = {"dev": 1, "rc": 2, "pre": 2}
"""Before the release of a version come its candidates, and before those what was under development."""


class Blocks:
    """The conditional blocks of a file, line by line. `undecided` are the conditions that could not be decided.

    `environ` and `version` are those of the HAProxy that reads the file; None where it is not known, and then nothing
    is decided that depends on it.
    """

    def __init__(self, environ: Mapping[str, str], version: str | None) -> None:
        self.undecided: list[str] = []
        self._environ = environ
        self._version = version
        self._open: list[tuple[bool, bool]] = []  # of each block: whether its branch counts, and whether one was chosen

    def counts(self, words: Sequence[str]) -> bool:
        """Whether a line counts, as words; those that begin with a dot never do."""
        if not words[0].startswith("."):
            return self._counting()
        if words[0] == ".if":
            self._branch(words, chosen=False)
        elif words[0] in (".elif", ".else") and self._open:
            self._branch(words, chosen=self._open.pop()[1])
        elif words[0] == ".endif" and self._open:
            self._open.pop()
        return False

    def _counting(self) -> bool:
        return all(counts for counts, _ in self._open)

    def _branch(self, words: Sequence[str], *, chosen: bool) -> None:
        condition = " ".join(words[1:])
        decided: bool | None = False
        if not chosen and self._counting():
            decided = words[0] == ".else" or decide(condition, self._environ, self._version)
            if decided is None:
                self.undecided.append(f"{words[0]} {condition}")
        self._open.append((decided is not False, chosen or decided is True))


def decide(condition: str, environ: Mapping[str, str], version: str | None) -> bool | None:
    """Whether a condition holds; None where that is not decided here."""
    if condition.startswith("!"):
        decided = decide(condition[1:].strip(), environ, version)
        return None if decided is None else not decided
    if not condition or re.fullmatch(r"-?\d+", condition):
        return bool(condition) and int(condition) != 0
    found = PREDICATE.fullmatch(condition)
    if found is None or version is None:
        return None
    if found[1] == "defined":
        return found[2] in environ
    return (_order(version) >= _order(found[2])) == (found[1] == "version_atleast")


def _order(version: str) -> tuple[int, ...]:
    """What orders versions as HAProxy does: 3.5-dev5 comes before 3.5, and 2.8.25-1 is 2.8.25."""
    numbers, _, tag = version.partition("-")
    digits = [int(number) for number in re.findall(r"\d+", numbers)][:4]
    found = re.match(r"(dev|rc|pre)(\d*)", tag)
    kind = (TAGS[found[1]], int(found[2] or 0)) if found else (RELEASE, 0)
    return (*digits, *[0] * (4 - len(digits)), *kind)
