"""The fake backend's `external-check command`: samples to scores to ranks to weights, once.

HAProxy starts it all day, so it does one thing and leaves. The exit code is what HAProxy shows of it: 0 done, or
nothing to do yet; 1 HAProxy cannot be reached or refused a command; 2 settings or a sample file that cannot be read.
"""

import functools
import os
import socket
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from multicloud import history, light, ranking, runtime, samplefile, scores, settings, sharing
from multicloud.history import Sample, Samples
from multicloud.ranking import Decision
from multicloud.runtime import RuntimeAPI, Server
from multicloud.scores import Score
from multicloud.settings import Key, Settings, Sources

REMEMBERED = 3600.0  # seconds for which samples stay of a server that has no new ones, unless they count for longer
ATTEMPTS = 3  # how often it is decided, at most, where another reweigh changes weights at the same time
# Seconds from one reweigh to the next (haproxy.cfg), and what each may take: AGAIN, CONNECT and runtime.TIMEOUT fit in.
EVERY = 2.0
AGAIN = 0.3  # seconds after which requests in flight are counted again where there is a crowd: a burst is gone by then
CONNECT = 0.4  # seconds for all connections that show who is far


class Outcome(NamedTuple):
    """What one reweigh saw, decided and did."""

    samples: Samples  # what the file says
    scores: dict[Key, Score]
    decisions: list[Decision]  # of all servers that HAProxy has
    changes: list[Decision]  # those of them that changed a weight
    refusals: list[str]  # what HAProxy said to others that should have


def main() -> int:
    """Do what HAProxy asks for; return the exit code."""
    if len(sys.argv) not in (1, 5):  # HAProxy gives it four
        raise light.UsageError("usage: multicloud-reweigh; for a dry run: multicloud reweigh --dry-run")
    outcome = reweigh(settings.Sources(os.environ), trim=True)
    for change in outcome.changes:
        light.print_line(words(change, outcome.scores))
    if outcome.refusals:
        raise light.CommandError(refused(outcome))
    return 0


def words(change: Decision, scored: Mapping[Key, Score]) -> str:
    """A line for a weight that was changed, with the reason and its figures."""
    server, score = change.server, scored.get(change.server.source)
    figure = f": {score.seconds * 1000:.1f} ms" if score and "{" not in change.reason.value else ""
    return f"{server.backend}/{server.name}: weight {server.weight} -> {change.weight}, {change.why()}{figure}"


def reweigh(sources: Sources, *, dry_run: bool = False, trim: bool = False) -> Outcome:
    """Read, score, rank and, unless it is a dry run, send the weights that differ; `trim` the file if it is long.

    Raises SettingError, SampleFileError and RuntimeAPIError.
    """
    values = sources.read(settings.REWEIGH_SETTINGS)
    newest = samples_needed(sources)
    samples = history.read(values.times, newest)
    try:
        with runtime.RuntimeAPI(values.socket) as api:
            return weigh(api, api.servers(), samples, sources, dry_run=dry_run)
    finally:
        if trim:  # last, since no weight should wait for it, and also where HAProxy is away
            try:
                trim_if_long(sources, newest, samples)
            except samplefile.SampleFileError as error:
                light.warn(f"warning: not trimmed: {error}")


def weigh(
    api: RuntimeAPI,
    servers: Sequence[Server],
    samples: Samples,
    sources: Sources,
    *,
    dry_run: bool = False,
    elapsed: float = EVERY,
) -> Outcome:
    """Score and rank the servers, let them share and, unless it is a dry run, send the weights that differ.

    `elapsed` seconds have passed since the last reweigh. Two reweighs at once could take every weight away between
    them: who has changed weights looks and decides again until nothing differs. Raises SettingError, RuntimeAPIError.
    """
    series = {each.source: samples.series[each.source] for each in servers if each.source in samples.series}
    now = time.time()
    scored = score(series, sources, now)
    users = sharing.loads(servers)

    @functools.cache
    def count_again() -> Mapping[Key, sharing.Load]:
        with api.paused():
            time.sleep(AGAIN)
        return sharing.loads(api.servers())

    connecting = 0.0

    @functools.cache
    def time_to(source: Key) -> float:
        nonlocal connecting
        address, port = next(((each.address, each.port) for each in servers if each.key == source), ("", ""))
        began = time.monotonic()
        with api.paused():
            seconds = connect_seconds(address, port, CONNECT - connecting)
        connecting += time.monotonic() - began
        return seconds

    share = functools.partial(sharing.share, samples=series, users=users, again=count_again, connect=time_to, now=now)
    decisions = decide(servers, scored, sources, functools.partial(share, elapsed=elapsed))
    changes = ranking.changes(decisions)
    if dry_run or not changes:
        return Outcome(samples, scored, decisions, changes, [])
    changed, refusals = api.set_weights(changes)
    # What another reweigh has set may look as if servers shared. So they do only if that was decided here.
    shares = any(each.reason in (ranking.Reason.SHARES, ranking.Reason.FAR) for each in decisions)
    share_still = functools.partial(share, elapsed=0.0) if shares else None
    try:
        for _ in range(ATTEMPTS - 1):
            again = [] if refusals else ranking.changes(decide(api.servers(), scored, sources, share_still))
            if not again:
                break
            more, refusals = api.set_weights(again)
            changed += more
    except runtime.RuntimeAPIError as error:  # after what was changed, which is to be told
        refusals = [str(error)]
    return Outcome(samples, scored, decisions, changed, refusals)


def connect_seconds(address: str, port: str, timeout: float) -> float:
    """The seconds that a TCP connection to an IP address takes; 0 where nobody knows, after `timeout` at most."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family) as connection:
            connection.settimeout(timeout)
            socket.inet_pton(family, address)  # a name, or "-" for a UNIX socket, would be looked up, for any time
            began = time.monotonic()
            connection.connect((address, int(port)))
            return time.monotonic() - began
    except (OSError, ValueError):  # or no time is left
        return 0.0


def samples_needed(sources: Sources) -> int:
    """How many of the newest samples of a server are looked at, at most, in any backend. Raises SettingError."""
    return max(sharing.USUAL, *(values.window + scores.RECOVERY_RUN for values in _everywhere(sources)))


def _everywhere(sources: Sources) -> list[Settings]:
    return [sources.read(settings.REWEIGH_SETTINGS, backend) for backend in ("", *sources.backends())]


def score(series: Mapping[Key, Sequence[Sample]], sources: Sources, now: float) -> dict[Key, Score]:
    """scores.scores with the settings of each backend. Raises SettingError."""
    sections: dict[str, dict[Key, Sequence[Sample]]] = {}
    for key, newest in series.items():
        section = key[0] if key[0] in sources.sections else ""  # all others are scored together
        sections.setdefault(section, {})[key] = newest
    scored: dict[Key, Score] = {}
    for section, members in sections.items():
        values = sources.read(settings.SCORING_SETTINGS, section)
        scored |= scores.scores(
            members,
            now=now,
            percentile=values.percentile,
            min_samples=values.min_samples,
            window=values.window,
            max_age=values.max_age,
        )
    return scored


def decide(
    servers: Iterable[Server],
    scored: Mapping[Key, Score],
    sources: Sources,
    share: Callable[..., Sequence[Decision]] | None = None,
) -> list[Decision]:
    """ranking.rank of each backend, and sharing.share of that, with its settings. Raises SettingError.

    `share` knows all but the settings. With a tolerance it is that which says who shares.
    """
    seconds = {key: score.seconds for key, score in scored.items()}
    decisions: list[Decision] = []
    for members in runtime.by_backend(servers).values():
        values = settings_of(members, sources)
        weights = {"favorite": values.favorite, "backup": values.backup}
        ranked = ranking.rank(members, seconds, **weights, hysteresis=values.hysteresis, tolerance=values.tolerance)
        decisions += share(ranked, **weights) if share and not values.tolerance else ranked
    return decisions


def settings_of(members: Sequence[Server], sources: Sources) -> Settings:
    """What holds for a backend with these servers, which may track another one's. Raises SettingError."""
    return sources.read(settings.REWEIGH_SETTINGS, members[0].backend, tracked=members[0].source[0])


def refused(outcome: Outcome) -> str:
    """The first refusal, and how many more there were."""
    first, *others = outcome.refusals
    return f"{first} (and {len(others)} more refusals)" if others else first


def trim_if_long(sources: Sources, keep: int, samples: Samples) -> None:
    """Trim the file if it has twice what is kept: `keep` of a server, more of few servers. Raises SampleFileError."""
    oldest = time.time() - max(REMEMBERED, *(values.max_age for values in _everywhere(sources)))
    times = [newest[0].time for newest in samples.series.values()]
    living = sum(when is None or when >= oldest for when in times)
    keep = max(keep, history.KEEP_IN_ALL // max(1, living))
    if samples.lines > 2 * keep * max(1, living) or samples.size > samplefile.MAX_BYTES // 2:
        history.trim(sources.read((settings.TIMES,)).times, keep, oldest)
