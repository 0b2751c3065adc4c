"""Regions by their host names, with the shipped configuration, and what becomes of them when DNS goes away."""

from __future__ import annotations

import re
import time

import pytest

from tests.client import Traffic
from tests.command import run
from tests.edge import Edge, edge, wait_until
from tests.names import by_name, name_server, own_network
from tests.test_traffic import failures

DELAYS = {"eu.demo": 0.010, "us.demo": 0.040, "ap.demo": 0.070}
RANKED = {"eu.demo": 256, "us.demo": 1, "ap.demo": 0}

SILENCE = 40.0
"""Seconds: with HAProxy's own `hold` times, every request fails after 30 seconds and three attempts."""


def said(running: Edge, command: str) -> str:
    """What a command tells, as one line."""
    return " ".join(run(command, environ=running.router.settings).stdout.split())


@pytest.mark.root("make a network")
@pytest.mark.parametrize("beside", [False, True], ids=["external", "beside"])
@pytest.mark.parametrize(
    ("ipv6", "addresses"), [(False, ("127.0.0.1", "2001:db8::2")), (True, ("::ffff:7f00:1",))], ids=["ipv4", "ipv6"]
)
def test_the_addresses_count_that_this_machine_has_a_way_to(
    ipv6: bool, addresses: tuple[str, ...], beside: bool
) -> None:
    with (
        own_network(ipv6=ipv6),
        name_server(*addresses) as names,
        edge(DELAYS, configure=by_name(names.address), beside=beside) as running,
    ):
        wait_until(lambda: running.weights() == RANKED, 30, "all are ranked")
        for backend in [*running.backends(), "last-resort"]:
            assert set(running.states(backend).values()) == {"UP"}
        assert running.get() == (200, "eu.demo")


def test_an_answer_with_many_addresses_is_followed() -> None:
    with name_server() as names, edge({"eu.demo": 0.010}, configure=by_name(names.address)) as running:
        wait_until(lambda: running.states() == {"eu.demo": "UP"}, 30, "it is UP")
        names.addresses = tuple(f"127.0.{number}.1" for number in range(1, 101))
        wait_until(lambda: running.servers()[1].address in names.addresses, 10, "its address is a new one")


def test_servers_may_share_a_host_name() -> None:
    def shared(text: str) -> str:
        return re.sub(r"( server \S+) \S+\.demo:", r"\1 all.demo:", by_name(names.address)(text))

    with name_server() as names, edge(DELAYS, configure=shared) as running:
        wait_until(lambda: running.weights() == RANKED, 30, "all are ranked")
        assert set(running.states("last-resort").values()) == {"UP"}


@pytest.mark.slow
def test_when_dns_goes_away_no_request_fails_and_the_last_addresses_are_kept() -> None:
    with (
        name_server() as names,
        edge(DELAYS, interval="2s", configure=by_name(names.address)) as running,
    ):
        wait_until(lambda: running.weights() == RANKED, 30, "all are ranked")
        with Traffic(running.port) as traffic:
            names.answers = False
            time.sleep(SILENCE)
            assert "does not answer HAProxy" in said(running, "doctor")
            names.unknown = set(DELAYS)
            names.answers = True
            time.sleep(8)
        for backend in ("upstream", "upstream-once", "last-resort"):
            assert set(running.states(backend).values()) == {"UP"}
    assert failures(traffic) == []


def test_a_name_that_never_resolved_is_told_once_and_its_server_comes_up_when_it_does() -> None:
    with name_server() as names:
        names.unknown = {"us.demo"}
        with edge(DELAYS, configure=by_name(names.address)) as running:
            wait_until(lambda: running.weights()["eu.demo"] == 256, 30, "the others are ranked")
            for command in ("status", "doctor"):
                told = said(running, command)
                assert told.count("the name us.demo does not resolve, so HAProxy has put upstream/us.demo into") == 1
                assert told.count("does not resolve") == 1
            assert "operator" not in said(running, "reweigh")
            names.unknown = set()
            wait_until(lambda: running.states()["us.demo"] == "UP", 30, "us.demo is UP")
            assert "does not resolve" not in said(running, "status")
