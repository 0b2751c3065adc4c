"""Samples to a score for each server: what most of its users wait, in seconds. Pure: no I/O, no clock.

The score is a high percentile of the newest samples, by nearest rank (numpy's "inverted_cdf", definition 1 of Hyndman
and Fan, 1996), so that it is always a time that was really measured, and one slow answer in ten does not decide. It
assumes that the next answers will be like the newest ones. With few samples a high percentile would be the slowest of
them, an accident; the mean is the better guess then. Without samples there is no score.

It takes some slow samples to raise a high percentile, and nearly all of the window must be fast before it falls again.
So the window ends at a server's last clear change, and only what was measured since then counts, however little it is:
each of 4 samples in a row is faster, by more than a quarter, than each of the 4 before them; or each of 2 in a row is
slower, by more than a third, than all that the window has before them, which must be 8 or more. Chance hardly ever
sorts samples so: an accident takes one of two, and a tail has shown itself before.

A check that failed counts as the seconds that it was allowed, which is what a user would have waited, at least. One
alone is an accident, and is left out. Two or more say that some users get no answer, and a high percentile hides them:
so then the score is the mean, where that is more. When 4 checks in a row succeed after 2 in a row that failed, the
server was away and is back: a clear change, too. With two or more failures that come and go in the window, no change
for the worse makes an older one forgotten.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterator, Mapping, Sequence
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple

from multicloud.history import Sample
from multicloud.light import CommandError
from multicloud.settings import Key

# One BLAS thread: starting more costs as much CPU time as the rest of the program, and percentiles use none.
for library in ("OPENBLAS", "MKL", "OMP"):
    os.environ.setdefault(f"{library}_NUM_THREADS", "1")

try:
    import numpy as np
except Exception as error:  # of a processor that it was not built for, it says so with a RuntimeError
    said = str(error).rpartition("Original error was: ")[2].strip().partition("\n")[0]
    advice = "with pip, install another version, such as 'numpy<2.4'; else Debian's python3-numpy"
    raise CommandError(f"numpy cannot be loaded: {said}; {advice}") from None

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECOVERY_RUN = 4  # samples in a row that show a recovery, and samples before them that they are held against
SLOWDOWN_RUN, SLOWDOWN_BASE = 2, 8  # samples in a row that show a slowdown, and how many there must be before them
OUTAGE_RUN = 2  # failed checks in a row after which RECOVERY_RUN good ones in a row show that a server is back
CHANGE = 0.75  # one time is clearly faster than another if it is less than this part of it: that is slower by a third


class Score(NamedTuple):
    """What a server's users wait, and what that was made of."""

    seconds: float
    percentile: float | None  # which one `seconds` is; None: the mean
    counted: Sequence[Sample]  # the samples that count, newest first
    failed: int  # how many of them failed
    since: float | None  # UNIX time of the oldest of them where the window ends at a change, if it has one


# Servers that have equally many samples, and the seconds of all these, and which failed.
Group = tuple[dict[Key, Sequence[Sample]], "array[float]", bytearray]


def scores(
    series: Mapping[Key, Sequence[Sample]],
    *,
    now: float,
    percentile: float = 90,
    min_samples: int = 20,
    window: int = 30,
    max_age: float = 300,
) -> dict[Key, Score]:
    """A score for each (backend, server) that has samples that count; `series` has them newest first.

    `percentile` is 0 to 100; with `min_samples` samples or fewer, and without a change, the mean scores; `now` and
    `max_age` are seconds. A sample without a time counts whatever its age, and one from the future does: the clock was
    set back. A recovery as old as the window can be told only where `series` has RECOVERY_RUN samples more.
    """
    by_size: dict[int, Group] = {}
    for key, samples in series.items():
        newest = samples[: window + RECOVERY_RUN]
        seconds, times, failed = zip(*newest, strict=True) if newest else ((), (), ())
        if None in times or now - min(times, default=now) > max_age:
            newest = [each for each in newest if each.time is None or now - each.time <= max_age]
            seconds, _, failed = zip(*newest, strict=True) if newest else ((), (), ())
        if newest:
            members, every, failures = by_size.setdefault(len(newest), ({}, array("d"), bytearray()))
            members[key] = newest
            every.extend(seconds)
            failures.extend(failed)
    return {key: score for group in by_size.values() for key, score in _score(group, percentile, min_samples, window)}


def _score(group: Group, percentile: float, min_samples: int, window: int) -> Iterator[tuple[Key, Score]]:
    """The scores of servers that have equally many samples: for numpy, many rows are hardly more work than one."""
    members, every, failures_of_all = group
    seconds = np.frombuffer(every).reshape(len(members), -1)
    failed = np.frombuffer(failures_of_all, bool).reshape(seconds.shape)
    size = seconds.shape[1]
    since_change = count_since_change(seconds, failed, window)
    counts = np.minimum(since_change, window)
    failures = (failed & (np.arange(size) < counts[:, np.newaxis])).sum(axis=1)
    scored = counts.copy()
    for row in np.flatnonzero((failures == 1) & (counts > 1)):  # a single one that failed does not count
        place = failed[row].argmax()
        seconds[row, place:-1] = seconds[row, place + 1 :]
        scored[row] -= 1
    by_mean = (since_change == size) & (scored <= min_samples)
    values = np.empty(len(members))
    for count, mean in {*zip(scored.tolist(), by_mean.tolist(), strict=True)}:
        rows = np.flatnonzero((scored == count) & (by_mean == mean))
        table = seconds[rows, :count]
        values[rows] = table.mean(axis=1) if mean else np.percentile(table, percentile, axis=1, method="inverted_cdf")
    for row in np.flatnonzero(failures > 1):
        mean = seconds[row, : scored[row]].mean()
        if mean > values[row]:
            values[row], by_mean[row] = mean, True
    columns = values.tolist(), by_mean.tolist(), since_change.tolist(), counts.tolist(), failures.tolist()
    for (key, samples), value, is_mean, changed, count, failed_ones in zip(members.items(), *columns, strict=True):
        since = samples[changed - 1].time if changed < size else None
        yield key, Score(value, None if is_mean else percentile, samples[:count], failed_ones, since)


def count_since_change(seconds: NDArray[np.float64], failed: NDArray[np.bool_], window: int) -> NDArray[np.intp]:
    """How many samples of each row (servers by samples, newest first) were taken since the last change, or all."""
    size = seconds.shape[1]
    changed = np.zeros((len(seconds), size + 1), dtype=bool)  # by how many samples were taken since
    changed[:, size] = True
    if size >= 2 * RECOVERY_RUN:
        runs = _runs(seconds, RECOVERY_RUN)
        faster = runs[:, :, :-RECOVERY_RUN].max(axis=0) < CHANGE * runs[:, :, RECOVERY_RUN:].min(axis=0)
        changed[:, RECOVERY_RUN : size - RECOVERY_RUN + 1] = faster
    if size >= RECOVERY_RUN + OUTAGE_RUN and failed.any():
        away = _runs(failed[:, RECOVERY_RUN:], OUTAGE_RUN).all(axis=0)
        back = ~_runs(failed[:, :-OUTAGE_RUN], RECOVERY_RUN).any(axis=0)
        changed[:, RECOVERY_RUN : size - OUTAGE_RUN + 1] |= back & away
    inside = seconds[:, :window]
    last = inside.shape[1] - SLOWDOWN_BASE
    if last >= SLOWDOWN_RUN:
        calm = np.where(failed, 0, seconds)[:, :window]  # a failure says nothing of the others' speed
        before = np.maximum.accumulate(calm[:, ::-1], axis=1)[:, ::-1]  # the slowest from here back
        pairs = np.minimum(inside[:, :-1], inside[:, 1:])
        slowed = before[:, SLOWDOWN_RUN : last + 1] < CHANGE * pairs[:, : last - SLOWDOWN_RUN + 1]
        if failed.any():
            counting = failed & (np.arange(size) < changed.argmax(axis=1)[:, np.newaxis])  # since it was back
            failures = counting[:, window - 1 :: -1].cumsum(axis=1)[:, ::-1]  # from here back
            slowed &= (failures[:, SLOWDOWN_RUN : last + 1] == 0) | (failures[:, :1] < 2)
        changed[:, SLOWDOWN_RUN : last + 1] |= slowed
    changed[:, window + 1 : size] = False  # what counts does not reach back to them
    sizes: NDArray[np.intp] = changed.argmax(axis=1)
    return sizes


def _runs(table: NDArray[Any], length: int) -> NDArray[Any]:
    """Each run of `length` samples in a row of each server: its samples by servers by runs, the newest run first."""
    return np.stack([table[:, first : table.shape[1] - length + 1 + first] for first in range(length)])


def percentiles(seconds: Sequence[float], percents: Sequence[float]) -> list[float]:
    """The percentiles of `seconds`, which must not be empty, by nearest rank."""
    ordered = sorted(seconds)  # numpy takes as long for one server as this for thirty
    return [ordered[max(0, ceil(round(len(ordered) * percent / 100, 9)) - 1)] for percent in percents]
