"""Samples to a score for each server: what most of its users wait, in seconds. Pure: no I/O, no clock.

The score is a high percentile of the newest samples, by nearest rank (numpy's "inverted_cdf", definition 1 of Hyndman
and Fan, 1996), so that it is always a time that was really measured, and one slow answer in ten does not decide. It
assumes that the next answers will be like the newest ones. With few samples a high percentile would be the slowest of
them, an accident; the mean is the better guess then. Without samples there is no score.

It takes some slow samples to raise a high percentile, and nearly all of the window must be fast before it falls again.
So the window ends at a server's last clear change, and only what was measured since then counts, however little it is.
There are two: each of 4 samples in a row is faster, by more than a quarter, than each of the 4 before them; or each of
2 in a row is slower, by more than a third, than all that the window has before them, which must be 8 or more. Chance
hardly ever sorts samples so: an accident takes one of two, and a tail has shown itself before.

A check that failed counts as the seconds that it was allowed, which is what a user would have waited, at least. One
alone is an accident, and is left out. Two or more say that some users get no answer: a high percentile hides them as
long as they are few, so then the score is the mean, where that is more. When 4 checks in a row succeed after 2 in a row
that failed, the server was away and is back: a clear change, too. Failures that come and go between are none, and with
two or more in the window no change for the worse makes an older one forgotten.
"""

from __future__ import annotations

import os
from array import array
from math import ceil, inf
from operator import itemgetter

# One BLAS thread: starting more costs as much CPU time as the rest of the program, and percentiles use none.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from multicloud.history import Sample

    Server = tuple[str, str]

RUN = 4
"""Samples in a row that show a recovery, and samples before them that they are held against."""

SLOW, CALM = 2, 8
"""Samples in a row that show a slowdown, and how many there must be before them."""

AWAY = 2
"""Failed checks in a row after which RUN good ones in a row show that a server is back."""

CHANGE = 0.75
"""One time is clearly faster than another if it is less than this part of it, which is then slower by a third."""


SECONDS, FAILED = itemgetter(0), itemgetter(2)
"""Of a sample."""


class Looked:
    """The samples of a server that are looked at, newest first, and columns of them to calculate with.

    `seconds` are their times, and `failed` is a byte each, 1 where the check failed. Up to the UNIX time `until` none
    of them is too old, and there is none that was left out.
    """

    __slots__ = ("failed", "samples", "seconds", "until")

    def __init__(self, samples: Sequence[Sample], seconds: array[float], failed: bytes, until: float) -> None:
        self.samples = samples
        self.seconds = seconds
        self.failed = failed
        self.until = until


class Score:
    """What a server's users wait, in `seconds`, and what that was made of.

    `percentile` is the percentile of the samples that count that it is, None for their mean. `since` is the UNIX time
    of the oldest of them where the window ends at a change, and None where it does not, or where that sample has no
    time. `looked` has those that count, and what was looked at behind them.
    """

    __slots__ = ("_count", "looked", "percentile", "seconds", "since")

    def __init__(
        self, seconds: float, percentile: float | None, since: float | None, looked: Looked, count: int
    ) -> None:
        self.seconds = seconds
        self.percentile = percentile
        self.since = since
        self.looked = looked
        self._count = count

    @property
    def counted(self) -> Sequence[Sample]:
        """The samples that count, newest first."""
        return self.looked.samples[: self._count]

    @property
    def failed(self) -> int:
        """How many of them failed."""
        return sum(self.looked.failed[: self._count])


def lapses(sample: Sample, max_age: float) -> float:
    """The UNIX time up to which a sample counts, as `fresh` says."""
    return inf if sample[1] is None else sample[1] + max_age


def fresh(samples: Sequence[Sample], *, now: float, max_age: float) -> Sequence[Sample]:
    """The samples that are not older than `max_age` seconds.

    A sample without a time counts whatever its age, and one from the future is as good as new: the clock was set back.
    """
    return [sample for sample in samples if sample[1] is None or now - sample[1] <= max_age]


def look(samples: Sequence[Sample], size: int, before: Looked | None, *, now: float, max_age: float) -> Looked:
    """The `size` newest samples that are not too old; of what was looked at `before`, only what is new is looked at."""
    newest = samples[:size]
    if before:
        came, until = [], before.until
        for sample in newest:
            if sample is before.samples[0]:
                break
            came.append(sample)
            until = min(until, lapses(sample, max_age))
        kept = len(newest) - len(came)
        if kept and now <= until:
            seconds = array("d", map(SECONDS, came)) + before.seconds[:kept]
            return Looked(newest, seconds, bytes(map(FAILED, came)) + before.failed[:kept], until)
    found = fresh(newest, now=now, max_age=max_age)
    until = min((lapses(sample, max_age) for sample in found), default=inf)
    if len(found) < len(newest):
        found = fresh(samples, now=now, max_age=max_age)[:size]
        until = -inf  # the one that was left out may count again: when the clock is set back
    return Looked(found, array("d", map(SECONDS, found)), bytes(map(FAILED, found)), until)


def scores(
    series: Mapping[Server, Sequence[Sample]],
    *,
    now: float,
    percentile: float = 90,
    min_samples: int = 20,
    window: int = 30,
    max_age: float = 300,
    known: Mapping[Server, Score] | None = None,
) -> dict[Server, Score]:
    """A score for each (backend, server) that has samples that count; `series` has them newest first.

    `percentile` is 0 to 100; with `min_samples` samples or fewer, and without a change, the mean scores; `now` and
    `max_age` are seconds. A recovery as old as the window can be told only where `series` has RUN samples more. `known`
    may have the scores of an earlier call with the same settings, if samples were only added since: a server keeps its
    score where it has no newer sample and none has become too old.
    """
    known = known or {}
    result: dict[Server, Score] = {}
    by_size: dict[int, list[tuple[Server, Looked]]] = {}
    for server, samples in series.items():
        score = known.get(server)
        if score and samples and samples[0] is score.looked.samples[0] and now <= score.looked.until:
            result[server] = score
            continue
        looked = look(samples, window + RUN, score.looked if score else None, now=now, max_age=max_age)
        if looked.samples:
            by_size.setdefault(len(looked.samples), []).append((server, looked))
    for size, members in by_size.items():
        seconds = np.frombuffer(b"".join([looked.seconds for _, looked in members])).reshape(-1, size).copy()
        failed = np.frombuffer(b"".join([looked.failed for _, looked in members]), dtype=bool).reshape(-1, size)
        sizes = since_change(seconds, failed, window)
        counts = np.minimum(sizes, window)
        failures = (failed & (np.arange(size) < counts[:, np.newaxis])).sum(axis=1)
        scored = counts.copy()
        for row in np.flatnonzero((failures == 1) & (counts > 1)):  # a single one that failed does not count
            place = failed[row].argmax()
            seconds[row, place:-1] = seconds[row, place + 1 :]
            scored[row] -= 1
        # What is scored alike is scored together: by how many times there are, and whether they are few.
        by_mean = (sizes == size) & (scored <= min_samples)
        values = np.empty(len(members))
        for count, few in {*zip(scored.tolist(), by_mean.tolist(), strict=True)}:
            rows = np.flatnonzero((scored == count) & (by_mean == few))
            table = seconds[rows, :count]
            values[rows] = (
                table.mean(axis=1) if few else np.percentile(table, percentile, axis=1, method="inverted_cdf")
            )
        for row in np.flatnonzero(failures > 1):
            mean = seconds[row, : scored[row]].mean()
            if mean > values[row]:
                values[row], by_mean[row] = mean, True
        columns = values.tolist(), by_mean.tolist(), sizes.tolist(), counts.tolist()
        for (server, looked), value, is_mean, changed, count in zip(members, *columns, strict=True):
            since = looked.samples[changed - 1][1] if changed < size else None
            result[server] = Score(value, None if is_mean else percentile, since, looked, count)
    return result


def since_change(seconds: NDArray[np.float64], failed: NDArray[np.bool_], window: int) -> NDArray[np.intp]:
    """How many samples of each row (servers by samples, newest first) were taken since the last change, or all."""
    size = seconds.shape[1]
    changed = np.zeros((len(seconds), size + 1), dtype=bool)  # by how many samples were taken since
    changed[:, size] = True
    if size >= 2 * RUN:
        runs = [seconds[:, start : size - RUN + 1 + start] for start in range(RUN)]
        slowest, fastest = np.maximum.reduce(runs), np.minimum.reduce(runs)
        changed[:, RUN : size - RUN + 1] = slowest[:, :-RUN] < CHANGE * fastest[:, RUN:]
    if size >= RUN + AWAY:
        ends = size - RUN - AWAY + 1
        succeeded = ~np.logical_or.reduce([failed[:, start : start + ends] for start in range(RUN)])
        away = np.logical_and.reduce([failed[:, RUN + start : RUN + start + ends] for start in range(AWAY)])
        changed[:, RUN : RUN + ends] |= succeeded & away
    inside = seconds[:, :window]
    last = inside.shape[1] - CALM
    if last >= SLOW:
        calm = np.where(failed, 0, seconds)[:, :window]  # a failure says nothing of the others' speed
        before = np.maximum.accumulate(calm[:, ::-1], axis=1)[:, ::-1]  # the slowest from here back
        pairs = np.minimum(inside[:, :-1], inside[:, 1:])
        slowed = before[:, SLOW : last + 1] < CHANGE * pairs[:, : last - SLOW + 1]
        if failed.any():
            counting = failed & (np.arange(size) < changed.argmax(axis=1)[:, np.newaxis])  # since it was back
            failures = counting[:, window - 1 :: -1].cumsum(axis=1)[:, ::-1]  # from here back
            slowed &= (failures[:, SLOW : last + 1] == 0) | (failures[:, :1] < 2)
        changed[:, SLOW : last + 1] |= slowed
    changed[:, window + 1 : size] = False  # what counts does not reach back to them
    sizes: NDArray[np.intp] = changed.argmax(axis=1)
    return sizes


def percentiles(seconds: Sequence[float], percents: Sequence[float]) -> list[float]:
    """The percentiles of `seconds`, which must not be empty, by nearest rank."""
    ordered = sorted(seconds)  # numpy takes as long for one server as this for thirty
    return [ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] for percent in percents]
