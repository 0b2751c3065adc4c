"""What is wrong, in words: only what can be known from HAProxy's answers and the sample file, each with what to do."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from multicloud import reweigh, scores
from multicloud.console import observe
from multicloud.ranking import DOWN, UP, changes
from multicloud.settings import TIMES

if TYPE_CHECKING:
    from multicloud.console.observe import Instance
    from multicloud.runtime import Server
    from multicloud.samples import Samples
    from multicloud.settings import Sources

PATIENCE = 10.0
"""Seconds for which a sample may be missing, or a weight not be set, before that is a problem."""

LOOK_BACK = 60
"""Seconds over which it is judged whether a reweigh has run."""

STEP = 5
"""Seconds between the moments that are judged."""


def problems(instance: Instance, found: Samples, sources: Sources, now: float) -> list[str]:
    """A line for each problem. `now` is the UNIX time at which both were read, `found` has samples of LOOK_BACK too."""
    times = sources.read((TIMES,)).times
    backends: dict[str, list[Server]] = {}
    for server in instance.servers:
        backends.setdefault(server.backend, []).append(server)
    checked = {server.backend for server in instance.checked()}
    routed = {backend: members for backend, members in backends.items() if backend in checked or _has(members, found)}
    lines = _reweigh(instance) + _unresolved(instance.servers)
    for backend, members in routed.items():
        if any(server.source == server.key for server in members):  # else the tracked ones have the same problem
            lines += _unserved(backend, members)
        if _has(members, found) or len(members) > 1:  # else it may be a reweigh under another name
            lines += _unmeasured(members, found, now)
        lines += _unweighed(backend, members, found, sources, now)
    user = observe.user_of(instance.pid)
    unwritable = observe.unwritable(user, times) if user else None
    if unwritable:
        lines.append(unwritable)
    if found.garbage:
        lines.append(f"{times} has lines that are no samples ({found.garbage}): who else writes there?")
    return lines


def _has(members: list[Server], found: Samples) -> bool:
    return any(server.source in found.series for server in members)


def _reweigh(instance: Instance) -> list[str]:
    why = "HAProxy's log says why, and so does `multicloud reweigh`"
    return [
        f"{server.backend}/{server.name} is DOWN, so nobody sets weights: " + observe.EXIT_CODES.get(server.code, why)
        for server in instance.servers
        if server.name == observe.REWEIGH and server.state == DOWN
    ]


def _unresolved(servers: list[Server]) -> list[str]:
    """A line for each name, however many servers have it, in however many backends."""
    first = {server.host: server for server in reversed(servers) if server.unresolved}
    return [
        f"the name {host} does not resolve, so HAProxy has put {server.backend}/{server.name} into maintenance, "
        "until it does: is it spelt right, and do HAProxy's name servers, which read no /etc/hosts, know it?"
        for host, server in reversed(first.items())
    ]


def _unserved(backend: str, members: list[Server]) -> list[str]:
    up = [server for server in members if server.state == UP]
    if not up:
        states = ", ".join(sorted({server.state for server in members}))
        return [f"no server of {backend} is UP ({states}), so each request to it is a 503"]
    if not any(server.weight for server in up):
        return [
            f"every server of {backend} that is UP has weight 0, so each request to it is a 503: "
            "run `multicloud reweigh`, and give the servers `weight 1` in the configuration"
        ]
    return []


def _unmeasured(members: list[Server], found: Samples, now: float) -> list[str]:
    lines = []
    for server in members:
        if server.state != UP or server.since_change < PATIENCE or server.source != server.key:
            continue
        newest = found.series.get(server.key, [])
        times = [when for _, when, _ in newest if when is not None]
        if not newest:
            lines.append(f"no samples for {server.name}, which is UP: {_why_unmeasured(server.check)}")
        elif times and now - times[0] > max(PATIENCE, 3 * _usual_gap(times)):
            lines.append(
                f"no samples for {server.name} since {_clock(times[0])} ({now - times[0]:.0f} s), although it is UP: "
                + _why_unmeasured(server.check)
            )
    return lines


def _why_unmeasured(check: str) -> str:
    if not check.startswith(observe.EXTERNAL):
        return "it has no external check"
    return "HAProxy's log has what its check says"


def _usual_gap(times: list[float]) -> float:
    gaps = [later - earlier for later, earlier in itertools.pairwise(times)]
    return scores.percentiles(gaps, (50,))[0] if gaps else 0.0


def _unweighed(backend: str, members: list[Server], found: Samples, sources: Sources, now: float) -> list[str]:
    """Whether a reweigh at any moment of the last seconds would have set other weights: then there was none.

    The servers' states are known of now only, so it is not judged for longer than they are what they are, nor where
    samples have no time.
    """
    series = {server.source: found.series[server.source] for server in members if server.source in found.series}
    if any(when is None for newest in series.values() for _, when, _ in newest):
        return []
    known = min(LOOK_BACK, *(server.since_change for server in members))
    late = -1
    for ago in range(0, int(known) + 1, STEP):
        then = {key: [sample for sample in newest if (sample[1] or 0) <= now - ago] for key, newest in series.items()}
        if not changes(reweigh.rank(members, reweigh.score(then, sources, now - ago), sources)):
            break
        late = ago
    if late < PATIENCE:
        return []
    least = "" if late + STEP <= known else "at least "
    return [
        f"{backend} has had other weights for {least}{late} s than a reweigh with these settings gives it, so none "
        "has set them: `multicloud reweigh --dry-run -v` explains"
    ]


def _clock(when: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(when))
