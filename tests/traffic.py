"""An open-loop client: requests at a steady rate, whether or not the earlier ones were answered."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.edge import wait_until

if TYPE_CHECKING:
    from typing import Self


class Answer(NamedTuple):
    """When the request was sent (time.monotonic), what it got (status 0: no answer) and after how many seconds."""

    sent: float
    status: int
    region: str
    seconds: float


class Traffic:
    """Requests to a port of this machine while the context lasts, each over a connection of its own."""

    def __init__(self, port: int, rate: float = 200.0, timeout: float = 5.0, method: str = "GET") -> None:
        self.answers: list[Answer] = []
        self._port = port
        self._rate = rate
        self._timeout = timeout
        self._request = f"{method} / HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".encode()
        self._end = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def go_on(self, count: int) -> None:
        """Wait for so many answers more."""
        enough = len(self.answers) + count
        wait_until(lambda: len(self.answers) >= enough, 30, f"{count} answers")

    def regions_since(self, moment: float) -> set[str]:
        """The regions that answered requests sent after `moment`."""
        return {answer.region for answer in self.answers if answer.sent > moment and answer.status == 200}

    async def _run(self) -> None:
        began = time.monotonic()
        requests: list[asyncio.Task[None]] = []
        while not self._end.is_set():
            requests.append(asyncio.create_task(self._ask()))
            await asyncio.sleep(max(0.0, began + len(requests) / self._rate - time.monotonic()))
        await asyncio.gather(*requests)

    async def _ask(self) -> None:
        sent = time.monotonic()
        try:
            async with asyncio.timeout(self._timeout):
                status, region = await self._exchange()
        except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            status, region = 0, ""
        self.answers.append(Answer(sent, status, region, time.monotonic() - sent))

    async def _exchange(self) -> tuple[int, str]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request)
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            await reader.read()
        finally:
            writer.close()
        upstream = head.lower().partition("\r\nupstream: ")[2].partition("\r\n")[0]
        return int(head.split()[1]), upstream
