"""Why each server gets the weight that it gets, in words, for who runs a reweigh by hand. Pure: no I/O, no clock."""

import time

from multicloud.ranking import Decision, Reason
from multicloud.reweigh import Outcome, settings_of
from multicloud.runtime import by_backend
from multicloud.settings import TIMES, Settings, Sources

# The reasons whose words say what the server is. Of any other one its weight says it.
SAYS_ALL = {Reason.SHARES, Reason.RESERVE, Reason.MAINTENANCE, Reason.UNRESOLVED, Reason.DRAIN}
SAYS_ALL |= {Reason.NONE_MEASURED, Reason.NONE_UP}


def explain(outcome: Outcome, sources: Sources) -> list[str]:
    """A paragraph for each backend that has samples: what each server has, what becomes of it and why.

    `sources` are the settings that it was decided with.
    """
    backends = by_backend(outcome.decisions)
    weights = {
        name: [(each.server.name, each.server.weight, each.weight) for each in members]
        for name, members in backends.items()
    }
    lines = []
    for backend, members in backends.items():
        if not any(decision.server.source in outcome.samples.series for decision in members):
            continue
        tracked = members[0].server.source[0]
        if tracked != backend and weights[backend] == weights.get(tracked):
            lines.append(f"{backend}: the same, since its servers track those of {tracked}")
        else:
            lines.append(f"{backend}:")
            values = settings_of([decision.server for decision in members], sources)
            rows = []
            for each in members:
                becomes = f"weight {each.server.weight}" + (f" -> {each.weight}" if each in outcome.changes else "")
                score = _score(each, outcome, values)
                rows.append((each.server.name, each.server.state, score, becomes, _why(each, values)))
            widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
            lines += [f"  {'  '.join(map(str.ljust, row, widths))}".rstrip() for row in rows]
    times = sources.read((TIMES,)).times
    return lines or [f"{times} has no samples of any server that HAProxy knows: weights stay as they are"]


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
    if decision.reason in SAYS_ALL:
        return decision.why()
    part = "favourite" if decision.weight == values.favorite else "backup" if decision.weight else "out"
    return f"{part}: {decision.why()}"
