"""The dashboard's panels as a picture, for who has no Grafana at hand, from the data of a Prometheus:

python deploy/grafana/picture.py http://localhost:9090 dashboard.png [MINUTES [RATE_INTERVAL]]

Needs `pip install '.[bench]'`. All edges and backends are drawn, of the last 60 minutes if not said otherwise.
"""

from __future__ import annotations

import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from matplotlib import figure
from PIL import Image

DASHBOARD = Path(__file__).with_name("multicloud.json")
POINTS = 150
UNITS = {"s": "s", "percentunit": "part", "short": ""}


def main() -> None:
    """Draw it."""
    address, path, *others = sys.argv[1:]
    minutes, interval = float(others[0]) if others else 60.0, others[1] if len(others) > 1 else "1m"
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    end = time.time()
    begin = end - 60 * minutes
    picture = figure.Figure(figsize=(12, 2.2 * math.ceil(len(panels) / 2)), layout="constrained")
    for axes, panel in zip(picture.subplots(math.ceil(len(panels) / 2), 2).flat, panels, strict=False):
        axes.set_title(panel["title"], fontsize=9, loc="left")
        axes.tick_params(labelsize=7)
        draw = {"state-timeline": timeline, "table": table, "timeseries": lines}[panel["type"]]
        draw(axes, panel, series(address, panel, begin, end, interval))
        if panel["type"] != "table":
            axes.set_xlim(begin, end)
            axes.xaxis.set_major_formatter(lambda when, _: time.strftime("%H:%M:%S", time.localtime(when)))
    for axes in picture.axes[len(panels) :]:
        axes.set_axis_off()
    picture.savefig(path, dpi=75)
    Image.open(path).quantize(64).save(path, optimize=True)


def series(
    address: str, panel: dict[str, Any], begin: float, end: float, interval: str
) -> list[tuple[str, dict, list]]:
    """The legend, the labels and the points of each series of a panel, by Prometheus' HTTP API."""
    found = []
    step = (end - begin) / POINTS
    for target in panel["targets"]:
        expr = target["expr"].replace("$__rate_interval", interval)
        expr = re.sub(r"\$(edge|backend)", ".*", expr)
        asked = urllib.parse.urlencode({"query": expr, "start": begin, "end": end, "step": step})
        with urllib.request.urlopen(f"{address}/api/v1/query_range?{asked}", timeout=30) as answer:
            result = json.load(answer)["data"]["result"]
        for each in result:
            legend = re.sub(
                r"\{\{(\w+)\}\}", lambda name, of=each["metric"]: of.get(name[1], ""), target.get("legendFormat", "")
            )
            found.append((legend, each["metric"], [(when, float(value)) for when, value in each["values"]]))
    return found


def timeline(axes: Any, _: dict[str, Any], shown: list[tuple[str, dict, list]]) -> None:
    """A bar for each time that a value was 1."""
    for row, (_, _, points) in enumerate(shown):
        width = points[1][0] - points[0][0] if len(points) > 1 else 1.0
        axes.broken_barh([(when, width) for when, value in points if value], (row - 0.4, 0.8), color="tab:green")
    axes.set_yticks(range(len(shown)), [legend for legend, _, _ in shown])
    axes.set_ylim(len(shown) - 0.5, -0.5)


def table(axes: Any, _: dict[str, Any], shown: list[tuple[str, dict, list]]) -> None:
    """The last value of each series that still has one, as a time."""
    last = max((points[-1][0] for _, _, points in shown), default=0.0)
    rows = [
        [of["instance"], of["backend"], of["server"], time.strftime("%H:%M:%S", time.localtime(points[-1][1] / 1000))]
        for _, of, points in shown
        if points[-1][0] == last
    ]
    axes.set_axis_off()
    axes.table(rows, colLabels=["edge", "backend", "leads", "since"], loc="upper center", cellLoc="left")


def lines(axes: Any, panel: dict[str, Any], shown: list[tuple[str, dict, list]]) -> None:
    """Lines, or areas one upon the other; of many series, those that are 0 all the time are left out."""
    custom = panel["fieldConfig"]["defaults"].get("custom", {})
    stacked = custom.get("stacking", {}).get("mode") == "normal"
    shown = [each for each in shown if any(value for _, value in each[2])] or shown[:1]
    if stacked:
        times = sorted({when for _, _, points in shown for when, _ in points})
        heights = [[dict(points).get(when, 0.0) for when in times] for _, _, points in shown]
        axes.stackplot(times, heights, labels=[legend for legend, _, _ in shown], step="post", alpha=0.7)
    else:
        for legend, _, points in shown:
            axes.plot(*zip(*points, strict=True), label=legend, linewidth=1.2)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(UNITS[panel["fieldConfig"]["defaults"]["unit"]], fontsize=7)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, fontsize=6)


if __name__ == "__main__":
    main()
