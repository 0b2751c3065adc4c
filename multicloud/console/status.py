"""What the router knows, for a person or a scraper: per server its state, its weight and its samples."""

import itertools
import json
import math
import textwrap
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from multicloud import overview, reweigh, runtime, scores, settings
from multicloud.console import problems
from multicloud.console.instance import ask, let_in
from multicloud.overview import PERCENTS, Row
from multicloud.settings import Sources

BARS, FAILURE = "▁▂▃▄▅▆▇█", "x"
BOLD, DIM, RED, GREEN, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[31m", "\x1b[32m", "\x1b[0m"
COLUMNS = f"{'state':>6}{'weight':>7}{'n':>5}{'p50':>6}{'p90':>6}{'p99':>6}{'last':>6}{'age':>5} trend"
NARROW_TREND, NARROW_NAME = 8, 10  # the least room for the trend and for a name, whatever the width
SHARED = 0.01  # part of the traffic from which on a server shares it: a backup of weight 1 beside 256 has less


class Status(NamedTuple):
    """What is shown. `alike` has the backends that need no rows, and the one that each tracks (overview.rows)."""

    rows: list[Row]
    problems: list[str]  # what is wrong, in words
    notes: Sequence[str] = ()  # what is good to know
    alike: Mapping[str, str] = MappingProxyType({})


def collect(sources: Sources) -> Status:
    """Read the sample file and ask HAProxy. Raises SettingError, SampleFileError and RuntimeAPIError."""
    values = sources.read(settings.REWEIGH_SETTINGS)
    if who := let_in(values.socket):
        raise runtime.RuntimeAPIError(f"{values.socket}: permission denied; run this {who}")
    with runtime.RuntimeAPI(values.socket) as api:
        case = ask(api, sources)
    case = case._replace(samples=problems.read_samples(sources), now=time.time())
    scored = reweigh.score(case.samples.series, sources, case.now)
    rows, alike = overview.rows(case.servers, case.samples, scored, sources, case.now)
    return Status(rows, problems.problems(case), problems.notes(case), alike)


def table(status: Status, *, color: bool = False, width: int = 80) -> str:
    """A table for a terminal of `width` columns, backend by backend, and the problems under it."""
    paint: Callable[[str, str], str] = (lambda text, code: f"{code}{text}{PLAIN}") if color else (lambda text, _: text)
    longest = max((len(name) for row in status.rows for name in (row.server, row.backend)), default=0)
    columns = len(COLUMNS) - len("trend")
    room = max(NARROW_NAME, min(longest + 3, width - columns - NARROW_TREND))
    trend = max(NARROW_TREND, width - room - columns)
    lines = []
    for backend, group in itertools.groupby(status.rows, key=lambda row: row.backend):
        members = list(group)
        lines.append(paint(f"{_short(backend, room):<{room}}{COLUMNS}", BOLD))
        # Not the slowest of all: one slow answer would make everything else flat.
        shown = [[seconds for seconds in row.trend[-trend:] if seconds is not None] for row in members]
        scale = max((scores.percentiles(times, (90,))[0] for times in shown if times), default=0.0)
        for row in members:
            code = GREEN if row.favorite else RED if row.state == runtime.DOWN else DIM if not row.weight else PLAIN
            times = [_ms(seconds) for seconds in row.percentiles or (None,) * len(PERCENTS)]
            times.append("fail" if row.trend and row.trend[-1] is None else _ms(row.last))
            age = "-" if row.age is None else f"{math.floor(row.age)}" if row.age < 9999 else "old"
            name = f"{'*' if row.favorite else ' '} {_short(row.server, room - 2):<{room - 2}}"
            line = f"{name}{row.state:>6}{row.weight:>7}{row.samples:>5}{''.join(f'{each:>6}' for each in times)}"
            lines.append(paint(f"{line}{age:>5} {_sparkline(row.trend[-trend:], scale)}", code))
        parts = [f"{row.server} {row.traffic:.0%} ({row.in_flight})" for row in members if row.traffic >= SHARED]
        if len(parts) > 1:
            lines.append(f"shared, with requests in flight: {', '.join(parts)}")
        lines.append("")
    for backend, tracked in status.alike.items():
        lines += [f"{backend}: the same, since its servers track those of {tracked}", ""]
    if any(None in row.trend for row in status.rows):
        lines.append(paint(f"{FAILURE} a check that failed", DIM))
    legend = paint("* favourite; n samples that count, and their times in ms; age of the last in s", DIM)
    lines.append(legend if status.rows else "no samples yet of any server that HAProxy knows")
    wrap = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    lines += [paint(line, RED) for problem in status.problems for line in wrap.wrap(f"! {problem}")]
    lines += [line for note in status.notes for line in wrap.wrap(f"? {note}")]
    if status.problems:
        lines.append(paint("`multicloud doctor` looks further", DIM))
    return "\n".join(lines) + "\n"


def as_json(status: Status) -> str:
    """A JSON array with an object for each server; times in seconds, null where there are none."""
    shown = []
    for row in status.rows:
        fields = row._asdict()
        times = fields.pop("percentiles") or (None,) * len(PERCENTS)
        shown.append(fields | {f"p{percent}": seconds for percent, seconds in zip(PERCENTS, times, strict=True)})
    return json.dumps(shown, indent=2) + "\n"


def _short(text: str, room: int) -> str:
    """The text with a blank behind it; of one that is too long the middle is left out, as names differ at the ends."""
    if len(text) < room:
        return text
    head = (room - 2) // 2
    return f"{text[:head]}…{text[head + 2 - room :]}"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.{1 if seconds < 0.1 else 0}f}"


def _sparkline(trend: Sequence[float | None], scale: float) -> str:
    heights = (None if seconds is None else int(seconds / scale * len(BARS)) for seconds in trend)
    return "".join(FAILURE if height is None else BARS[min(len(BARS) - 1, height)] for height in heights)
