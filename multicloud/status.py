"""What the router knows, for a person or a scraper: per server its state, its weight and its samples."""

from __future__ import annotations

import json
import math
import time
from typing import TYPE_CHECKING, NamedTuple

from multicloud import ranking, runtime, samples, scores

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multicloud.settings import Settings

PERCENTS = (50, 90, 99)
TREND = 8
"""Samples that the trend shows."""

BARS = "▁▂▃▄▅▆▇█"
BOLD, DIM, RED, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"


class Row(NamedTuple):
    """One server. Times are seconds; `percentiles` are those of PERCENTS; `trend` is oldest first."""

    backend: str
    server: str
    state: str
    weight: int
    favorite: bool
    samples: int
    percentiles: tuple[float, ...] | None
    last: float | None
    age: float | None
    trend: tuple[float, ...]


def collect(values: Settings) -> list[Row]:
    """A row for each server of each backend that has samples. Raises SampleFileError and RuntimeAPIError."""
    found = samples.read(values.times, values.window)
    with runtime.RuntimeAPI(values.socket) as api:
        servers = api.servers()
    now = time.time()
    routed = {server.backend for server in servers if server.key in found.series}
    return [_row(server, found, values, now) for server in servers if server.backend in routed]


def _row(server: ranking.Server, found: samples.Samples, values: Settings, now: float) -> Row:
    newest = found.series.get(server.key, [])
    counted = scores.countable(newest, now=now, window=values.window, max_age=values.max_age)
    last, when = newest[0] if newest else (None, None)
    return Row(
        server.backend,
        server.name,
        server.state,
        server.weight,
        server.state == ranking.UP and server.weight == values.favorite,
        len(counted),
        tuple(scores.percentiles(counted, PERCENTS)) if counted else None,
        last,
        None if when is None else max(0.0, now - when),
        tuple(reversed([seconds for seconds, _ in newest[:TREND]])),
    )


def table(rows: Iterable[Row], *, color: bool = False, width: int = 80) -> str:
    """A table for a terminal of `width` columns, backend by backend."""
    backends: dict[str, list[Row]] = {}
    for row in rows:
        backends.setdefault(row.backend, []).append(row)
    if not backends:
        return "no samples yet of any server that HAProxy knows\n"
    paint: Callable[[str, str], str] = (lambda text, code: f"{code}{text}{PLAIN}") if color else (lambda text, _: text)
    room = max(16, width - 56)
    lines = []
    for backend, members in backends.items():
        head = f"{'state':>6}{'weight':>7}{'n':>4}{'p50':>6}{'p90':>6}{'p99':>6}{'last':>6}{'age':>5} trend"
        lines.append(paint(f"{_short(backend, room):<{room}}{head}", BOLD))
        scale = max((max(row.trend) for row in members if row.trend), default=0.0)
        for row in members:
            code = GREEN if row.favorite else RED if row.state == ranking.DOWN else DIM if not row.weight else ""
            mark = "*" if row.favorite else " "
            times = row.percentiles or (None,) * len(PERCENTS)
            line = (
                f"{mark} {_short(row.server, room - 2):<{room - 2}}{row.state:>6}{row.weight:>7}{row.samples:>4}"
                + "".join(f"{_ms(seconds):>6}" for seconds in (*times, row.last))
                + f"{_age(row.age):>5} {_sparkline(row.trend, scale)}"
            )
            lines.append(paint(line, code) if code else line)
        lines.append("")
    lines.append(paint("* favourite; n samples count; their times in ms; the age of the last in s", DIM))
    return "\n".join(lines) + "\n"


def as_json(rows: Iterable[Row]) -> str:
    """A JSON array with an object for each server; times in seconds, null where there are none."""
    return json.dumps(
        [
            {
                **{name: value for name, value in row._asdict().items() if name != "percentiles"},
                **{f"p{p}": row.percentiles[i] if row.percentiles else None for i, p in enumerate(PERCENTS)},
            }
            for row in rows
        ],
        indent=2,
    )


def prometheus(rows: Sequence[Row]) -> str:
    """Prometheus' text format, version 0.0.4."""
    metrics: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("multicloud_server_up", "Whether HAProxy says that the server is UP.", lambda row: row.state == ranking.UP),
        ("multicloud_server_weight", "The server's weight in HAProxy.", lambda row: row.weight),
        ("multicloud_server_favorite", "Whether the server has the favourite's weight.", lambda row: row.favorite),
        ("multicloud_server_samples", "Samples of the server that count.", lambda row: row.samples),
        ("multicloud_last_rtt_seconds", "Round-trip time of the newest sample.", lambda row: row.last),
        ("multicloud_last_sample_age_seconds", "Age of the newest sample.", lambda row: row.age),
    ]
    lines = []
    for name, meaning, value in metrics:
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} gauge"]
        lines += [f"{name}{{{_labels(row)}}} {float(v):g}" for row in rows if (v := value(row)) is not None]
    name = "multicloud_rtt_seconds"
    lines += [f"# HELP {name} Percentiles of the round-trip time, of the samples that count.", f"# TYPE {name} gauge"]
    for row in rows:
        for percent, seconds in zip(PERCENTS, row.percentiles or (), strict=False):
            lines.append(f'{name}{{{_labels(row)},quantile="{percent / 100:g}"}} {seconds:.6f}')
    return "\n".join(lines) + "\n"


def _labels(row: Row) -> str:
    return f'backend="{row.backend}",server="{row.server}"'


def _short(text: str, room: int) -> str:
    return text if len(text) < room else text[: room - 2] + "… "


def _ms(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    return f"{seconds * 1000:.1f}" if seconds < 0.1 else f"{seconds * 1000:.0f}"


def _age(seconds: float | None) -> str:
    return "-" if seconds is None else f"{math.floor(seconds)}" if seconds < 9999 else "old"


def _sparkline(trend: Sequence[float], scale: float) -> str:
    return "".join(BARS[min(len(BARS) - 1, int(seconds / scale * len(BARS)))] for seconds in trend)
