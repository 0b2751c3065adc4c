"""A row for each server: what people (`multicloud status`) and scrapers read of it. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from multicloud import reweigh, runtime, scores

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multicloud.history import Samples
    from multicloud.runtime import Server
    from multicloud.scores import Score
    from multicloud.settings import Sources

PERCENTS = (50, 90, 99)
TREND = 30
"""Samples that a row has for a trend, whatever the window."""


class Row(NamedTuple):
    """One server. Times are seconds, `time` is the newest sample's; `percentiles` are those of PERCENTS.

    `samples` and `failed` are how many checks count that succeeded, and that failed. `trend` has the newest ones,
    oldest first. A check that failed has no time: it is None in `trend`, and `last` where it was the last.
    """

    backend: str
    server: str
    state: str
    weight: int
    favorite: bool
    samples: int
    failed: int
    percentiles: tuple[float, ...] | None
    last: float | None
    time: float | None
    age: float | None
    trend: tuple[float | None, ...]


def rows(
    servers: Iterable[Server], samples: Samples, scored: Mapping[tuple[str, str], Score], sources: Sources, now: float
) -> tuple[list[Row], dict[str, str]]:
    """A row for each server of each backend that has samples, and the backends that need none.

    Those are backends whose servers track others and have the same states and weights: the one that they track, by
    their names. Raises SettingError.
    """
    backends = {
        backend: members
        for backend, members in runtime.by_backend(servers).items()
        if any(server.source in samples.series for server in members)
    }
    alike = {
        backend: tracked
        for backend, members in backends.items()
        if (tracked := members[0].source[0]) != backend and _seen(members) == _seen(backends.get(tracked, []))
    }
    shown = []
    for backend, members in backends.items():
        if backend not in alike:
            favorite = reweigh.settings_of(members, sources).favorite
            shown += [_row(server, samples, scored.get(server.source), favorite, now) for server in members]
    return shown, alike


def _seen(servers: Iterable[Server]) -> list[tuple[str, str, int]]:
    return [(server.name, server.state, server.weight) for server in servers]


def _row(server: Server, samples: Samples, score: Score | None, favorite: int, now: float) -> Row:
    newest = samples.series.get(server.source, [])
    times = [sample.seconds for sample in score.counted if not sample.failed] if score else []
    trend = [None if sample.failed else sample.seconds for sample in newest[:TREND]]
    when = newest[0].time if newest else None
    return Row(
        server.backend,
        server.name,
        server.state,
        server.weight,
        server.state == runtime.UP and server.weight == favorite,
        len(times),
        score.failed if score else 0,
        tuple(scores.percentiles(times, PERCENTS)) if times else None,
        trend[0] if trend else None,
        when,
        None if when is None else max(0.0, now - when),
        tuple(reversed(trend)),
    )
