"""What doctor knows before it asks its first question, and what it says: a line for each finding."""

from collections.abc import Collection, Sequence
from functools import partial
from typing import NamedTuple

from multicloud.console.instance import Instance, User, may
from multicloud.console.parser import Configuration
from multicloud.runtime import Server
from multicloud.settings import Settings, Sources

SHOWN = 8  # names that a line has


class Finding(NamedTuple):
    """`kind` is ok, problem (what is wrong, and what to do) or unknown (what was not looked at, and why: no cure)."""

    kind: str
    text: str


class Case(NamedTuple):
    """A router, as far as it can be seen from here."""

    sources: Sources
    values: Settings  # of `multicloud run`
    instance: Instance  # empty where HAProxy does not answer
    away: str  # why it does not; "" where it does
    user: User | None  # whom HAProxy runs as; None where that cannot be seen
    files: Sequence[str]  # HAProxy's configuration files
    configuration: Configuration  # empty without `files`
    foreign: Collection[str] = ()  # the backends whose external checks seem to be another program

    @property
    def forks(self) -> bool:
        """Whether HAProxy's user runs the commands."""
        return self.instance.forks(self.values.backends)

    @property
    def checked(self) -> list[Server]:
        """The servers whose external checks measure them."""
        return [server for server in self.instance.checked() if server.backend not in self.foreign]


ok, problem, unknown = (partial(Finding, kind) for kind in ("ok", "problem", "unknown"))


def some(names: Sequence[str]) -> str:
    """The names, or the first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def can(user: User, modes: str, path: str, what: str, cure: str) -> Finding:
    """Whether HAProxy's user may do `what` with a file (instance.may)."""
    allowed = may(user, modes, path)
    if allowed is None:
        return unknown(f"only root sees whether HAProxy's user {user.name} can {what} {path}")
    if allowed:
        return ok(f"HAProxy's user {user.name} can {what} {path}")
    return problem(f"HAProxy's user {user.name} cannot {what} {path}, {cure}")
