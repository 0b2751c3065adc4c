"""What users notice of a fault, with the shipped configuration and 200 requests a second: docs/promises.md."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

import pytest

from tests.client import Answer, Traffic
from tests.edge import edge, measured, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.edge import Edge

DELAYS = {"eu.demo": 0.010, "us.demo": 0.040, "ap.demo": 0.070, "sa.demo": 0.100}
RANKED = {"eu.demo": 256, "us.demo": 1, "ap.demo": 0, "sa.demo": 0}


def failures(traffic: Traffic, fault: float | None = None) -> list[Answer]:
    """The requests that were not answered with a 200; prints their figures (pytest -rP shows them)."""
    failed = sorted(answer for answer in traffic.answers if answer.status != 200)
    slowest = max(answer.seconds for answer in traffic.answers if answer.status == 200)
    span = ""
    if failed and fault is not None:
        span = f", sent {failed[0].sent - fault:+.2f} to {failed[-1].sent - fault:+.2f} s from the fault"
    print(f"{len(failed)} of {len(traffic.answers)} requests failed{span}; the slowest answer took {slowest:.2f} s")
    return failed


def settle(running: Edge) -> None:
    wait_until(lambda: running.weights() == RANKED, 30, "weights 256/1/0/0")


@contextlib.contextmanager
def at_shipped_pace(*, beside: bool = False) -> Iterator[Edge]:
    """Regions that have been measured for a minute, once their weights are right."""
    times = measured(DELAYS, 30)
    with edge(DELAYS, interval="2s", times=times, beside=beside) as running:
        settle(running)
        yield running


@pytest.mark.parametrize("beside", [False, True])
def test_when_the_favourite_is_killed_no_get_fails_and_no_post_but_those_that_it_has(*, beside: bool) -> None:
    with (
        at_shipped_pace(beside=beside) as running,
        Traffic(running.port) as gets,
        Traffic(running.port, rate=50, method="POST") as posts,
    ):
        posts.go_on(50)
        running.regions.stop(running.region["eu.demo"])
        killed = time.monotonic()
        wait_until(lambda: running.weights("upstream-once")["us.demo"] == 256, 20, "us.demo as favourite")
        posts.go_on(50)
    assert failures(gets) == []
    assert "eu.demo" not in gets.regions_since(killed)
    # Whether the region did what those ask for, nobody knows.
    assert [failure for failure in failures(posts, killed) if failure.sent > killed] == []


def test_when_the_favourite_freezes_only_requests_in_flight_fail() -> None:
    with at_shipped_pace() as running, Traffic(running.port) as traffic:
        traffic.go_on(200)
        running.regions.freeze(running.region["eu.demo"])
        frozen = time.monotonic()
        # On a busy machine checks of the others fail, too, since one process serves all of them.
        wait_until(lambda: 256 in running.weights().values() and not running.weights()["eu.demo"], 20, "another one")
        traffic.go_on(200)
    # In flight are also those that were sent over a connection that was idle when the region froze.
    assert [failure for failure in failures(traffic, frozen) if failure.sent > frozen + 1] == []
    assert [answer for answer in traffic.answers if answer.sent > frozen + 3 and answer.region == "eu.demo"] == []


def test_when_favourite_and_backup_are_killed_together_failures_stop_although_the_others_had_no_weight() -> None:
    with at_shipped_pace() as running, Traffic(running.port) as traffic:
        traffic.go_on(200)
        for name in ("eu.demo", "us.demo"):
            running.regions.stop(running.region[name])
        killed = time.monotonic()
        wait_until(lambda: running.weights()["ap.demo"] == 256, 20, "ap.demo as favourite")
        traffic.go_on(200)
    assert [failure for failure in failures(traffic, killed) if failure.sent > killed + 2] == []


def test_when_every_check_fails_but_the_regions_serve_requests_are_served() -> None:
    with edge(DELAYS, commands={"MULTICLOUD_EXPECT": "204"}) as running:
        wait_until(lambda: set(running.states().values()) == {"DOWN"}, 30, "all regions DOWN")
        with Traffic(running.port) as traffic:
            traffic.go_on(400)
    assert failures(traffic) == []
    assert running.times() == []


def test_when_reweigh_breaks_traffic_goes_on_with_the_last_weights() -> None:
    with edge(DELAYS, times=measured(DELAYS, 30)) as running:
        settle(running)
        (running.router.directory / "multicloud-reweigh").unlink()
        with Traffic(running.port) as traffic:
            wait_until(lambda: running.states("reweigh") == {"multicloud-reweigh": "DOWN"}, 20, "a visible failure")
            traffic.go_on(200)
        assert running.weights() == RANKED
    assert failures(traffic) == []


@pytest.mark.slow
def test_when_all_regions_become_ten_times_slower_nothing_is_switched_off() -> None:
    with at_shipped_pace() as running:
        with Traffic(running.port) as traffic:
            for region in running.regions:
                region.delay *= 10
            before = len(running.times())
            wait_until(lambda: len(running.times()) >= before + 4 * len(DELAYS), 30, "four slow samples of each")
            time.sleep(2.5)  # a reweigh later
        assert set(running.states().values()) == {"UP"}
        assert running.weights() == RANKED
    assert failures(traffic) == []


def test_when_haproxy_is_reloaded_no_request_fails_and_the_weights_are_back_at_once() -> None:
    with at_shipped_pace() as running, Traffic(running.port) as traffic:
        traffic.go_on(200)
        running.router.reload()
        reloaded = time.monotonic()
        traffic.go_on(400)
    assert failures(traffic) == []
    astray = [answer.sent - reloaded for answer in traffic.answers if answer.region in ("ap.demo", "sa.demo")]
    print(f"{len(astray)} requests went astray, the last {max(astray, default=0):.2f} s after the reload")
    assert [late for late in astray if late > 1] == []


def test_a_kept_connection_serves_every_client() -> None:
    with edge(DELAYS, interval="600s", times="".join(f"upstream eu.demo {0.01}\n" for _ in range(30))) as running:
        wait_until(lambda: running.weights()["eu.demo"] == 256, 20, "eu.demo as favourite")
        before = sum(region.accepted for region in running.regions)
        assert [running.get()[0] for _ in range(50)] == [200] * 50
        assert sum(region.accepted for region in running.regions) - before <= len(DELAYS)


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_no_request_fails_for_a_kept_connection_that_turns_out_closed(method: str) -> None:
    with at_shipped_pace() as running:
        before = sum(region.accepted for region in running.regions)
        for region in running.regions:
            region.stale = 5
        with Traffic(running.port, rate=50, method=method) as traffic:
            traffic.go_on(200)
        cut = sum(region.cut for region in running.regions)
        accepted = sum(region.accepted for region in running.regions) - before
    assert failures(traffic) == []
    if method == "GET":
        assert cut > 10
    else:
        assert cut == 0
        assert accepted >= len(traffic.answers)


def test_after_a_cold_start_the_first_request_is_served_and_soon_by_the_fastest() -> None:
    with edge(DELAYS, interval="2s") as running:
        began = time.monotonic()
        assert running.get()[0] == 200
        settle(running)
    print(f"the fastest region is the favourite after {time.monotonic() - began:.1f} s")
