"""A picture of the samples: each server's round-trip times, the score that decides, and when another one led."""

import math
import time

from matplotlib import figure
from matplotlib.axes import Axes

from multicloud import light, settings
from multicloud.console import history as histories
from multicloud.history import Sample
from multicloud.settings import Key, Sources


def draw(sources: Sources, path: str, begin: str | None = None, end: str | None = None) -> None:
    """Draw a picture of each backend, one below the other, to a .png or .svg file, from `begin` to `end` where said.

    Raises UsageError, and CommandError where there is nothing to draw, or nowhere to draw it.
    """
    now = time.time()
    first = histories.moment(begin, now) if begin else 0.0
    last = histories.moment(end, now) if end else math.inf
    backends: dict[str, dict[Key, list[Sample]]] = {}
    for key, timed in histories.read(sources, "draw").items():
        if any(first <= (sample.time or 0.0) <= last for sample in timed):
            backends.setdefault(key[0], {})[key] = timed
    if not backends:
        raise light.CommandError("no samples of that time to draw; `multicloud history` says from when they are")
    picture = figure.Figure(figsize=(9, 3.6 * len(backends)), layout="constrained")
    parts = picture.subplots(len(backends), squeeze=False)[:, 0]
    for axes, (backend, series) in zip(parts, backends.items(), strict=True):
        _draw_backend(axes, backend, series, sources, first, last)
    try:
        picture.savefig(path, dpi=100)
    except OSError as error:
        raise light.CommandError(f"{path}: {light.reason(error)}") from None


def _draw_backend(
    axes: Axes, backend: str, series: dict[Key, list[Sample]], sources: Sources, first: float, last: float
) -> None:
    values = sources.read(settings.SCORING_SETTINGS, backend)
    score = f"p{values.percentile:g}, or the mean of {values.min_samples} or fewer"
    colors = {}
    slowest = 0.0
    switches, sharings, scores = histories.replay(series, sources)
    for key, timed in series.items():
        scored = [(when, 1000 * seconds) for when, seconds in scores[key] if first <= when <= last]
        (line,) = axes.plot([when for when, _ in scored], [ms for _, ms in scored], linewidth=2, label=key[1])
        colors[key[1]] = line.get_color()
        for failed, marker in ((False, "."), (True, "x")):
            shown = [each for each in timed if first <= (each.time or 0.0) <= last and each.failed == failed]
            if shown:  # without any there would be no layout
                when = [sample.time or 0.0 for sample in shown]
                heights = [0.0 if failed else 1000 * sample.seconds for sample in shown]
                slowest = max(slowest, *heights)
                axes.plot(when, heights, marker, markersize=4, alpha=0.4, color=line.get_color(), clip_on=False)
    for switch in switches:
        if switch.before and first <= switch.time <= last:
            axes.axvline(switch.time, color=colors[switch.after], linestyle=":", linewidth=1)
            at_top = axes.get_xaxis_transform()
            axes.text(switch.time, 0.98, switch.after, transform=at_top, rotation=90, va="top", ha="right", fontsize=7)
    for sharing in sharings:
        begin, end = max(first, sharing.begin), min(last, sharing.end)
        if begin <= end:
            axes.axvspan(begin, end, color="0.9", zorder=0, gid="shared")
    marks = "samples (dots), failures (x), new favourite (dotted), shared (grey)"
    axes.set_title(f"{backend}: {marks}, score: {score}", fontsize=10)
    axes.set_ylabel("round-trip time, ms")
    axes.set_ylim(0, 1.1 * (slowest or 1000.0))  # what a server with failures is scored by is beyond
    axes.xaxis.set_major_formatter(lambda when, _: time.strftime("%H:%M:%S", time.localtime(when)))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=8)
