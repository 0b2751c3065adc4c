"""How good are the decisions? Streams of samples, replayed through `scores` and `rank` against a clock of their own.

    python -m tests.bench.replay                  every phase with the defaults, then each setting varied on its own
    python -m tests.bench.replay --lines          regions that can be full: see `lines.py`
    python -m tests.bench.replay times.txt …      recorded sample files instead

No HAProxy and no waiting: an hour takes a second. A phase is a few servers whose true mean latency is known at any
time, and samples drawn around it. Each decision costs what the favourite's users wait until the next one, and is held
against the oracle, which always knows the server that is truly fastest. For a recorded file the truth is the mean of
the five samples around each moment.

Each cell is the mean latency relative to the oracle's (1.00 is perfect), the favourite's switches an hour, and the
longest time in seconds from a change of the truth to a favourite within a tenth of the oracle.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise, repeat
from math import isnan
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from multicloud import history, settings
from multicloud.history import Sample
from multicloud.ranking import changes, rank
from multicloud.runtime import DOWN, UP, Server
from multicloud.scores import RECOVERY_RUN, percentiles, scores
from tests.bench import lines
from tests.bench.table import Table

Array = NDArray[np.float64]
Key = tuple[str, str]
Estimator = Callable[..., dict[Key, float]]

ALLOWED = 10.0  # seconds that a check may take: what a dead server's samples have
WARM_UP = 60.0  # seconds at the begin of a phase that are not judged: the windows are not full yet
DEFAULTS: Mapping[str, float] = {"interval": 2.0} | {
    setting.name: float(setting.default)
    for setting in (*settings.SCORING_SETTINGS[1:], settings.HYSTERESIS, settings.TOLERANCE)
}

SWEEP: Mapping[str, Sequence[float]] = {
    "window": (10, 20, 30, 40, 60, 96),
    "percentile": (50, 75, 90, 95, 99),
    "hysteresis": (0, 5, 10, 15, 20),
    "min_samples": (3, 10, 20, 29),
    "tolerance": (0, 1, 3, 10),
    "interval": (1, 2, 5, 10),
}


class Stream(NamedTuple):
    """Servers by moments: `truth` is their mean latency in seconds, inf where dead; `samples` nan where none came."""

    times: Array
    truth: Array
    samples: Array


class Outcome(NamedTuple):
    """What a replay came to: latency relative to the oracle, switches an hour, longest wait for the right favourite."""

    ratio: float
    switches: float
    wait: float


class Phase(NamedTuple):
    """`truth` is the milliseconds of each server, some as functions of time; the first server may have a `tail`."""

    duration: float
    truth: Sequence[float | Callable[[Array], Array]]
    jitter: float = 0.10
    tail: float = 0.0


TAIL_MS = 250.0  # the mean of the heavy tail: 100 ms and a Pareto distribution of shape 2.5 and mean 150 ms

PHASES: Mapping[str, Phase] = {
    "steady": Phase(600, (20, 30, 50, 80)),
    "slows": Phase(300, (lambda t: np.where(t < 121, 20, 300), 30, 50, 80)),
    "recovers": Phase(300, (lambda t: np.where(t < 121, 300, 20), 30, 50, 80)),
    "blips": Phase(600, (lambda t: np.where(abs(t % 120 - 70) < 8, 300, 20), 30, 50, 80)),
    "dies": Phase(300, (lambda t: np.where(abs(t - 151) < 30, np.inf, 20), 30, 50, 80)),
    "near tie": Phase(3600, (20, 20.4, 50, 80), jitter=0.15),
    "drift": Phase(1200, (lambda t: 30 - 10 * np.cos(t / 120), lambda t: 30 + 10 * np.cos(t / 120), 50, 80)),
    "1 % tail": Phase(3600, (20, 60, 110, 150), tail=0.01),
    "2 % tail": Phase(3600, (20, 60, 110, 150), tail=0.02),
    "5 % tail": Phase(3600, (20, 28, 50, 80), tail=0.05),
    "10 % tail": Phase(3600, (20, 28, 50, 80), tail=0.10),
    "20 % tail": Phase(3600, (20, 28, 50, 80), tail=0.20),
}


def synthetic(phase: Phase, interval: float, seed: int) -> Stream:
    """Draw the samples of a phase: normal around the truth, and now and then one from the heavy tail."""
    random = np.random.default_rng(seed)
    times = np.arange(0.0, phase.duration, interval)
    truth = np.array([each(times) if callable(each) else np.full(len(times), each) for each in phase.truth]) / 1000
    drawn = np.where(np.isfinite(truth), truth, np.nan) * np.maximum(0.1, random.normal(1, phase.jitter, truth.shape))
    in_tail = random.random(len(times)) < phase.tail
    drawn[0] += in_tail * (0.1 + 0.15 * 1.5 * random.pareto(2.5, len(times)))
    truth[0] += phase.tail * TAIL_MS / 1000
    return Stream(times, truth, drawn)


def recorded(path: str) -> dict[str, Stream]:
    """A stream for each backend of a sample file; its moments are as far apart as most samples of a server are.

    The sample of a moment is the newest one before it, and missing where that is older than two such steps.
    """
    series = history.read(path, 1_000_000).series
    streams = {}
    for backend in dict.fromkeys(backend for backend, _ in series):
        servers = [
            np.array(
                [(when, seconds) for seconds, when, failed in reversed(found) if when is not None and not failed]
            ).reshape(-1, 2)
            for (owner, _), found in series.items()
            if owner == backend and any(when is not None for _, when, _ in found)
        ]
        if not servers:
            continue
        gaps = np.concatenate([np.diff(rows[:, 0]) for rows in servers])
        if not len(gaps):
            continue
        moments = np.concatenate([rows[:, 0] for rows in servers])
        step = float(np.median(gaps))
        times = np.arange(moments.min() + step, moments.max(), step)
        drawn = np.full((len(servers), len(times)), np.nan)
        for row, rows in zip(drawn, servers, strict=True):
            newest = np.searchsorted(rows[:, 0], times, side="right") - 1
            fresh = (newest >= 0) & (rows[newest, 0] > times - 2 * step)
            row[fresh] = rows[newest[fresh], 1]
        around = np.lib.stride_tricks.sliding_window_view(np.pad(drawn, ((0, 0), (2, 2)), constant_values=np.nan), 5, 1)
        count = np.isfinite(around).sum(axis=2)
        truth = np.where(count, np.nansum(around, axis=2) / np.maximum(count, 1), np.inf)
        streams[backend] = Stream(times, truth, drawn)
    return streams


def shipped(series: Mapping[Key, Sequence[Sample]], **settings: float) -> dict[Key, float]:
    """What `scores` says, in seconds."""
    return {server: score.seconds for server, score in scores(series, **settings).items()}  # type: ignore[arg-type]


def fixed_window(
    series: Mapping[Key, Sequence[Sample]],
    *,
    now: float,
    percentile: float,
    min_samples: int,
    window: int,
    max_age: float,
) -> dict[Key, float]:
    """The plain percentile of the newest `window` samples, or the mean of few: what `scores` is held against."""
    result = {}
    for server, found in series.items():
        counted = [each.seconds for each in found if each.time is None or now - each.time <= max_age][:window]
        if counted:
            few = len(counted) <= min_samples
            result[server] = statistics.fmean(counted) if few else percentiles(counted, [percentile])[0]
    return result


def decisions(stream: Stream, values: Mapping[str, float], estimator: Estimator) -> Iterator[NDArray[np.intp]]:
    """The weights of the servers after each moment, decided by the samples up to then.

    A server is DOWN where a sample is missing, and UP with its second sample in a row, as HAProxy's `rise 2` does.
    """
    window = int(values["window"])
    servers = [Server("replay", str(index), UP, 1) for index in range(len(stream.truth))]
    series: dict[Key, list[Sample]] = {}
    seen = [1] * len(servers)
    for now, drawn in zip(stream.times.tolist(), stream.samples.T.tolist(), strict=True):
        for index, (server, seconds) in enumerate(zip(servers, drawn, strict=True)):
            seen[index] = 0 if isnan(seconds) else seen[index] + 1
            sample = Sample(seconds, now) if seen[index] else Sample(ALLOWED, now, failed=True)
            series[server.key] = [sample, *series.get(server.key, ())][: window + RECOVERY_RUN]
            server.state = UP if seen[index] > 1 else server.state if seen[index] else DOWN
        scored = estimator(
            series,
            now=now,
            percentile=values["percentile"],
            min_samples=int(values["min_samples"]),
            window=window,
            max_age=values["max_age"],
        )
        decided = rank(servers, scored, hysteresis=values["hysteresis"], tolerance=values["tolerance"])
        for change in changes(decided):
            change.server.weight = change.weight
        yield np.array([server.weight for server in servers])


def replay(stream: Stream, values: Mapping[str, float], estimator: Estimator = shipped) -> Outcome:
    """Judge each decision by the truth at the next moment."""
    cost = oracle = 0.0
    favorites: list[list[bool]] = []
    wrong_since, waits = None, [0.0]
    following = zip(stream.times[1:].tolist(), stream.truth.T[1:], strict=True)
    for weights, (when, truth) in zip(decisions(stream, values, estimator), following, strict=False):
        best = float(truth.min())
        # A connection to a dead server is refused at once and tried elsewhere; all is well once it is marked DOWN.
        shares = np.where(np.isfinite(truth), weights, 0)
        if when <= stream.times[0] + WARM_UP or not shares.any():
            continue
        cost += float((shares * np.where(shares, truth, 0.0)).sum() / shares.sum())
        oracle += best
        favorites.append((weights == weights.max()).tolist())
        right = truth[favorites[-1]].max() <= 1.1 * best + values["tolerance"] / 1000
        if wrong_since is None and not right:
            wrong_since = when
        elif wrong_since is not None and right:
            waits.append(when - wrong_since)
            wrong_since = None
    if wrong_since is not None:
        waits.append(float(stream.times[-1]) - wrong_since)
    hours = max(len(favorites), 1) * float(stream.times[1] - stream.times[0]) / 3600
    switches = sum(before != after for before, after in pairwise(favorites))
    return Outcome(cost / oracle if oracle else 1.0, switches / hours, max(waits))


def judge(values: Mapping[str, float], estimator: Estimator, seeds: int) -> list[Outcome]:
    """The outcome of each phase: means over the seeds, and of the waits the longest."""
    outcomes = []
    for phase in PHASES.values():
        runs = [replay(synthetic(phase, values["interval"], seed), values, estimator) for seed in range(seeds)]
        ratios, switches, waits = zip(*runs, strict=True)
        outcomes.append(Outcome(statistics.fmean(ratios), statistics.fmean(switches), max(waits)))
    return outcomes


def row(table: Table, name: str, outcomes: Sequence[Outcome]) -> None:
    """Print a row; its last cell is the mean of the ratios."""
    cells = (f"{each.ratio:.2f} {each.switches:3.0f} {each.wait:4.0f}" for each in outcomes)
    table.row(name, *cells, f"{statistics.fmean(each.ratio for each in outcomes):.3f}")


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.replay", description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="*", help="recorded sample files, instead of the synthetic phases")
    parser.add_argument("--seeds", type=int, default=4, help="times that each phase is drawn (4)")
    parser.add_argument("--lines", action="store_true", help="regions that can be full")
    options = parser.parse_args()
    if options.lines:
        lines.print_table()
        return
    variants: list[tuple[str, Mapping[str, float], Estimator]] = [
        ("defaults", DEFAULTS, shipped),
        ("defaults, fixed window", DEFAULTS, fixed_window),
    ]
    variants += [
        (f"{name} {value:g}", {**DEFAULTS, name: value}, shipped)
        for name, sweep in SWEEP.items()
        for value in sweep
        if value != DEFAULTS[name]
    ]
    streams = {
        f"{os.path.basename(path)} {backend}": stream
        for path in options.files
        for backend, stream in recorded(path).items()
    }
    if options.files and not streams:
        parser.error("no samples with a time in these files")
    table = Table("", *(f"{name:>13}" for name in streams or PHASES), " mean")
    if options.files:
        for name, values, estimator in variants:
            if not name.startswith("interval"):
                row(table, name, [replay(stream, values, estimator) for stream in streams.values()])
        return
    names, values_of_each, estimators = zip(*variants, strict=True)
    with ProcessPoolExecutor() as pool:
        for name, outcomes in zip(
            names, pool.map(judge, values_of_each, estimators, repeat(options.seeds)), strict=False
        ):
            row(table, name, outcomes)


if __name__ == "__main__":
    main()
