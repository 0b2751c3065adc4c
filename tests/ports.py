"""Ports of the loopback address that nobody else takes while the tests run."""

from __future__ import annotations

import socket
from collections import deque

_reserved: deque[socket.socket] = deque()
MOST = 200
"""So many are reserved at once by this process, more than a test needs: the oldest one is given back for the next."""


def free_port() -> int:
    """A port for a program that the test will start, and start again."""
    return _reserve(0)


def demo_ports() -> tuple[int, int]:
    """Two ports whose next ports are free, too, as the demo needs them."""
    return _pair(), _pair()


def _pair() -> int:
    while True:
        port = free_port()
        try:
            _reserve(port + 1)
        except OSError:  # somebody's
            continue
        return port


def _reserve(port: int) -> int:
    """Bind to a port, 0 for any, and do not listen.

    The system then gives it to nobody who asks for any port, nor to a connection. Who asks for it by its number and
    sets SO_REUSEADDR, as servers do, gets it, because that is set here, too; it is set after `bind`, so that no two
    processes can reserve the same port.
    """
    reserved = socket.socket()
    reserved.bind(("127.0.0.1", port))
    reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    _reserved.append(reserved)
    if len(_reserved) > MOST:
        _reserved.popleft().close()
    return int(reserved.getsockname()[1])
