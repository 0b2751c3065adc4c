"""HAProxy's own checks as samples: each check is counted once, as well as that can be told. Pure: no I/O, no clock.

HAProxy says how the last check of a server ended and how long it took, in whole milliseconds, but gives it neither a
number nor a time. So a check is told from the one before by whatever differs: the status, the duration, the number of
failures, the server's health, the check's words, or that one was under way and is no longer. Where all that is the same
for as long as the server's checks usually are apart, another one has ended the same way.

- The check after a failed one comes sooner (`fastinter`), so both may end between two looks, and only the last one is
  seen. HAProxy counts those that failed while the server is UP, so the other one counts, unless checks are so close
  together that good ones are passed over as well: then the last one before each look stands for all.
- Of a server that is DOWN, HAProxy says how many checks in a row it has passed: those unseen took as long as the last.
- After maintenance HAProxy says the same of the last check as before: it is not counted a second time.

The words are what the configuration says (`on-success` of `http-check expect`). With a number at their end that always
differs, `%[date(0,ms)]`, nothing is left to guess. With `%[date(0,us),sub(check.begun)]us@` before it, they have the
microseconds from the request to its answer: the sample, then, and not the duration, in which are the connection and its
TLS handshake. In `mode tcp`, words with a code are not believed: of `option smtpchk` they are the server's.
"""

from collections.abc import Collection, Iterable

from multicloud.runtime import Server
from multicloud.settings import Key

# Check statuses (HAProxy's management guide, section 9.1). The others are of no check, or of one that could not begin
# for want of something on this side, or of an external one, whose command records it.
PASSED_STATUSES = ("L4OK", "L6OK", "L7OK")
TIMED_OUT_STATUSES = ("L4TOUT", "L6TOUT", "L7TOUT")
FAILED_STATUSES = (*TIMED_OUT_STATUSES, "L4CON", "L6RSP", "L7RSP", "L7STS")
LEAST = 0.0005  # seconds of a check that HAProxy says took 0 ms
INTER = 2.0  # seconds between checks where the configuration does not say (`inter`), and what a check may take then
UNKNOWN_GAP = 10.0  # the same until it is known: a slow answer that is counted twice could pass for a slowdown
MIN_INTERVALS_PER_LOOK = 1.5  # of checks that are so many times as far apart as looks, none that passed goes unseen
GAPS = 9  # gaps between checks whose median is what is usual


def is_under_way(server: Server) -> bool:
    """Whether a check has begun and not ended: it has no words until then."""
    return server.check_running and not server.last_chk


def _configured_words(server: Server) -> str:
    """The last check's words, "" where they may be the server's, as those of a check that failed are."""
    theirs = server.check not in PASSED_STATUSES or (server.mode == "tcp" and server.code.strip("0"))
    return "" if theirs else server.last_chk


def is_numbered(server: Server) -> bool:
    """Whether the last check has words that no other has."""
    return _configured_words(server).rpartition("@")[2].isdigit()


class CheckHistory:
    """What is known of a server's checks; the times are those of the clock that `ended` is given."""

    def __init__(self, server: Server, now: float) -> None:
        self.gaps: list[float] = []
        self.changed: float | None = None  # when a check was told from the one before it
        self.counted = self.looked = now
        self.paused = False  # HAProxy says nothing of its checks
        self.overhead = 0.0  # seconds of a check that were not its request's
        self.see(server, new=True)

    def see(self, server: Server, *, new: bool) -> None:
        """Keep what HAProxy says; `new` where that is of a check that has not been seen before."""
        self.last = server
        # Of a new one that is still said to be under way, HAProxy may only be closing the connection.
        self.busy = is_under_way(server) and not new

    def differs(self, server: Server) -> bool:
        """Whether what HAProxy says is of another check than what it said before."""
        if is_numbered(server) and server.last_chk == self.last.last_chk:  # an operator may have set its health
            return False
        if self.last.fingerprint != server.fingerprint or self.last.failures < server.failures:  # fewer: were cleared
            return True
        return not is_under_way(server) and (self.busy or self.last.last_chk != server.last_chk)

    def took(self, server: Server) -> float:
        """Seconds of a check that passed: from the request to its answer where the words say that, else all of it."""
        whole = max(server.check_seconds or 0.0, LEAST)
        if is_under_way(server):  # the next one, so that the words are gone, perhaps each time
            seconds = whole - self.overhead
        else:
            number, unit, _ = _configured_words(server).partition("us@")
            seconds = whole
            if unit and number.isascii() and number.isdigit() and len(number) < 12:
                # Whoever sets the clock makes no request longer than its check, whose duration is rounded down.
                seconds = min(int(number) / 1e6, whole + 0.001)
            self.overhead = whole - seconds
        # A connection takes one round trip, and its TLS handshake another one at least.
        return max(seconds, self.overhead / (1 if server.tls == "0" else 2), LEAST)

    def usual_gap(self) -> float | None:
        """Seconds; None where it is not known yet."""
        return sorted(self.gaps)[len(self.gaps) // 2] if len(self.gaps) >= 3 else None


class Checks:
    """Which checks have been counted, server by server."""

    def __init__(self) -> None:
        self._servers: dict[Key, CheckHistory] = {}

    def ended(
        self, servers: Iterable[Server], measured: Collection[Key], *, now: float, interval: float
    ) -> list[tuple[Server, float, bool]]:
        """The checks that have ended since the last call: the server, seconds, and whether it failed.

        Of a server that is seen for the first time the last check counts, unless it is under way, or in `measured`:
        whoever measured it may have counted that check. `now` is seconds of any clock that never steps, and `interval`
        the seconds between two calls. A failed check has the seconds that it was allowed, as far as HAProxy tells.
        """
        ended = []
        seen = {}
        for server in servers:
            before = self._servers.get(server.key)
            new = before is None and server.key not in measured and not is_under_way(server)
            known = seen[server.key] = before or CheckHistory(server, now)
            since_look, known.looked = now - known.looked, now
            if not server.check:
                known.paused = True
                continue
            if known.paused:  # it speaks of its checks again, and perhaps of the one from before
                known.paused, known.changed, known.counted = False, None, now
                new = is_numbered(server) and "" != known.last.last_chk != server.last_chk
            elif before and before.differs(server):
                new = True
                if before.changed is not None:
                    before.gaps = [*before.gaps[1 - GAPS :], now - before.changed]
                before.changed = now
            elif before and not is_under_way(server) and not is_numbered(server):
                new = now - before.counted >= (before.usual_gap() or UNKNOWN_GAP) - interval / 2
            failed, rise_left = server.failures - known.last.failures, known.last.rise_left
            known.see(server, new=new)
            if new:
                known.counted = now
                gap = known.usual_gap()
                passed = 1 if failed < 0 else max(rise_left - server.rise_left, 1)  # fewer: perhaps it is a new HAProxy
                if (gap or INTER) <= MIN_INTERVALS_PER_LOOK * since_look:
                    failed = 0
                if server.check in PASSED_STATUSES:
                    ended += [(server, gap or INTER, True)] * failed
                    ended += [(server, known.took(server), False)] * passed
                elif server.check in FAILED_STATUSES:
                    # It was allowed what it took where time ran out, else as long as until the next one.
                    least = LEAST if server.check in TIMED_OUT_STATUSES else gap or INTER
                    ended += [(server, max(server.check_seconds or 0.0, least), True)] * max(failed, 1)
        self._servers = seen
        return ended
