"""What doctor finds, one line each."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multicloud.runtime import Server

CHECKS = "checks"
"""What may follow from a cause, beside what `problems` knows: that checks fail."""

SHOWN = 8
"""How many names a line has."""


class Finding(NamedTuple):
    """`kind` is ok, problem or unknown: what could not be looked at.

    `explains` are its consequences, which are not told beside it: CHECKS, checks_of(…), and those of `problems`.
    """

    kind: str
    text: str
    explains: frozenset[str] = frozenset()


def ok(text: str) -> Finding:
    """All is well with it."""
    return Finding("ok", text)


def problem(text: str, *explains: str) -> Finding:
    """What is wrong, and what to do."""
    return Finding("problem", text, frozenset(explains))


def unknown(text: str) -> Finding:
    """What could not be looked at, and why."""
    return Finding("unknown", text)


def some(names: Sequence[str]) -> str:
    """The names, or the first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def checks_of(backend: str, server: str = "") -> str:
    """That the checks of a backend's servers fail, or those of one of them."""
    return f"{CHECKS} of {backend}/{server}"


def unexplained(server: Server, told: frozenset[str]) -> bool:
    """Whether no cause has been told for which the server's checks may fail."""
    return told.isdisjoint((CHECKS, checks_of(server.backend), checks_of(server.backend, server.name)))
