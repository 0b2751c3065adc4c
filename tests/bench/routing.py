"""How good is the routing? Real HAProxy processes side by side, one for each policy, over the same simulated regions.

    python -m tests.bench.routing                 the whole schedule, 21 minutes
    python -m tests.bench.routing --scale 0.15    the same, but shorter phases: 4 minutes
    python -m tests.bench.routing --beside        with multicloud-run beside HAProxy, too

Each policy gets the same rate of requests, open loop: a slow answer delays no other request. `multicloud` is the
shipped configuration with its defaults; the others have HAProxy's own checks and algorithms, and keep connections, too.
The oracle is a HAProxy whose weights are set by the schedule itself, so that what HAProxy and this machine cost is in
its figures as it is in all others.

A cell is the mean latency in ms, its ratio to the oracle's, and, behind `!`, how many failed. `changes` is how often
another region gave most of a second's answers of multicloud's, and `seconds` after how many of a phase regions within a
tenth of the fastest gave 95 % of these for the rest of it. It writes routing.png, the latency over time, to the
directory of --out. Needs the extras `test` and `bench`.
"""

import argparse
import asyncio
import math
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

from tests import haproxy
from tests.bench import distant, proxies
from tests.bench.client import Answer
from tests.bench.course import Course
from tests.bench.distant import LATE, NAMES, Service
from tests.bench.table import Table
from tests.edge import Router

ORACLE = "oracle"


class Phase(NamedTuple):
    """`seconds` of each region's mean latency in milliseconds at its begin, inf where dead, and at its end.

    `jitter` is a standard deviation relative to the mean, and `late` the part of the first region's answers that are
    LATE seconds late.
    """

    name: str
    seconds: float
    begin: Sequence[float]
    end: Sequence[float] | None = None
    jitter: float = 0.10
    late: float = 0.0

    def services(self, over: float) -> list[Service]:
        """How the regions serve when that part of it is over, 0 to 1."""
        both = zip(self.begin, self.end or self.begin, strict=True)
        means = [begin if begin == end else begin + (end - begin) * over for begin, end in both]
        late = [self.late, 0.0, 0.0, 0.0]
        return [
            Service(mean / 1000, part, jitter=self.jitter) if mean < math.inf else Service(alive=False)
            for mean, part in zip(means, late, strict=True)
        ]

    def truth(self, over: float) -> dict[str, float]:
        """The mean latency of each region then, in seconds."""
        services = zip(NAMES, self.services(over), strict=True)
        return {name: each.seconds + each.late * LATE if each.alive else math.inf for name, each in services}


STEADY = (20, 30, 50, 80)
PHASES = (
    Phase("steady", 60, STEADY),
    Phase("slows", 120, (300, 30, 50, 80)),
    Phase("recovers", 120, STEADY),
    Phase("dies", 60, (math.inf, 30, 50, 80)),
    Phase("returns", 60, STEADY),
    Phase("near tie", 240, (20, 20.4, 50, 80), jitter=0.15),
    Phase("drift", 240, (20, 40, 50, 80), (40, 20, 50, 80)),
    Phase("back", 60, STEADY),
    Phase("10 % tail", 240, STEADY, late=0.10),
)


async def follow(course: Course, distance: distant.Distance, oracle: str) -> None:
    """Let the regions, and the weights of the oracle at that socket, be as they are to be, for as long as it lasts."""
    leading: list[str] = []
    while time.monotonic() < course.end:
        phase, over = PHASES[course.number], course.over(course.number, time.monotonic())
        await asyncio.to_thread(distance.change, phase.services(over))
        truth = phase.truth(over)
        order = sorted(NAMES, key=truth.__getitem__)
        if order != leading:
            leading = order
            weights = zip(order, (256, 1, 0, 0), strict=True)
            commands = [f"set server upstream/{name} weight {weight}" for name, weight in weights]
            await asyncio.to_thread(haproxy.tell, oracle, *commands)
        await asyncio.sleep(0.02)


def right(course: Course, number: int, answer: Answer) -> bool:
    """Whether it is of a region that was within a tenth of the fastest when it was asked."""
    truth = PHASES[number].truth(course.over(number, answer.sent))
    return truth.get(answer.region, math.inf) <= 1.1 * min(truth.values())


def changes(answers: Sequence[Answer]) -> int:
    """How often another region gave most of a second's answers."""
    seconds = groupby(sorted(answers), key=lambda answer: int(answer.sent))
    return sum(a != b for a, b in pairwise(statistics.mode(each.region for each in second) for _, second in seconds))


class Figures(NamedTuple):
    """Of some answers: milliseconds, and how many failed."""

    mean: float
    p99: float
    failed: int


def figures(answers: Sequence[Answer]) -> Figures:
    """Of those that came, and how many did not."""
    good = [1000 * each.seconds for each in answers if each.status == 200]
    return Figures(statistics.fmean(good), statistics.quantiles(good, n=100)[98], len(answers) - len(good))


def report(course: Course, runs: Mapping[str, Sequence[Answer]]) -> None:
    """Print the table."""
    ours = [name for name in (proxies.OURS.name, proxies.RUN.name) if name in runs]
    columns = [f"{what}, {name}" for name in ours for what in ("p99", "changes", "seconds")]
    print()
    table = Table("phase", *(f"{name:>12}" for name in runs), *columns, "p99, best other")
    rows = [(phase.name, [number]) for number, phase in enumerate(PHASES)]
    for title, numbers in [*rows, ("the whole schedule", range(len(PHASES)))]:
        found = {
            name: [each for number in numbers for each in course.during(answers, number)]
            for name, answers in runs.items()
        }
        of = {name: figures(answers) for name, answers in found.items()}
        cells: list[object] = [
            f"{each.mean:.1f} ({each.mean / of[ORACLE].mean:.2f})" + f" !{each.failed}" * bool(each.failed)
            for each in of.values()
        ]
        for name in ours:
            is_right = partial(right, course, numbers[0])
            settled = course.settled(runs[name], numbers[0], is_right) if len(numbers) == 1 else None
            cells += [f"{of[name].p99:.1f}", changes(found[name]), settled]
        table.row(title, *cells, f"{min(of[name].p99 for name in runs if name not in (ORACLE, *ours)):.0f}")


def over_time(answers: Sequence[Answer], began: float, step: float) -> list[tuple[float, float]]:
    """Seconds since the start, and the mean milliseconds of the answers in each step."""
    good = sorted(each for each in answers if each.status == 200 and each.sent >= began)
    return [
        (index * step, 1000 * statistics.fmean(each.seconds for each in found))
        for index, found in groupby(good, key=lambda each: int((each.sent - began) / step))
    ]


def plot(course: Course, runs: Mapping[str, Sequence[Answer]], step: float, path: Path) -> None:
    """Draw the latency over time of each policy, the mean of so many seconds, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    for name, answers in runs.items():
        ours, oracle = name == proxies.OURS.name, name == ORACLE
        axes.plot(
            *zip(*over_time(answers, course.starts[0], step), strict=True),
            label=name,
            linewidth=2 if ours else 1,
            color="black" if oracle else None,
            linestyle=":" if oracle else "-",
            zorder=3 if ours or oracle else 2,
            alpha=1 if ours or oracle else 0.7,
        )
    axes.set_yscale("log")
    axes.set_yticks(ticks := (20, 30, 50, 100, 200, 300), labels=[str(tick) for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_xlim(0, sum(course.seconds))
    for name, moment in zip(course.names, course.starts, strict=True):
        start = moment - course.starts[0]
        axes.axvline(start, color="grey", linewidth=0.5)
        axes.annotate(
            name, (start, 1), (2, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("mean latency of the clients, ms")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(runs), loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
    with Image.open(path) as image:  # 64 colours are plenty, and a third of the bytes
        image.convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    """Run the schedule, print the table, draw the picture."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="what each phase's duration is multiplied by (1)")
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second for each policy (25)")
    parser.add_argument("--beside", action="store_true", help="with multicloud-run beside HAProxy, too")
    parser.add_argument("--out", type=Path, default=Path(), help="directory of the picture (.)")
    options = parser.parse_args()
    known = [*proxies.POLICIES, *[proxies.RUN] * options.beside]
    policies = [policy for policy in known if policy.program == "haproxy"]
    course = Course([phase.name for phase in PHASES], [phase.seconds * options.scale for phase in PHASES])

    async def drive(oracle: Router, ports: Sequence[Sequence[int]]) -> list[list[Answer]]:
        following = follow(course, distance, oracle.settings["MULTICLOUD_SOCKET"])
        answers, _ = await asyncio.gather(course.run(ports, lambda _: 1 / options.rate, lambda _: None), following)
        return answers

    with (
        distant.running(len(policies) + 1, PHASES[0].services(0)) as distance,
        proxies.router(proxies.KEPT, distance.places[-1], distance.authority) as (oracle, port),
        proxies.all_started(policies, distance) as ports,
    ):
        answers = asyncio.run(drive(oracle, [[port], *ports]))
    runs = dict(zip([ORACLE, *(policy.name for policy in policies)], answers, strict=True))
    report(course, runs)
    options.out.mkdir(parents=True, exist_ok=True)
    plot(course, runs, 4 * options.scale, options.out / "routing.png")


if __name__ == "__main__":
    main()
