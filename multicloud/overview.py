"""A row for each server, and who leads each backend: what people and scrapers read of it. Pure: no I/O, no clock."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from multicloud import ranking, reweigh, runtime, scores
from multicloud.history import Samples
from multicloud.scores import Score
from multicloud.settings import Key, Sources

PERCENTS = (50, 90, 99)
TREND = 30  # samples that a row has for a trend, whatever the window


class Row(NamedTuple):
    """One server. Times are seconds; a check that failed has no time, and is None where its time would be."""

    backend: str
    server: str
    state: str
    weight: int
    favorite: bool
    samples: int  # checks that count and succeeded
    failed: int  # checks that count and failed
    percentiles: tuple[float, ...] | None  # those of PERCENTS
    last: float | None  # the newest sample
    time: float | None  # when that was taken, UNIX time
    age: float | None
    trend: tuple[float | None, ...]  # the newest samples, oldest first
    score: float | None = None  # what the server is ranked by
    percentile: float | None = None  # and which one that is; None: the mean
    traffic: float = 0.0  # its part of the weights of those that can get any, 0 to 1
    in_flight: int = 0  # requests that it has


def rows(
    servers: Iterable[runtime.Server], samples: Samples, scored: Mapping[Key, Score], sources: Sources, now: float
) -> tuple[list[Row], dict[str, str]]:
    """A row for each server of each backend that has samples. Raises SettingError.

    Beside the rows: the backends that need none, each with the one that it tracks, whose states and weights it has.
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
        if backend in alike:
            continue
        favorite = reweigh.settings_of(members, sources).favorite
        able = {*ranking.candidates(members)}
        total = sum(server.weight for server in able) or 1
        for server in members:
            score, newest = scored.get(server.source), samples.series.get(server.source, [])
            times = [sample.seconds for sample in score.counted if not sample.failed] if score else []
            trend = [None if sample.failed else sample.seconds for sample in newest[:TREND]]
            when = newest[0].time if newest else None
            row = Row(
                *(server.backend, server.name, server.state, server.weight),
                favorite=server.state == runtime.UP and server.weight == favorite,
                samples=len(times),
                failed=score.failed if score else 0,
                percentiles=tuple(scores.percentiles(times, PERCENTS)) if times else None,
                last=trend[0] if trend else None,
                time=when,
                age=None if when is None else max(0.0, now - when),
                trend=tuple(reversed(trend)),
                score=score.seconds if score else None,
                percentile=score.percentile if score else None,
                traffic=server.weight * (server in able) / total,
                in_flight=server.in_flight,
            )
            shown.append(row)
    return shown, alike


def _seen(servers: Iterable[runtime.Server]) -> list[tuple[str, str, int]]:
    return [(server.name, server.state, server.weight) for server in servers]


class Switch(NamedTuple):
    """A change of favourite."""

    time: float  # UNIX time
    backend: str
    before: str  # "" where nobody led
    after: str
    why: ranking.Decision  # of the one that leads now, or of the one that cannot lead any more

    def words(self) -> str:
        """The reason with its figures."""
        text = self.why.why()
        return text if self.why.server.name == self.after else f"{self.before} is out: {text}"


class Favorites:
    """Who leads each backend, the server with the greatest weight, from one reweigh to the next: its last change."""

    def __init__(self) -> None:
        self.last: dict[str, Switch] = {}

    def follow(self, decisions: Iterable[ranking.Decision], now: float) -> list[Switch]:
        """The changes since the last call, at the UNIX time `now`. Where none is UP or measured, nobody else leads."""
        backends = runtime.by_backend(decisions)
        for gone in self.last.keys() - backends.keys():
            del self.last[gone]
        switches = []
        for backend, members in backends.items():
            led = self.last[backend].after if backend in self.last else ""
            up = [each for each in members if each.server.state == runtime.UP]
            best = max(up, key=lambda each: (each.weight, each.server.name == led, each.server.weight), default=None)
            if best and best.server.name != led and best.reason is not ranking.Reason.NONE_MEASURED:
                before = next((each for each in members if each.server.name == led), best)
                can_lead = before.server.state == runtime.UP and before.reason is not ranking.Reason.NO_SAMPLES
                self.last[backend] = Switch(now, backend, led, best.server.name, best if can_lead else before)
                switches.append(self.last[backend])
        return switches
