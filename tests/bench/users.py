"""What users wait, in multiples of what the distance alone costs: ours, HAProxy's own algorithms and nginx.

    python -m tests.bench.users                   twelve phases of 20 seconds: 5 minutes
    python -m tests.bench.users --seconds 60      longer ones
    python -m tests.bench.users --beside          multicloud-run beside HAProxy, too

Regions with HTTPS are 30, 60, 110 and 150 ms away (tests.bench.wan) and take 10 ms for an answer. `multicloud` is the
shipped haproxy.cfg with its defaults; the others keep connections to the regions (tests.bench.proxies). Each gets the
same rate of requests, each over a new connection of a client on its own machine, open loop: a slow answer delays no
other request. It prints the mean latency as a multiple of the limit, which is one round trip to the best region and
that region's time for an answer; so a policy that always had the right region and a connection ready would have 1.00.
`settled` is after how many seconds of a phase the best region gave 95 % of multicloud's answers for the rest of it.
With --beside there is one more policy, `multicloud run`, with what `multicloud config --beside` writes.

The column `straight` is a client that knows the best region and keeps a connection to it: how good the measurement is.
Where it is far from 1.00 in a phase without jitter, loss and late answers, the machine was too busy for the figures.

Needs the extra `test`, nginx if it is to be compared (apt-get install nginx-light), and Linux as root or with user
namespaces and a /dev/net/tun that the user may open.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import ssl
import statistics
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from tests.bench import client, distant, proxies, wan
from tests.bench.distant import NAMES, Service
from tests.bench.wan import Way

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.client import Answer

START_UP = 30.0
"""Seconds before the first phase, in which the policies take their first measurements."""

SETTLED = 0.95
"""The part of the answers from which on they are said to come from the best region."""


NEAREST = Way(0.030)
WELL = Service(0.010)


class Phase(NamedTuple):
    """The ways to the regions, and how these serve."""

    name: str
    ways: Sequence[Way]
    services: Sequence[Service]

    def best(self) -> int:
        """The region that answers first."""
        return min(range(len(NAMES)), key=self._seconds)

    def limit(self) -> float:
        """Seconds that an answer takes at least: a round trip to the best region, and its time for an answer."""
        return self._seconds(self.best())

    def _seconds(self, region: int) -> float:
        service = self.services[region]
        return self.ways[region].round_trip + service.seconds if service.alive else math.inf


def _phase(name: str, way: Way = NEAREST, service: Service = WELL) -> Phase:
    """A phase in which the nearest region is so, and the others are as always."""
    return Phase(name, (way, Way(0.060), Way(0.110), Way(0.150)), (service, WELL, WELL, WELL))


PHASES = (
    _phase("steady"),
    _phase("favourite goes far", Way(0.250)),
    _phase("back"),
    _phase("dies", service=Service(alive=False)),
    _phase("returns"),
    _phase("near but slow to serve", service=Service(0.090)),
)
MORE_PHASES = (
    _phase("quick again"),
    _phase("30 % jitter", Way(0.030, jitter=0.3)),
    _phase("calm again"),
    _phase("1 % loss", Way(0.030, loss=0.01)),
    _phase("no loss again"),
    _phase("2 % late answers", service=Service(late=0.02)),
)


class Course:
    """The phases, and the moments (time.monotonic) at which they began; before the first one, all is as in it."""

    def __init__(self, phases: Sequence[Phase]) -> None:
        self.phases = phases
        self.starts: list[float] = []

    def now(self) -> Phase:
        """The present phase."""
        return self.phases[max(len(self.starts) - 1, 0)]

    def during(self, answers: Sequence[Answer], number: int) -> list[Answer]:
        """The answers to what was sent in a phase."""
        start, *later = self.starts[number:]
        return [answer for answer in answers if start <= answer.sent < min(later, default=math.inf)]


class Run(NamedTuple):
    """A policy's name, and the answers that its clients got."""

    name: str
    answers: list[Answer]


async def offer(port: int, answers: list[Answer], rate: float, end: float) -> None:
    """Send requests at a steady rate until `end`, whatever becomes of them."""

    async def ask() -> None:
        answers.append(await client.get(port))

    async with asyncio.TaskGroup() as group:
        due = time.monotonic() + 1 / rate
        while due < end:
            await asyncio.sleep(due - time.monotonic())
            group.create_task(ask())
            due += 1 / rate


async def go_straight(authority: bytes, course: Course, answers: list[Answer], end: float) -> None:
    """Ask the best region ten times a second over a kept connection; opening it is not counted."""
    context = ssl.create_default_context(cadata=authority.decode())
    connections: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}
    while time.monotonic() < end:
        best = course.now().best()
        name, address, port = distant.places(0)[best]
        try:
            if best not in connections:
                connections[best] = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
            reader, writer = connections[best]
            sent = time.monotonic()
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readexactly(distant.length((await reader.readuntil(b"\r\n\r\n")).lower()))
            answers.append(client.Answer(sent, time.monotonic() - sent, 200, name))
        except (OSError, asyncio.IncompleteReadError):
            connections.pop(best, None)
        await asyncio.sleep(0.1)


async def drive(
    policies: Sequence[proxies.Policy],
    ports: Sequence[int],
    distance: distant.Distance,
    course: Course,
    options: argparse.Namespace,
) -> list[Run]:
    """Go through the phases, and have all policies asked meanwhile; their answers, and those of the straight way."""
    end = time.monotonic() + START_UP + options.seconds * len(course.phases)
    straight: list[Answer] = []
    answers: list[list[Answer]] = [[] for _ in ports]
    async with asyncio.TaskGroup() as group:
        group.create_task(go_straight(distance.authority, course, straight, end))
        for port, each in zip(ports, answers, strict=True):
            group.create_task(offer(port, each, options.rate, end))
            await asyncio.sleep(1 / options.rate / len(ports))  # so that they do not all ask at the same moment
        for number, phase in enumerate(course.phases):
            start = end - options.seconds * (len(course.phases) - number)
            await asyncio.sleep(start - time.monotonic())
            print(f"{end - start:5.0f} s to go: {phase.name}", flush=True)
            await asyncio.to_thread(distance.change, phase.ways, phase.services)
            course.starts.append(time.monotonic())
    return [
        Run("straight", straight),
        *(Run(policy.name, each) for policy, each in zip(policies, answers, strict=True)),
    ]


def compared(*, beside: bool) -> list[proxies.Policy]:
    """Those whose programs are there, and multicloud-run where it is asked for."""
    wanted = [proxies.RUN, *proxies.POLICIES] if beside else proxies.POLICIES
    return [policy for policy in wanted if policy.program != "nginx" or proxies.nginx_binary()]


def multiples(run: Run, course: Course, numbers: Sequence[int]) -> list[float]:
    """The latencies in some phases, in limits; infinite where no answer came."""
    return [
        answer.seconds / course.phases[number].limit() if answer.status == 200 else math.inf
        for number in numbers
        for answer in course.during(run.answers, number)
    ]


def mean(found: Sequence[float]) -> str:
    """The mean of the answers that came."""
    return f"{statistics.fmean(filter(math.isfinite, found)):.2f}"


def p99(found: Sequence[float]) -> str:
    """Their 99th percentile."""
    return f"{statistics.quantiles(filter(math.isfinite, found), n=100)[98]:.2f}"


def failed(found: Sequence[float]) -> str:
    """How many did not come."""
    return str(found.count(math.inf))


def report(runs: Sequence[Run], course: Course) -> None:
    """Print the tables; that of the failures has only the phases with any."""
    rows = [(phase.name, [number]) for number, phase in enumerate(course.phases)]
    rows.insert(len(PHASES), ("overall", list(range(len(PHASES)))))
    rows.append(("overall, with these", list(range(len(course.phases)))))
    ours = [run for run in runs if run.name in (proxies.RUN.name, proxies.OURS.name)]
    for title, cell in (("mean, in limits", mean), ("p99, in limits", p99), ("requests that failed", failed)):
        heading = ["limit, ms", *(run.name for run in runs), *(f"settled, s, {run.name}" for run in ours)]
        print(f"\n| {title:<22} | {' | '.join(heading)} |\n|{'---|' * (len(heading) + 1)}")
        for name, numbers in rows:
            found = [multiples(run, course, numbers) for run in runs]
            limit, settled = "", [""] * len(ours)
            if len(numbers) == 1:
                if cell is failed and not any(math.inf in each for each in found):
                    continue
                limit = f"{course.phases[numbers[0]].limit() * 1000:.0f}"
                settled = [wait(run, course, numbers[0]) for run in ours]
            cells = [limit, *map(cell, found), *settled]
            aligned = (f"{each:>{len(over)}}" for each, over in zip(cells, heading, strict=True))
            print(f"| {name:<22} | {' | '.join(aligned)} |")


def wait(run: Run, course: Course, number: int) -> str:
    """Seconds until the best region gives SETTLED of the answers to all that is sent later in the phase."""
    best = NAMES[course.phases[number].best()]
    right = wrong = 0
    settled = "never"
    for answer in sorted(course.during(run.answers, number), key=lambda answer: answer.sent, reverse=True):
        right += answer.region == best
        wrong += answer.region != best
        if right >= SETTLED * (right + wrong):
            settled = f"{answer.sent - course.starts[number]:.1f}"
    return settled


def main() -> int:
    """Run the phases, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.users", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a phase is (20)")
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second for each policy (25)")
    parser.add_argument("--beside", action="store_true", help="multicloud-run beside HAProxy, too")
    options = parser.parse_args()
    wan.enter()
    if not proxies.nginx_binary():
        print("nginx is left out: it is not installed (apt-get install nginx-light)")
    course = Course([*PHASES, *MORE_PHASES])
    policies = compared(beside=options.beside)
    with (
        distant.running(len(policies) + 1, PHASES[0].ways, PHASES[0].services) as distance,
        contextlib.ExitStack() as stack,
    ):
        ports = [
            stack.enter_context(proxies.started(policy, distant.places(number), distance.authority))
            for number, policy in enumerate(policies, start=1)
        ]
        runs = asyncio.run(drive(policies, ports, distance, course, options))
    report(runs, course)
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
