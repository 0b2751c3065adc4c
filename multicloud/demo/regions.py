"""Simulated cloud regions: HTTPS servers on loopback whose answers take as long as they are told."""

import asyncio
import contextlib
import math
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import trustme

NAMES = ("us-central.gcp.demo", "eu-west.gcp.demo", "us-east.heroku.demo", "ap-south.aws.demo")
AUTHORITY = "authority.pem"
TURN = 30.0  # seconds after which another region is the fastest


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
        with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError, asyncio.CancelledError):
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


@contextlib.contextmanager
def running(directory: Path) -> Iterator[list[Region]]:
    """Run regions in a thread, which are the fastest in turn: their delays are 20 to 100 ms, and change smoothly.

    The certificate of their authority is AUTHORITY in the directory.
    """
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(directory / AUTHORITY))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*NAMES).configure_cert(context)
    regions = [Region(name) for name in NAMES]
    started, ended = threading.Event(), threading.Event()

    async def serve() -> None:
        for region in regions:
            await region.start(context)
        started.set()
        began = time.monotonic()
        while not ended.is_set():
            turns = (time.monotonic() - began) / TURN
            for index, region in enumerate(regions):
                region.delay = 0.060 - 0.040 * math.cos(2 * math.pi * (turns - index) / len(regions))
            await asyncio.sleep(0.05)

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    started.wait()
    try:
        yield regions
    finally:
        ended.set()
        thread.join()
