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

import argparse
import asyncio
import contextlib
import math
import ssl
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tests import client
from tests.bench import distant, proxies, wan
from tests.bench.course import Course
from tests.bench.distant import NAMES, Place, Service
from tests.bench.table import Table
from tests.bench.wan import Way
from tests.client import Answer

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

    def is_of_best(self, answer: Answer) -> bool:
        """Whether that region gave it."""
        return answer.region == NAMES[self.best()]

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
    _phase("quick again"),
    _phase("30 % jitter", Way(0.030, jitter=0.3)),
    _phase("calm again"),
    _phase("1 % loss", Way(0.030, loss=0.01)),
    _phase("no loss again"),
    _phase("2 % late answers", service=Service(late=0.02)),
)
FIRST_PHASES = 6  # that many have an "overall" of their own


async def go_straight(course: Course, places: Sequence[Place], authority: bytes) -> list[Answer]:
    """Ask the best region ten times a second over a kept connection; opening it is not counted."""
    context = ssl.create_default_context(cadata=authority.decode())
    connections: dict[int, client.Connection] = {}
    answers = []
    async for _ in client.moments(lambda: 0.1, course.end):
        best = PHASES[course.number].best()
        name, address, port = places[best]
        with contextlib.suppress(OSError):
            if best not in connections:
                connections[best] = await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
            answer = await client.timed(client.exchange(connections[best]))
            if answer.status == 200:
                answers.append(answer)
            else:
                del connections[best]
    return answers


async def drive(
    course: Course, ports: Sequence[Sequence[int]], distance: distant.Distance, rate: float
) -> list[list[Answer]]:
    """Go through the phases; the answers of all policies, and those of the straight way before them."""

    def change(number: int) -> None:
        distance.change(PHASES[number].services, PHASES[number].ways)

    answers, straight = await asyncio.gather(
        course.run(ports, lambda _: 1 / rate, change), go_straight(course, distance.places[-1], distance.authority)
    )
    return [straight, *answers]


def in_limits(course: Course, answers: Sequence[Answer], numbers: Sequence[int]) -> list[float]:
    """The latencies in some phases, in limits; infinite where no answer came."""
    return [
        answer.seconds / PHASES[number].limit() if answer.status == 200 else math.inf
        for number in numbers
        for answer in course.during(answers, number)
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


def report(course: Course, runs: Mapping[str, Sequence[Answer]]) -> None:
    """Print the tables; that of the failures has only the phases with any."""
    rows = [(phase.name, [number]) for number, phase in enumerate(PHASES)]
    rows.insert(FIRST_PHASES, ("overall", list(range(FIRST_PHASES))))
    rows.append(("overall, with these", list(range(len(PHASES)))))
    ours = [name for name in (proxies.RUN.name, proxies.OURS.name) if name in runs]
    for title, cell in (("mean, in limits", mean), ("p99, in limits", p99), ("requests that failed", failed)):
        print()
        table = Table(title, "limit, ms", *runs, *(f"settled, s, {name}" for name in ours))
        for name, numbers in rows:
            found = [in_limits(course, answers, numbers) for answers in runs.values()]
            limit, settled = "", [""] * len(ours)
            if len(numbers) == 1:
                if cell is failed and not any(math.inf in each for each in found):
                    continue
                phase = PHASES[numbers[0]]
                limit = f"{phase.limit() * 1000:.0f}"
                settled = [course.settled(runs[each], numbers[0], phase.is_of_best) for each in ours]
            table.row(name, limit, *map(cell, found), *settled)


def main() -> None:
    """Run the phases, print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.users", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=20.0, help="how long a phase is (20)")
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second for each policy (25)")
    parser.add_argument("--beside", action="store_true", help="multicloud-run beside HAProxy, too")
    options = parser.parse_args()
    wan.enter()
    policies = proxies.there([*[proxies.RUN] * options.beside, *proxies.POLICIES])
    course = Course([phase.name for phase in PHASES], [options.seconds] * len(PHASES))
    with (
        distant.running(len(policies) + 1, PHASES[0].services, PHASES[0].ways) as distance,
        proxies.all_started(policies, distance) as ports,
    ):
        runs = asyncio.run(drive(course, ports, distance, options.rate))
    report(course, dict(zip(["straight", *(policy.name for policy in policies)], runs, strict=True)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
