"""Why each server gets the weight that it gets, in words, for who runs a reweigh by hand. Pure: no I/O, no clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from multicloud.ranking import Reason
from multicloud.reweigh import settings_of
from multicloud.settings import TIMES

if TYPE_CHECKING:
    from multicloud.ranking import Decision
    from multicloud.reweigh import Outcome
    from multicloud.settings import Settings, Sources

WORDS = {
    Reason.FASTEST: "favourite: the fastest",
    Reason.OVERTOOK: "favourite: {server} is {percent:.1f} % faster than {other}, {counts}",
    Reason.KEPT: "favourite, kept by hysteresis: {other} is {percent:.1f} % faster than {server}, {counts}",
    Reason.WITHIN_TOLERANCE: "favourite: within {tolerance:g} ms of {other}, the fastest",
    Reason.BACKUP: "backup: the fastest after the favourite",
    Reason.SLOWER: "out: others are faster",
    Reason.SHARES: "shares the lead: {in_flight} requests in flight, {expected} would be usual",
    Reason.FAR: "out: far, as a new connection takes longer than its requests did",
    Reason.NEARER: "favourite: {other} is far",
    Reason.RESERVE: "HAProxy's own `backup`: gets traffic while no other server is UP",
    Reason.NO_SAMPLES: "out: no samples that count",
    Reason.DOWN: "out: DOWN, and comes back without traffic until it is measured",
    Reason.MAINTENANCE: "left alone: maintenance is an operator's word",
    Reason.UNRESOLVED: "left alone: its name does not resolve, so HAProxy has put it into maintenance",
    Reason.DRAIN: "left alone: drain is an operator's word",
    Reason.NONE_MEASURED: "stays: no server of this backend has samples that count",
    Reason.NONE_UP: "stays: no server is UP",
}


def explain(outcome: Outcome, sources: Sources) -> list[str]:
    """A paragraph for each backend that has samples: what each server has, what becomes of it and why.

    `sources` are the settings that were decided with.
    """
    backends: dict[str, list[Decision]] = {}
    for decision in outcome.decisions:
        backends.setdefault(decision.server.backend, []).append(decision)
    lines = []
    for backend, members in backends.items():
        if not any(decision.server.source in outcome.samples.series for decision in members):
            continue
        tracked = members[0].server.source[0]
        if tracked != backend and _weights(members) == _weights(backends.get(tracked, [])):
            lines.append(f"{backend}: the same, since its servers track those of {tracked}")
        else:
            lines.append(f"{backend}:")
            values = settings_of([decision.server for decision in members], sources)
            lines += _columns([_cells(decision, outcome, values) for decision in members])
    times = sources.read((TIMES,)).times
    return lines or [f"{times} has no samples of any server that HAProxy knows: weights stay as they are"]


def _weights(decisions: list[Decision]) -> list[tuple[str, int, int]]:
    """The name of each server with its weight, and what that becomes."""
    return [(decision.server.name, decision.server.weight, decision.weight) for decision in decisions]


def _cells(decision: Decision, outcome: Outcome, values: Settings) -> tuple[str, ...]:
    server = decision.server
    becomes = f"weight {server.weight}" + (f" -> {decision.weight}" if decision in outcome.changes else "")
    return server.name, server.state, _score(decision, outcome, values), becomes, _why(decision, values)


def _score(decision: Decision, outcome: Outcome, values: Settings) -> str:
    score = outcome.scores.get(decision.server.source)
    if score is None:
        old = decision.server.source in outcome.samples.series
        return f"no samples newer than {values.max_age:g} s" if old else "no samples"
    kind = "mean" if score.percentile is None else f"p{score.percentile:g}"
    since = "" if score.since is None else f" since {time.strftime('%H:%M:%S', time.localtime(score.since))}"
    failed = f", {score.failed} failed" if score.failed else ""
    return f"{kind} of {len(score.counted)}{failed}{since}: {score.seconds * 1000:.1f} ms"


def _why(decision: Decision, values: Settings) -> str:
    if decision.reason is Reason.NO_SAMPLES and decision.weight == values.favorite:
        return "favourite: no server that is UP has samples that count, and one must serve"
    if decision.reason is Reason.NO_SAMPLES and decision.weight:
        return "backup: without samples, but there is no other"
    return WORDS[decision.reason].format(
        server=decision.server.name,
        other=decision.other.name if decision.other else "",
        percent=decision.percent,
        in_flight=decision.in_flight,
        expected=decision.expected,
        tolerance=values.tolerance,
        counts=f"and more than {values.hysteresis:g} % counts",
    )


def _columns(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
