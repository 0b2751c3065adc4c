"""What doctor says: a line for each finding."""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

from multicloud.console.instance import User, may

SHOWN = 8  # names that a line has


class Finding(NamedTuple):
    """`kind` is ok, problem (what is wrong, and what to do) or unknown (what was not looked at, and why: no cure)."""

    kind: str
    text: str


ok, problem, unknown = (partial(Finding, kind) for kind in ("ok", "problem", "unknown"))


def some(names: Sequence[str]) -> str:
    """The names, or the first of them."""
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def can(user: User, mode: str, path: str, what: str, cure: str) -> Finding:
    """Whether HAProxy's user may do `what` with a file (instance.may)."""
    allowed = may(user, mode, path)
    if allowed is None:
        return unknown(f"only root sees whether HAProxy's user {user.name} can {what} {path}")
    if allowed:
        return ok(f"HAProxy's user {user.name} can {what} {path}")
    return problem(f"HAProxy's user {user.name} cannot {what} {path}, {cure}")
