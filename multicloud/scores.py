"""Samples to a score for each server: what most of its users wait, in seconds. Pure: no I/O, no clock.

The score is a high percentile of the newest samples, by nearest rank (numpy's "inverted_cdf", definition 1 of Hyndman
and Fan, 1996), so that it is always a time that was really measured, and one slow answer in ten does not decide. It
assumes that the next answers will be like the newest ones. With few samples a high percentile would be the slowest of
them, an accident; the mean is the better guess then. Without samples there is no score.
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

    Server = tuple[str, str]
    Sample = tuple[float, float | None]


def countable(samples: Iterable[Sample], *, now: float, window: int, max_age: float) -> list[float]:
    """The seconds of the `window` newest samples, newest first, that are not older than `max_age` seconds.

    A sample without a time counts whatever its age, and one from the future is as good as new: the clock was set back.
    """
    fresh = [seconds for seconds, when in samples if when is None or now - when <= max_age]
    return fresh[:window]


def scores(
    series: Mapping[Server, Sequence[Sample]],
    *,
    now: float,
    percentile: float = 90,
    min_samples: int = 20,
    window: int = 30,
    max_age: float = 300,
) -> dict[Server, float]:
    """Seconds for each (backend, server) that has samples that count; `series` has them newest first.

    `percentile` is 0 to 100; with `min_samples` samples or fewer the mean scores; `now` and `max_age` are seconds.
    """
    by_size: dict[int, tuple[list[Server], list[list[float]]]] = {}
    for server, samples in series.items():
        seconds = countable(samples, now=now, window=window, max_age=max_age)
        servers, rows = by_size.setdefault(len(seconds), ([], []))
        servers.append(server)
        rows.append(seconds)
    result: dict[Server, float] = {}
    for size, (servers, rows) in by_size.items():
        if not size:
            continue
        table = np.array(rows)
        if size <= min_samples:
            column = table.mean(axis=1)
        else:
            column = np.percentile(table, percentile, axis=1, method="inverted_cdf")
        result.update(zip(servers, column.tolist(), strict=True))
    return result


def percentiles(seconds: Sequence[float], percents: Sequence[float]) -> list[float]:
    """The percentiles of `seconds`, which must not be empty, by nearest rank."""
    values: list[float] = np.percentile(np.array(seconds), percents, method="inverted_cdf").tolist()
    return values
