"""Simulated regions in a process of their own, whose latency follows a schedule.

Each policy has regions of its own, so that no policy's load slows another's down; all follow the same schedule, and
only chance differs. A region's latency is normal around its mean, may have a heavy tail, and may grow with its load.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import multiprocessing
import random
import ssl
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import trustme

from tests.regions import Mortal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

NAMES = ("us-central.gcp.demo", "eu-west.gcp.demo", "us-east.heroku.demo", "ap-south.aws.demo")

TAIL_MS = 250.0
"""The mean of the heavy tail, in milliseconds: 100 and a Pareto distribution of shape 2.5 and mean 150."""

SATURATED = 0.95
"""A region that gets more requests than it can serve is as slow as with this part of its capacity."""


class Phase(NamedTuple):
    """`truth` is the mean latency of each region in milliseconds, inf where dead; it may depend on the part of the
    phase that is over, 0 to 1. `jitter` is a standard deviation relative to the mean, and `tail` the part of the first
    region's answers that lies in its heavy tail. With a `capacity` in requests a second, these means are those of
    idle regions, and a region with the load u, as a part of it, takes 1 / (1 - u) times as long.
    """

    name: str
    seconds: float
    truth: Sequence[float | Callable[[float], float]]
    jitter: float = 0.10
    tail: float = 0.0
    capacity: float = math.inf


class Schedule:
    """Phases one after the other, from the moment `began` (time.monotonic) on; the last one goes on for ever."""

    def __init__(self, phases: Sequence[Phase], began: float) -> None:
        self.phases = phases
        self.began = began
        self.starts = [sum(phase.seconds for phase in phases[:index]) for index in range(len(phases))]
        self.seconds = sum(phase.seconds for phase in phases)

    def index(self, moment: float) -> int:
        """The phase of a moment."""
        return max(sum(start <= moment - self.began for start in self.starts) - 1, 0)

    def body(self, moment: float) -> list[float]:
        """The mean latency of each region without its tail, in seconds."""
        index = self.index(moment)
        phase = self.phases[index]
        over = min(max((moment - self.began - self.starts[index]) / phase.seconds, 0.0), 1.0)
        return [(each(over) if callable(each) else each) / 1000 for each in phase.truth]

    def truth(self, moment: float) -> list[float]:
        """The mean latency of each region, in seconds."""
        first, *others = self.body(moment)
        return [first + self.phases[self.index(moment)].tail * TAIL_MS / 1000, *others]


class Region(Mortal):
    """A region of a schedule: each request, a check's too, draws its own delay."""

    def __init__(self, number: int, schedule: Schedule) -> None:
        super().__init__(NAMES[number])
        self._number = number
        self.schedule = schedule
        self._arrivals: deque[float] = deque()

    @property
    def delay(self) -> float:
        """Seconds that the answer to a request that came now takes."""
        now = time.monotonic()
        phase = self.schedule.phases[self.schedule.index(now)]
        mean = self.schedule.body(now)[self._number]
        if phase.capacity < math.inf:
            self._arrivals.append(now)
            while self._arrivals[0] < now - 1:
                self._arrivals.popleft()
            mean /= 1 - min(len(self._arrivals) / phase.capacity, SATURATED)
        seconds = mean * max(0.1, random.gauss(1, phase.jitter)) if mean < math.inf else 0.0
        if self._number == 0 and random.random() < phase.tail:
            seconds += 0.1 + 0.15 * 1.5 * (random.paretovariate(2.5) - 1)
        return seconds

    @delay.setter
    def delay(self, seconds: float) -> None:
        """The schedule decides, whatever the base class begins with."""


@contextlib.contextmanager
def running(schedule: Schedule, sets: int) -> Iterator[tuple[list[list[int]], bytes]]:
    """Run `sets` sets of regions; gives the ports of each set, and their authority's certificate (PEM)."""
    authority = trustme.CA()
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("fork").Process(
        target=_main, args=(schedule, sets, authority, there), daemon=True
    )
    process.start()
    try:
        yield here.recv(), authority.cert_pem.bytes()
    finally:
        process.terminate()
        process.join()


def _main(schedule: Schedule, sets: int, authority: trustme.CA, parent: Connection) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*NAMES).configure_cert(context)
    asyncio.run(_serve([[Region(number, schedule) for number in range(4)] for _ in range(sets)], context, parent))


async def _serve(sets: Sequence[Sequence[Region]], context: ssl.SSLContext, parent: Connection) -> None:
    """Serve until the process is ended; a region is dead while the schedule says so."""
    for regions in sets:
        for region in regions:
            await region.start(context)
    parent.send([[region.port for region in regions] for regions in sets])
    alive = [True] * len(NAMES)
    while True:
        for number, mean in enumerate(sets[0][0].schedule.body(time.monotonic())):
            if alive[number] != (mean < math.inf):
                alive[number] = not alive[number]
                for regions in sets:
                    await (regions[number].start(context) if alive[number] else regions[number].stop())
        await asyncio.sleep(0.02)
