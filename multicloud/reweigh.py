"""The fake backend's `external-check command`: samples to scores to ranks to weights, once.

HAProxy starts it all day, so it does one thing and leaves. The exit code is what HAProxy shows of it: 0 done, or
nothing to do yet; 1 HAProxy cannot be reached or refused a command; 2 settings or a sample file that cannot be read.
"""

from __future__ import annotations

import os
import time

from multicloud import process, ranking, runtime, samples, scores, settings


class Decision:
    """What one reweigh saw and decided.

    `samples` is what the file says, `servers` are all that HAProxy has, `scores` are seconds by (backend, server) and
    `changes` the servers whose weight must change with their new weights.
    """

    __slots__ = ("changes", "samples", "scores", "servers")

    def __init__(
        self,
        found: samples.Samples,
        servers: list[ranking.Server],
        scored: dict[tuple[str, str], float],
        changes: list[tuple[ranking.Server, int]],
    ) -> None:
        self.samples = found
        self.servers = servers
        self.scores = scored
        self.changes = changes


def main() -> int:
    """Do what HAProxy asks for; return the exit code."""
    try:
        values = settings.read(os.environ, settings.REWEIGH)
        decision = reweigh(values)
    except (settings.SettingError, samples.SampleFileError) as error:
        process.tell(f"error: {error}")
        return 2
    except runtime.RuntimeAPIError as error:
        process.tell(f"error: {error}")
        return 1
    for line in report(decision):
        process.say(line)
    return 0


def reweigh(values: settings.Settings, *, dry_run: bool = False) -> Decision:
    """Read, score, rank and, unless it is a dry run, send the weights that differ.

    Raises SampleFileError and RuntimeAPIError.
    """
    found = samples.read(values.times, values.window + scores.RUN)
    try:
        with runtime.RuntimeAPI(values.socket) as api:
            servers = api.servers()
            known = {server.key for server in servers}
            scored = scores.scores(
                {server: newest for server, newest in found.series.items() if server in known},
                now=time.time(),
                percentile=values.percentile,
                min_samples=values.min_samples,
                window=values.window,
                max_age=values.max_age,
            )
            changes = ranking.rank(
                servers,
                scored,
                favorite=values.favorite,
                backup=values.backup,
                hysteresis=values.hysteresis,
                tolerance=values.tolerance,
            )
            if not dry_run:
                api.set_weights(changes)
    finally:
        if not dry_run:
            keep_short(values, found)  # last, since no weight should wait for it, and also where HAProxy is away
    return Decision(found, servers, scored, changes)


def keep_short(values: settings.Settings, found: samples.Samples) -> None:
    """Trim the sample file when it has grown to twice what is kept. That it cannot be is no reason not to route."""
    keep = max(samples.KEEP, values.window + scores.RUN)
    if found.lines > 2 * keep * max(1, len(found.series)) or found.size > samples.MAX_BYTES // 2:
        try:
            samples.trim(values.times, keep)
        except samples.SampleFileError as error:
            process.tell(f"warning: not trimmed: {error}")


def report(decision: Decision) -> list[str]:
    """One line for each weight that was changed."""
    return [
        f"{server.backend}/{server.name}: weight {server.weight} -> {weight}" for server, weight in decision.changes
    ]
