"""A picture of the samples: the round-trip times of each server over time, and the score that decides."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from matplotlib import figure

from multicloud import history, light, reweigh, settings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from multicloud.history import Sample
    from multicloud.settings import Sources


def draw(sources: Sources, path: str) -> None:
    """Draw a picture of each backend, one below the other, to a .png or .svg file.

    Raises UsageError, and CommandError where there is nothing to draw, or nowhere to draw it.
    """
    values = sources.read(settings.SCORING)
    found = history.read(values.times, max(history.KEEP, reweigh.longest_window(sources)))
    backends: dict[str, dict[str, list[Sample]]] = {}
    for (backend, server), newest in sorted(found.series.items()):
        timed = [sample for sample in newest if sample.time is not None]
        if timed:
            backends.setdefault(backend, {})[server] = timed
    if not backends:
        raise light.CommandError(f"{values.times}: no samples with a time to draw; `multicloud doctor` finds out why")
    picture = figure.Figure(figsize=(9, 3.6 * len(backends)), layout="constrained")
    parts = picture.subplots(len(backends), squeeze=False)[:, 0]
    for axes, (backend, series) in zip(parts, backends.items(), strict=True):
        _draw_backend(axes, backend, series, sources)
    try:
        picture.savefig(path, dpi=100)
    except OSError as error:
        raise light.CommandError(f"{path}: {light.reason(error)}") from None


def _draw_backend(axes: Axes, backend: str, series: dict[str, list[Sample]], sources: Sources) -> None:
    values = sources.read(settings.SCORING, backend)
    score = f"p{values.percentile:g}, or the mean of {values.min_samples} or fewer"
    for server, timed in series.items():
        scored = running_scores(timed, backend, sources)
        (line,) = axes.plot([sample.time or 0.0 for sample in timed], scored, linewidth=2, label=server)
        for failed, marker in ((False, "."), (True, "x")):
            shown = [sample for sample in timed if sample.failed == failed]
            if shown:  # without any there would be no layout
                when = [sample.time or 0.0 for sample in shown]
                heights = [0.0 if failed else 1000 * sample.seconds for sample in shown]
                axes.plot(when, heights, marker, markersize=4, alpha=0.4, color=line.get_color(), clip_on=False)
    axes.set_title(f"{backend}: samples (dots), failures (x), score (lines): {score}", fontsize=10)
    axes.set_ylabel("round-trip time, ms")
    slowest = max((sample.seconds for timed in series.values() for sample in timed if not sample.failed), default=1.0)
    axes.set_ylim(0, 1100 * slowest)  # what a server with failures is scored by is beyond
    axes.xaxis.set_major_formatter(lambda when, _: time.strftime("%H:%M:%S", time.localtime(when)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)


def running_scores(timed: Sequence[Sample], backend: str, sources: Sources) -> list[float]:
    """In ms, the score that a server of the backend had at each of its samples, which are the newest first."""
    return [
        1000 * reweigh.score({(backend, ""): timed[start:]}, sources, timed[start].time or 0.0)[backend, ""].seconds
        for start in range(len(timed))
    ]
