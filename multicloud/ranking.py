"""Scores, server states and current weights to new weights. Pure: no I/O, no clock.

Within a backend, among the servers that are UP: the fastest gets the favourite's weight, the next the backup's, the
others 0. It is relative only, since an absolute limit would switch everything off when all are slow at once, and it
fails open: a backend without any sample keeps its weights, and so does one without any UP server.

Two guards keep it from flapping. A server that has the favourite's weight now is judged by its score less the
hysteresis, so a challenger must be faster by more than that. With a tolerance, all servers within it of the fastest
share the favourite's weight: one enters at the tolerance and leaves beyond tolerance and hysteresis.
"""

from __future__ import annotations

from math import inf

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


UP, DOWN, MAINT, DRAIN = "UP", "DOWN", "MAINT", "DRAIN"


class Server:
    """A server as HAProxy sees it: `state` is UP, DOWN, MAINT or DRAIN, `weight` 0 to 256."""

    __slots__ = ("backend", "name", "state", "weight")

    def __init__(self, backend: str, name: str, state: str, weight: int) -> None:
        self.backend = backend
        self.name = name
        self.state = state
        self.weight = weight

    @property
    def key(self) -> tuple[str, str]:
        """Its name in samples and scores."""
        return self.backend, self.name


def rank(
    servers: Iterable[Server],
    scores: Mapping[tuple[str, str], float],
    *,
    favorite: int = 256,
    backup: int = 1,
    hysteresis: float = 10,
    tolerance: float = 0,
) -> list[tuple[Server, int]]:
    """The new weight of each server whose weight must change; those that rise come first.

    So, when they are set one after the other, no UP server that had one is without a weight before another has it.
    `scores` are seconds by (backend, server); `favorite` and `backup` weights; `hysteresis` is percent, `tolerance`
    milliseconds.
    """
    backends: dict[str, list[Server]] = {}
    for server in servers:
        backends.setdefault(server.backend, []).append(server)
    changes = []
    for members in backends.values():
        candidates = [server for server in members if server.state == UP]
        if not candidates or not any(server.key in scores for server in members):
            continue
        leaders = lead(candidates, scores, favorite=favorite, hysteresis=hysteresis, tolerance=tolerance)
        others = [server for server in candidates if server not in leaders]
        second = min(others, key=lambda server: scores.get(server.key, inf), default=None)
        for server in members:
            if server.state not in (UP, DOWN):  # maintenance and drain are an operator's word
                continue
            weight = favorite if server in leaders else backup if server is second else 0
            if weight != server.weight:
                changes.append((server, weight))
    return sorted(changes, key=lambda change: change[1] < change[0].weight)


def lead(
    candidates: Sequence[Server],
    scores: Mapping[tuple[str, str], float],
    *,
    favorite: int,
    hysteresis: float,
    tolerance: float,
) -> list[Server]:
    """The candidates that get the favourite's weight: one, or all within the tolerance of the fastest."""

    def discounted(server: Server) -> float:
        score = scores.get(server.key, inf)
        return score * (1 - hysteresis / 100) if server.weight == favorite and score < inf else score

    fastest = min(scores.get(server.key, inf) for server in candidates)
    if not tolerance or fastest == inf:
        return [min(candidates, key=lambda server: (discounted(server), server.weight != favorite))]
    return [server for server in candidates if discounted(server) <= fastest + tolerance / 1000]
