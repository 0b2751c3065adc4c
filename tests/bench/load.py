"""Requests as users send them, for hours: over new and over kept connections, some of them POST, at a steady rate.

Answers are counted, and only those that are no 200 are kept, until somebody takes them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from typing import Self

    Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]

NEW, KEPT, POST = "GET", "GET, kept connection", "POST"
MIX = (NEW, KEPT, NEW, KEPT, POST)
"""What is sent, each as often."""

RATE = 50.0
"""Requests a second."""

TIMEOUT = 5.0
"""Seconds after which a user gives up."""

PATIENCE = 20.0
"""Seconds for which a client keeps an idle connection: less than HAProxy does."""


class Failure(NamedTuple):
    """A request that got no 200: when it was sent and ended (time.monotonic), and what it got.

    Status 0 is no answer, or a part of one. `region` is "" where no region answered.
    """

    sent: float
    ended: float
    kind: str
    status: int
    region: str


class Taken(NamedTuple):
    """What was sent since the last time, how many kept connections turned out closed, and what failed.

    `late` is by how many seconds a request was sent too late at most: more than a little where the machine is too busy
    for what is measured.
    """

    requests: int
    reopened: int
    late: float
    failures: list[Failure]


class Load:
    """Requests to a port of this machine while the context lasts, open loop."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._draw = Random(seed)
        self._lock = threading.Lock()
        self._sent = 0
        self._reopened = 0
        self._late = 0.0
        self._failures: list[Failure] = []
        self._idle: list[tuple[float, Connection]] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def take(self) -> Taken:
        """What was counted since the last time."""
        with self._lock:
            taken = Taken(self._sent, self._reopened, self._late, self._failures)
            self._sent, self._reopened, self._late, self._failures = 0, 0, 0.0, []
        return taken

    async def _run(self) -> None:
        due = time.monotonic()
        async with asyncio.TaskGroup() as group:
            while not self._end.is_set():
                group.create_task(self._ask(self._draw.choice(MIX)))
                due += 1 / RATE
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                with self._lock:
                    self._late = max(self._late, time.monotonic() - due)
        for _, (_, writer) in self._idle:
            writer.close()

    async def _ask(self, kind: str) -> None:
        sent = time.monotonic()
        try:
            async with asyncio.timeout(TIMEOUT):
                status, region = await (self._over_kept() if kind == KEPT else self._over_new(kind))
        except (OSError, EOFError, asyncio.LimitOverrunError):  # TimeoutError is an OSError
            status, region = 0, ""
        with self._lock:
            self._sent += 1
            if status != 200:
                self._failures.append(Failure(sent, time.monotonic(), kind, status, region))

    async def _over_new(self, kind: str) -> tuple[int, str]:
        method, body = ("POST", "order") if kind == POST else ("GET", "")
        connection = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            status, region, _ = await _exchange(
                connection,
                f"{method} / HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n{body}",
            )
        finally:
            connection[1].close()
        return status, region

    async def _over_kept(self) -> tuple[int, str]:
        """Over a connection that was kept, and over a new one where that turns out closed, as browsers do it."""
        while self._idle:
            since, connection = self._idle.pop()
            if time.monotonic() > since + PATIENCE or connection[0].at_eof():
                connection[1].close()
                continue
            try:
                return await self._keep(connection)
            except (OSError, EOFError):
                with self._lock:
                    self._reopened += 1
                break
        return await self._keep(await asyncio.open_connection("127.0.0.1", self._port))

    async def _keep(self, connection: Connection) -> tuple[int, str]:
        stays = False
        try:
            status, region, stays = await _exchange(connection, "GET / HTTP/1.1\r\nhost: app\r\n\r\n")
        finally:
            if not stays:
                connection[1].close()
        if stays:
            self._idle.append((time.monotonic(), connection))
        return status, region


async def _exchange(connection: Connection, request: str) -> tuple[int, str, bool]:
    """Status, region, and whether the connection stays; status 0 where it was cut in the middle of an answer.

    Raises OSError and EOFError where nothing came at all.
    """
    reader, writer = connection
    writer.write(request.encode())
    head = ""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        await reader.readexactly(int(_header(head, "content-length")))
    except asyncio.IncompleteReadError as error:
        if head or error.partial:
            return 0, "", False
        raise
    return int(head.split()[1]), _header(head, "upstream"), _header(head, "connection") != "close"


def _header(head: str, name: str) -> str:
    return head.partition(f"\r\n{name}: ")[2].partition("\r\n")[0]
