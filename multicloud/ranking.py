"""One backend: scores, server states and current weights to a decision for each server. Pure: no I/O, no clock.

Among the servers that are UP the fastest gets the favourite's weight, the next the backup's, the others 0. It is
relative only, since an absolute limit would switch everything off when all are slow at once, and it fails open: a
backend without any sample keeps its weights, and so does one without any UP server.

Two guards keep it from flapping. A server that has the favourite's weight now is judged by its score less the
hysteresis, so a challenger must be faster by more than that. With a tolerance, all servers within it of the fastest
share the favourite's weight: one enters at the tolerance and leaves beyond tolerance and hysteresis.

Servers that HAProxy has as its own `backup` get traffic only while no other can. They are ranked among themselves: the
fastest has the backup's weight, so that it is the one that serves then.
"""

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from math import inf
from typing import NamedTuple

from multicloud.runtime import DOWN, DRAIN, UP, Server
from multicloud.settings import Key

Scores = Mapping[Key, float]


class Reason(Enum):
    """Why a server gets its weight, in words that stand behind it; in braces are facts of the decision."""

    FASTEST = "the fastest"
    OVERTOOK = "{percent:.0f} % faster than {other}"
    KEPT = "kept by hysteresis: {other} is {percent:.0f} % faster"
    WITHIN_TOLERANCE = "within the tolerance of {other}, the fastest"
    BACKUP = "the fastest after the favourite"
    SLOWER = "others are faster"
    SHARES = "shares the lead: {in_flight} requests in flight, {expected} would be usual"
    FAR = "far: a new connection takes longer than its requests did"
    NEARER = "{other} is far"
    RESERVE = "HAProxy's own `backup`: gets traffic while no other server is UP"
    NO_SAMPLES = "no samples that count"
    DOWN = "DOWN"
    MAINTENANCE = "left alone: an operator put it into maintenance"
    UNRESOLVED = "left alone: its name does not resolve"
    DRAIN = "left alone: an operator drains it"
    NONE_MEASURED = "left alone: no server of its backend has samples that count"
    NONE_UP = "left alone: no server of its backend is UP"


class Decision(NamedTuple):
    """The weight that a server should have, and why."""

    server: Server
    weight: int
    reason: Reason
    other: Server | None = None  # the one that the reason speaks of
    percent: float = 0.0  # by how much the faster of the two is faster
    in_flight: int = 0  # where servers share: its requests in flight
    expected: int = 0  # and how many there would be without a line

    @property
    def backend(self) -> str:
        return self.server.backend

    def why(self) -> str:
        """The reason with its figures."""
        return self.reason.value.format(**self._asdict() | {"other": self.other.name if self.other else ""})


def changes(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that change a weight: first those that raise one, so that never all are without weight."""
    differing = [decision for decision in decisions if decision.weight != decision.server.weight]
    return sorted(differing, key=lambda decision: decision.weight < decision.server.weight)


def candidates(servers: Iterable[Server]) -> list[Server]:
    """Those that can get traffic: servers that are UP, and HAProxy's own `backup` ones only where there is no other."""
    up = [server for server in servers if server.state == UP]
    return [server for server in up if not server.reserve] or up


def rank(
    servers: Sequence[Server],
    scores: Scores,
    *,
    favorite: int = 256,
    backup: int = 1,
    hysteresis: float = 10,
    tolerance: float = 0,
) -> list[Decision]:
    """A decision for each server of a backend, in their order.

    `scores` are seconds by `source`, `favorite` and `backup` weights, `hysteresis` percent, `tolerance` milliseconds.
    """
    if not any(server.source in scores for server in servers):
        return [Decision(server, server.weight, Reason.NONE_MEASURED) for server in servers]
    up = sorted((server for server in servers if server.state == UP), key=lambda server: scores.get(server.source, inf))
    ordered = candidates(up)
    reserve = [server for server in up if server.reserve != ordered[0].reserve]
    leaders = _lead(ordered, scores, favorite, hysteresis, tolerance)
    others = [server for server in ordered if server not in leaders]
    following = {*others[:1], *reserve[:1]}
    alone = favorite != backup and not tolerance  # whether a single one leads
    led = next((each for each in others if alone and each.weight == favorite and each.source in scores), None)
    decisions = []
    for server in servers:
        if server.state != UP:
            decisions.append(_unused(server, served=bool(ordered)))
        elif server in leaders:
            decisions.append(_leader(server, ordered[0], led, scores, favorite, tolerance))
        else:
            weight, reason = (backup, Reason.BACKUP) if server in following else (0, Reason.SLOWER)
            reason = reason if server.source in scores else Reason.NO_SAMPLES
            reason = Reason.RESERVE if server.reserve != ordered[0].reserve else reason
            decisions.append(Decision(server, weight, reason))
    return decisions


def _unused(server: Server, *, served: bool) -> Decision:
    """What becomes of a server that is not UP; `served` says whether another one of its backend is."""
    if server.state == DOWN:
        return Decision(server, 0, Reason.DOWN) if served else Decision(server, server.weight, Reason.NONE_UP)
    reason = Reason.DRAIN if server.state == DRAIN else Reason.UNRESOLVED if server.unresolved else Reason.MAINTENANCE
    return Decision(server, server.weight, reason)


def _lead(ordered: Sequence[Server], scores: Scores, favorite: int, hysteresis: float, tolerance: float) -> set[Server]:
    """Who of the candidates, from fast to slow, gets the favourite's weight: one, or all within the tolerance."""

    def discounted(server: Server) -> float:
        score = scores.get(server.source, inf)
        return score * (1 - hysteresis / 100) if server.weight == favorite and score < inf else score

    if not ordered:
        return set()
    fastest = scores.get(ordered[0].source, inf)
    if tolerance and fastest < inf:
        return {server for server in ordered if discounted(server) <= fastest + tolerance / 1000}
    return {min(ordered, key=lambda each: (discounted(each), each.weight != favorite))}


def _leader(
    server: Server, fastest: Server, led: Server | None, scores: Scores, favorite: int, tolerance: float
) -> Decision:
    """The decision for a server that leads; `led` is the one that did until now, if it does not any more."""
    if server.source not in scores:
        return Decision(server, favorite, Reason.NO_SAMPLES)
    if scores[server.source] > scores[fastest.source]:
        within = scores[server.source] <= scores[fastest.source] + tolerance / 1000
        reason = Reason.WITHIN_TOLERANCE if within else Reason.KEPT
        return Decision(server, favorite, reason, fastest, _percent(fastest, server, scores))
    if led and server.weight != favorite:
        return Decision(server, favorite, Reason.OVERTOOK, led, _percent(server, led, scores))
    return Decision(server, favorite, Reason.FASTEST)


def _percent(faster: Server, slower: Server, scores: Scores) -> float:
    return 100 * (1 - scores[faster.source] / scores[slower.source])
