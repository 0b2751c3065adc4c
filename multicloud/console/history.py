"""Who led when, why that changed, and who shared: the samples of the file scored and ranked again, as they came."""

import bisect
import copy
import datetime
import functools
import itertools
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from multicloud import history, light, overview, reweigh, runtime, settings, sharing
from multicloud.history import Sample
from multicloud.overview import Switch
from multicloud.ranking import Decision, Reason
from multicloud.runtime import Server
from multicloud.scores import Score
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


class Replay(NamedTuple):
    """What samples that are newest first show of the time when they came."""

    switches: list[Switch]  # the changes of favourite
    sharings: list[Sharing]  # when servers shared if they had users enough: only HAProxy counts those
    scores: dict[Key, list[tuple[float, float]]]  # of each server, in seconds, behind the UNIX time


def lines(sources: Sources, since: str) -> list[str]:
    """A line for each change of favourite since then, with who led before it, and for each time of sharing.

    Raises UsageError and CommandError.
    """
    begin = moment(since, time.time())
    switches, sharings, _ = replay(read(sources, "replay"), sources)
    leading = {switch.backend: switch for switch in switches if switch.time < begin}
    events = []
    for switch in (*leading.values(), *(switch for switch in switches if switch.time >= begin)):
        text = f"{switch.before} -> {switch.after}, {switch.words()}" if switch.before else f"{switch.after} leads"
        events.append((switch.time, switch.backend, text))
    for backend, names, first, last in sharings:
        if last >= begin:
            until = time.strftime("%H:%M:%S", time.localtime(last))
            text = f"{', '.join(names)} share until {until}, if {names[0]} has users enough"
            events.append((first, backend, text))
    return [
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(when))} {backend}: {text}"
        for when, backend, text in sorted(events)
    ]


def read(sources: Sources, purpose: str) -> dict[Key, list[Sample]]:
    """All samples that have a time, newest first. Raises CommandError where there are none for the purpose."""
    times = sources.read((settings.TIMES,)).times
    found = history.read(times, history.MAX_LINES).series
    timed = {key: [sample for sample in newest if sample.time is not None] for key, newest in sorted(found.items())}
    series = {key: newest for key, newest in timed.items() if newest}
    if not series:
        raise light.CommandError(f"{times}: no samples with a time to {purpose}; `multicloud doctor` finds out why")
    return series


def moment(text: str, now: float) -> float:
    """The UNIX time of `90s`, `15m`, `1h`, `2d` ago, of a time of today (`08:30`) or of a date. Raises UsageError."""
    if ago := re.fullmatch(r"(\d{1,9})([smhd])", text):
        return now - int(ago[1]) * {"s": 1, "m": 60, "h": 3600, "d": 86400}[ago[2]]
    try:
        today = datetime.date.fromtimestamp(now).isoformat()
        return datetime.datetime.fromisoformat(f"{today} {text}" if re.match(r"\d\d?:", text) else text).timestamp()
    except ValueError:
        raise light.UsageError(f"cannot read {text!r}; accepted: 15m, 1h, 2d, 08:30, 2026-01-31 08:30") from None


def replay(series: Mapping[Key, Sequence[Sample]], sources: Sources) -> Replay:
    """The samples of each backend scored and ranked again."""
    replayed = Replay([], [], {key: [] for key in series})
    for backend, members in runtime.by_backend(Server(*key, runtime.UP, 1) for key in series).items():
        favorites = overview.Favorites()
        seconds: list[tuple[float, list[str]]] = []  # with those who share then
        for now, scored, alone, busy in _decisions(members, series, sources):
            for key, score in scored.items():
                if now - (score.counted[0].time or 0.0) < 1:  # it has a new sample
                    replayed.scores[key].append((now, score.seconds))
            replayed.switches.extend(favorites.follow(alone, now))
            sharers = [each.server for each in busy if each.reason is Reason.SHARES]
            seconds.append((now, [server.name for server in sorted(sharers, key=lambda each: -each.weight)]))
        for shared, group in itertools.groupby(seconds, key=lambda second: bool(second[1])):
            if shared:
                times, names = zip(*group, strict=True)
                servers = dict.fromkeys(itertools.chain(*names))
                replayed.sharings.append(Sharing(backend, [*servers], times[0], times[-1]))
    return replayed


def _decisions(
    alone: Sequence[Server], series: Mapping[Key, Sequence[Sample]], sources: Sources
) -> Iterator[tuple[float, dict[Key, Score], list[Decision], list[Decision]]]:
    """The scores in each second that has samples, a UNIX time, and what they decide: without users, and with enough."""
    busy = [*map(copy.copy, alone)]
    needed = reweigh.samples_needed(sources)
    users = dict.fromkeys([server.key for server in alone], BUSY)
    spans = {key: (newest[0].time or 0.0) - (newest[-1].time or 0.0) for key, newest in series.items()}
    gone = {key: max(GONE, MISSED * span / max(1, len(series[key]) - 1)) for key, span in spans.items()}
    before = math.inf
    for now in sorted({math.ceil(sample.time or 0.0) for server in alone for sample in series[server.key]}):
        known: dict[Key, Sequence[Sample]] = {}
        for server, same in zip(alone, busy, strict=True):
            samples = series[server.key]
            first = bisect.bisect_left(samples, True, key=lambda sample: (sample.time or 0.0) <= now)
            known[server.key] = newest = samples[first : first + needed]
            failed = [sample.failed for sample in newest[:FALL]]
            away = not newest or now - (newest[0].time or 0.0) > gone[server.key]
            server.state = same.state = runtime.DOWN if away or (len(failed) == FALL and all(failed)) else runtime.UP
        scored = reweigh.score(known, sources, now)
        elapsed = max(0.0, now - before)
        share = functools.partial(
            sharing.share, samples=known, users=users, again=users.copy, connect=lambda _: 0.0, now=now, elapsed=elapsed
        )
        decided = reweigh.decide(alone, scored, sources), reweigh.decide(busy, scored, sources, share)
        yield now, scored, *decided
        for decision in itertools.chain(*decided):
            decision.server.weight = decision.weight
        before = now
