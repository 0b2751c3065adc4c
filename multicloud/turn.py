"""One at a time: a lock that no disk can freeze, and that ends with the process which has it.

It is an abstract UNIX socket (unix(7)), since a lock on a file could wait for the file's disk for ever. Anybody on the
machine can take such a name, so it counts only in the hands of users who may do what it guards. Processes in other
network namespaces, as in another container, do not see it.
"""

from __future__ import annotations

import _socket as socket  # as in probe.py
import os
import sys
from time import monotonic, sleep

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Collection

LENGTH = 107
"""Bytes that the address of a UNIX socket may have."""

PAUSE, PATIENCE = 0.002, 5
"""Seconds between two tries, and how many there are where nobody says whose the turn is."""

QUEUE = 4096
"""How many can ask the same process, which may be frozen, before it is CROWDED."""

STOPPED, CROWDED = -2, -1
"""In place of a user id: of one that is stopped, and of one that nobody can ask any more, since too many have."""


def take(name: str, trusted: Collection[int] = (), wait: float = 0.0) -> socket.socket | None:
    """Take the turn; None where a process of root, of this user or of the `trusted` user ids has it for `wait` seconds.

    Who gets None has asked for the turn, of which `asked` tells the one who has it. The turn ends when the socket is
    closed.
    """
    address = b"\0multicloud " + os.fsencode(name)[12 - LENGTH :]  # names differ at their ends
    turn = socket.socket(socket.AF_UNIX)
    turn.setblocking(False)
    owner, unanswered = None, 0
    deadline = monotonic() + wait
    while True:
        try:
            turn.bind(address)
            turn.listen(QUEUE)
            return turn
        except OSError:  # it is taken
            if owner is None:
                owner = _owner(address)
                unanswered += owner is None
        if unanswered > PATIENCE or owner not in (None, 0, os.geteuid(), *trusted):
            return turn  # without the name, which is a stranger's
        if owner is not None and monotonic() >= deadline:
            turn.close()
            return None
        sleep(PAUSE)


def asked(turn: socket.socket) -> bool:
    """Whether somebody has asked for the turn since it was taken; of each who asked it is told once."""
    try:
        os.close(turn._accept()[0])  # type: ignore[attr-defined]
        return True
    except OSError:
        return False


def _owner(address: bytes) -> int | None:
    """The user id of the process that has the address; None where it is not there yet.

    CROWDED where it cannot be told, and STOPPED where somebody has stopped it: it might keep the turn for ever.
    """
    asking = socket.socket(socket.AF_UNIX)
    asking.setblocking(False)
    try:
        asking.connect(address)
        credentials = asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    except BlockingIOError:
        return CROWDED
    except OSError:
        return None
    finally:
        asking.close()
    pid, owner = (int.from_bytes(credentials[at : at + 4], sys.byteorder) for at in (0, 4))
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return STOPPED if file.read().rpartition(b") ")[2][:1] in b"tT" else owner
    except OSError:  # it has just ended
        return owner
