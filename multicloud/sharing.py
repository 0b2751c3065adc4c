"""One backend whose favourite fills up: what part of the traffic each server gets. Pure: no I/O, no clock.

Assumes that a server's usual time is the median of its last samples, and that what comes on top is a line of users,
which more traffic makes longer. By Little's law the requests in flight are their rate times what each of them takes.

    wait  = newest samples - usual time, or, where more requests are in flight than usual: those / rate
    price = usual time + TOLL * wait
    part  = part * (lowest price / price) ** (seconds / SETTLE); what this frees goes to those below the average price,
            in proportion to how far, over price squared, so that the nearest come first

Who joins a line delays all behind him, too: users wait least where these marginal costs, not the times, are equal
(Pigou, The Economics of Welfare, 1920). Gains are those of Brown and von Neumann (Sandholm, "Excess payoff dynamics and
other well-behaved evolutionary dynamics", 2005), which find servers that have nothing yet. It is stable since at equal
prices nothing moves, near them little does, and no step is faster than the samples are old: by such smooth steps
routers with stale information do not swing (Fischer and Voecking, "Adaptive routing with stale information", 2005).

It begins with a line of requests at the favourite, or where ranking would leave one whose samples vary as those of a
line do. It ends when one server has nearly all again, soon after nobody waits any more. The weights are its only
memory. Who is slow for another reason is left at once: its samples are slow but steady, or a new connection to it takes
longer than its requests did. That is far, not full, and shows before two checks have: so the one that is to lead is
connected to, too.

It helps where regions can be full, with any number of HAProxys that know nothing of each other. It acts once a reweigh:
between two of them `balance random(2)` evens out. Requests that stay (WebSockets, slow downloads, on purpose or not)
are a crowd, but no line: who comes and goes beside them has not waited, nor has a check. In TCP mode only the samples
show a line.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import sqrt
from typing import NamedTuple, Self

from multicloud.history import Sample
from multicloud.ranking import Decision, Reason, candidates
from multicloud.runtime import UP, Server
from multicloud.scores import CHANGE, percentiles
from multicloud.settings import Key

Views = Mapping[Server, "_View"]

USUAL = 100  # samples whose median is the usual time: of some minutes, or a line of one minute would soon be usual
RECENT = 3  # newest samples, whose mean shows a line: fewer are noise, more are older than the line
PAIR = 2  # newest samples that are quick when a line is gone, and differ while there is one
CALM = 5  # newest samples, all about as usual: nobody waits
CROWD, SPARE = 1.5, 3  # a crowd is more than so many times what is expected, and so many more: chance alone has less
# Standard deviations of a count (Poisson's), and of a mean of times that vary as exponential ones do. More are there by
# chance at one look in some hundreds, if ten are answered or more; with 2 it is one in thirty, and hardly sooner.
CHANCE = 3
# HAProxy's mean time is an exponential one of so many requests (TIME_STATS_SAMPLES in its source; its manual says the
# last 1,024). It and the times of HAProxy's checks are in whole milliseconds: they may be so many seconds off.
AVERAGED, ROUNDED = 512, 0.001
VARIES = 1.15  # of two samples the longer is so many times the shorter: a line moves, a slow answer is slow again
UNLIKE = 2  # so many times as long as usual, samples are hardly alike by chance: two that are show a slow server
USED = 0.7  # expected requests in flight above which it may be its users who make a server slow
TOLL = 8  # how often a wait counts. From 4 to 16 it hardly matters; with 1, everybody's own wait, the lines stay
# Seconds: samples and two reweighs are as old. With 5 the parts swing, with 30 a line lasts. No step is for longer: of
# rounds a minute apart each would take all from one and give it to another.
SETTLE = 15.0
RETURN = 5.0  # the same when nobody waits: all goes back soon. To leave who has a long line as fast makes all jam
LATE = 6.0  # the first step is for so many seconds, at least: a line is seen late, and nobody else has a part yet
# Of the largest part: what is below LEAST and does not grow is none; LAST where two are left and nobody waits.
LEAST, LAST = 0.03, 0.1


class Load(NamedTuple):
    """A server's users, and those of the servers that track it."""

    in_flight: int = 0
    rate: int = 0  # new requests in the last second
    total_time: float = 0.0  # mean seconds of the last requests
    answers: int = 0  # requests that the server alone has answered; may be negative after `clear counters`
    own_time: float = 0.0  # their mean seconds, of some AVERAGED


NOBODY = Load()


class _View(NamedTuple):
    """What is known of a server."""

    usual: float  # seconds of a check
    samples: Sequence[Sample]  # newest first
    load: Load
    age: float  # seconds since the newest sample
    grows: bool = False  # whether a line does, since the moment before

    def later(self, load: Load) -> Self:
        """The same with the users of a moment later.

        A line grows where more of them are in flight, or those who were answered took longer, than by chance.
        """
        more, answers = load.in_flight - self.load.in_flight, load.answers - self.load.answers
        by_chance = max(self.usual, self.load.own_time) * (1 + CHANCE / sqrt(max(1, answers)))
        grows = more > max(SPARE, CHANCE * sqrt(2 * self.expected())) or took(self.load, load) > by_chance
        return self._replace(load=load, grows=grows and self.load.rate > 0)

    def is_slow(self, seconds: float) -> bool:
        return seconds * CHANGE > self.usual

    def newest(self, count: int) -> list[float]:
        return [sample.seconds for sample in self.samples[:count]]

    def expected(self) -> float:
        """The requests in flight that there would be without a line."""
        return self.load.rate * max(self.usual, self.load.total_time)

    def crowd(self) -> float:
        """How many more there are, 0 where that may be chance."""
        in_flight, expected = self.load.in_flight, self.expected()
        return in_flight - expected if self.load.rate and in_flight > CROWD * expected + SPARE else 0.0

    def is_suspect(self) -> bool:
        """There may be a line: a crowd, or more requests in flight than even a slow newest sample explains."""
        newest = self.samples[0].seconds
        explained = self.load.rate * newest
        unexplained = self.load.in_flight > explained + CHANCE * sqrt(explained) + SPARE
        return self.crowd() > 0 or (self.load.rate > 0 and unexplained and self.is_slow(newest))

    def line(self) -> float:
        """The seconds that each user waits by the requests in flight; 0 where these are as usual, or such as stay.

        It is what the crowd shows or the newest sample, if that was slow: the longer while a line grows, else the
        shorter. A line that no check has seen must grow, and no more can be in it than have come since.
        """
        if not self.is_suspect():
            return 0.0
        newest = self.samples[0].seconds
        waits, waited = self.crowd() / self.load.rate, newest - self.usual
        if self.is_slow(newest):
            return max(waits, waited) if self.grows else min(waits, waited)
        return waits if self.grows and waits <= CROWD * (self.age + self.usual) else 0.0

    def price(self) -> float:
        newest = self.newest(RECENT)
        seen = min(sum(newest) / len(newest), max(newest[:PAIR]))
        return self.usual + TOLL * max(0.0, self.line(), seen - self.usual)

    def varies(self) -> bool:
        """It is used, and its newest samples differ as those of a line do: two, or three if these may be chance."""
        newest = self.newest(PAIR if self.samples[0].seconds > UNLIKE * self.usual else RECENT)
        return max(newest) > VARIES * min(newest) and self.expected() > USED


def took(before: Load, after: Load) -> float:
    """The mean seconds of the requests answered between two looks, by which HAProxy's mean has moved.

    0 where none was answered, or all is counted anew: after a start, or `clear counters all`.
    """
    answers = after.answers - before.answers
    if before.answers <= 0 or answers <= 0:
        return 0.0
    moved = after.own_time - before.own_time - ROUNDED
    return before.own_time + moved * max(1.0, min(AVERAGED, after.answers) / answers)


def loads(servers: Iterable[Server]) -> dict[Key, Load]:
    """The users of each server and of those that track it, by `source`. In TCP mode only their rate is known."""
    users: dict[Key, Load] = {}
    for server in servers:
        if server.rate:
            http, own = server.mode == "http", server.source == server.key
            known = users.get(server.source, NOBODY)
            rate = known.rate + server.rate
            users[server.source] = Load(
                known.in_flight + server.in_flight * http,
                rate,
                known.total_time + (server.total_time * http - known.total_time) * (server.rate / rate),
                answers=server.answers if own else known.answers,
                own_time=server.total_time * http if own else known.own_time,
            )
    return users


def full(servers: Iterable[Server], samples: Mapping[Key, Sequence[Sample]], users: Mapping[Key, Load]) -> list[Server]:
    """Those of the servers that are used and have a crowd, or a line by all of the newest samples."""
    views = _views(servers, samples, users, 0.0)
    return [
        server
        for server, view in views.items()
        if view.expected() > USED and (view.crowd() or all(map(view.is_slow, view.newest(RECENT))))
    ]


def share(
    decisions: Sequence[Decision],
    *,
    samples: Mapping[Key, Sequence[Sample]],
    users: Mapping[Key, Load],
    again: Callable[[], Mapping[Key, Load]],
    connect: Callable[[Key], float],
    now: float,
    elapsed: float,
    favorite: int,
    backup: int,
) -> Sequence[Decision]:
    """What a backend's servers get where they have to share; else `decisions`, which are what `ranking` says.

    `samples` are newest first; `users` and, a moment later, `again` are loads; `connect` says how many seconds a new
    connection takes, by `source`, 0 where nobody knows; `now` is a UNIX time, and `elapsed` the seconds since weights
    were decided. Nobody shares where these weights cannot tell the least part from a backup.
    """
    parts = _parts(decisions, favorite, backup)
    if not parts or round(LEAST * favorite) <= backup:
        return decisions
    largest = max(parts, key=parts.__getitem__)
    leader = next((each.server for each in decisions if each.weight == favorite and each.server.state == UP), None)
    alone = parts[largest] == 1
    if alone and leader is largest:  # so that nothing more is worked out of most backends
        views = _views([largest] if largest.source in users else [], samples, users, now)
        if not any(view.is_suspect() for view in views.values()):
            return decisions
    unknown = {each.server for each in decisions if each.reason in (Reason.NO_SAMPLES, Reason.NONE_MEASURED)}
    views = _views([server for server in parts if server not in unknown], samples, users, now)
    if any(view.is_suspect() for view in views.values()):
        later = again()  # a burst is gone by then
        views = {server: view.later(later.get(server.source, NOBODY)) for server, view in views.items()}
    if not leader or leader not in views or (alone and largest not in views):
        return decisions
    if alone and (whole := _whole(decisions, largest, leader, views, connect)):
        return whole
    if elapsed:
        parts = _step(parts, views, max(elapsed, LATE) if alone else elapsed, (backup + 1) / favorite)
    parts = {server: part for server, part in parts.items() if part and server in views}
    if parts.keys() <= {leader}:
        return decisions
    return [_decision(each, parts, views, favorite, backup) for each in decisions]


def _parts(decisions: Sequence[Decision], favorite: int, backup: int) -> dict[Server, float]:
    """What each server that can get traffic has of it now, in sum 1; nothing where it was no reweigh that said so.

    Servers that share have weights between `backup` and `favorite`, beside a favourite, which may not be UP any more.
    """
    weights = [each.server.weight for each in decisions]
    sharing = favorite in weights and any(backup < weight < favorite for weight in weights)
    least = backup + 1 if sharing else favorite
    have = {server: server.weight for server in candidates(each.server for each in decisions)}
    whole = sum(weight for weight in have.values() if weight >= least)
    if not whole or (not sharing and whole > favorite):
        return {}
    return {server: weight / whole if weight >= least else 0.0 for server, weight in have.items()}


def _views(
    servers: Iterable[Server], samples: Mapping[Key, Sequence[Sample]], users: Mapping[Key, Load], now: float
) -> Views:
    """Of those that have a sample that succeeded."""
    views = {}
    for server in servers:
        newest = samples.get(server.source, ())[:USUAL]
        good = [sample.seconds for sample in newest if not sample.failed]
        if good:
            age = now - (newest[0].time or 0.0)
            views[server] = _View(percentiles(good, [50])[0], newest, users.get(server.source, NOBODY), age)
    return views


def _whole(
    decisions: Sequence[Decision], favourite: Server, leader: Server, views: Views, connect: Callable[[Key], float]
) -> Sequence[Decision] | None:
    """The decisions where one server has all traffic: the favourite, or the `leader` that ranking wants in its place.

    None where the favourite is full. Who is far is neither full nor to lead, whatever samples of before say.
    """

    def is_far(server: Server) -> bool:
        return (connect(server.source) - ROUNDED) * CHANGE > views[server].usual

    if leader is not favourite and is_far(leader):
        return _exchanged(decisions, leader, favourite)
    view = views[favourite]
    leaves = leader is not favourite and view.usual < views[leader].usual and view.varies()
    if not leaves and not view.is_suspect():
        return decisions
    if not is_far(favourite):  # asked where only a crowd shows, too: no sample may have seen it yet
        return None if leaves or view.line() else decisions
    second = next((each.server for each in decisions if each.reason is Reason.BACKUP), None)
    return _exchanged(decisions, favourite, second) if leader is favourite and second else decisions


def _exchanged(decisions: Sequence[Decision], far: Server, instead: Server) -> list[Decision]:
    """The two have each other's weight."""
    weights = {each.server: each.weight for each in decisions}
    nearer = Decision(instead, weights[far], Reason.NEARER, far)
    new = {far: Decision(far, weights[instead], Reason.FAR), instead: nearer}
    return [new.get(each.server, each) for each in decisions]


def _step(parts: Mapping[Server, float], views: Views, elapsed: float, least: float) -> dict[Server, float]:
    """The new parts. One that does not grow is 0 below LEAST, and so is one below `least`, which no weight can tell."""
    price = {server: view.price() for server, view in views.items()}
    lowest, average = min(price.values()), sum(parts[server] * price[server] for server in price)
    used = [view for server, view in views.items() if parts[server]]
    calm = not any(view.line() or any(map(view.is_slow, view.newest(CALM))) for view in used)
    power = min(elapsed, SETTLE) / (RETURN if calm else SETTLE)
    kept = {server: parts[server] * (lowest / price[server]) ** power for server in price}
    cheaper = {server: max(0.0, average - price[server]) / price[server] ** 2 for server in price}  # the nearest first
    freed = (1 - sum(kept.values())) / (sum(cheaper.values()) or 1.0)
    new = {server: kept[server] + freed * cheaper[server] for server in price}
    largest = max(new.values())
    smallest = LAST if calm and sum(map(bool, parts.values())) == 2 else LEAST
    return {
        server: part * (part >= min(smallest * largest, max(parts[server], least * largest)))
        for server, part in new.items()
    }


def _decision(ranked: Decision, parts: Mapping[Server, float], views: Views, favorite: int, backup: int) -> Decision:
    server = ranked.server
    if server not in parts:
        if server.state != UP or not ranked.weight or ranked.reason is Reason.RESERVE:
            return ranked
        if len(parts) == 1 and ranked.weight == favorite:  # faster than the one that has it all: next time
            return Decision(server, backup, Reason.BACKUP)
        return Decision(server, 0, Reason.SLOWER)
    weight = round(favorite * parts[server] / max(parts.values()))
    if server is not max(parts, key=parts.__getitem__):  # with two favourites, one has come back from maintenance
        weight = min(weight, favorite - 1)
    view = views[server]
    return Decision(server, weight, Reason.SHARES, in_flight=view.load.in_flight, expected=round(view.expected()))
