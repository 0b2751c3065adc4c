"""The demo's regions in a process of their own, and what breaks them on purpose: tests and benchmarks have these.

They stand for machines elsewhere. Where they had to wait for the tests' own process, connections to them would time
out, each be tried again, and leave them with more to do than before.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import os
import threading
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import trustme

from multicloud.demo import regions as simulated
from tests.names import enter_network
from tests.ports import free_port
from tests.servers import server_context

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from multiprocessing.connection import Connection
    from typing import Self

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["__main__", "tests.regions"])


class Region:
    """A region that can be broken: what is set here is set in its process, and what is read here is read there.

    Its answers take `delay` seconds and have `status`. With `hangs` N it never answers each Nth request, nor any with
    an infinite `delay`, until the other side goes away. With `stale` N it closes a kept connection at each Nth request
    that comes over one, unanswered, as a server does whose patience has ended just then; `cut` counts those.
    With `workers` only so many requests are served at once. `accepted` counts the connections that were made to it, and
    `connections` those that are open.
    """

    name: str
    port: int
    delay: float
    status: int
    hangs: int
    stale: int
    accepted: int
    cut: int
    workers: int
    connections: int

    def __init__(self, name: str, ask: Callable[..., Any]) -> None:
        vars(self).update(name=name, _ask=ask)

    def __getattr__(self, attribute: str) -> Any:
        return self._ask("get", self.name, attribute)

    def __setattr__(self, attribute: str, value: float) -> None:
        self._ask("set", self.name, attribute, value)


class Regions:
    """A context manager; iterating gives the regions. `tls` False makes them speak plain HTTP."""

    def __init__(self, names: Sequence[str], *, tls: bool = True) -> None:
        self.authority = trustme.CA()
        pem = self.authority.issue_cert(*names).private_key_and_cert_chain_pem.bytes() if tls else None
        self._here, self._there = multiprocessing.Pipe()
        network = f"/proc/{os.getpid()}/task/{threading.get_native_id()}/ns/net"
        self._process = PROCESSES.Process(target=_run, args=(self._there, network, list(names), pem), daemon=True)
        self._regions = [Region(name, self._ask) for name in names]

    def __enter__(self) -> Self:
        self._process.start()
        self._there.close()
        return self

    def __exit__(self, *_: object) -> None:
        self._here.close()
        self._process.join()

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def start(self, region: Region) -> None:
        """Let a region serve."""
        self._ask("start", region.name)

    def stop(self, region: Region) -> None:
        """Let a region die."""
        self._ask("stop", region.name)

    def freeze(self, region: Region) -> None:
        """Let a region hang."""
        self._ask("freeze", region.name)

    def present(self, region: Region, certificate: trustme.LeafCert) -> None:
        """Let a region serve with another certificate."""
        self._ask("present", region.name, certificate.private_key_and_cert_chain_pem.bytes())

    def _ask(self, what: str, name: str, *values: object) -> Any:
        self._here.send((what, name, *values))
        return self._here.recv()


def _run(there: Connection, network: str, names: Sequence[str], pem: bytes | None) -> None:
    """Do what is asked for until the other end is closed, in the network of who asks."""
    enter_network(network)
    with contextlib.suppress(PermissionError):
        os.nice(-10)
    asyncio.run(_serve(there, {name: _Breakable(name) for name in names}, pem))


async def _serve(there: Connection, regions: Mapping[str, _Breakable], pem: bytes | None) -> None:
    context = server_context(trustme.Blob(pem)) if pem else None
    for region in regions.values():
        await region.start(context)
    with contextlib.suppress(EOFError):
        await _obey(there, regions, context)
    for region in regions.values():
        await region.stop()


async def _obey(there: Connection, regions: Mapping[str, _Breakable], context: ssl.SSLContext | None) -> None:
    while True:
        what, name, *values = await asyncio.to_thread(there.recv)
        region, answer = regions[name], None
        match what:
            case "get":
                answer = getattr(region, *values)
            case "set":
                setattr(region, *values)
            case "start":
                await region.start(context)
            case "present":
                await region.stop()
                await region.start(server_context(trustme.Blob(*values)))
            case _:
                await getattr(region, what)()
        there.send(answer)


class Mortal(simulated.Region):
    """A region that can die."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self, context: ssl.SSLContext | None) -> asyncio.Server:
        self._server = await super().start(context)
        return self._server

    async def stop(self) -> None:
        """Stop listening and cut all connections, as a process that dies does."""
        await self.close()
        await asyncio.sleep(0)  # the last ones begin to be served
        for writer in self._connections:
            writer.transport.abort()

    async def close(self) -> None:
        """Stop listening as soon as no connection is half accepted, since asyncio forgets those."""
        if self._server:
            for listening in self._server.sockets:
                asyncio.get_running_loop().remove_reader(listening)
            await asyncio.sleep(0)
            self._server.close()
            self._server = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        await super().serve(reader, writer)
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        self._connections.remove(writer)


class _Breakable(Mortal):
    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.port = free_port()  # nobody takes it while the region is stopped
        self.hangs = self.stale = 0
        self.accepted = self.cut = 0
        self.workers = 0
        self._places: asyncio.Semaphore | None = None
        self._asked = self._kept = 0
        self._used: WeakSet[asyncio.StreamReader] = WeakSet()
        self._frozen: list[socket.socket] = []

    @property
    def connections(self) -> int:
        return len(self._connections)

    async def stop(self) -> None:
        await super().stop()
        for listening in self._frozen:
            listening.close()

    async def freeze(self) -> None:
        """Keep the connections and the port, and never answer again, as a process that hangs does."""
        self.delay = math.inf
        if self._server:
            self._frozen = [listening.dup() for listening in self._server.sockets]
            await self.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        await super().serve(reader, writer)

    async def work(self, reader: asyncio.StreamReader) -> None:
        if reader in self._used:
            self._kept += 1
            if self.stale and self._kept % self.stale == 0:
                self.cut += 1
                raise ConnectionError
        self._used.add(reader)
        self._asked += 1
        if math.isinf(self.delay) or (self.hangs and self._asked % self.hangs == 0):
            await reader.read()
            raise ConnectionError
        if self.workers and not self._places:
            self._places = asyncio.Semaphore(self.workers)
        async with (self.workers and self._places) or contextlib.nullcontext():
            await super().work(reader)
