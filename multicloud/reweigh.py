"""The fake backend's `external-check command`: samples to scores to ranks to weights, once.

HAProxy starts it all day, so it does one thing and leaves. The exit code is what HAProxy shows of it: 0 done, or
nothing to do yet; 1 HAProxy cannot be reached or refused a command; 2 settings or a sample file that cannot be read.
"""

from __future__ import annotations

import os
import sys
import time

from multicloud import history, light, ranking, runtime, samplefile, scores, settings, turn

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Iterable, Mapping, Sequence

REMEMBERED = 3600.0
"""Seconds for which the samples of a server stay that has no new ones, where they do not count for longer."""


class Outcome:
    """What one reweigh saw, decided and did.

    `samples` is what the file says, `scores` are by (backend, server), `decisions` are of all servers that HAProxy has,
    `changes` those of them that change a weight, less those that HAProxy refused, and `refusals` what it said to those.
    """

    __slots__ = ("changes", "decisions", "refusals", "samples", "scores")

    def __init__(
        self,
        found: history.Samples,
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
    if len(sys.argv) not in (1, 5):  # HAProxy gives it four
        light.warn("error: usage: multicloud-reweigh; for a dry run: multicloud reweigh --dry-run")
        return 2
    try:
        outcome = reweigh(settings.Sources(os.environ), trim=True)
    except (settings.SettingError, samplefile.SampleFileError) as error:
        light.warn(f"error: {error}")
        return 2
    except runtime.RuntimeAPIError as error:
        light.warn(f"error: {error}")
        return 1
    if outcome is None:
        return 0
    for change in outcome.changes:
        server = change.server
        light.print_line(f"{server.backend}/{server.name}: weight {server.weight} -> {change.weight}")
    if outcome.refusals:
        light.warn(f"error: {refused(outcome)}")
        return 1
    return 0


def reweigh(sources: settings.Sources, *, dry_run: bool = False, trim: bool = False) -> Outcome | None:
    """Read, score, rank and, unless it is a dry run, send the weights that differ; `trim` the file if it is long.

    None where another process does that now, since two at once could take every weight away between them. Raises
    SettingError, SampleFileError and RuntimeAPIError.
    """
    values = sources.read(settings.REWEIGH)
    newest = longest_window(sources) + scores.RUN
    found = history.read(values.times, newest)
    try:
        if dry_run:
            return connect_and_weigh(values, found, sources, dry_run=True)
        taken = turn_of(values)
        if taken is None:
            return None
        try:
            outcome = connect_and_weigh(values, found, sources)
            if turn.asked(taken):  # by one that has left it to this one: perhaps HAProxy was reloaded in between
                before, outcome = outcome, connect_and_weigh(values, found, sources)
                outcome.changes[:0] = before.changes
            return outcome
        finally:
            taken.close()
    finally:
        if trim:
            # Last, since no weight should wait for it, and also where HAProxy is away.
            keep_short(sources, max(history.KEEP, newest), found)


def turn_of(values: settings.Settings) -> socket | None:
    """The turn to weigh the servers of a HAProxy; None where another process has it.

    It is named by the socket itself, which may have several paths.
    """
    name, owners = values.socket, []
    for path in (values.times, values.socket):
        try:
            found = os.stat(path)
        except OSError:  # not there, or not a path
            continue
        owners.append(found.st_uid)
        if path == values.socket:
            name = f"{found.st_dev}:{found.st_ino}"
    return turn.take(f"reweigh {name}", owners)


def connect_and_weigh(
    values: settings.Settings, found: history.Samples, sources: settings.Sources, *, dry_run: bool = False
) -> Outcome:
    """As `weigh`, over a connection of its own and of all servers that HAProxy has."""
    with runtime.RuntimeAPI(values.socket) as api:
        return weigh(api, api.servers(), found, sources, dry_run=dry_run)


def weigh(
    api: runtime.RuntimeAPI,
    servers: Sequence[runtime.Server],
    found: history.Samples,
    sources: settings.Sources,
    *,
    dry_run: bool = False,
    known: Mapping[tuple[str, str], scores.Score] | None = None,
) -> Outcome:
    """Score and rank the servers and, unless it is a dry run, send the weights that differ.

    The scores that are `known` from before are not worked out again where nothing has changed. Raises SettingError and
    RuntimeAPIError.
    """
    measured = {server.source for server in servers}
    series = {server: newest for server, newest in found.series.items() if server in measured}
    scored = score(series, sources, time.time(), known)
    decisions = rank(servers, scored, sources)
    changes = ranking.changes(decisions)
    refusals: list[str] = []
    if not dry_run:
        changes, refusals = api.set_weights(changes)
    return Outcome(found, scored, decisions, changes, refusals)


def longest_window(sources: settings.Sources) -> int:
    """Of all backends. Raises SettingError at the first value of any of them that cannot be read."""
    return max(values.window for values in _everywhere(sources))


def _everywhere(sources: settings.Sources) -> list[settings.Settings]:
    return [sources.read(settings.REWEIGH, backend) for backend in ("", *sources.backends())]


def score(
    series: Mapping[tuple[str, str], Sequence[history.Sample]],
    sources: settings.Sources,
    now: float,
    known: Mapping[tuple[str, str], scores.Score] | None = None,
) -> dict[tuple[str, str], scores.Score]:
    """scores.scores with the settings of each backend. Raises SettingError."""
    sections: dict[str, dict[tuple[str, str], Sequence[history.Sample]]] = {}
    for server, newest in series.items():
        section = server[0] if server[0] in sources.sections else ""
        sections.setdefault(section, {})[server] = newest
    scored: dict[tuple[str, str], scores.Score] = {}
    for section, members in sections.items():
        values = sources.read(settings.SCORING, section)
        scored |= scores.scores(
            members,
            now=now,
            percentile=values.percentile,
            min_samples=values.min_samples,
            window=values.window,
            max_age=values.max_age,
            known=known,
        )
    return scored


def rank(
    servers: Iterable[ranking.Server], scored: Mapping[tuple[str, str], scores.Score], sources: settings.Sources
) -> list[ranking.Decision]:
    """ranking.rank with the settings of each backend. Raises SettingError."""
    backends: dict[str, list[ranking.Server]] = {}
    for server in servers:
        backends.setdefault(server.backend, []).append(server)
    seconds = {server: score.seconds for server, score in scored.items()}
    decisions = []
    for members in backends.values():
        values = sources.read(settings.RANKING, *sections(members))
        decisions += ranking.rank(
            members,
            seconds,
            favorite=values.favorite,
            backup=values.backup,
            hysteresis=values.hysteresis,
            tolerance=values.tolerance,
        )
    return decisions


def sections(members: Sequence[ranking.Server]) -> tuple[str, str]:
    """The sections of the settings file that hold for a backend with these servers: its own, and the tracked one's."""
    return members[0].backend, members[0].source[0]


def refused(outcome: Outcome) -> str:
    """The first refusal, and how many more there were."""
    first, *others = outcome.refusals
    return f"{first} (and {len(others)} more refusals)" if others else first


def keep_short(sources: settings.Sources, keep: int, found: history.Samples) -> None:
    """Trim the sample file when it is too long. That it cannot be is no reason not to route."""
    try:
        trim_if_long(sources, keep, found)
    except samplefile.SampleFileError as error:
        light.warn(f"warning: not trimmed: {error}")


def trim_if_long(sources: settings.Sources, keep: int, found: history.Samples) -> None:
    """Trim the sample file when it has grown to twice what is kept. Raises SampleFileError."""
    oldest = time.time() - max(REMEMBERED, *(values.max_age for values in _everywhere(sources)))
    living = sum(newest[0][1] is None or newest[0][1] >= oldest for newest in found.series.values())
    if found.lines > 2 * keep * max(1, living) or found.size > samplefile.MAX_BYTES // 2:
        history.trim(sources.read((settings.TIMES,)).times, keep, oldest)
