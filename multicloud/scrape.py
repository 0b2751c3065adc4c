"""What a scraper reads: Prometheus' text format, and the small server that `multicloud run` has for it.

The server trusts nobody. It serves one client at a time, each for a second at most, and reads no more than a request's
head. It runs in a thread of its own, which rests after each client, so that scrapers never slow down the rounds.
"""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING

from multicloud import light, settings
from multicloud.overview import PERCENTS
from multicloud.runtime import DOWN, DRAIN, MAINT, UP

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from multicloud.overview import Row

STATES = (UP, DOWN, MAINT, DRAIN)

PATHS = (b"/metrics", b"/")

TIMEOUT = 1.0
"""Seconds that a scraper may take for all."""

MAX_HEAD = 8192
"""Bytes of a request."""

PAUSE = 0.01
"""Seconds of rest after each client."""


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
    ]
    lines = []
    labelled = [(_labels(row), row) for row in rows]
    for name, meaning, value in gauges:
        found = [(f"{{{labels}}}", number) for labels, row in labelled if (number := value(row)) is not None]
        lines += metric(f"multicloud_server_{name}", "gauge", meaning, found)
    states = [(f'{{{labels},state="{state}"}}', row.state == state) for labels, row in labelled for state in STATES]
    lines += metric("multicloud_server_state", "gauge", "1 for the state that HAProxy gives the server.", states)
    percentiles = [
        (f'{{{labels},quantile="{percent / 100:g}"}}', seconds)
        for labels, row in labelled
        for percent, seconds in zip(PERCENTS, row.percentiles or (), strict=False)
    ]
    # A summary, since no other type may have the label `quantile`.
    lines += metric(
        "multicloud_server_rtt_seconds", "summary", "Round-trip times, of the samples that count.", percentiles
    )
    lines += metric("multicloud_problems", "gauge", "Problems that are put into words.", [("", problems)])
    return "\n".join(lines) + "\n"


def rounds(count: int, failed: int, seconds: float, ended: float) -> str:
    """The same of `multicloud run` itself: its rounds so far, how long the last one took and when it ended."""
    found = [
        ("multicloud_rounds_total", "counter", "Rounds since the start.", count),
        ("multicloud_rounds_failed_total", "counter", "Rounds in which HAProxy could not be asked.", failed),
        ("multicloud_round_duration_seconds", "gauge", "Duration of the last round.", seconds),
        ("multicloud_last_round_timestamp_seconds", "gauge", "UNIX time of the last round's end.", ended),
    ]
    lines = [line for name, kind, meaning, value in found for line in metric(name, kind, meaning, [("", value)])]
    return "\n".join(lines) + "\n"


def metric(name: str, kind: str, meaning: str, found: Iterable[tuple[str, float]]) -> list[str]:
    """The lines of a metric; `found` has pairs of labels, as they are written, and values."""
    lines = [f"{name}{labels} {float(number)!r}" for labels, number in found]
    return [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}", *lines]


def _labels(row: Row) -> str:
    return f'backend="{_escape(row.backend)}",server="{_escape(row.server)}"'


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def listen(address: str) -> socket.socket:
    """A listening socket at [ADDR:]PORT, on loopback where there is no address. Raises ValueError and OSError."""
    host, _, number = address.rpartition(":")
    port = settings.port(number)
    if not port:
        raise ValueError
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host.strip("[]") or "127.0.0.1", port), family=family)


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
        connection.settimeout(_seconds_left(deadline))
        received = connection.recv(MAX_HEAD)
        request += received
        if not received or len(request) > MAX_HEAD:
            return
    connection.settimeout(_seconds_left(deadline))
    connection.sendall(_answer(request, page))  # for which the timeout is one of the whole


def _seconds_left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _answer(request: bytes, page: Callable[[], bytes]) -> bytes:
    method, _, rest = request.partition(b" ")
    path = rest.partition(b" ")[0].partition(b"?")[0]
    if method not in (b"GET", b"HEAD"):
        status, body = b"405 Method Not Allowed", b""
    elif path not in PATHS:
        status, body = b"404 Not Found", b""
    else:
        status, body = b"200 OK", page()
    head = b"HTTP/1.1 %b\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\n" % status
    head += b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    return head + (b"" if method == b"HEAD" else body)
