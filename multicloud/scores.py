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
"""

from __future__ import annotations

import os

# One BLAS thread: starting more costs as much CPU time as the rest of the program, and percentiles use none.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    Server = tuple[str, str]
    Sample = tuple[float, float | None]

RUN = 4
"""Samples in a row that show a recovery, and samples before them that they are held against."""

SLOW, CALM = 2, 8
"""Samples in a row that show a slowdown, and how many there must be before them."""

CHANGE = 0.75
"""One time is clearly faster than another if it is less than this part of it, which is then slower by a third."""


class Score:
    """What a server's users wait, in `seconds`, and what that was made of.

    `counted` has the seconds of the samples that count, newest first. `percentile` is the percentile of them that it
    is, None for their mean. `since` is the UNIX time of the oldest of them where the window ends at a change, and None
    where it does not, or where that sample has no time.
    """

    __slots__ = ("counted", "percentile", "seconds", "since")

    def __init__(self, seconds: float, counted: Sequence[float], percentile: float | None, since: float | None) -> None:
        self.seconds = seconds
        self.counted = counted
        self.percentile = percentile
        self.since = since


def fresh(samples: Iterable[Sample], *, now: float, max_age: float) -> list[Sample]:
    """The samples that are not older than `max_age` seconds.

    A sample without a time counts whatever its age, and one from the future is as good as new: the clock was set back.
    """
    return [sample for sample in samples if sample[1] is None or now - sample[1] <= max_age]


def scores(
    series: Mapping[Server, Sequence[Sample]],
    *,
    now: float,
    percentile: float = 90,
    min_samples: int = 20,
    window: int = 30,
    max_age: float = 300,
) -> dict[Server, Score]:
    """A score for each (backend, server) that has samples that count; `series` has them newest first.

    `percentile` is 0 to 100; with `min_samples` samples or fewer, and without a change, the mean scores; `now` and
    `max_age` are seconds. A recovery as old as the window can be told only where `series` has RUN samples more.
    """
    by_size: dict[int, list[tuple[Server, list[Sample]]]] = {}
    for server, samples in series.items():
        counting = fresh(samples, now=now, max_age=max_age)[: window + RUN]
        if counting:
            by_size.setdefault(len(counting), []).append((server, counting))
    result: dict[Server, Score] = {}
    for available, members in by_size.items():
        table = np.array([[seconds for seconds, _ in counting] for _, counting in members])
        sizes = since_change(table, window)
        for size in set(sizes.tolist()):
            chosen = np.flatnonzero(sizes == size)
            newest = table[chosen, : min(size, window)]
            mean = size == available and newest.shape[1] <= min_samples
            column = newest.mean(axis=1) if mean else np.percentile(newest, percentile, axis=1, method="inverted_cdf")
            for index, seconds, counted in zip(chosen.tolist(), column.tolist(), newest.tolist(), strict=True):
                server, counting = members[index]
                since = counting[size - 1][1] if size < available else None
                result[server] = Score(seconds, counted, None if mean else percentile, since)
    return result


def since_change(table: NDArray[np.float64], window: int) -> NDArray[np.intp]:
    """How many samples of each row (servers by samples, newest first) were taken since the last change, or all."""
    size = table.shape[1]
    changed = np.zeros((len(table), size + 1), dtype=bool)  # by how many samples were taken since
    changed[:, size] = True
    if size >= 2 * RUN:
        runs = [table[:, start : size - RUN + 1 + start] for start in range(RUN)]
        slowest, fastest = np.maximum.reduce(runs), np.minimum.reduce(runs)
        changed[:, RUN : size - RUN + 1] = slowest[:, :-RUN] < CHANGE * fastest[:, RUN:]
    inside = table[:, :window]
    last = inside.shape[1] - CALM
    if last >= SLOW:
        before = np.maximum.accumulate(inside[:, ::-1], axis=1)[:, ::-1]  # the slowest from here back
        pairs = np.minimum(inside[:, :-1], inside[:, 1:])
        changed[:, SLOW : last + 1] |= before[:, SLOW : last + 1] < CHANGE * pairs[:, : last - SLOW + 1]
    sizes: NDArray[np.intp] = changed.argmax(axis=1)
    return sizes


def percentiles(seconds: Sequence[float], percents: Sequence[float]) -> list[float]:
    """The percentiles of `seconds`, which must not be empty, by nearest rank."""
    values: list[float] = np.percentile(np.array(seconds), percents, method="inverted_cdf").tolist()
    return values
