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

    Server = tuple[str, str]
    Sample = tuple[float, float | None, bool]

RUN = 4
"""Samples in a row that show a recovery, and samples before them that they are held against."""

SLOW, CALM = 2, 8
"""Samples in a row that show a slowdown, and how many there must be before them."""

AWAY = 2
"""Failed checks in a row after which RUN good ones in a row show that a server is back."""

CHANGE = 0.75
"""One time is clearly faster than another if it is less than this part of it, which is then slower by a third."""


SECONDS, WHEN, FAILED = map(itemgetter, range(3))
"""Of a sample."""


class Score:
    """What a server's users wait, in `seconds`, and what that was made of.

    `counted` has the samples that count, newest first. `percentile` is the percentile of them that it is, None for
    their mean. `since` is the UNIX time of the oldest of them where the window ends at a change, and None where it does
    not, or where that sample has no time. `until` is the UNIX time at which the oldest sample that was looked at is
    too old.
    """

    __slots__ = ("counted", "percentile", "seconds", "since", "until")

    def __init__(
        self, seconds: float, counted: Sequence[Sample], percentile: float | None, since: float | None, until: float
    ) -> None:
        self.seconds = seconds
        self.counted = counted
        self.percentile = percentile
        self.since = since
        self.until = until

    @property
    def failed(self) -> int:
        """How many of the samples that count failed."""
        return sum(map(FAILED, self.counted))


def oldest(samples: Sequence[Sample]) -> float:
    """The UNIX time of the oldest sample that has one; infinite where none has."""
    times = list(map(WHEN, samples))
    if None in times:
        times = [when for when in times if when is not None]
    return min(times, default=inf)


def fresh(samples: Sequence[Sample], *, now: float, max_age: float) -> Sequence[Sample]:
    """The samples that are not older than `max_age` seconds.

    A sample without a time counts whatever its age, and one from the future is as good as new: the clock was set back.
    """
    if now - oldest(samples) <= max_age:  # as nearly always
        return samples
    return [sample for sample in samples if sample[1] is None or now - sample[1] <= max_age]


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
    may have the scores of an earlier call with the same settings: a server keeps its score where it has no newer sample
    and none has become too old.
    """
    known = known or {}
    result: dict[Server, Score] = {}
    by_size: dict[int, list[tuple[Server, Sequence[Sample]]]] = {}
    for server, samples in series.items():
        before = known.get(server)
        if before and samples and samples[0] is before.counted[0] and now <= before.until:
            result[server] = before
            continue
        counting = fresh(samples, now=now, max_age=max_age)[: window + RUN]
        if counting:
            by_size.setdefault(len(counting), []).append((server, counting))
    # What is scored alike is scored together: by how many times there are, and whether they are few.
    chosen: dict[tuple[int, bool], list[tuple[Server, list[float], int, int, Sequence[Sample]]]] = {}
    for available, members in by_size.items():
        seconds_of = [list(map(SECONDS, counting)) for _, counting in members]
        failed_of = [list(map(FAILED, counting)) for _, counting in members]
        sizes = since_change(np.array(seconds_of), np.array(failed_of), window).tolist()
        for (server, counting), seconds, failed, size in zip(members, seconds_of, failed_of, sizes, strict=True):
            times = seconds[: min(size, window)]
            failures = failed[: len(times)].count(True)
            if failures == 1 and len(times) > 1:  # a single one that failed does not count
                del times[failed.index(True)]
            few = size == available and len(times) <= min_samples
            chosen.setdefault((len(times), few), []).append((server, times, failures, size, counting))
    for (_, few), rows in chosen.items():
        table = np.array([times for _, times, *_ in rows])
        column = table.mean(axis=1) if few else np.percentile(table, percentile, axis=1, method="inverted_cdf")
        for (server, times, failures, size, counting), value in zip(rows, column.tolist(), strict=True):
            mean = sum(times) / len(times) if failures > 1 else 0.0
            by_mean = few or mean > value
            since = counting[size - 1][1] if size < len(counting) else None
            until = oldest(counting) + max_age
            counted = counting[: min(size, window)]
            result[server] = Score(max(value, mean), counted, None if by_mean else percentile, since, until)
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
            failures = failed[:, window - 1 :: -1].cumsum(axis=1)[:, ::-1]  # from here back
            slowed &= (failures[:, SLOW : last + 1] == 0) | (failures[:, :1] < 2)
        changed[:, SLOW : last + 1] |= slowed
    changed[:, window + 1 : size] = False  # what counts does not reach back to them
    sizes: NDArray[np.intp] = changed.argmax(axis=1)
    return sizes


def percentiles(seconds: Sequence[float], percents: Sequence[float]) -> list[float]:
    """The percentiles of `seconds`, which must not be empty, by nearest rank."""
    ordered = sorted(seconds)  # numpy takes as long for one server as this for thirty
    return [ordered[max(0, ceil(len(ordered) * percent / 100) - 1)] for percent in percents]
