"""The demo's regions, and what breaks them on purpose: tests and benchmarks have these."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING
from weakref import WeakSet

from multicloud.demo import regions as simulated
from tests.ports import free_port

if TYPE_CHECKING:
    import asyncio
    import socket
    from collections.abc import Iterator, Sequence


class Region(simulated.Region):
    """A region that can be broken.

    Its answers have `status`. With `hangs` N it never answers each Nth request, nor any with an infinite `delay`, until
    the other side goes away. With `stale` N it closes a kept connection at each Nth request that comes over one,
    unanswered, as a server does whose patience has ended just then; `cut` counts those. `accepted` counts the
    connections that were made to it.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.port = free_port()  # nobody takes it while the region is stopped
        self.hangs = self.stale = 0
        self.accepted = self.cut = 0
        self._asked = self._kept = 0
        self._used: WeakSet[asyncio.StreamReader] = WeakSet()
        self._frozen: list[socket.socket] = []

    @property
    def connections(self) -> int:
        """How many are open."""
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
            await simulated.close(self._server)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        super()._accept(reader, writer)

    async def _work(self, reader: asyncio.StreamReader) -> None:
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
        await super()._work(reader)


class Regions(simulated.Regions):
    """Regions that can be broken. `tls` False makes them speak plain HTTP."""

    def __init__(self, names: Sequence[str], *, tls: bool = True) -> None:
        super().__init__(names)
        self._regions: Sequence[Region] = [Region(name) for name in names]
        if not tls:
            self._context = None

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def freeze(self, region: Region) -> None:
        """Let a region hang."""
        self.run(region.freeze())
