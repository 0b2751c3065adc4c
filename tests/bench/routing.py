"""How good is the routing? Real HAProxy processes side by side, one for each policy, over the same simulated regions.

    python -m tests.bench.routing                 the whole schedule, 21 minutes
    python -m tests.bench.routing --scale 0.15    the same, but shorter phases: 4 minutes
    python -m tests.bench.routing --beside        with multicloud-run beside HAProxy, too
    python -m tests.bench.routing --herding       regions that slow down under load, with several tolerances: 13 minutes

Each policy gets the same rate of requests, open loop: a slow answer delays no other request. `multicloud` is the
shipped configuration with its defaults; the others have HAProxy's own checks and algorithms, and keep connections, too.
The oracle is a HAProxy whose weights are set by the schedule itself, so that what HAProxy and this machine cost is in
its figures as it is in all others. It prints a table for each phase, and writes routing.json and routing.png (or
herding.json and herding.png) to the directory of --out. Needs the extras `test` and `bench`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from multicloud import ranking, runtime
from multicloud.demo.router import BESIDE, Router
from multicloud.scores import percentiles
from tests.bench import client, proxies, regions
from tests.bench.distant import Place
from tests.bench.regions import NAMES, Phase, Schedule
from tests.edge import listen_anywhere

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

INTERVAL = "2s"
START_UP = 25.0
"""Seconds before the schedule begins, in which the policies start and take their first measurements."""

POLL = 0.25
"""Seconds between two looks at the weights."""


class Policy(NamedTuple):
    """`balance` is HAProxy's algorithm where the weights are left alone; `settings` are for multicloud-reweigh, or for
    multicloud-run where they are BESIDE."""

    name: str
    balance: str = ""
    settings: Mapping[str, str] | None = None


ORACLE = Policy("oracle", "roundrobin")
RUN = Policy(proxies.RUN.name, settings=BESIDE)

POLICIES: tuple[Policy, ...] = (
    ORACLE,
    Policy("multicloud"),
    Policy("roundrobin", "roundrobin"),
    Policy("leastconn", "leastconn"),
    Policy("random(2)", "random(2)"),
)

PHASES = (
    Phase("steady", 60, (20, 30, 50, 80)),
    Phase("slows", 120, (300, 30, 50, 80)),
    Phase("recovers", 120, (20, 30, 50, 80)),
    Phase("dies", 60, (math.inf, 30, 50, 80)),
    Phase("returns", 60, (20, 30, 50, 80)),
    Phase("near tie", 240, (20, 20.4, 50, 80), jitter=0.15),
    Phase("drift", 240, (lambda over: 20 + 20 * over, lambda over: 40 - 20 * over, 50, 80)),
    Phase("back", 60, (20, 30, 50, 80)),
    Phase("10 % tail", 240, (20, 30, 50, 80), tail=0.10),
)

HERDING_POLICIES: tuple[Policy, ...] = (
    Policy("tolerance 0"),
    Policy("tolerance 10", settings={"MULTICLOUD_TOLERANCE": "10"}),
    Policy("tolerance 25", settings={"MULTICLOUD_TOLERANCE": "25"}),
    Policy("roundrobin", "roundrobin"),
    Policy("leastconn", "leastconn"),
)

# At 25 requests a second, they are 0.125, 0.42 and 0.69 of what one region can serve.
HERDING_PHASES = (
    Phase("light load", 240, (20, 24, 28, 100), capacity=200),
    Phase("half load", 240, (20, 24, 28, 100), capacity=60),
    Phase("full load", 240, (20, 24, 28, 100), capacity=36),
)


class Figures(NamedTuple):
    """Of a policy in a phase: milliseconds of the answers, requests, failures, and what became of the favourite."""

    mean: float
    p90: float
    p99: float
    requests: int
    failed: int
    switches: int | None
    wait: float | None


class Run:
    """A policy at work: its HAProxy, the answers that its client got and the favourites that it had."""

    def __init__(self, policy: Policy, router: Router, port: int) -> None:
        self.policy = policy
        self.router = router
        self.port = port
        self.answers: list[client.Answer] = []
        self.favorites: list[tuple[float, frozenset[int]]] = []

    async def offer(self, rate: float, end: float, shift: float) -> None:
        """Send requests at a steady rate until `end`, whatever becomes of them; `shift` is a part of the pace."""
        async with asyncio.TaskGroup() as group:
            due = time.monotonic() + shift / rate
            while due < end:
                await asyncio.sleep(due - time.monotonic())
                group.create_task(self._ask())
                due += 1 / rate

    async def _ask(self) -> None:
        self.answers.append(await client.get(self.port))

    async def watch(self, schedule: Schedule, end: float) -> None:
        """Note the favourites until `end`; the oracle is told them."""
        while (now := time.monotonic()) < end:
            if self.policy is ORACLE:
                order = sorted(range(len(NAMES)), key=schedule.truth(now).__getitem__)
                if not self.favorites or self.favorites[-1][1] != {order[0]}:
                    await asyncio.to_thread(self._put_first, order)
                    self.favorites.append((now, frozenset(order[:1])))
            elif not self.policy.balance:
                weights = await asyncio.to_thread(self._weights)
                favorites = frozenset(number for number, weight in enumerate(weights) if weight == 256)
                if not self.favorites or self.favorites[-1][1] != favorites:
                    self.favorites.append((now, favorites))
            await asyncio.sleep(POLL if self.policy is not ORACLE else 0.02)

    def _api(self) -> runtime.RuntimeAPI:
        return runtime.RuntimeAPI(self.router.settings["MULTICLOUD_SOCKET"], timeout=10)

    def _weights(self) -> list[int]:
        with self._api() as api:
            return [server.weight for server in api.servers() if server.backend == "upstream"]

    def _put_first(self, order: Sequence[int]) -> None:
        with self._api() as api:
            servers = [server for server in api.servers() if server.backend == "upstream"]
            decisions = [
                ranking.Decision(servers[number], weight, ranking.Reason.FASTEST)
                for number, weight in zip(order, (256, 1, 0, 0), strict=True)
            ]
            api.set_weights(decisions)


def configuration(policy: Policy, ports: Sequence[int]) -> str:
    """The shipped configuration; for HAProxy's own algorithms one with HAProxy's own checks (tests.bench.proxies)."""
    places = [Place(name, "127.0.0.1", port) for name, port in zip(NAMES, ports, strict=True)]
    text = proxies.haproxy(proxies.Policy(policy.name, "haproxy", policy.balance, beside=policy is RUN), places)
    return text.replace("    option httpchk\n", "    option httpchk\n    http-response set-header Upstream %s\n")


@contextlib.contextmanager
def started(policies: Sequence[Policy], ports: Sequence[Sequence[int]], authority: bytes) -> Iterator[list[Run]]:
    """A HAProxy for each policy, in front of its own set of regions."""
    with contextlib.ExitStack() as stack:
        runs = []
        for policy, places in zip(policies, ports, strict=True):
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bundle = directory / "authority.pem"
            bundle.write_bytes(authority)
            listening = listen_anywhere(bundle)
            router = Router(
                directory,
                configuration(policy, places),
                commands={"MULTICLOUD_CA_FILE": str(bundle), **(policy.settings or {})},
                environ={
                    **listening,
                    "MULTICLOUD_INTER": INTERVAL,
                    "FLY_REGION": "bench",
                },
            )
            runs.append(Run(policy, stack.enter_context(router), int(listening["PORT"])))
        yield runs


async def drive(runs: Sequence[Run], schedule: Schedule, rate: float) -> None:
    """Offer every policy its requests, and watch the weights, until the schedule is over."""
    end = schedule.began + schedule.seconds
    async with asyncio.TaskGroup() as group:
        for number, run in enumerate(runs):
            group.create_task(run.offer(rate, end, number / len(runs)))
            group.create_task(run.watch(schedule, end))
        group.create_task(_progress(schedule, end))


async def _progress(schedule: Schedule, end: float) -> None:
    for phase, start in zip(schedule.phases, schedule.starts, strict=True):
        await asyncio.sleep(max(0.0, schedule.began + start - time.monotonic()))
        print(f"{end - time.monotonic():5.0f} s to go: {phase.name}", flush=True)


def figures(run: Run, schedule: Schedule, index: int) -> Figures:
    """The figures of a phase."""
    start = schedule.began + schedule.starts[index]
    end = start + schedule.phases[index].seconds
    answers = [answer for answer in run.answers if start <= answer.sent < end]
    seconds = [answer.seconds for answer in answers if answer.status == 200]
    p90, p99 = percentiles(seconds, (90, 99))
    switches, wait = None, None
    if run.favorites:
        changes = [moment for moment, _ in run.favorites[1:]]
        switches = sum(start <= moment < end for moment in changes)
        wait = None if schedule.phases[index].capacity < math.inf else _longest_wait(run, schedule, start, end)
    return Figures(
        statistics.fmean(seconds) * 1000,
        p90 * 1000,
        p99 * 1000,
        len(answers),
        len(answers) - len(seconds),
        switches,
        wait,
    )


def _longest_wait(run: Run, schedule: Schedule, start: float, end: float) -> float:
    """The longest time in seconds from a change of the truth to favourites within a tenth of the fastest."""
    wrong_since, longest = None, 0.0
    moment = start
    while moment < end:
        truth = schedule.truth(moment)
        favorites = next((found for at, found in reversed(run.favorites) if at <= moment), frozenset())
        right = all(truth[number] <= 1.1 * min(truth) for number in favorites)
        if right:
            wrong_since = None
        elif wrong_since is None:
            wrong_since = moment
        moment += 0.1
        if wrong_since is not None:
            longest = max(longest, min(moment, end) - wrong_since)
    return longest


def overhead(run: Run, schedule: Schedule) -> float:
    """Milliseconds that an answer in the first phase took longer than the mean of the region that gave it."""
    end = schedule.began + schedule.phases[0].seconds
    truth = schedule.truth(schedule.began)
    return 1000 * statistics.fmean(
        answer.seconds - truth[NAMES.index(answer.region)]
        for answer in run.answers
        if schedule.began <= answer.sent < end and answer.region
    )


def report(runs: Sequence[Run], schedule: Schedule) -> dict[str, object]:
    """Print the tables; return all figures for the JSON file."""
    oracle = next((run for run in runs if run.policy is ORACLE), None)
    result: dict[str, object] = {}
    whole = Schedule([Phase("whole", schedule.seconds, schedule.phases[0].truth)], schedule.began)
    phases = [(phase.name, schedule, index) for index, phase in enumerate(schedule.phases)]
    for name, judged, index in [*phases, ("the whole schedule", whole, 0)]:
        print(f"\n| {name:<18} | mean ms |    p90 |    p99 | x oracle | failed | switches | wait s |")
        print(f"|{'---|' * 8}")
        best = figures(oracle, judged, index).mean if oracle else None
        rows = {}
        for run in runs:
            found = figures(run, judged, index)
            if judged is whole:
                found = found._replace(wait=None)
            ratio = f"{found.mean / best:8.2f}" if best else f"{'-':>8}"
            switches = "-" if found.switches is None else found.switches
            wait = "-" if found.wait is None else f"{found.wait:.1f}"
            print(
                f"| {run.policy.name:<18} | {found.mean:7.1f} | {found.p90:6.1f} | {found.p99:6.1f} | {ratio} "
                f"| {found.failed:6} | {switches:>8} | {wait:>6} |"
            )
            rows[run.policy.name] = found._asdict() | {"ratio": found.mean / best if best else None}
        result[name] = rows
    return result


def over_time(run: Run, schedule: Schedule, step: float) -> list[tuple[float, float]]:
    """Seconds since the start, and the mean milliseconds of the answers in each step."""
    buckets: dict[int, list[float]] = {}
    for answer in run.answers:
        if answer.status == 200 and answer.sent >= schedule.began:
            buckets.setdefault(int((answer.sent - schedule.began) / step), []).append(answer.seconds)
    return [(index * step, statistics.fmean(found) * 1000) for index, found in sorted(buckets.items())]


def plot(data: Mapping[str, list[tuple[float, float]]], schedule: Schedule, path: Path) -> None:
    """Draw the latency over time of each policy, on a logarithmic scale."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from PIL import Image

    figure, axes = pyplot.subplots(figsize=(10, 4.2), layout="constrained")
    for name, series in data.items():
        ours, oracle = name == "multicloud", name == "oracle"
        axes.plot(
            *zip(*series, strict=True),
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
    axes.set_xlim(0, schedule.seconds)
    for phase, start in zip(schedule.phases, schedule.starts, strict=True):
        axes.axvline(start, color="grey", linewidth=0.5)
        axes.annotate(
            phase.name, (start, 1), (2, 2), xycoords=("data", "axes fraction"), textcoords="offset points", fontsize=8
        )
    axes.set_xlabel("seconds")
    axes.set_ylabel("mean latency of the clients, ms")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(ncols=len(data), loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=9)
    figure.savefig(path, dpi=100)
    with Image.open(path) as image:  # 64 colours are plenty, and a third of the bytes
        image.convert("RGB").quantize(64).save(path, optimize=True)


def main() -> None:
    """Run the schedule, print the tables, write the files."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.routing", description=__doc__.splitlines()[0])
    parser.add_argument("--scale", type=float, default=1.0, help="what each phase's duration is multiplied by (1)")
    parser.add_argument("--rate", type=float, default=25.0, help="requests a second for each policy (25)")
    parser.add_argument("--herding", action="store_true", help="regions that slow down under load")
    parser.add_argument("--beside", action="store_true", help="with multicloud-run beside HAProxy, too")
    parser.add_argument("--out", type=Path, default=Path(), help="directory of the JSON file and the plot (.)")
    options = parser.parse_args()
    policies, phases = (HERDING_POLICIES, HERDING_PHASES) if options.herding else (POLICIES, PHASES)
    if options.beside:
        policies += (RUN,)
    scaled = [phase._replace(seconds=phase.seconds * options.scale) for phase in phases]
    schedule = Schedule(scaled, time.monotonic() + START_UP)
    with regions.running(schedule, len(policies)) as (ports, authority), started(policies, ports, authority) as runs:
        asyncio.run(drive(runs, schedule, options.rate))
    result = {
        "phases": report(runs, schedule),
        "overhead_ms": {run.policy.name: overhead(run, schedule) for run in runs if not options.herding},
        "over_time": {run.policy.name: over_time(run, schedule, step=max(1.0, 4 * options.scale)) for run in runs},
        "favorites": {
            run.policy.name: [(at - schedule.began, sorted(NAMES[i] for i in found)) for at, found in run.favorites]
            for run in runs
        },
    }
    if not options.herding:
        print("\nwhat an answer takes on top of its region's mean in the first phase, in ms:")
        for run in runs:
            print(f"  {run.policy.name:<12} {overhead(run, schedule):5.2f}")
    stem = "herding" if options.herding else "routing"
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{stem}.json").write_text(json.dumps(result, indent=1) + "\n")
    plot(
        {run.policy.name: over_time(run, schedule, 4 * options.scale) for run in runs},
        schedule,
        options.out / f"{stem}.png",
    )


if __name__ == "__main__":
    main()
