"""What is wrong, in words: only what can be known from HAProxy's answers and the sample file, each with what to do."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

from multicloud import reweigh, run, scores
from multicloud.console.instance import (
    EXIT_CODES,
    EXTERNAL,
    PASSED,
    REWEIGH_SERVER,
    unwritable,
    user_of,
    where_reasons_are,
)
from multicloud.ranking import changes
from multicloud.runtime import DOWN, MAINT, UP
from multicloud.settings import BACKENDS, TIMES

if TYPE_CHECKING:
    from collections.abc import Container, Mapping

    from multicloud.console.instance import Instance, User
    from multicloud.history import Samples
    from multicloud.runtime import Server
    from multicloud.settings import Sources

PATIENCE = 10.0
"""Seconds for which a sample may be missing, or a weight not be set, before that is a problem."""

LOOK_BACK = 60
"""Seconds over which it is judged whether a reweigh has run."""

STEP = 5
"""Seconds between the moments that are judged."""

LAST_RESORT = "last-resort"
"""The backend of haproxy.cfg that is asked when no server of `upstream` is left; for `app` it is `app-last-resort`."""

REWEIGH, SAMPLES = "reweigh", "samples"
"""What may follow from a cause that has been told: that no reweigh works, and that samples are missing."""


def problems(
    instance: Instance, found: Samples, sources: Sources, now: float, told: Container[str] = frozenset()
) -> list[str]:
    """A line for each problem, causes first; what follows from another one, or is in `told`, is left out.

    `now` is the UNIX time at which both were read, `found` has samples of LOOK_BACK too. `told` may have REWEIGH and
    SAMPLES, or samples_of(server) for one server.
    """
    times = sources.read((TIMES,)).times
    user = user_of(instance.pid)
    reason = where_reasons_are(instance.pid, user)
    beside = sources.read((BACKENDS,)).backends
    own = instance.own_checked(beside)
    cannot_write = unwritable(user, times) if user and instance.forks(beside) else None
    stopped = _reweigh(instance, user, reason, explained=REWEIGH in told)
    unrecorded = _unrecorded(own, found, now, times)
    backends: dict[str, list[Server]] = {}
    for server in instance.servers:
        backends.setdefault(server.backend, []).append(server)
    checked = {server.backend for server in instance.checked() + own}
    routed = {backend: members for backend, members in backends.items() if backend in checked or _has(members, found)}
    lines = [cannot_write] if cannot_write else []
    lines += [*_unresolved(instance.servers), *run.unmeasured(instance.servers, beside).values(), *stopped, *unrecorded]
    for backend, members in routed.items():
        if any(server.source == server.key for server in members):  # else the tracked ones have the same problem
            lines += _unserved(backend, members, _last_resort(backend, backends))
        missing = not cannot_write and SAMPLES not in told
        if missing and (_has(members, found) or len(members) > 1):  # else it may be a reweigh under another name
            explained = (
                own if unrecorded else [server for server in members if server.backend in beside and not server.check]
            )
            named = [server for server in members if samples_of(server) not in told and server not in explained]
            lines += _unmeasured(named, found, now, sources, reason)
        if not stopped and not unrecorded and REWEIGH not in told:
            lines += _unweighed(backend, members, found, sources, now)
    if found.garbage:
        lines.append(f"{times} has lines that are no samples ({found.garbage}): who else writes there?")
    return lines


def samples_of(server: Server) -> str:
    """That samples of a server are missing, where its cause has been told."""
    return f"{SAMPLES} of {server.backend}/{server.name}"


def _has(members: list[Server], found: Samples) -> bool:
    return any(server.source in found.series for server in members)


def _reweigh(instance: Instance, user: User | None, reason: str, *, explained: bool) -> list[str]:
    """Why nobody sets weights, where the reweigh has the name that haproxy.cfg gives it, and unless it was told."""
    by_hand = f"`runuser -u {user.name} -- multicloud reweigh`" if user else "`multicloud reweigh` as HAProxy's user"
    lines = []
    for server in instance.servers:
        name = f"{server.backend}/{server.name}"
        if server.name == REWEIGH_SERVER and server.state == DOWN and not explained:
            why = EXIT_CODES.get(server.code, f"{by_hand} says why; {reason}")
            lines.append(f"{name} is DOWN, so nobody sets weights: {why}")
        elif server.name == REWEIGH_SERVER and server.state == MAINT:
            lines.append(
                f"{name} is in maintenance, so an operator has frozen the weights: `set server {name} state ready` "
                "at the Runtime API lets go"
            )
    return lines


def _unresolved(servers: list[Server]) -> list[str]:
    """A line for each name, however many servers have it, in however many backends."""
    first = {server.host: server for server in reversed(servers) if server.unresolved}
    return [
        f"the name {host} does not resolve, so HAProxy has put {server.backend}/{server.name} into maintenance, "
        "until it does: is it spelt right, and do HAProxy's name servers, which read no /etc/hosts, know it?"
        for host, server in reversed(first.items())
    ]


def _last_resort(backend: str, backends: Mapping[str, list[Server]]) -> str:
    """The backend that is asked when no server of this one is left; "" where none is there or UP."""
    for name in (f"{backend}-{LAST_RESORT}", LAST_RESORT):
        if name != backend and any(server.state == UP for server in backends.get(name, [])):
            return name
    return ""


def _unserved(backend: str, members: list[Server], resort: str) -> list[str]:
    """Whether a backend has no server to send a request to, and what becomes of it; `resort` is asked then, if any."""
    lost = "so each request to it is a 503"
    if resort:
        rule = f"`use_backend {resort} if {{ nbsrv({backend}) lt 1 }}`"
        lost = f"so {resort} is tried where a frontend has {rule}, and else each request is a 503"
    up = [server for server in members if server.state == UP]
    if not up:
        states = ", ".join(sorted({server.state for server in members}))
        return [f"no server of {backend} is UP ({states}), {lost}"]
    if not any(server.weight for server in up):
        return [
            f"every server of {backend} that is UP has weight 0, {lost}: "
            "run `multicloud reweigh`, and give the servers `weight 1` in the configuration"
        ]
    return []


def _unmeasured(members: list[Server], found: Samples, now: float, sources: Sources, reason: str) -> list[str]:
    return [
        f"{missing}: {_why_unmeasured(server, sources, reason)}"
        for server in members
        if (missing := _missing(server, found, now))
    ]


def _missing(server: Server, found: Samples, now: float) -> str:
    """That samples of a server are missing, and since when; "" where they are not, or need not be there."""
    if server.state != UP or server.state_age < PATIENCE or server.source != server.key:
        return ""
    newest = found.series.get(server.key, [])
    times = [sample.time for sample in newest if sample.time is not None]
    if not newest:
        return f"no samples for {server.name}, which is UP"
    if times and now - times[0] > max(PATIENCE, 3 * _usual_gap(times)):
        return f"no samples for {server.name} since {_clock(times[0])} ({now - times[0]:.0f} s), although it is UP"
    return ""


def _unrecorded(own: list[Server], found: Samples, now: float, path: str) -> list[str]:
    """Whether nobody records what HAProxy's own checks of any server say: then no `multicloud run` sets weights."""
    steady = [server for server in own if server.state == UP and server.state_age >= PATIENCE]
    if not steady or not all(_missing(server, found, now) for server in steady):
        return []
    backends = ", ".join(dict.fromkeys(server.backend for server in steady))
    last = max(found.series[server.key][0].time or 0.0 if server.key in found.series else 0.0 for server in steady)
    since = f" since {_clock(last)} ({now - last:.0f} s)" if last else ""
    return [
        f"HAProxy's own checks of {backends} have not been recorded in {path}{since}: is `multicloud run` at work, "
        "with the same `times`? Its log says what it lacks (`journalctl -u multicloud`)"
    ]


def _why_unmeasured(server: Server, sources: Sources, reason: str) -> str:
    path, backends = sources.read((TIMES,)).times, sources.read((BACKENDS,)).backends
    if not server.check:
        return "HAProxy does not check it"
    if not server.check.startswith(EXTERNAL):
        if server.backend in backends:
            return "HAProxy checks it by itself, but `multicloud run` does not record that: its log says why"
        names = ",".join((*backends, server.backend))
        return (
            "HAProxy checks it by itself: give it an external check, or for `multicloud run` write "
            f"`backends = {names}` into {sources.path}"
        )
    if server.check == PASSED:
        return f"its check passes, but does not write to {path}: is it multicloud-check, and has it the same `times`?"
    return f"its check fails; {reason}"


def _usual_gap(times: list[float]) -> float:
    gaps = [later - earlier for later, earlier in itertools.pairwise(times)]
    return scores.percentiles(gaps, (50,))[0] if gaps else 0.0


def _unweighed(backend: str, members: list[Server], found: Samples, sources: Sources, now: float) -> list[str]:
    """Whether a reweigh at any moment of the last seconds would have set other weights: then there was none.

    The servers' states are known of now only, so it is not judged for longer than they are what they are, nor where
    samples have no time.
    """
    series = {server.source: found.series[server.source] for server in members if server.source in found.series}
    if any(sample.time is None for newest in series.values() for sample in newest):
        return []
    known = min(LOOK_BACK, *(server.state_age for server in members))
    late = -1
    for ago in range(0, int(known) + 1, STEP):
        then = {key: [sample for sample in newest if (sample.time or 0) <= now - ago] for key, newest in series.items()}
        if not changes(reweigh.decide(members, reweigh.score(then, sources, now - ago), sources)):
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
