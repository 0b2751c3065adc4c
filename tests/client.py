"""Requests at moments of their own, whether or not the earlier ones were answered, each timed from outside."""

import asyncio
import itertools
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import NamedTuple, Self

from tests.edge import wait_until

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Exchange = tuple[int, str, bool]  # status, region, and whether the connection stays

TIMEOUT = 15.0


class Answer(NamedTuple):
    """When a request was sent (time.monotonic), the seconds until its answer was complete, status and region.

    Status 0 and region "" where no answer came, or a part of one.
    """

    sent: float
    seconds: float
    status: int
    region: str


async def timed(request: Coroutine[object, object, Exchange], timeout: float = TIMEOUT) -> Answer:
    """Have a request sent, and time it. Never raises for what the other side does."""
    sent = time.monotonic()
    try:
        async with asyncio.timeout(timeout):
            status, region, _ = await request
    except (OSError, EOFError, asyncio.LimitOverrunError):  # TimeoutError is an OSError
        status, region = 0, ""
    return Answer(sent, time.monotonic() - sent, status, region)


async def over_new(port: int, method: str = "GET") -> Exchange:
    """Ask HAProxy on loopback over a connection of its own."""
    connection = await asyncio.open_connection("127.0.0.1", port)
    try:
        return await exchange(connection, method, more="connection: close\r\n")
    finally:
        connection[1].close()


async def exchange(connection: Connection, method: str = "GET", *, more: str = "") -> Exchange:
    """Ask over a connection, with `more` headers; status 0 where it was cut in the middle of an answer.

    Raises OSError and EOFError where nothing came at all.
    """
    reader, writer = connection
    body = "order" if method == "POST" else ""
    writer.write(f"{method} / HTTP/1.1\r\nhost: app\r\n{more}content-length: {len(body)}\r\n\r\n{body}".encode())
    head = ""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(header(head, "content-length") or 0))
    except asyncio.IncompleteReadError as error:
        if head or error.partial:
            return 0, "", False
        raise
    return int(head.split()[1]), header(head, "upstream"), header(head, "connection") != "close"


def header(head: str, name: str) -> str:
    """The value of a header of a request or an answer, whose head is in lower case; "" where it has none."""
    return head.partition(f"\r\n{name}: ")[2].partition("\r\n")[0]


async def moments(gap: Callable[[], float], end: float = math.inf) -> AsyncIterator[float]:
    """The moments (time.monotonic) at which something is due, `gap` seconds after the one before, as they come."""
    due = time.monotonic()
    while (due := due + gap()) < end:
        await asyncio.sleep(due - time.monotonic())
        yield due


async def offer(
    ports: Sequence[int],
    gap: Callable[[], float],
    end: float,
    answers: list[Answer],
    method: str = "GET",
    timeout: float = TIMEOUT,
) -> None:
    """Send requests to the ports in turn until `end`, `gap` seconds after each other, whatever becomes of them."""

    async def ask(port: int) -> None:
        answers.append(await timed(over_new(port, method), timeout))

    turns = itertools.cycle(ports)
    async with asyncio.TaskGroup() as group:
        async for _ in moments(gap, end):
            group.create_task(ask(next(turns)))


class Traffic:
    """Requests to a port of this machine while the context lasts, each over a connection of its own."""

    def __init__(self, port: int, rate: float = 200.0, timeout: float = 5.0, method: str = "GET") -> None:
        self.answers: list[Answer] = []
        ended = self._ended = threading.Event()
        offered = offer(
            [port], lambda: math.inf if ended.is_set() else 1 / rate, math.inf, self.answers, method, timeout
        )
        self._thread = threading.Thread(target=asyncio.run, args=(offered,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def go_on(self, count: int) -> None:
        """Wait for so many answers more."""
        enough = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= enough, 30, f"{count} answers")

    def regions_since(self, moment: float) -> set[str]:
        """The regions that answered requests sent after `moment`."""
        return {answer.region for answer in self.answers if answer.sent > moment and answer.status == 200}
