"""Requests as users send them, for hours: over new and over kept connections, some of them POST, at a steady rate.

Answers are counted, and only those that are no 200 are kept, until somebody takes them.
"""

import asyncio
import threading
import time
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple, Self

from tests import client
from tests.client import Connection, Exchange

NEW, KEPT, POST = "GET", "GET, kept connection", "POST"
MIX = (NEW, KEPT, NEW, KEPT, POST)  # what is sent, each as often
RATE = 50.0  # requests a second
TIMEOUT = 5.0  # seconds after which a user gives up
PATIENCE = 20.0  # seconds for which a client keeps an idle connection: less than HAProxy does


class Failure(NamedTuple):
    """A request that got no 200: when it was sent and ended (time.monotonic), and what it got.

    Status 0 is no answer, or a part of one. `region` is "" where no region answered.
    """

    sent: float
    ended: float
    kind: str
    status: int
    region: str


@dataclass
class Taken:
    """What was sent since the last time, how many kept connections turned out closed, and what failed.

    `late` is by how many seconds a request was sent too late at most: more than a little where the machine is too busy
    for what is measured.
    """

    requests: int = 0
    reopened: int = 0
    late: float = 0.0
    failures: list[Failure] = field(default_factory=list)


class Load:
    """Requests to a port of this machine while the context lasts, open loop."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._draw = Random(seed)
        self._lock = threading.Lock()
        self._taken = Taken()
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
            taken, self._taken = self._taken, Taken()
        return taken

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            async for due in client.moments(lambda: 1 / RATE):
                with self._lock:
                    self._taken.late = max(self._taken.late, time.monotonic() - due)
                if self._end.is_set():
                    break
                group.create_task(self._ask(self._draw.choice(MIX)))
        for _, (_, writer) in self._idle:
            writer.close()

    async def _ask(self, kind: str) -> None:
        request = self._over_kept() if kind == KEPT else client.over_new(self._port, kind)
        sent, seconds, status, region = await client.timed(request, TIMEOUT)
        with self._lock:
            self._taken.requests += 1
            if status != 200:
                self._taken.failures.append(Failure(sent, sent + seconds, kind, status, region))

    async def _over_kept(self) -> Exchange:
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
                    self._taken.reopened += 1
                break
        return await self._keep(await asyncio.open_connection("127.0.0.1", self._port))

    async def _keep(self, connection: Connection) -> Exchange:
        stays = False
        try:
            status, region, stays = await client.exchange(connection)
        finally:
            if stays:
                self._idle.append((time.monotonic(), connection))
            else:
                connection[1].close()
        return status, region, stays
