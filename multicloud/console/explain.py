"""Why each server gets the weight that it gets, in words, for who runs a reweigh by hand. Pure: no I/O, no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multicloud import ranking, scores
from multicloud.ranking import DOWN, UP, Server

if TYPE_CHECKING:
    from multicloud.reweigh import Decision
    from multicloud.settings import Settings


def explain(decision: Decision, values: Settings, now: float) -> list[str]:
    """A paragraph for each backend that has samples: what each server has, what becomes of it and why.

    `values` are the settings that the decision was made with, `now` is the UNIX time at which it was made.
    """
    backends: dict[str, list[Server]] = {}
    for server in decision.servers:
        backends.setdefault(server.backend, []).append(server)
    lines = []
    for backend, members in backends.items():
        if any(server.key in decision.samples.series for server in members):
            lines.append(f"{backend}:")
            lines += _columns([_cells(server, members, decision, values, now) for server in members])
    return lines or [f"{values.times} has no samples of any server that HAProxy knows: weights stay as they are"]


def _cells(
    server: Server, members: list[Server], decision: Decision, values: Settings, now: float
) -> tuple[str, str, str, str, str]:
    after = next((weight for changed, weight in decision.changes if changed is server), server.weight)
    becomes = f"weight {server.weight}" if after == server.weight else f"weight {server.weight} -> {after}"
    return (
        server.name,
        server.state,
        _score(server, decision, values, now),
        becomes,
        _why(server, after, members, decision.scores, values),
    )


def _score(server: Server, decision: Decision, values: Settings, now: float) -> str:
    newest = decision.samples.series.get(server.key, ())
    score = decision.scores.get(server.key)
    if score is None:
        return f"no samples newer than {values.max_age:g} s" if newest else "no samples"
    count = len(scores.countable(newest, now=now, window=values.window, max_age=values.max_age))
    kind = f"p{values.percentile:g}" if count > values.min_samples else "mean"
    return f"{kind} of {count}: {score * 1000:.1f} ms"


def _why(
    server: Server, after: int, members: list[Server], scored: dict[tuple[str, str], float], values: Settings
) -> str:
    if not any(member.key in scored for member in members):
        return "stays: no server of this backend has samples that count"
    if server.state == DOWN:
        up = any(member.state == UP for member in members)
        return "out: DOWN, and comes back without traffic until it is measured" if up else "stays: no server is UP"
    if server.state != UP:
        return f"left alone: {'maintenance' if server.state == ranking.MAINT else 'drain'} is an operator's word"
    candidates = [member for member in members if member.state == UP]
    leaders = ranking.lead(
        candidates, scored, favorite=values.favorite, hysteresis=values.hysteresis, tolerance=values.tolerance
    )
    if server in leaders:
        return _why_favorite(server, candidates, scored, values)
    if server.key not in scored:
        return "backup: without samples, but there is no other" if after else "out: no samples that count"
    return "backup: the fastest after the favourite" if after else "out: others are faster"


def _why_favorite(
    server: Server, candidates: list[Server], scored: dict[tuple[str, str], float], values: Settings
) -> str:
    measured = [member for member in candidates if member.key in scored]
    if not measured:
        return "favourite: no server that is UP has samples that count, and one must serve"
    fastest = min(measured, key=lambda member: scored[member.key])
    if server is fastest:
        beaten = [member for member in measured if member is not server and member.weight == values.favorite]
        if server.weight == values.favorite or not beaten or values.tolerance:
            return "favourite: the fastest"
        return f"favourite: {_faster(server, beaten[0], scored, values)}"
    if values.tolerance:
        return f"favourite: within {values.tolerance:g} ms of {fastest.name}, the fastest"
    if scored[server.key] == scored[fastest.key]:
        return "favourite: the fastest"
    return f"favourite, kept by hysteresis: {_faster(fastest, server, scored, values)}"


def _faster(server: Server, other: Server, scored: dict[tuple[str, str], float], values: Settings) -> str:
    percent = 100 * (1 - scored[server.key] / scored[other.key])
    return f"{server.name} is {percent:.1f} % faster than {other.name}, and more than {values.hysteresis:g} % counts"


def _columns(rows: list[tuple[str, str, str, str, str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
