"""Who led when, and why that changed: the samples of the file scored and ranked again, as they came."""

from __future__ import annotations

import bisect
import datetime
import math
import re
import time
from typing import TYPE_CHECKING

from multicloud import history, light, overview, reweigh, runtime, settings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from multicloud.history import Sample
    from multicloud.overview import Switch
    from multicloud.settings import Sources

    Key = tuple[str, str]

FALL = 2
"""Checks in a row that failed after which a server is DOWN, as haproxy.cfg says."""


def lines(sources: Sources, since: str) -> list[str]:
    """A line for each change of favourite since then, with who led before it. Raises UsageError and CommandError."""
    begin = moment(since, time.time())
    shown: list[Switch] = []
    for switch in switches(read(sources, "replay"), sources):
        if switch.time < begin:  # of what was before, only the last one says who led
            shown = [each for each in shown if each.backend != switch.backend]
        shown.append(switch)
    return [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(switch.time))} {switch.backend}: "
        + (f"{switch.before} -> {switch.after}, {switch.words()}" if switch.before else f"{switch.after} leads")
        for switch in sorted(shown, key=lambda switch: switch.time)
    ]


def read(sources: Sources, purpose: str) -> dict[Key, list[Sample]]:
    """All samples that have a time, newest first. Raises CommandError where there are none for the purpose."""
    times = sources.read((settings.TIMES,)).times
    found = history.read(times, history.MAX_LINES).series
    timed = {key: [sample for sample in newest if sample.time is not None] for key, newest in sorted(found.items())}
    if not any(timed.values()):
        raise light.CommandError(f"{times}: no samples with a time to {purpose}; `multicloud doctor` finds out why")
    return {key: newest for key, newest in timed.items() if newest}


def moment(text: str, now: float) -> float:
    """The UNIX time of `90s`, `15m`, `1h`, `2d` ago, of a time of today (`08:30`) or of a date. Raises UsageError."""
    if ago := re.fullmatch(r"(\d+)([smhd])", text):
        return now - int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
    try:
        today = datetime.date.fromtimestamp(now).isoformat()
        return datetime.datetime.fromisoformat(f"{today} {text}" if re.match(r"\d\d?:", text) else text).timestamp()
    except ValueError:
        raise light.UsageError(f"cannot read {text!r}; accepted: 15m, 1h, 2d, 08:30, 2026-01-31 08:30") from None


def switches(series: Mapping[Key, Sequence[Sample]], sources: Sources) -> Iterator[Switch]:
    """The changes of favourite of each backend, one backend after the other; the samples are newest first.

    There is a reweigh in each second that has samples.
    """
    needed = reweigh.samples_needed(sources)
    for members in runtime.by_backend(runtime.Server(*key, runtime.UP, 1) for key in series).values():
        favorites = overview.Favorites()
        for now in sorted({math.ceil(sample.time or 0.0) for server in members for sample in series[server.key]}):
            known: dict[Key, Sequence[Sample]] = {}
            for server in members:
                samples = series[server.key]
                first = bisect.bisect_left(samples, True, key=lambda sample: (sample.time or 0.0) <= now)
                known[server.key] = newest = samples[first : first + needed]
                failed = [sample.failed for sample in newest[:FALL]]
                server.state = runtime.DOWN if len(failed) == FALL and all(failed) else runtime.UP
            decisions = reweigh.decide(members, reweigh.score(known, sources, now), sources)
            yield from favorites.follow(decisions, now)
            for decision in decisions:
                decision.server.weight = decision.weight
