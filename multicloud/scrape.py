"""What a scraper reads: Prometheus' text format or OpenMetrics, and the small server that `multicloud run` has for it.

The server trusts nobody. It serves one client at a time, each for a second at most, and reads no more than a request's
head. It runs in a thread of its own, which rests after each client, so that scrapers never slow down the rounds.
"""

import bisect
import os
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from multicloud import light, settings
from multicloud.overview import PERCENTS, Favorites, Row
from multicloud.ranking import Reason
from multicloud.reweigh import Outcome
from multicloud.runtime import DOWN, DRAIN, MAINT, UP

STATES = (UP, DOWN, MAINT, DRAIN)
# Seconds up to which the checks of a bucket took.
BOUNDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0)
COUNTERS = {  # by what each counts, beside the backend, and what
    "checks_failed": ("server", "Checks that failed."),
    "weight_changes": ("server", "Weights that were changed."),
    "decisions": ("reason", "Decisions on a server, each round, by their reason."),
    "favorite_changes": ("reason", "Changes of favourite, by their reason."),
}
PATHS = (b"/metrics", b"/")
TEXT = b"text/plain; version=0.0.4; charset=utf-8"
OPEN_METRICS = b"application/openmetrics-text; version=1.0.0; charset=utf-8"
TIMEOUT = 1.0  # seconds that a scraper may take for all
SILENCE = 0.2  # seconds that a client may hold the place without a word: it has its request ready
MAX_HEAD = 8192  # bytes of a request
PAUSE = 0.01  # seconds of rest after each client


def prometheus(rows: Sequence[Row], problems: int) -> str:
    """Prometheus' text format, version 0.0.4. Of the newest sample it has the time, from which an alert has its age."""
    gauges: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("up", "Whether HAProxy says that the server is UP.", lambda row: row.state == UP),
        ("weight", "The server's weight in HAProxy, 0 to 256.", lambda row: row.weight),
        ("favorite", "Whether the server is UP and has the favourite's weight.", lambda row: row.favorite),
        ("samples", "Checks of the server that count and succeeded.", lambda row: row.samples),
        ("failed_samples", "Checks of the server that count and failed.", lambda row: row.failed),
        ("last_rtt_seconds", "Round-trip time of the newest sample, unless it failed.", lambda row: row.last),
        ("last_sample_timestamp_seconds", "UNIX time of the newest sample.", lambda row: row.time),
        ("score_seconds", "What the server is ranked by: a percentile, or the mean.", lambda row: row.score),
        ("score_is_mean", "Whether that is the mean.", lambda row: row.score and row.percentile is None),
        ("traffic_ratio", "The server's part of its backend's traffic, by the weights.", lambda row: row.traffic),
        ("requests_in_flight", "Requests that the server has now.", lambda row: row.in_flight),
    ]
    labelled = [(_labels(row.backend, row.server), row) for row in rows]
    text = ""
    for name, meaning, value in gauges:
        text += metric(f"server_{name}", "gauge", meaning, [(f"{{{labels}}}", value(row)) for labels, row in labelled])
    states = [(f'{{{labels},state="{state}"}}', row.state == state) for labels, row in labelled for state in STATES]
    text += metric("server_state", "gauge", "1 for the state that HAProxy gives the server.", states)
    percentiles = [
        (f'{{{labels},quantile="{percent / 100:g}"}}', seconds)
        for labels, row in labelled
        for percent, seconds in zip(PERCENTS, row.percentiles or (), strict=False)
    ]
    # A summary, since no other type may have the label `quantile`.
    text += metric("server_rtt_seconds", "summary", "Times of the samples that count.", percentiles)
    return text + metric("problems", "gauge", "Problems that are put into words.", [("", problems)])


class Totals:
    """What `multicloud run` has counted since its start. Its text may be asked for by another thread."""

    def __init__(self) -> None:
        self._buckets: dict[settings.Key, list[int]] = {}
        self._seconds: dict[settings.Key, float] = {}
        self._counts: dict[str, Counter[settings.Key]] = {name: Counter() for name in COUNTERS}
        self._favorites = Favorites()
        self.rounds = self.failures = 0
        self._took = self._ended = 0.0
        self._up = False

    def round(self, seconds: float, *, up: bool) -> None:
        """Count a round that ends now and took so many seconds; `up` is whether HAProxy answered."""
        self._took, self._ended, self._up = seconds, time.time(), up
        self.failures += not up
        self.rounds += 1

    def check(self, key: settings.Key, seconds: float, *, failed: bool) -> None:
        """Count a check."""
        buckets = self._buckets.setdefault(key, [0] * (len(BOUNDS) + 1))
        if not failed:
            buckets[bisect.bisect_left(BOUNDS, seconds)] += 1
            self._seconds[key] = self._seconds.get(key, 0.0) + seconds
        self._counts["checks_failed"][key] += failed
        self._counts["weight_changes"][key] += 0

    def decided(self, outcome: Outcome, now: float) -> None:
        """Count what was decided at the UNIX time `now`; servers that HAProxy has no more are forgotten."""
        self._counts["weight_changes"].update(change.server.key for change in outcome.changes)
        self._counts["decisions"].update((each.server.backend, each.reason.name.lower()) for each in outcome.decisions)
        known = {decision.server.key for decision in outcome.decisions}
        for table in (self._buckets, self._seconds, self._counts["checks_failed"], self._counts["weight_changes"]):
            for gone in table.keys() - known:
                del table[gone]
        for switch in self._favorites.follow(outcome.decisions, now):
            for reason in Reason:  # from 0 on, or Prometheus sees no increase in the first one
                is_why = bool(switch.before) and reason is switch.why.reason
                self._counts["favorite_changes"][switch.backend, reason.name.lower()] += is_why

    def text(self) -> str:
        """Prometheus' text of it."""
        found: list[tuple[str, float]] = []
        for key, buckets in list(self._buckets.items()):
            labels, total = _labels(*key), 0
            for bound, count in zip((*BOUNDS, "+Inf"), buckets, strict=True):
                total += count
                found.append((f'_bucket{{{labels},le="{bound}"}}', total))
            found += [(f"_sum{{{labels}}}", self._seconds.get(key, 0.0)), (f"_count{{{labels}}}", total)]
        text = metric("check_seconds", "histogram", "Checks that succeeded.", found)
        for name, (by, meaning) in COUNTERS.items():
            counts = [(f"{{{_labels(*key, by)}}}", count) for key, count in list(self._counts[name].items())]
            text += metric(f"{name}_total", "counter", meaning, counts)
        leads = list(self._favorites.last.values())
        since = [(f"{{{_labels(switch.backend, switch.after)}}}", switch.time) for switch in leads]
        meaning = "UNIX time since when the server has been the favourite."
        text += metric("favorite_since_timestamp_seconds", "gauge", meaning, since)
        for name, kind, meaning, number in (
            ("rounds_total", "counter", "Rounds since the start.", self.rounds),
            ("rounds_failed_total", "counter", "Rounds in which HAProxy could not be asked.", self.failures),
            ("round_duration_seconds", "gauge", "Duration of the last round.", self._took),
            ("last_round_timestamp_seconds", "gauge", "UNIX time of the last round's end.", self._ended),
            ("haproxy_up", "gauge", "Whether HAProxy answered in the last round.", self._up),
        ):
            text += metric(name, kind, meaning, [("", number)] if self.rounds else [])
        return text


def metric(name: str, kind: str, meaning: str, found: Iterable[tuple[str, float | None]]) -> str:
    """A metric. `found` has pairs of labels, or what else follows the name, and values: None for what is not known."""
    name = f"multicloud_{name}"
    lines = [f"{name}{labels} {float(number)!r}\n" for labels, number in found if number is not None]
    return f"# HELP {name} {meaning}\n# TYPE {name} {kind}\n" + "".join(lines)


def _labels(backend: str, value: str, label: str = "server") -> str:
    backend, value = (text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for text in (backend, value))
    return f'backend="{backend}",{label}="{value}"'


def listen(address: str) -> socket.socket:
    """A listening socket at [ADDR:]PORT, on loopback where there is no address. Raises UsageError and CommandError."""
    host, _, number = address.rpartition(":")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        port = settings.port(number)
        if not port:
            raise ValueError
        return socket.create_server((host.strip("[]") or "127.0.0.1", port), family=family)
    except (ValueError, socket.gaierror):
        raise light.UsageError(f"--metrics: cannot read {address!r}; accepted: [ADDR:]PORT, 127.0.0.1:9101") from None
    except OSError as error:
        # Not light.reason: create_server adds the address to what the system says.
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise light.CommandError(f"--metrics {address}: {reason.lower()}") from None


def serve(listening: socket.socket, page: Callable[[], bytes]) -> None:
    """Answer scrapers with `page` for ever, one after the other."""
    while True:
        try:
            connection, _ = listening.accept()
            with connection:
                _serve_one(connection, page, time.monotonic() + TIMEOUT)
        except OSError:  # the client has gone or is too slow, or no descriptor is left
            pass
        except Exception as error:  # the next client may have better luck
            light.report_bug(error)
        time.sleep(PAUSE)


def _serve_one(connection: socket.socket, page: Callable[[], bytes], deadline: float) -> None:
    """Read a request and answer it, by the `deadline` of the monotonic clock. Raises OSError."""
    request = b""
    while b"\r\n\r\n" not in request:
        left = light.time_left(deadline)
        connection.settimeout(left if request else min(left, SILENCE))
        received = connection.recv(MAX_HEAD)
        request += received
        if not received or len(request) > MAX_HEAD:
            return
    connection.settimeout(light.time_left(deadline))
    connection.sendall(_answer(request, page))  # for which the timeout is one of the whole


def _answer(request: bytes, page: Callable[[], bytes]) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    status, body, kind = b"200 OK", b"", TEXT
    if method not in (b"GET", b"HEAD"):
        status = b"405 Method Not Allowed"
    elif path not in PATHS:
        status = b"404 Not Found"
    else:
        body = page()
        if re.search(rb"\r\naccept:[^\r]*application/openmetrics-text", request, re.IGNORECASE):
            # There the name of a counter has no `_total`, which only its samples have.
            kind, body = OPEN_METRICS, re.sub(rb"(\n# (?:HELP|TYPE) \w+)_total ", rb"\1 ", body) + b"# EOF\n"
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\n" % (status, kind)
    head += b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    return head + (b"" if method == b"HEAD" else body)
