"""Simulated cloud regions: HTTPS servers on loopback whose answers take as long as they are told."""

from __future__ import annotations

import asyncio
import contextlib
import math
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
    """A server whose answers take `delay` seconds, have `status` and say what was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.delay = 0.0
        self.status = 200
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: dict[asyncio.StreamWriter, asyncio.Task[None]] = {}

    async def start(self, context: ssl.SSLContext | None) -> None:
        """Listen on loopback, at the same port as before where there was one."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=context, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut all connections, as a process that dies does."""
        if self._server:
            await close(self._server)
            self._server = None
        for writer in self._connections:
            writer.transport.abort()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections[writer] = asyncio.ensure_future(self._serve(reader, writer))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The other side goes away, or the region does.
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            head = b""
            while b"\r\nconnection: close\r\n" not in head.lower():
                head = await reader.readuntil(b"\r\n\r\n")
                await self._work(reader)
                body = f"{self.name}\n\n".encode() + head
                writer.write(f"HTTP/1.1 {self.status} \r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        del self._connections[writer]

    async def _work(self, _reader: asyncio.StreamReader) -> None:
        """What a request has to wait for. An OSError closes its connection without an answer."""
        await asyncio.sleep(self.delay)


async def close(server: asyncio.Server) -> None:
    """Close a server as soon as no connection is half accepted, since asyncio forgets those."""
    for listening in server.sockets:
        asyncio.get_running_loop().remove_reader(listening)
    await asyncio.sleep(0)
    server.close()


class Regions:
    """Regions that run in a thread of their own, with certificates of an authority of their own.

    A context manager; iterating gives the regions.
    """

    def __init__(self, names: Sequence[str] = NAMES) -> None:
        self.authority = trustme.CA()
        self._regions: Sequence[Region] = [Region(name) for name in names]
        self._context: ssl.SSLContext | None = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*names).configure_cert(self._context)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for region in self._regions:
            self.start(region)
        return self

    def __exit__(self, *_: object) -> None:
        self.run(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """Stop all regions, and whatever else runs beside them."""
        for region in self._regions:
            await region.stop()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        for region in self._regions:
            await region.stop()  # connections whose handshake has ended since

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def start(self, region: Region) -> None:
        """Let a region serve."""
        self.run(region.start(self._context))

    def stop(self, region: Region) -> None:
        """Let a region die."""
        self.run(region.stop())

    def run(self, work: Coroutine[Any, Any, None], *, wait: bool = True) -> None:
        """Run a coroutine where the regions run."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        if wait:
            future.result(timeout=10)


async def drift(regions: Regions) -> None:
    """Change the delays smoothly, 20 to 100 ms, so that the regions are the fastest for TURN seconds each, in turn."""
    everyone = list(regions)
    began = time.monotonic()
    while True:
        turns = (time.monotonic() - began) / TURN
        for index, region in enumerate(everyone):
            region.delay = 0.060 - 0.040 * math.cos(2 * math.pi * (turns - index) / len(everyone))
        await asyncio.sleep(0.05)
