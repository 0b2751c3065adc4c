"""Who led when, why that changed, and who shared: the samples of the file scored and ranked again, as they came."""

import bisect
import datetime
import functools
import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from multicloud import history, light, overview, reweigh, runtime, settings, sharing
from multicloud.history import Sample
from multicloud.overview import Switch
from multicloud.ranking import Decision, Reason
from multicloud.runtime import Server
from multicloud.settings import Key, Sources
from multicloud.sharing import Load

FALL = 2  # checks in a row that failed after which a server is DOWN, as haproxy.cfg says
MISSED, GONE = 3, 10.0  # a server is not there without samples for so many pauses between them, and so many seconds
BUSY = Load(rate=1000)  # users enough for a line, of whom none is seen to wait


class Sharing(NamedTuple):
    """A time in which servers of a backend shared its traffic; `begin` and `end` are UNIX times."""

    backend: str
    servers: Sequence[str]  # first the one that was full
    begin: float
    end: float


def lines(sources: Sources, since: str) -> list[str]:
    """A line for each change of favourite since then, with who led before it, and for each time of sharing.

    Raises UsageError and CommandError.
    """
    begin = moment(since, time.time())
    series = read(sources, "replay")
    shown: list[Switch] = []
    for switch in switches(series, sources):
        if switch.time < begin:  # of what was before, only the last one says who led
            shown = [each for each in shown if each.backend != switch.backend]
        shown.append(switch)
    events = [
        (
            each.time,
            each.backend,
            f"{each.before} -> {each.after}, {each.words()}" if each.before else f"{each.after} leads",
        )
        for each in shown
    ]
    for backend, servers, first, last in sharings(series, sources):
        if last >= begin:
            until = time.strftime("%H:%M:%S", time.localtime(last))
            events.append(
                (first, backend, f"{', '.join(servers)} share until {until}, if {servers[0]} has users enough")
            )
    return [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} {backend}: {text}"
        for when, backend, text in sorted(events)
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
    """The changes of favourite of each backend, one backend after the other; the samples are newest first."""
    for members in _backends(series):
        favorites = overview.Favorites()
        for now, decisions in _replay(members, series, sources):
            yield from favorites.follow(decisions, now)


def sharings(series: Mapping[Key, Sequence[Sample]], sources: Sources) -> Iterator[Sharing]:
    """When servers of each backend shared, as samples show it, if they had users enough: only HAProxy counts those."""
    for members in _backends(series):
        shared = None
        for now, decisions in _replay(members, series, sources, in_use=True):
            sharers = [each.server for each in decisions if each.reason is Reason.SHARES]
            if sharers:
                servers = [server.name for server in sorted(sharers, key=lambda each: -each.weight)]
                names = dict.fromkeys([*(shared.servers if shared else ()), *servers])
                shared = Sharing(members[0].backend, [*names], shared.begin if shared else now, now)
            elif shared:
                yield shared
                shared = None
        if shared:
            yield shared


def _backends(series: Mapping[Key, Sequence[Sample]]) -> Iterable[list[Server]]:
    return runtime.by_backend(Server(*key, runtime.UP, 1) for key in series).values()


def _pause(samples: Sequence[Sample]) -> float:
    """The mean seconds between two checks."""
    return ((samples[0].time or 0.0) - (samples[-1].time or 0.0)) / max(1, len(samples) - 1)


def _replay(
    members: Sequence[Server], series: Mapping[Key, Sequence[Sample]], sources: Sources, *, in_use: bool = False
) -> Iterator[tuple[float, list[Decision]]]:
    """What is decided in each second that has samples, a UNIX time; where servers are `in_use`, they may share."""
    needed = reweigh.samples_needed(sources)
    users = dict.fromkeys([server.key for server in members], BUSY)
    gone = {server.key: max(GONE, MISSED * _pause(series[server.key])) for server in members}
    before = math.inf
    for now in sorted({math.ceil(sample.time or 0.0) for server in members for sample in series[server.key]}):
        known: dict[Key, Sequence[Sample]] = {}
        for server in members:
            samples = series[server.key]
            first = bisect.bisect_left(samples, True, key=lambda sample: (sample.time or 0.0) <= now)
            known[server.key] = newest = samples[first : first + needed]
            failed = [sample.failed for sample in newest[:FALL]]
            away = not newest or now - (newest[0].time or 0.0) > gone[server.key]
            server.state = runtime.DOWN if away or (len(failed) == FALL and all(failed)) else runtime.UP
        load: dict[str, Any] = {"users": users, "again": users.copy, "connect": lambda _: 0.0}
        share = functools.partial(sharing.share, samples=known, now=now, elapsed=max(0.0, now - before), **load)
        decisions = reweigh.decide(members, reweigh.score(known, sources, now), sources, share if in_use else None)
        yield now, decisions
        for decision in decisions:
            decision.server.weight = decision.weight
        before = now
