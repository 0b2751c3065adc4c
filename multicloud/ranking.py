"""Scores, server states and current weights to a decision for each server. Pure: no I/O, no clock.

Within a backend, among the servers that are UP: the fastest gets the favourite's weight, the next the backup's, the
others 0. It is relative only, since an absolute limit would switch everything off when all are slow at once, and it
fails open: a backend without any sample keeps its weights, and so does one without any UP server.

Two guards keep it from flapping. A server that has the favourite's weight now is judged by its score less the
hysteresis, so a challenger must be faster by more than that. With a tolerance, all servers within it of the fastest
share the favourite's weight: one enters at the tolerance and leaves beyond tolerance and hysteresis.

A decision carries its reason and the facts of it, so that who words it works nothing out again.
"""

from __future__ import annotations

from enum import Enum
from math import inf

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


UP, DOWN, MAINT, DRAIN = "UP", "DOWN", "MAINT", "DRAIN"


class Server:
    """A server as HAProxy sees it: `state` is UP, DOWN, MAINT or DRAIN, `weight` 0 to 256.

    `unresolved` says that it is in maintenance because its name does not resolve, which is no operator's word.
    `key` is its (backend, server), which no other server has, and `source` the one whose samples score it: itself, or
    the one that it tracks.
    """

    __slots__ = ("backend", "key", "name", "source", "state", "unresolved", "weight")

    def __init__(self, backend: str, name: str, state: str, weight: int, *, unresolved: bool = False) -> None:
        self.backend = backend
        self.name = name
        self.state = state
        self.weight = weight
        self.unresolved = unresolved
        self.key = self.source = backend, name


class Reason(Enum):
    """Why a server gets its weight."""

    FASTEST = "favourite: nobody is faster; where `other` is given, it led until now, and is slower by `percent`"
    KEPT = "favourite still: `other` is faster by `percent`, which is not more than the hysteresis"
    WITHIN_TOLERANCE = "favourite too: within the tolerance of `other`, the fastest"
    BACKUP = "backup: the fastest of those that are no favourites"
    SLOWER = "no weight: others are faster"
    NO_SAMPLES = "UP, but without samples that count: the last to be chosen"
    DOWN = "no weight: DOWN, and to be measured before it gets traffic again"
    MAINTENANCE = "left alone: an operator put it into maintenance"
    UNRESOLVED = "left alone: its name does not resolve"
    DRAIN = "left alone: an operator drains it"
    NONE_MEASURED = "left alone: no server of its backend has samples that count"
    NONE_UP = "left alone: no server of its backend is UP"


class Decision:
    """The weight that a server should have, and why.

    `other` is the server that `reason` speaks of, if any, and `percent` by how much the faster of the two is faster.
    """

    __slots__ = ("other", "percent", "reason", "server", "weight")

    def __init__(
        self, server: Server, weight: int, reason: Reason, other: Server | None = None, percent: float = 0.0
    ) -> None:
        self.server = server
        self.weight = weight
        self.reason = reason
        self.other = other
        self.percent = percent


def changes(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that change a weight; those that raise one come first.

    So, when they are set one after the other, no UP server that had one is without a weight before another has it.
    """
    differing = [decision for decision in decisions if decision.weight != decision.server.weight]
    return sorted(differing, key=lambda decision: decision.weight < decision.server.weight)


def rank(
    servers: Iterable[Server],
    scores: Mapping[tuple[str, str], float],
    *,
    favorite: int = 256,
    backup: int = 1,
    hysteresis: float = 10,
    tolerance: float = 0,
) -> list[Decision]:
    """A decision for each server, backend by backend.

    `scores` are seconds by (backend, server); `favorite` and `backup` weights; `hysteresis` is percent, `tolerance`
    milliseconds.
    """
    backends: dict[str, list[Server]] = {}
    for server in servers:
        backends.setdefault(server.backend, []).append(server)
    decisions = []
    for members in backends.values():
        candidates = [server for server in members if server.state == UP]
        if not any(server.source in scores for server in members):
            decisions += [Decision(server, server.weight, Reason.NONE_MEASURED) for server in members]
            continue
        chosen = iter(
            _choose(candidates, scores, favorite=favorite, backup=backup, hysteresis=hysteresis, tolerance=tolerance)
        )
        decisions += [next(chosen) if server.state == UP else _unused(server, bool(candidates)) for server in members]
    return decisions


def _unused(server: Server, served: bool) -> Decision:
    """What becomes of a server that is not UP; `served` says whether another one of its backend is."""
    if server.state == DOWN:
        return Decision(server, 0, Reason.DOWN) if served else Decision(server, server.weight, Reason.NONE_UP)
    reason = Reason.DRAIN if server.state == DRAIN else Reason.UNRESOLVED if server.unresolved else Reason.MAINTENANCE
    return Decision(server, server.weight, reason)


def _choose(
    candidates: Sequence[Server],
    scores: Mapping[tuple[str, str], float],
    *,
    favorite: int,
    backup: int,
    hysteresis: float,
    tolerance: float,
) -> list[Decision]:
    """What becomes of the servers of a backend that are UP, in their order."""
    if not candidates:
        return []
    ordered = sorted(candidates, key=lambda server: scores.get(server.source, inf))
    leaders = _lead(ordered, scores, favorite=favorite, hysteresis=hysteresis, tolerance=tolerance)
    fastest = ordered[0]
    others = [server for server in ordered if server not in leaders]
    second = others[0] if others else None
    decisions = []
    for server in candidates:
        weight = favorite if server in leaders else backup if server is second else 0
        if server.source not in scores:
            decisions.append(Decision(server, weight, Reason.NO_SAMPLES))
        elif server not in leaders:
            decisions.append(Decision(server, weight, Reason.BACKUP if server is second else Reason.SLOWER))
        elif scores[server.source] > scores[fastest.source]:
            within = scores[server.source] <= scores[fastest.source] + tolerance / 1000
            reason = Reason.WITHIN_TOLERANCE if within else Reason.KEPT
            decisions.append(Decision(server, weight, reason, fastest, _percent(fastest, server, scores)))
        else:
            beaten = None
            if server.weight != favorite != backup and not tolerance:
                beaten = next((other for other in others if other.weight == favorite and other.source in scores), None)
            percent = _percent(server, beaten, scores) if beaten else 0.0
            decisions.append(Decision(server, weight, Reason.FASTEST, beaten, percent))
    return decisions


def _percent(faster: Server, slower: Server, scores: Mapping[tuple[str, str], float]) -> float:
    return 100 * (1 - scores[faster.source] / scores[slower.source])


def _lead(
    ordered: Sequence[Server],
    scores: Mapping[tuple[str, str], float],
    *,
    favorite: int,
    hysteresis: float,
    tolerance: float,
) -> list[Server]:
    """Who of the candidates, from fast to slow, gets the favourite's weight: one, or all within the tolerance."""

    def discounted(server: Server) -> float:
        score = scores.get(server.source, inf)
        return score * (1 - hysteresis / 100) if server.weight == favorite and score < inf else score

    fastest = scores.get(ordered[0].source, inf)
    if not tolerance or fastest == inf:
        sitting = [server for server in ordered if server.weight == favorite]
        return [min([ordered[0], *sitting], key=lambda server: (discounted(server), server.weight != favorite))]
    return [server for server in ordered if discounted(server) <= fastest + tolerance / 1000]
