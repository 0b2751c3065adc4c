"""The whole loop: HAProxy starts the checks and the reweigh, and traffic follows the fastest region."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from tests import command
from tests.client import Traffic
from tests.edge import Edge, edge, measured, wait_until
from tests.test_traffic import failures

FOUR = {"us.demo": 0.060, "eu.demo": 0.005, "ap.demo": 0.100, "sa.demo": 0.140}
RANKED = {"us.demo": 1, "eu.demo": 256, "ap.demo": 0, "sa.demo": 0}
QUICK = {"MULTICLOUD_WINDOW": "3"}


@pytest.mark.parametrize("beside", [False, True])
def test_weights_become_256_1_0_0_and_traffic_goes_to_the_fastest_region(*, beside: bool) -> None:
    with edge(FOUR, interval="2s", beside=beside) as running:
        wait_until(lambda: running.weights() == RANKED, 20, "weights 256/1/0/0")
        answers = [running.get() for _ in range(50)]
        assert {status for status, _ in answers} == {200}
        # The backup's weight is a promise of one request in 257, and it may come at any time.
        assert sum(region == "eu.demo" for _, region in answers) >= 48


def status(running: Edge) -> str:
    return command.run("status", environ=running.router.settings).stdout


@pytest.mark.parametrize("beside", [False, True])
def test_more_traffic_than_the_favourite_can_serve_is_shared(*, beside: bool) -> None:
    """It serves 40 requests a second. A check may wait for as long as with the shipped configuration."""
    three = {"eu.demo": 0.050, "us.demo": 0.070, "ap.demo": 0.090}
    with edge(three, times=measured(three, 25), interval="2s", beside=beside) as running:
        running.region["eu.demo"].workers = 2
        alone = {"eu.demo": 256, "us.demo": 1, "ap.demo": 0}
        wait_until(lambda: running.weights() == alone, 20, "weights 256/1/0")
        with Traffic(running.port, rate=50.0, timeout=15.0) as traffic:
            wait_until(lambda: sum(weight > 1 for weight in running.weights().values()) > 1, 30, "parts of the traffic")
            traffic.go_on(300)
            shared = Counter(answer.region for answer in traffic.answers[-200:])
            line = r"shared, with requests in flight: (\w+\.demo \d+% \(\d+\)(, )?){2,3}\n"
            wait_until(lambda: bool(re.search(line, status(running))), 20, line)
        assert failures(traffic) == []
        assert len(shared) > 1
        assert max(shared.values()) < 190


def test_where_no_region_has_room_status_says_so() -> None:
    """The two serve 34 requests a second."""
    two = {"eu.demo": 0.050, "us.demo": 0.070}
    with edge(two, times=measured(two, 25), interval="3s") as running:  # a check may wait for as long
        for region in running.regions:
            region.workers = 1

        with Traffic(running.port, rate=38.0):
            line = "no region of upstream has room: 2 of 2 have lines"
            wait_until(lambda: line in " ".join(status(running).split()), 60, line)


def test_the_weights_follow_when_the_regions_change_places() -> None:
    with edge(FOUR, commands=QUICK) as running:
        wait_until(lambda: running.weights() == RANKED, 20, "weights 256/1/0/0")
        running.region["eu.demo"].delay, running.region["us.demo"].delay = 0.060, 0.005
        changed = {"us.demo": 256, "eu.demo": 1, "ap.demo": 0, "sa.demo": 0}
        wait_until(lambda: running.weights() == changed, 30, "us.demo as favourite")
        assert running.get() == (200, "us.demo")


def test_beside_haproxy_a_sample_is_the_requests_time_without_connection_and_tls() -> None:
    requests: set[str] = set()

    def is_recorded() -> bool:
        words = [server.last_chk.partition("us@")[0] for server in running.servers()]
        requests.update(f"{int(microseconds) / 1e6:.6f}" for microseconds in words if microseconds.isdigit())
        return any(line.split()[2] in requests for line in running.times())

    with edge(FOUR, beside=True) as running:
        wait_until(is_recorded, 20, "a sample that is the time in the check's words")


def test_a_region_whose_certificate_is_for_another_name_gets_no_request() -> None:
    def other(text: str) -> str:
        return text.replace("server eu.demo ", "server other.demo ").replace("/eu.demo", "/other.demo")

    with edge({"eu.demo": 0.0}, configure=other) as running:
        assert running.get()[0] in (502, 503)
        wait_until(lambda: running.states() == {"other.demo": "DOWN"}, 20, "other.demo DOWN")
        log = running.log()
    assert "certificate not accepted: Hostname mismatch" in log
