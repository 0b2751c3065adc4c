"""`multicloud doctor` and `multicloud status` about host names, and that what they say to do helps."""

import re

import pytest

from tests.console.patient import GOOD, VERSION, examine, one, rewrite, say, shown, small, told, well
from tests.edge import wait_until
from tests.names import name_server, own_network


def named(address: str) -> str:
    """A configuration whose servers are found by their names through the name server at this address."""
    resolvers = f"""
resolvers default
    nameserver ::1 {address}
    hold timeout 24d
    hold nx 24d
    hold refused 24d
defaults
"""
    text = re.sub(r"server (eu|us) 127.0.0.1:", r"server \1 \1.demo:", GOOD).replace("\ndefaults\n", resolvers, 1)
    return text.replace("default-server check", "default-server check resolvers default init-addr none")


def test_a_name_that_never_resolved_is_told_until_it_does() -> None:
    with name_server() as names:
        names.unknown = {"us.demo"}
        with small(named(names.address)) as router:
            line = told(router, "the name us.demo does not resolve, so HAProxy has put upstream/us into maintenance")
            assert line.removeprefix("problem ") in shown(router.settings)
            names.unknown = set()
            well(router)


def test_where_no_name_resolves_that_alone_is_told_and_that_the_name_server_is_silent() -> None:
    with name_server() as names:
        names.unknown = {"eu.demo", "us.demo"}
        with small(named(names.address)) as router:
            wait_until(lambda: say(router, "show stat").count("MAINT (resolution)") == 2, 10, "no name resolves")
            wrong, _ = examine(router)
            assert [re.sub(r" does .*", "", line) for line in wrong] == [
                f"problem the name {e}.demo" for e in ("eu", "us")
            ]
            names.answers = False
            wait_until(lambda: "the name server ::1 does not answer" in examine(router)[0][-1], 10, "its silence")


def test_names_that_are_lost_while_their_last_addresses_are_kept() -> None:
    with name_server() as names, small(named(names.address)) as router:
        wait_until(lambda: "no check" not in say(router, "show stat") and not examine(router)[0], 10, "all is well")
        one(examine(router)[1], "ok HAProxy's name servers answer it")
        names.unknown = {"us.demo"}
        line = told(router, "a name does not resolve any more, say ::1: HAProxy keeps the last addresses")
        assert "eu.demo, us.demo" in line
        assert "is each in DNS, with its whole domain (HAProxy does not use `search`" in line
        names.answers = False
        told(router, "the name server ::1 does not answer HAProxy: HAProxy keeps the last addresses of eu.demo, us")
        names.answers, names.unknown = True, set()
        well(router)


def test_a_name_server_whose_answers_are_cut_is_told_until_it_may_say_more() -> None:
    many = [f"127.0.{number}.1" for number in range(60)]
    with name_server(*many) as names, small(named(names.address)) as router:
        wait_until(lambda: "cuts its answers" in " ".join(examine(router)[0]), 15, "answers are cut")
        line = one(examine(router)[0], "the name server ::1 cuts its answers (")
        assert line.endswith(
            "truncated), and HAProxy takes none of those: write `accepted_payload_size 8192` into `resolvers`"
        )
        rewrite(router, lambda text: text.replace("    hold nx", "    accepted_payload_size 8192\n    hold nx"))
        well(router)


def test_two_servers_with_one_host_name_are_told_until_they_may_share_an_address() -> None:
    with name_server() as names:
        text = named(names.address).replace("us.demo", "eu.demo")
        with small(text) as router:
            line = told(router, "upstream/us has the host name of eu, eu.demo", "write `resolve-opts allow-dup-ip` on")
            assert line.removeprefix("problem ") in shown(router.settings)
            rewrite(router, lambda text: text.replace(" weight", " resolve-opts allow-dup-ip weight"))
            well(router)


@pytest.mark.root("make a network")
@pytest.mark.skipif(VERSION >= "3.3", reason="this HAProxy takes the addresses that there is a way to")
def test_addresses_without_a_way_to_them_are_told_until_others_are_preferred() -> None:
    with (
        own_network(ipv6=False),
        name_server("127.0.0.1", "2001:db8::2") as names,
        small(named(names.address).replace("command true", "command false")) as router,
    ):
        wait_until(lambda: say(router, "show stat").count("PROCERR") == 2, 10, "the checks fail")
        for line in examine(router)[0]:
            assert ", connecting: HAProxy has taken an IPv6 address: if this machine has no way over IPv6" in line
            assert "write `resolve-prefer ipv4` on every `server` line" in line
        rewrite(router, lambda text: text.replace(" weight", " resolve-prefer ipv4 weight").replace("false", "true"))
        well(router)
