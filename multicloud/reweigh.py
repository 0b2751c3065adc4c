"""The fake backend's `external-check command`: samples to scores to ranks to weights, once.

HAProxy starts it all day, so it does one thing and leaves. The exit code is what HAProxy shows of it: 0 done, or
nothing to do yet; 1 HAProxy cannot be reached or refused a command; 2 settings or a sample file that cannot be read.
"""

from __future__ import annotations

import os
import time

from multicloud import process, ranking, runtime, samples, scores, settings

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Outcome:
    """What one reweigh saw, decided and did.

    `samples` is what the file says, `scores` are by (backend, server), `decisions` are of all servers that HAProxy has,
    `changes` those of them that change a weight, less those that HAProxy refused, and `refusals` what it said to those.
    """

    __slots__ = ("changes", "decisions", "refusals", "samples", "scores")

    def __init__(
        self,
        found: samples.Samples,
        scored: dict[tuple[str, str], scores.Score],
        decisions: list[ranking.Decision],
        changes: list[ranking.Decision],
        refusals: list[str],
    ) -> None:
        self.samples = found
        self.scores = scored
        self.decisions = decisions
        self.changes = changes
        self.refusals = refusals


def main() -> int:
    """Do what HAProxy asks for; return the exit code."""
    try:
        values = settings.read(os.environ, settings.REWEIGH)
        outcome = reweigh(values, trim=True)
    except (settings.SettingError, samples.SampleFileError) as error:
        process.tell(f"error: {error}")
        return 2
    except runtime.RuntimeAPIError as error:
        process.tell(f"error: {error}")
        return 1
    for change in outcome.changes:
        server = change.server
        process.say(f"{server.backend}/{server.name}: weight {server.weight} -> {change.weight}")
    if outcome.refusals:
        process.tell(f"error: {refused(outcome)}")
        return 1
    return 0


def reweigh(values: settings.Settings, *, dry_run: bool = False, trim: bool = False) -> Outcome:
    """Read, score, rank and, unless it is a dry run, send the weights that differ; `trim` the file if it is long.

    Raises SampleFileError and RuntimeAPIError.
    """
    found = samples.read(values.times, values.window + scores.RUN)
    try:
        with runtime.RuntimeAPI(values.socket) as api:
            servers = api.servers()
            known = {server.source for server in servers}
            series = {server: newest for server, newest in found.series.items() if server in known}
            scored = score(series, values, time.time())
            decisions = rank(servers, scored, values)
            changes = ranking.changes(decisions)
            refusals: list[str] = []
            if not dry_run:
                changes, refusals = api.set_weights(changes)
    finally:
        if trim:
            keep_short(values, found)  # last, since no weight should wait for it, and also where HAProxy is away
    return Outcome(found, scored, decisions, changes, refusals)


def score(
    series: Mapping[tuple[str, str], Sequence[tuple[float, float | None]]], values: settings.Settings, now: float
) -> dict[tuple[str, str], scores.Score]:
    """scores.scores with the settings."""
    return scores.scores(
        series,
        now=now,
        percentile=values.percentile,
        min_samples=values.min_samples,
        window=values.window,
        max_age=values.max_age,
    )


def rank(
    servers: Iterable[ranking.Server], scored: Mapping[tuple[str, str], scores.Score], values: settings.Settings
) -> list[ranking.Decision]:
    """ranking.rank with the settings."""
    return ranking.rank(
        servers,
        {server: score.seconds for server, score in scored.items()},
        favorite=values.favorite,
        backup=values.backup,
        hysteresis=values.hysteresis,
        tolerance=values.tolerance,
    )


def refused(outcome: Outcome) -> str:
    """The first refusal, and how many more there were."""
    first, *others = outcome.refusals
    return f"{first} (and {len(others)} more refusals)" if others else first


def keep_short(values: settings.Settings, found: samples.Samples) -> None:
    """Trim the sample file when it has grown to twice what is kept. That it cannot be is no reason not to route."""
    keep = max(samples.KEEP, values.window + scores.RUN)
    if found.lines > 2 * keep * max(1, len(found.series)) or found.size > samples.MAX_BYTES // 2:
        try:
            samples.trim(values.times, keep)
        except samples.SampleFileError as error:
            process.tell(f"warning: not trimmed: {error}")
