"""A row for each server: what people (`multicloud status`) and scrapers read of it. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from multicloud import ranking, reweigh, scores, settings

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multicloud import history, runtime
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
    servers: Iterable[runtime.Server],
    found: history.Samples,
    scored: Mapping[tuple[str, str], scores.Score],
    sources: Sources,
    now: float,
) -> tuple[list[Row], dict[str, str]]:
    """A row for each server of each backend that has samples, and the backends that need none.

    Those are backends whose servers track others and have the same states and weights: the one that they track, by
    their names. Raises SettingError.
    """
    everyone = list(servers)
    routed = {server.backend for server in everyone if server.source in found.series}
    backends: dict[str, list[runtime.Server]] = {}
    for server in everyone:
        if server.backend in routed:
            backends.setdefault(server.backend, []).append(server)
    alike = {
        backend: members[0].source[0]
        for backend, members in backends.items()
        if members[0].source != members[0].key and _known(members) == _known(backends.get(members[0].source[0], []))
    }
    shown = [
        _row(server, found, scored.get(server.source), favorite, now)
        for backend, members in backends.items()
        if backend not in alike
        for favorite in [sources.read(settings.RANKING, *reweigh.sections(members)).favorite]
        for server in members
    ]
    return shown, alike


def _known(servers: Iterable[runtime.Server]) -> list[tuple[str, str, int]]:
    return [(server.name, server.state, server.weight) for server in servers]


def _row(server: ranking.Server, found: history.Samples, score: scores.Score | None, favorite: int, now: float) -> Row:
    newest = found.series.get(server.source, [])
    times = [seconds for seconds, _, failed in score.counted if not failed] if score else []
    trend = [None if failed else seconds for seconds, _, failed in newest[:TREND]]
    when = newest[0][1] if newest else None
    return Row(
        server.backend,
        server.name,
        server.state,
        server.weight,
        server.state == ranking.UP and server.weight == favorite,
        len(times),
        score.failed if score else 0,
        tuple(scores.percentiles(times, PERCENTS)) if times else None,
        trend[0] if trend else None,
        when,
        None if when is None else max(0.0, now - when),
        tuple(reversed(trend)),
    )
