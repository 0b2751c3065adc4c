"""Prometheus' text: what is in it, in both formats, how much of it, and what is counted. tests/test_metrics.py has a
real Prometheus read it.
"""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading

import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as open_parser

from multicloud import history, overview, ranking, reweigh, scrape, settings
from multicloud.light import CommandError
from multicloud.ranking import Reason
from multicloud.runtime import DOWN, UP, Server
from tests.ports import free_port
from tests.prometheus import needs
from tests.user import fetch

NOW = 1763870000.0
SOURCES = settings.Sources({})


def measured(**seconds: float) -> dict[tuple[str, str], list[history.Sample]]:
    """30 samples of each server of `app`."""
    return {("app", name): [history.Sample(each, NOW - 2 * ago) for ago in range(30)] for name, each in seconds.items()}


class Looped:
    """What the loop does in a round, with servers of `app` that are as slow as is said."""

    def __init__(self, *names: str) -> None:
        self.servers = [Server("app", name, UP, 1) for name in names]
        self.totals = scrape.Totals()
        self.switches: list[overview.Switch] = []
        self._favorites = overview.Favorites()

    def round(self, now: float = NOW, **seconds: float) -> str:
        """The text after it."""
        samples = history.Samples()
        samples.series = measured(**seconds)
        scored = reweigh.score(samples.series, SOURCES, NOW)
        decisions = reweigh.decide(self.servers, scored, SOURCES)
        outcome = reweigh.Outcome(samples, scored, decisions, ranking.changes(decisions), [])
        self.totals.decided(outcome, now)
        self.switches = [each for each in self._favorites.follow(decisions, now) if each.before]
        for decision in decisions:
            decision.server.weight = decision.weight
        rows, _ = overview.rows(self.servers, samples, scored, SOURCES, NOW)
        self.totals.round(0.1, up=True)
        return scrape.prometheus(rows, 0) + self.totals.text()


def values(text: str, name: str) -> dict[str, float]:
    """The samples of a metric, by their labels without the backend."""
    found = re.findall(rf'^{name}\{{backend="app",?(.*)\}} (\S+)$', text, re.MULTILINE)
    return {labels: float(value) for labels, value in found}


def counted(text: str) -> dict[str, float]:
    """The changes of favourite that there were; all others are counted from 0 on."""
    found = values(text, "multicloud_favorite_changes_total")
    assert len(found) == len(Reason)
    return {labels: count for labels, count in found.items() if count}


def test_the_score_is_what_decides_and_the_traffic_what_follows() -> None:
    loop = Looped("eu", "us", "ap")
    loop.servers[1].in_flight = 7
    text = loop.round(eu=0.02, us=0.05, ap=0.1)
    assert values(text, "multicloud_server_score_seconds") == {
        'server="eu"': 0.02,
        'server="us"': 0.05,
        'server="ap"': 0.1,
    }
    assert set(values(text, "multicloud_server_score_is_mean").values()) == {0}
    assert list(values(text, "multicloud_server_traffic_ratio").values()) == [256 / 257, 1 / 257, 0]
    assert values(text, "multicloud_server_requests_in_flight")['server="us"'] == 7
    loop.servers[0].state = DOWN
    assert list(values(loop.round(us=0.05, ap=0.1), "multicloud_server_traffic_ratio").values()) == [
        0,
        256 / 257,
        1 / 257,
    ]


def test_with_few_samples_the_score_is_the_mean() -> None:
    row = overview.Row("app", "eu", UP, 1, False, 3, 0, None, None, None, None, (), 0.02, None)
    assert values(scrape.prometheus([row], 0), "multicloud_server_score_is_mean") == {'server="eu"': 1}


def test_decisions_and_changes_are_counted_with_their_reason() -> None:
    loop = Looped("eu", "us")
    loop.round(NOW, eu=0.02, us=0.05)
    loop.round(NOW + 1, eu=0.02, us=0.05)
    text = loop.round(NOW + 2, eu=0.08, us=0.05)
    assert values(text, "multicloud_decisions_total") == {
        'reason="fastest"': 2,
        'reason="backup"': 3,
        'reason="overtook"': 1,
    }
    assert values(text, "multicloud_weight_changes_total") == {'server="eu"': 2, 'server="us"': 1}
    assert counted(text) == {'reason="overtook"': 1}
    assert values(text, "multicloud_favorite_since_timestamp_seconds") == {'server="us"': NOW + 2}


def test_a_favourite_that_is_down_is_the_reason_for_the_change() -> None:
    loop = Looped("eu", "us")
    loop.round(eu=0.02, us=0.05)
    assert loop.switches == []
    loop.servers[0].state = DOWN
    text = loop.round(eu=0.02, us=0.05)
    (switch,) = loop.switches
    assert (switch.before, switch.after, switch.why.server.name, switch.why.reason) == ("eu", "us", "eu", Reason.DOWN)
    assert switch.words() == "eu is out: DOWN"
    assert counted(text) == {'reason="down"': 1}
    loop.servers[0].state = UP
    loop.round(eu=0.02, us=0.05)
    assert [(switch.after, switch.why.reason) for switch in loop.switches] == [("eu", Reason.OVERTOOK)]


def test_nobody_else_leads_where_nobody_can_tell() -> None:
    loop = Looped("eu", "us")
    loop.round(eu=0.05, us=0.02)
    loop.round()
    assert loop.switches == []
    for server in loop.servers:
        server.state = DOWN
    loop.round(eu=0.01, us=0.02)
    assert loop.switches == []


def test_checks_are_a_histogram_and_those_that_failed_a_counter() -> None:
    loop = Looped("eu", "us")
    for seconds in (0.0005, 0.001, 0.04, 0.05, 30.0):
        loop.totals.check(("app", "eu"), seconds, failed=False)
    loop.totals.check(("app", "eu"), 2.0, failed=True)
    text = loop.round(eu=0.02)
    buckets = values(text, "multicloud_check_seconds_bucket")
    counts = {labels.partition('le="')[2].rstrip('"'): count for labels, count in buckets.items() if "eu" in labels}
    assert (counts["0.001"], counts["0.02"], counts["0.05"], counts["10.0"], counts["+Inf"]) == (2, 2, 4, 4, 5)
    assert list(map(float, counts)) == sorted(map(float, counts))
    assert values(text, "multicloud_check_seconds_sum")['server="eu"'] == pytest.approx(30.0915)
    assert values(text, "multicloud_checks_failed_total")['server="eu"'] == 1


def test_a_server_that_haproxy_has_no_more_is_forgotten() -> None:
    loop = Looped("eu", "us")
    loop.totals.check(("app", "us"), 0.1, failed=False)
    assert 'server="us"' in loop.round(eu=0.02)
    del loop.servers[1]
    assert 'server="us"' not in loop.round(eu=0.02)
    assert "multicloud_favorite_since_timestamp_seconds{" in loop.round(eu=0.02)
    loop.servers.clear()
    assert "multicloud_favorite_since_timestamp_seconds{" not in loop.round()


@pytest.fixture
def page() -> str:
    """All metrics there are, of two servers."""
    loop = Looped("eu", "us")
    loop.totals.check(("app", "eu"), 0.1, failed=False)
    loop.totals.check(("app", "us"), 0.1, failed=False)
    loop.round(eu=0.02, us=0.05)
    return loop.round(eu=0.08, us=0.05)


def test_a_server_has_forty_series_at_most(page: str) -> None:
    assert 30 < sum('server="us"' in line for line in page.splitlines()) <= 40


def test_names_and_types_are_as_prometheus_likes_them(page: str) -> None:
    needs("promtool")
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_port_that_is_taken_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(CommandError, match=f"^--metrics {number}: address already in use$") as caught:
            scrape.listen(str(number))
    assert caught.value.exit_code == 1


@pytest.fixture
def port(page: str) -> int:
    """Where the page is served."""
    port = free_port()
    threading.Thread(target=scrape.serve, args=(scrape.listen(str(port)), page.encode), daemon=True).start()
    return port


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 "),
        (b"HEAD / HTTP/1.0\r\n\r\n", b"HTTP/1.1 200 "),
        (b"GET /other HTTP/1.1\r\n\r\n", b"HTTP/1.1 404 "),
        (b"POST /metrics HTTP/1.1\r\n\r\n", b"HTTP/1.1 405 "),
        (b"\r\n\r\n", b"HTTP/1.1 405 "),
        (b"x" * 20000, b""),
    ],
)
def test_only_what_a_scraper_asks_is_answered(port: int, request_: bytes, status: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as connection, contextlib.suppress(ConnectionError):
        connection.sendall(request_)
        assert connection.makefile("rb").read()[: len(status) or 1] == status


@pytest.mark.parametrize(
    ("accept", "is_open"),
    [
        ("", False),
        ("text/plain;version=0.0.4", False),
        (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1",
            True,
        ),
    ],
)
def test_the_format_is_what_the_scraper_accepts(port: int, accept: str, is_open: bool) -> None:
    answer, read = fetch(port, "/metrics", accept=accept)
    text = read.decode()
    assert answer.headers["Content-Type"] == (scrape.OPEN_METRICS if is_open else scrape.TEXT).decode()
    if is_open:
        families = {each.name: each.type for each in open_parser.text_string_to_metric_families(text)}  # type: ignore[no-untyped-call]
        assert text.endswith("\n# EOF\n")
    else:
        families = {each.name: each.type for each in parser.text_string_to_metric_families(text)}
    assert families["multicloud_decisions"] == "counter"
    assert families["multicloud_check_seconds"] == "histogram"
    assert len(families) == 25
