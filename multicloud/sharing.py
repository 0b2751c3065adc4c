"""One backend whose favourite fills up: what part of the traffic each server gets. Pure: no I/O, no clock.

Assumes that a server's usual time is the median of its last samples, and that what comes on top is a line of users,
which more traffic makes longer. By Little's law the requests in flight are their rate times what each of them takes.

    wait  = newest samples - usual time, or, where a crowd is in flight, requests in flight / rate - usual time
    price = usual time + TOLL * wait
    part  = part * (lowest price / price) ** (seconds / SETTLE); what this frees goes to those below the average price,
            in proportion to how far

Who joins a line delays all behind him, too: users wait least where these marginal costs, not the times, are equal
(Pigou, The Economics of Welfare, 1920). Gains are those of Brown and von Neumann (Sandholm, "Excess payoff dynamics and
other well-behaved evolutionary dynamics", 2005), which find servers that have nothing yet. It is stable since at equal
prices nothing moves, near them little does, and no step is faster than the samples are old: by such smooth steps
routers with stale information do not swing (Fischer and Voecking, "Adaptive routing with stale information", 2005).

It begins with a crowd at the favourite, or where ranking would leave one that many use for another that is slower as a
rule; it ends when one server has nearly all again, and else changes nothing. The weights are its only memory. It helps
where regions can be full, with any number of HAProxys that know nothing of each other. It does not where requests in
flight say nothing, as in TCP mode, whose connections stay, nor faster than once a reweigh: between two of them
`balance random(2)` evens out. A favourite with many users that is far all of a sudden looks full, and is left in steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from multicloud.ranking import Decision, Reason
from multicloud.runtime import UP
from multicloud.scores import percentiles

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from multicloud.history import Sample
    from multicloud.runtime import Server

    Key = tuple[str, str]

USUAL = 100
"""Samples whose median is the usual time: of some minutes, so that a line of a minute is not yet what is usual."""

RECENT = 3
"""Newest samples, whose mean shows a line: fewer are noise, more are older than the line."""

CROWD, SPARE = 1.5, 2
"""More than so many times the usual requests in flight, and so many more, are a crowd: chance alone has less."""

TOLL = 8
"""How often a wait counts. From 4 to 16 it hardly matters; with 1, everybody's own wait, the lines stay."""

SETTLE = 15.0
"""Seconds: samples and two reweighs are as old. With 5 the parts swing, with 30 a line lasts."""

LEAST = 0.03
"""Of the largest part. A smaller one that does not grow is none: checks know idle servers too, and sharing must end."""


class Load(NamedTuple):
    """A server's users: requests in flight, new ones a second, and the seconds that the last 1,024 took on average."""

    in_flight: int = 0
    rate: float = 0.0
    held: float = 0.0

    def expected(self, usual: float) -> float:
        """The requests in flight that there would be without a line; a check takes `usual` seconds."""
        return self.rate * max(usual, self.held)

    def line(self, usual: float) -> float:
        """The seconds that each waits in line, 0 where no crowd is in flight."""
        crowd = self.rate and self.in_flight > CROWD * self.expected(usual) + SPARE
        return (self.in_flight - self.expected(usual)) / self.rate if crowd else 0.0


NOBODY = Load()


def loads(servers: Iterable[Server]) -> dict[Key, Load]:
    """The users of each server and of those that track it, by `source`; of HTTP only."""
    found: dict[Key, Load] = {}
    for server in servers:
        if server.rate and server.mode == "http":
            known = found.get(server.source, NOBODY)
            rate = known.rate + server.rate
            held = (known.rate * known.held + server.rate * server.held) / rate
            found[server.source] = Load(known.in_flight + server.in_flight, rate, held)
    return found


def share(
    decisions: Sequence[Decision],
    *,
    samples: Mapping[Key, Sequence[Sample]],
    users: Mapping[Key, Load],
    again: Callable[[], Mapping[Key, Load]],
    elapsed: float,
    favorite: int,
    backup: int,
) -> Sequence[Decision]:
    """What a backend's servers get where they have to share; else `decisions`, which are what `ranking` says.

    `samples` are newest first; `users` and, a moment later, `again` are loads; `elapsed` seconds are gone since weights
    were decided. Nobody shares where these weights cannot tell the least part from a backup.
    """
    parts = _parts(decisions, favorite, backup)
    if not parts or round(LEAST * favorite) <= backup:
        return decisions
    largest = max(parts, key=parts.__getitem__)
    leader = next(each.server for each in decisions if each.weight == favorite and each.server.state == UP)
    load = users.get(largest.source, NOBODY)
    if parts[largest] == 1 and leader is largest and not load.line(0.0):  # of most backends nothing more is worked out
        return decisions
    usual = _usual(largest, samples)
    # What the newest samples of one show that many use, and that is faster as a rule, is a line.
    leaves = load.expected(usual) > SPARE and usual < _usual(leader, samples)
    whole = parts[largest] == 1 and not leaves
    if not usual or (whole and not load.line(usual)):
        return decisions
    times = {server: seconds for server in parts if (seconds := _usual(server, samples))}
    if any(users.get(server.source, NOBODY).line(seconds) for server, seconds in times.items()):
        users = again()  # a burst is gone by then
    if whole and not users.get(largest.source, NOBODY).line(usual):
        return decisions
    price = {}
    for server, seconds in times.items():
        newest = [sample.seconds for sample in samples[server.source][:RECENT]]
        line = users.get(server.source, NOBODY).line(seconds)
        price[server] = seconds + TOLL * max(0.0, line, sum(newest) / len(newest) - seconds)
    if elapsed:
        parts = _step(parts, price, elapsed, (backup + 1) / favorite)
    parts = {server: part for server, part in parts.items() if part and server in times}
    if parts.keys() <= {leader}:
        return decisions
    return [_decision(each, parts, users, times, favorite, backup) for each in decisions]


def _usual(server: Server, samples: Mapping[Key, Sequence[Sample]]) -> float:
    """Seconds; 0 without a sample that succeeded."""
    good = [sample.seconds for sample in samples.get(server.source, ())[:USUAL] if not sample.failed]
    return percentiles(good, [50])[0] if good else 0.0


def _parts(decisions: Sequence[Decision], favorite: int, backup: int) -> dict[Server, float]:
    """What each server that is UP has of the traffic now, in sum 1; nothing where it was no reweigh that said so.

    Weights between the backup's and the favourite's are there while servers share, beside that of a favourite, which
    may not be UP any more.
    """
    weights = [each.server.weight for each in decisions]
    sharing = favorite in weights and any(backup < weight < favorite for weight in weights)
    least = backup + 1 if sharing else favorite
    have = {each.server: each.server.weight for each in decisions if each.server.state == UP}
    whole = sum(weight for weight in have.values() if weight >= least)
    if not whole or (not sharing and whole > favorite):
        return {}
    return {server: weight / whole if weight >= least else 0.0 for server, weight in have.items()}


def _step(
    parts: Mapping[Server, float], price: Mapping[Server, float], elapsed: float, least: float
) -> dict[Server, float]:
    """The new parts. One below LEAST that does not grow is 0, and so is one below `least`, which no weight can tell."""
    lowest, average = min(price.values()), sum(parts[server] * price[server] for server in price)
    kept = {server: parts[server] * (lowest / price[server]) ** (elapsed / SETTLE) for server in price}
    cheaper = {server: max(0.0, average - price[server]) for server in price}
    freed = (1 - sum(kept.values())) / (sum(cheaper.values()) or 1.0)
    new = {server: kept[server] + freed * cheaper[server] for server in price}
    largest = max(new.values())
    return {
        server: part * (part >= min(LEAST * largest, max(parts[server], least * largest)))
        for server, part in new.items()
    }


def _decision(
    ranked: Decision,
    parts: Mapping[Server, float],
    users: Mapping[Key, Load],
    usual: Mapping[Server, float],
    favorite: int,
    backup: int,
) -> Decision:
    server, load = ranked.server, users.get(ranked.server.source, NOBODY)
    if server not in parts:
        if server.state != UP or not ranked.weight:
            return ranked
        if len(parts) == 1 and ranked.weight == favorite:  # faster than the one that has it all: next time
            return Decision(server, backup, Reason.BACKUP)
        return Decision(server, 0, Reason.SLOWER)
    weight = round(favorite * parts[server] / max(parts.values()))
    if server is not max(parts, key=parts.__getitem__):  # with two favourites, one has come back from maintenance
        weight = min(weight, favorite - 1)
    expected = round(load.expected(usual[server]))
    return Decision(server, weight, Reason.SHARES, in_flight=load.in_flight, expected=expected)
