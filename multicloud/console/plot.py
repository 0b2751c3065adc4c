"""A picture of the samples: the round-trip times of each server over time, and the score that decides."""

from __future__ import annotations

import time

import matplotlib as mpl

mpl.use("agg")  # draws to files, and needs no screen

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

from multicloud import reweigh, samples, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from multicloud.settings import Sources

    Samples = Sequence[tuple[float, float]]


class PlotError(Exception):
    """There is nothing to draw, or nowhere to draw it. The text says which and why."""


def draw(sources: Sources, path: str) -> None:
    """Draw a picture of each backend, one below the other, to a .png or .svg file.

    Raises SettingError, SampleFileError and PlotError.
    """
    values = sources.read(settings.SCORING)
    found = samples.read(values.times, max(samples.KEEP, reweigh.longest_window(sources)))
    backends: dict[str, dict[str, Samples]] = {}
    for (backend, server), newest in sorted(found.series.items()):
        timed = [(when, seconds) for seconds, when in reversed(newest) if when is not None]
        if timed:
            backends.setdefault(backend, {})[server] = timed
    if not backends:
        raise PlotError(f"{values.times}: no samples with a time to draw; `multicloud doctor` finds out why")
    figure = Figure(figsize=(9, 3.6 * len(backends)), layout="constrained")
    pictures = figure.subplots(len(backends), squeeze=False)[:, 0]
    for axes, (backend, series) in zip(pictures, backends.items(), strict=True):
        _draw_backend(axes, backend, series, sources)
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise PlotError(f"{path}: {(error.strerror or str(error)).lower()}") from None


def _draw_backend(axes: Axes, backend: str, series: dict[str, Samples], sources: Sources) -> None:
    values = sources.read(settings.SCORING, backend)
    score = f"p{values.percentile:g}, or the mean of {values.min_samples} or fewer"
    for server, timed in series.items():
        times = [when for when, _ in timed]
        (line,) = axes.plot(times, running_scores(timed, backend, sources), linewidth=2, label=server)
        axes.plot(times, [1000 * seconds for _, seconds in timed], ".", markersize=4, alpha=0.4, color=line.get_color())
    axes.set_title(f"{backend}: samples (dots), and the score that decides (lines): {score}", fontsize=10)
    axes.set_ylabel("round-trip time, ms")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_formatter(lambda when, _: time.strftime("%H:%M:%S", time.localtime(when)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def running_scores(timed: Samples, backend: str, sources: Sources) -> list[float]:
    """In ms, the score that a server of the backend had at each of its samples.

    Those are pairs of UNIX time and seconds, in order.
    """
    result = []
    for end in range(1, len(timed) + 1):
        newest = [(seconds, when) for when, seconds in reversed(timed[:end])]
        result.append(1000 * reweigh.score({(backend, ""): newest}, sources, timed[end - 1][0])[backend, ""].seconds)
    return result
