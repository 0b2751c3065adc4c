"""A region that fails and comes back, with the shipped configuration: its weight and its checks, docs/promises.md."""

from __future__ import annotations

import itertools
import time

import pytest

from tests.client import Traffic
from tests.edge import edge, measured, wait_until
from tests.test_traffic import DELAYS, RANKED, at_shipped_pace, failures, settle

WITHOUT_EU = {"eu.demo": 0, "us.demo": 256, "ap.demo": 1, "sa.demo": 0}


@pytest.mark.slow
def test_a_region_that_hangs_on_every_third_request_is_no_favourite_while_it_does() -> None:
    with at_shipped_pace() as running:
        began = time.monotonic()
        running.region["eu.demo"].hangs = 3
        wait_until(lambda: running.weights() == WITHOUT_EU, 60, "us.demo as favourite")
        print(f"it has lost the favourite's weight after {time.monotonic() - began:.1f} s")
        with Traffic(running.port, rate=50) as traffic:
            for _ in range(20):
                assert running.weights() == WITHOUT_EU, running.times()
                traffic.go_on(50)
        assert failures(traffic) == []
        running.region["eu.demo"].hangs = 0
        began = time.monotonic()
        wait_until(lambda: running.weights() == RANKED, 120, "eu.demo as favourite again")
        print(f"it has it again {time.monotonic() - began:.1f} s after it has stopped to hang")


@pytest.mark.slow
def test_a_region_comes_back_from_an_outage_without_traffic_and_its_checks_are_as_far_apart_as_before() -> None:
    def checks() -> list[float]:
        return [float(line.split()[3]) for line in running.times() if line.split()[1] == "eu.demo"]

    with at_shipped_pace() as running:
        with Traffic(running.port):
            running.regions.stop(running.region["eu.demo"])
            wait_until(lambda: running.weights()["us.demo"] == 256, 20, "us.demo as favourite")
        assert running.weights()["eu.demo"] == 0
        running.regions.start(running.region["eu.demo"])
        wait_until(lambda: running.weights() == RANKED, 30, "eu.demo as favourite again")
        before = len(checks())
        wait_until(lambda: len(checks()) >= before + 2, 30, "two checks more")
        pauses = [later - earlier for earlier, later in itertools.pairwise(checks()[-4:])]
    assert min(pauses) >= 1.9, pauses


@pytest.mark.parametrize("before", [3, 25])
def test_one_check_that_fails_moves_no_favourite_neither_among_few_samples_nor_among_many(before: int) -> None:
    with edge(DELAYS, times=measured(DELAYS, before)) as running:

        def checks() -> list[str]:
            return [line for line in running.times() if line.split()[1] == "eu.demo"]

        settle(running)
        wait_until(lambda: len(checks()) > before, 20, "a check that succeeds, since HAProxy forgives none before")
        running.region["eu.demo"].status = 500
        wait_until(lambda: checks()[-1].endswith("failed"), 20, "a check that fails")
        running.region["eu.demo"].status = 200
        failed = len(checks())
        while len(checks()) < failed + 4:
            assert running.weights()["eu.demo"] == 256
            time.sleep(0.1)
        assert [line.endswith("failed") for line in checks()].count(True) == 1
