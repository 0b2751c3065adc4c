"""Regions that can be full, and edges that share nothing but them: a simulation of events, second by second.

    python -m tests.bench.replay --lines          the table: what users wait, by load and number of edges

A region serves `WORKERS` requests at once, each for `SERVICE` seconds, and the others wait in line; it is `WAN` seconds
away, there and back. Users come by chance (a Poisson process), and their number does not fall when they wait. Each edge
chooses like HAProxy's `balance random(2)`, checks each region as HAProxy does, 2 s after the last check has ended, and
is reweighed every 2 s by the package's own functions. What users wait is held against the best fixed split.
"""

import random
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import NamedTuple

from multicloud import sharing
from multicloud.history import Sample
from multicloud.ranking import Decision, rank
from multicloud.reweigh import AGAIN, EVERY
from multicloud.runtime import UP, Server
from multicloud.scores import scores
from tests.bench.table import Table

Share = Callable[..., Sequence[Decision]]

WAN = (0.030, 0.060, 0.110, 0.150)
WORKERS, SERVICE = 4, 0.080
CAPACITY = WORKERS / SERVICE  # requests a second that one region can serve: a load of 1
INTERVAL = 2.0  # seconds from a check to the next one
LOW = 0.3  # the load before and after the one that is looked at
# The weights under which users wait least, by load, found by trying others under round robin in steps of 0.02.
SPLITS: Mapping[float, Sequence[int]] = {
    0.3: (256, 0, 0, 0),
    0.7: (205, 51, 0, 0),
    1.2: (143, 113, 0, 0),
    2.0: (95, 95, 66, 0),
    2.5: (85, 80, 75, 16),
}


class Request(NamedTuple):
    """From an edge to a region, by their numbers; a check is none of a user's."""

    start: float
    edge: int
    region: int
    is_check: bool


class Edge:
    """What one HAProxy has: `arrivals` are the times of each server's last second of requests."""

    def __init__(self, weights: Sequence[int]) -> None:
        self.servers = [Server("wan", str(number), UP, weight) for number, weight in enumerate(weights)]
        self.samples: dict[tuple[str, str], list[Sample]] = {}
        self.arrivals: list[deque[float]] = [deque() for _ in weights]
        self.means = [0.0] * len(weights)
        self.turns = [0.0] * len(weights)

    def random_two(self, chance: random.Random) -> int:
        """The one of two servers, drawn by weight, that has fewer requests in flight for its weight."""
        weights = [server.weight for server in self.servers]
        drawn = chance.choices(range(len(weights)), weights, k=2)
        return min(drawn, key=lambda each: self.servers[each].in_flight / weights[each])

    def round_robin(self) -> int:
        """In turn, by weight, and as evenly as can be."""
        for number, server in enumerate(self.servers):
            self.turns[number] += server.weight
        chosen = max(range(len(self.turns)), key=self.turns.__getitem__)
        self.turns[chosen] -= sum(server.weight for server in self.servers)
        return chosen

    def loads(self, now: float) -> dict[tuple[str, str], sharing.Load]:
        """What `show stat` says of users."""
        for server, arrivals in zip(self.servers, self.arrivals, strict=True):
            while arrivals and arrivals[0] < now - 1:
                arrivals.popleft()
            server.rate = len(arrivals)
        return sharing.loads(self.servers)


class World:
    """Edges, regions and what is going to happen. `waited` has the start of each user's request, and its seconds.

    `rate` is how many of these come in a second, and `ways` and `services` are the seconds to the regions and back, and
    those of an answer. `weights` are those at the begin; `share` may change what ranking decides, and None keeps the
    weights as they are.
    """

    def __init__(self, edges: int, seed: int, weights: Sequence[int], share: Share | None) -> None:
        self.now, self.rate = 0.0, LOW * CAPACITY
        self.ways, self.services = [*WAN], [SERVICE] * len(WAN)
        self.workers = WORKERS
        self.chance = random.Random(seed)
        self.waited: list[tuple[float, float]] = []
        self.changes: list[tuple[float, list[int]]] = []
        self._share = share or alone
        self._events: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._order = count()
        self._busy = [0] * len(WAN)
        self._lines: list[deque[Request]] = [deque() for _ in WAN]
        self._choose = partial(Edge.random_two, chance=self.chance) if share else Edge.round_robin
        self.edges = [Edge(weights) for _ in range(edges)]
        for number in range(edges):
            self._after(0.0, self._arrive, number)
            if share:
                self._after(self.chance.uniform(0, EVERY), self._reweigh, number)
                for region in range(len(WAN)):
                    self._after(self.chance.uniform(0, INTERVAL), self._send, number, region, True)

    def run(self, until: float) -> None:
        """Let everything happen until that second."""
        while self._events and self._events[0][0] <= until:
            self.now, _, action, arguments = heappop(self._events)
            action(*arguments)
        self.now = until

    def _after(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        heappush(self._events, (self.now + seconds, next(self._order), action, arguments))

    def _arrive(self, number: int) -> None:
        edge = self.edges[number]
        chosen = self._choose(edge)
        edge.servers[chosen].in_flight += 1
        edge.arrivals[chosen].append(self.now)
        self._send(number, chosen, False)
        self._after(self.chance.expovariate(self.rate / len(self.edges)), self._arrive, number)

    def _send(self, number: int, region: int, is_check: bool) -> None:
        self._after(self.ways[region] / 2, self._reach, Request(self.now, number, region, is_check))

    def _reach(self, request: Request) -> None:
        self._lines[request.region].append(request)
        self._serve(request.region)

    def _serve(self, region: int) -> None:
        if self._lines[region] and self._busy[region] < self.workers:
            self._busy[region] += 1
            self._after(self.services[region], self._served, self._lines[region].popleft())

    def _served(self, request: Request) -> None:
        self._busy[request.region] -= 1
        self._serve(request.region)
        self._after(self.ways[request.region] / 2, self._answered, request)

    def _answered(self, request: Request) -> None:
        seconds = self.now - request.start
        edge, region = self.edges[request.edge], request.region
        server = edge.servers[region]
        if request.is_check:
            newest = [Sample(seconds, self.now), *edge.samples.get(server.key, ())]
            edge.samples[server.key] = newest[: sharing.USUAL]
            self._after(INTERVAL, self._send, request.edge, region, True)
            return
        server.in_flight -= 1
        server.answers += 1
        edge.means[region] += (seconds - edge.means[region]) / min(server.answers, sharing.AVERAGED)
        server.total_time = round(edge.means[region], 3)  # as HAProxy has it
        self.waited.append((request.start, seconds))

    def _connect(self, source: tuple[str, str]) -> float:
        """There and back, however long the line is."""
        return self.ways[int(source[1])]

    def _reweigh(self, number: int) -> None:
        edge, began = self.edges[number], self.now

        def again() -> dict[tuple[str, str], sharing.Load]:
            self.run(began + AGAIN)
            return edge.loads(self.now)

        scored = {key: score.seconds for key, score in scores(edge.samples, now=self.now).items()}
        ranked = rank(edge.servers, scored)
        decided = self._share(
            ranked, samples=edge.samples, users=edge.loads(self.now), again=again, connect=self._connect, now=self.now
        )
        before = [server.weight for server in edge.servers]
        for server, decision in zip(edge.servers, decided, strict=True):
            server.weight = decision.weight
        if (after := [server.weight for server in edge.servers]) != before:
            self.changes.append((self.now, after))
        self._after(began + EVERY - self.now, self._reweigh, number)


SHARE = partial(sharing.share, elapsed=EVERY, favorite=256, backup=1)


def alone(decisions: Sequence[Decision], **_: object) -> Sequence[Decision]:
    """What ranking says, and nothing more."""
    return decisions


def step(load: float, edges: int, *, seed: int = 1, share: Share | None = SHARE) -> World:
    """A minute of low load, two of `load`, and one of low load again. With `share` None: under the best fixed split."""
    world = World(edges, seed, (1, 1, 1, 1) if share else SPLITS[load], share)
    for load_then, until in ((LOW, 60), (load, 180), (LOW, 240)):
        world.rate = load_then * CAPACITY
        world.run(until)
    return world


# What becomes of the nearest region, where none is full: the seconds there and back, and those of an answer.
STEPS = {"far": (0.250, 0.010), "back": (0.030, 0.010), "slow": (0.030, 0.090)}


def course(rate: float, *, seed: int = 1, share: Share | None = SHARE) -> dict[str, float]:
    """The seconds that users wait in the 20 s after each of STEPS, where each region can serve all of them."""
    world = World(1, seed, (1, 1, 1, 1), share)
    world.rate, world.workers, world.services = rate, 1000, [0.010] * len(WAN)
    world.run(60)
    for world.ways[0], world.services[0] in STEPS.values():
        world.run(world.now + 20)
    return {name: mean(world, 60 + 20 * number, 80 + 20 * number) for number, name in enumerate(STEPS)}


def mean(world: World, begin: float, end: float) -> float:
    """The seconds that users wait who came in that time."""
    return statistics.fmean(seconds for start, seconds in world.waited if begin <= start < end)


def print_table() -> None:
    """Users' mean latency in ms by load: in its second minute, in the 20 s after the step to it, and long after it."""
    table = Table("edges", "load", "best split", "ranking alone", "shared", "ratio", "first 20 s", "at 0.3 again")
    for edges in (1, 3, 10):
        for load in SPLITS:
            found = [step(load, edges, share=share) for share in (None, alone, SHARE)]
            best, ranked, shared = (1000 * mean(world, 120, 180) for world in found)
            first, last = (1000 * mean(found[2], *times) for times in ((60, 80), (190, 240)))
            whole = [f"{each:,.0f}" for each in (best, ranked, shared, first, last)]
            table.row(edges, load, *whole[:3], f"{shared / best:.2f}", *whole[3:])
