"""What a scraper reads: Prometheus' text format, and the small server that `multicloud run` has for it.

The server trusts nobody: it reads no more than a request's head, and has a bounded number of clients, each for a
bounded time, in a thread of its own which does only so much work in a second.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from multicloud import ranking, reweigh, scores, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from multicloud import runtime, samples
    from multicloud.settings import Sources

PERCENTS = (50, 90, 99)
TREND = 30
"""Samples that a row has for a trend, whatever the window."""

STATES = (ranking.UP, ranking.DOWN, ranking.MAINT, ranking.DRAIN)

PATHS = (b"/metrics", b"/")
MAX_CLIENTS = 16
"""Scrapers that are served at the same time: one more takes the place of the one that has been there the longest."""

PATIENCE = 5.0
"""Seconds that a scraper may take for all."""

MAX_HEAD = 8192
"""Bytes of a request."""

PAUSE = 0.01
"""Seconds between two looks at the scrapers: what little they can make this thread do in one is all that they get."""


class Row(NamedTuple):
    """One server. Times are seconds, `time` is the newest sample's; `percentiles` are those of PERCENTS.

    `samples` and `failed` are how many checks count that succeeded, and that failed. `trend` has the newest ones,
    oldest first. A check that failed has no time: it is None in `trend`, and `last` where it was the last.
    """

    backend: str
    server: str
    state: str
    weight: int
    favorite: bool
    samples: int
    failed: int
    percentiles: tuple[float, ...] | None
    last: float | None
    time: float | None
    age: float | None
    trend: tuple[float | None, ...]


def rows(
    servers: Iterable[runtime.Server],
    found: samples.Samples,
    scored: Mapping[tuple[str, str], scores.Score],
    sources: Sources,
    now: float,
) -> tuple[list[Row], dict[str, str]]:
    """A row for each server of each backend that has samples, and the backends that need none.

    Those are backends whose servers track others and have the same states and weights: the one that they track, by
    their names. Raises SettingError.
    """
    everyone = list(servers)
    routed = {server.backend for server in everyone if server.source in found.series}
    backends: dict[str, list[runtime.Server]] = {}
    for server in everyone:
        if server.backend in routed:
            backends.setdefault(server.backend, []).append(server)
    alike = {
        backend: members[0].source[0]
        for backend, members in backends.items()
        if members[0].source != members[0].key and _known(members) == _known(backends.get(members[0].source[0], []))
    }
    shown = [
        _row(server, found, scored.get(server.source), favorite, now)
        for backend, members in backends.items()
        if backend not in alike
        for favorite in [sources.read(settings.RANKING, *reweigh.sections(members)).favorite]
        for server in members
    ]
    return shown, alike


def _known(servers: Iterable[runtime.Server]) -> list[tuple[str, str, int]]:
    return [(server.name, server.state, server.weight) for server in servers]


def _row(server: ranking.Server, found: samples.Samples, score: scores.Score | None, favorite: int, now: float) -> Row:
    newest = found.series.get(server.source, [])
    times = [seconds for seconds, _, failed in score.counted if not failed] if score else []
    trend = [None if failed else seconds for seconds, _, failed in newest[:TREND]]
    when = newest[0][1] if newest else None
    return Row(
        server.backend,
        server.name,
        server.state,
        server.weight,
        server.state == ranking.UP and server.weight == favorite,
        len(times),
        score.failed if score else 0,
        tuple(scores.percentiles(times, PERCENTS)) if times else None,
        trend[0] if trend else None,
        when,
        None if when is None else max(0.0, now - when),
        tuple(reversed(trend)),
    )


def prometheus(rows: Sequence[Row], problems: int) -> str:
    """Prometheus' text format, version 0.0.4. Of the newest sample it has the time, from which an alert has its age."""
    gauges: list[tuple[str, str, Callable[[Row], float | None]]] = [
        ("up", "Whether HAProxy says that the server is UP.", lambda row: row.state == ranking.UP),
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
    listening = socket.create_server((host.strip("[]") or "127.0.0.1", port), family=family, backlog=MAX_CLIENTS)
    listening.setblocking(False)
    return listening


class _Client:
    """A scraper: its connection, what it has asked so far, what it has not been sent yet, and when its time is over."""

    __slots__ = ("answer", "connection", "deadline", "request")

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.deadline = time.monotonic() + PATIENCE
        self.request = b""
        self.answer: memoryview | None = None

    def go_on(self, page: Callable[[], bytes]) -> bool:
        """Read or write what can be, without waiting; False when it is done, or has gone."""
        try:
            if self.answer is None:
                received = self.connection.recv(MAX_HEAD)
                self.request += received
                if not received or len(self.request) > MAX_HEAD:
                    return False
                if b"\r\n\r\n" not in self.request:
                    return True
                self.answer = memoryview(_answer(self.request, page))
            self.answer = self.answer[self.connection.send(self.answer) :]
            return bool(self.answer)
        except BlockingIOError:
            return True
        except OSError:
            return False


def serve(listening: socket.socket, page: Callable[[], bytes]) -> None:
    """Answer scrapers with `page` for ever."""
    clients: dict[int, _Client] = {}
    while True:
        poller = select.poll()
        poller.register(listening, select.POLLIN)
        for number, client in clients.items():
            poller.register(number, select.POLLIN if client.answer is None else select.POLLOUT)
        ready = {number for number, _ in poller.poll(1000 * PATIENCE if clients else None)}
        for number, client in list(clients.items()):
            if time.monotonic() > client.deadline or (number in ready and not client.go_on(page)):
                clients.pop(number).connection.close()
        if listening.fileno() in ready:
            with contextlib.suppress(OSError):  # it has gone again, or there are no descriptors left
                if len(clients) >= MAX_CLIENTS:
                    clients.pop(next(iter(clients))).connection.close()
                connection, _ = listening.accept()
                clients[connection.fileno()] = _Client(connection)
        time.sleep(PAUSE)


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
