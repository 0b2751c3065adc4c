"""An asyncio client for the programs that measure: one request a connection, timed from outside."""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

GET = b"GET / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: 5\r\n\r\norder"
TIMEOUT = 15.0


class Answer(NamedTuple):
    """When a request was sent (time.monotonic), the seconds until its answer was complete, status and region.

    Status 0 and region "" where no answer came.
    """

    sent: float
    seconds: float
    status: int
    region: str


async def get(port: int, request: bytes = GET) -> Answer:
    """Ask HAProxy on loopback for a page, or something else. Never raises for what the other side does."""
    sent = time.monotonic()
    try:
        async with asyncio.timeout(TIMEOUT):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                writer.write(request)
                answer = await reader.read()
            finally:
                writer.close()
    except OSError:  # TimeoutError is one
        answer = b""
    return Answer(sent, time.monotonic() - sent, *_status_and_region(answer))


def _status_and_region(answer: bytes) -> tuple[int, str]:
    head, end, _ = answer.partition(b"\r\n\r\n")
    fields = head.split(None, 2)
    if not end or not fields[1].isdigit():
        return 0, ""
    headers = [line.partition(b":") for line in head.lower().split(b"\r\n")[1:]]
    return int(fields[1]), next((value.strip().decode() for name, _, value in headers if name == b"upstream"), "")
