"""Simulated cloud regions: HTTPS servers on loopback whose answers take as long as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from typing import Any, Self

NAMES = ("us-central.gcp.demo", "eu-west.gcp.demo", "us-east.heroku.demo", "ap-south.aws.demo")

TURN = 30.0
"""Seconds after which another region is the fastest."""


class Region:
    """A server whose answers take `delay` seconds, have `status` and say what was asked.

    `accepted` counts the connections that were made to it. With `hangs` N it never answers each Nth request, nor any
    with an infinite `delay`, until the other side goes away. With `stale` N it closes a kept connection at each Nth
    request that comes over one, unanswered, as a server does whose patience has ended just then; `cut` counts those.
    """

    def __init__(self, name: str, delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay
        self.status = 200
        self.hangs = self.stale = 0
        self._asked = self._kept = 0
        self.accepted = self.cut = 0
        self.port = 0
        self._server: asyncio.Server | None = None
        self._frozen: list[socket.socket] = []
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    @property
    def connections(self) -> int:
        """How many are open."""
        return len(self._connections)

    async def start(self, context: ssl.SSLContext | None) -> None:
        """Listen on loopback, at the same port as before where there was one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=context, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut all connections, as a process that dies does."""
        if self._server:
            await _close(self._server)
            for listening in self._frozen:
                listening.close()
            self._server = None
        for writer in self._connections:
            writer.transport.abort()

    async def freeze(self) -> None:
        """Keep the connections and the port, and never answer again, as a process that hangs does."""
        self.delay = math.inf
        if self._server:
            self._frozen = [listening.dup() for listening in self._server.sockets]
            await _close(self._server)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._connections[writer] = asyncio.ensure_future(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            first = True
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                self._kept += not first
                if not first and self.stale and self._kept % self.stale == 0:
                    self.cut += 1
                    break
                first = False
                self._asked += 1
                if math.isinf(self.delay) or (self.hangs and self._asked % self.hangs == 0):
                    await reader.read()
                    break
                await asyncio.sleep(self.delay)
                body = f"{self.name}\n\n".encode() + head
                writer.write(f"HTTP/1.1 {self.status} \r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
                if b"\r\nconnection: close\r\n" in head.lower():
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the other side went away, or the region does
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del self._connections[writer]


async def _close(server: asyncio.Server) -> None:
    """Close a server as soon as no connection is half accepted, since asyncio forgets those."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    await asyncio.sleep(0)
    server.close()


class Regions:
    """Regions that run in a thread of their own, with certificates of an authority of their own.

    A context manager; iterating gives the regions. `tls` False makes them speak plain HTTP.
    """

    def __init__(self, names: Sequence[str] = NAMES, *, tls: bool = True) -> None:
        self.authority = trustme.CA()
        self._regions = [Region(name) for name in names]
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert(*names).configure_cert(self._context)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for region in self._regions:
            self.start(region)
        return self

    def __exit__(self, *_: object) -> None:
        for region in self._regions:
            self.stop(region)
        self.run(_cancel_others())
        for region in self._regions:
            self.stop(region)  # connections whose handshake has ended since
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def start(self, region: Region) -> None:
        """Let a region serve."""
        self.run(region.start(self._context))

    def stop(self, region: Region) -> None:
        """Let a region die."""
        self.run(region.stop())

    def freeze(self, region: Region) -> None:
        """Let a region hang."""
        self.run(region.freeze())

    def run(self, work: Coroutine[Any, Any, None], *, wait: bool = True) -> None:
        """Run a coroutine where the regions run."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        if wait:
            future.result(timeout=10)

    def fastest(self) -> Region:
        """The region that would answer first now."""
        return min(self._regions, key=lambda region: region.delay)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def drift(regions: Regions) -> None:
    """Change the delays smoothly, 20 to 100 ms, so that the regions are the fastest for TURN seconds each, in turn."""
    everyone = list(regions)
    began = time.monotonic()
    while True:
        turns = (time.monotonic() - began) / TURN
        for index, region in enumerate(everyone):
            region.delay = 0.060 - 0.040 * math.cos(2 * math.pi * (turns - index) / len(everyone))
        await asyncio.sleep(0.05)
