"""A real HAProxy with a small configuration, and what can stand between it and a client of its Runtime API."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from multicloud import runtime
from multicloud.demo.router import Router

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CONFIGURATION = """
global
    stats socket "${{MULTICLOUD_SOCKET}}" mode 600 level {level}
    {extra}
defaults
    mode http
    timeout connect 1s
    timeout client 5s
    timeout server 5s
    timeout tunnel 1h
{backends}
"""


@contextlib.contextmanager
def haproxy(backends: str, *, level: str = "admin", extra: str = "") -> Iterator[str]:
    """Run HAProxy with these backends; the path of its Runtime API's socket, in a directory of its own."""
    with tempfile.TemporaryDirectory() as name:
        text = CONFIGURATION.format(backends=backends, level=level, extra=extra)
        with Router(Path(name), text, commands={}, environ={}) as router:
            yield router.settings["MULTICLOUD_SOCKET"]


def tell(address: str, *commands: str) -> list[str]:
    """Give HAProxy commands as an operator does; its answers."""
    with runtime.RuntimeAPI(address, timeout=30) as api:
        return [api.ask(command) for command in commands]


def servers(address: str) -> list[runtime.Server]:
    """All servers as HAProxy has them."""
    with runtime.RuntimeAPI(address, timeout=30) as api:
        return api.servers()


def weights(address: str, backend: str = "upstream") -> dict[str, int]:
    """The weights of a backend's servers as HAProxy has them."""
    return {server.name: server.weight for server in servers(address) if server.backend == backend}


def process(address: str) -> int:
    """The process that answers."""
    with runtime.RuntimeAPI(address, timeout=30) as api:
        return int(api.info()["Pid"])


@contextlib.contextmanager
def listening(answer: Callable[[socket.socket], object]) -> Iterator[str]:
    """A UNIX socket's path where `answer` has each connection to itself, in a thread, and is done when it returns."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):
                answer(self.request)

    with tempfile.TemporaryDirectory() as name:
        path = f"{name}/socket"
        with socketserver.ThreadingUnixStreamServer(path, Handler) as server:
            threading.Thread(target=server.serve_forever, args=(0.01,)).start()
            try:
                yield path
            finally:
                server.shutdown()


def say_nothing(connection: socket.socket) -> None:
    """Hear all that the client says."""
    while connection.recv(1 << 16):
        pass


READING = ("prompt", "show servers state", "show stat -1 4 -1")
"""The commands of a reweigh that change nothing."""


class Recorded:
    """What went through: the path to connect to, how many connections there were, and the commands."""

    def __init__(self) -> None:
        self.path = ""
        self.connections = 0
        self.commands: list[str] = []

    @property
    def sent(self) -> list[str]:
        """The commands that change something."""
        return [command for command in self.commands if command not in READING]


@contextlib.contextmanager
def recording(address: str, before: Callable[[str], None] = lambda _: None) -> Iterator[Recorded]:
    """Stand between a client and HAProxy at `address`; `before` is called with each command before HAProxy has it."""
    recorded = Recorded()

    def forward(client: socket.socket) -> None:
        recorded.connections += 1
        with socket.socket(socket.AF_UNIX) as upstream:
            upstream.connect(address)
            back = threading.Thread(target=copy, args=(upstream, client))
            back.start()
            try:
                with client.makefile("rb") as lines:
                    for line in lines:
                        command = line.decode().strip()
                        recorded.commands.append(command)
                        before(command)
                        upstream.sendall(line)
            finally:
                with contextlib.suppress(OSError):
                    upstream.shutdown(socket.SHUT_RDWR)
                back.join()

    def copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
            target.shutdown(socket.SHUT_RDWR)

    with listening(forward) as recorded.path:
        yield recorded
