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
    from collections.abc import Iterator, Sequence
    from typing import Self

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

    async def start(self, context: ssl.SSLContext | None) -> asyncio.Server:
        """Listen on loopback, at the same port as before where there was one."""
        server = await asyncio.start_server(self.serve, "127.0.0.1", self.port, ssl=context, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection until the other side goes away, or this one does."""
        ends = OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError
        with contextlib.suppress(*ends):
            head = b""
            while b"\r\nconnection: close\r\n" not in head.lower():
                head = await reader.readuntil(b"\r\n\r\n")
                await self.work(reader)
                body = f"{self.name}\n\n".encode() + head
                writer.write(f"HTTP/1.1 {self.status} \r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
        writer.close()

    async def work(self, _reader: asyncio.StreamReader) -> None:
        """What a request has to wait for. An OSError closes its connection without an answer."""
        await asyncio.sleep(self.delay)


class Regions:
    """Regions that run in a thread of their own, with certificates of an authority of their own, and take turns.

    A context manager; iterating gives the regions.
    """

    def __init__(self) -> None:
        self.authority = trustme.CA()
        self._regions = [Region(name) for name in NAMES]
        self._started, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=(self._run(),), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    async def _run(self) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.authority.issue_cert(*NAMES).configure_cert(context)
        for region in self._regions:
            await region.start(context)
        self._started.set()
        began = time.monotonic()
        while not self._ended.is_set():
            drift(self._regions, (time.monotonic() - began) / TURN)
            await asyncio.sleep(0.05)


def drift(regions: Sequence[Region], turns: float) -> None:
    """Set the delays, 20 to 100 ms, so that after each of the turns another region is the fastest."""
    for index, region in enumerate(regions):
        region.delay = 0.060 - 0.040 * math.cos(2 * math.pi * (turns - index) / len(regions))
