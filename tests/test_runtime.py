"""HAProxy's Runtime API: what a real HAProxy answers, and what goes wrong on the way, each in one clear line."""

from __future__ import annotations

import contextlib
import csv
import functools
import http.client
import os
import re
import socket
import time
from typing import TYPE_CHECKING

import pytest

from multicloud import ranking, runtime, sharing
from tests import servers
from tests.edge import wait_until
from tests.haproxy import haproxy, listening, say_nothing, tell, weights
from tests.haproxy import servers as servers_of
from tests.ports import free_port
from tests.regions import Regions
from tests.servers import frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

UPSTREAM = """
backend upstream
    balance roundrobin
    server eu 127.0.0.1:1 weight 1
    server us 127.0.0.1:1 weight 2
"""

LONG = "a-very-long-name." * 20 + "example.com"


@pytest.fixture(scope="module")
def router() -> Iterator[str]:
    with haproxy(UPSTREAM) as address:
        yield address


def told(address: str) -> list[tuple[str, str, str, int]]:
    return [(server.backend, server.name, server.state, server.weight) for server in servers_of(address)]


def set_weights(address: str, changes: dict[str, int], backend: str = "upstream") -> list[str]:
    """Set weights; what was refused of them. The others, and no more, count as accepted."""
    with runtime.RuntimeAPI(address) as api:
        wanted = [
            ranking.Decision(runtime.Server(backend, name, "UP", 1), weight, ranking.Reason.FASTEST)
            for name, weight in changes.items()
        ]
        accepted, refusals = api.set_weights(wanted)
    assert [change for change in wanted if change in accepted] == accepted
    assert len(accepted) + len(refusals) == len(wanted)
    return refusals


def test_servers_come_with_the_state_that_they_have_now_and_their_weight_in_the_order_of_the_configuration() -> None:
    port = free_port()
    with (
        servers.Server(servers.answers(b"HTTP/1.1 404 gone\r\ncontent-length: 0\r\n\r\n")) as serving,
        haproxy(
            f"""
backend zzz
    server up 127.0.0.1:{serving.port} check inter 50ms weight 7
    server down 127.0.0.1:{port} check inter 50ms fall 1 weight 3
    server maint 127.0.0.1:1 disabled
    server enabled 127.0.0.1:1 disabled
    server drained 127.0.0.1:{serving.port} check
    server checked 127.0.0.1:1 check disabled
    server unresolved no-such-name.invalid:1 resolvers none init-addr none
    server unchecked 127.0.0.1:1 weight 0
    server-template node 2 127.0.0.1:1
    server backup 127.0.0.1:1 backup
backend tracking
    server down 127.0.0.1:1 track zzz/down
    server maint 127.0.0.1:1 track zzz/checked
    server drained 127.0.0.1:1 track zzz/drained
backend stopping
    option httpchk
    http-check disable-on-404
    server stopping {serving.address}:{serving.port} check inter 50ms
resolvers none
    nameserver none 127.0.0.1:{port}
backend 1:2
    server 3:4 127.0.0.1:1 weight 256
backend empty
    balance roundrobin
backend {LONG}
    server {LONG} 127.0.0.1:1
"""
        ) as address,
    ):
        tell(address, "set server zzz/enabled state ready", "set server zzz/drained state drain")
        stopped = {("zzz", "down", "DOWN", 3), ("stopping", "stopping", "DRAIN", 1)}
        wait_until(lambda: stopped <= {*told(address)}, 10, "one is DOWN, and one stops")
        assert told(address) == [
            ("zzz", "up", "UP", 7),
            ("zzz", "down", "DOWN", 3),
            ("zzz", "maint", "MAINT", 1),
            ("zzz", "enabled", "UP", 1),
            ("zzz", "drained", "DRAIN", 1),
            ("zzz", "checked", "MAINT", 1),
            ("zzz", "unresolved", "MAINT", 1),
            ("zzz", "unchecked", "UP", 0),
            ("zzz", "node1", "UP", 1),
            ("zzz", "node2", "UP", 1),
            ("zzz", "backup", "UP", 1),
            ("tracking", "down", "DOWN", 1),
            ("tracking", "maint", "MAINT", 1),
            ("tracking", "drained", "DRAIN", 1),
            ("stopping", "stopping", "DRAIN", 1),
            ("1:2", "3:4", "UP", 256),
            (LONG, LONG, "UP", 1),
        ]
        found = {server.name: server for server in servers_of(address) if server.backend == "zzz"}
        assert [server.name for server in found.values() if server.unresolved] == ["unresolved"]
        assert (found["up"].address, found["down"].port, found["up"].mode) == ("127.0.0.1", str(port), "http")
        assert (found["up"].check, found["down"].check, found["unchecked"].check) == ("L4OK", "L4CON", "")
        assert found["up"].check_seconds is not None
        set_weights(address, {"3:4": 5}, "1:2")
        set_weights(address, {LONG: 6}, LONG)
        assert (weights(address, "1:2"), weights(address, LONG)) == ({"3:4": 5}, {LONG: 6})


def test_all_that_haproxy_says_of_a_server_is_read() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        haproxy(
            f"""
resolvers none
    nameserver none 127.0.0.1:1
backend b
    mode tcp
    option tcp-check
    tcp-check expect string hello
    server slow 127.0.0.1:{silent.getsockname()[1]} check inter 50ms downinter 1h fall 1
    server tls localhost:1 ssl verify none
    server unresolved no-such-name.invalid:1 check resolvers none init-addr none
backend once
    server a 127.0.0.1:1 track b/slow
    server b no-such-name.invalid:1 track b/unresolved resolvers none init-addr none
    server c no-such-name.invalid:1 track b/unresolved resolvers none init-addr none
backend more
    server a 127.0.0.1:1 track once/a
"""
        ) as address,
    ):

        def found() -> dict[tuple[str, str], runtime.Server]:
            return {server.key: server for server in servers_of(address)}

        def slow_since() -> float:
            server = found()["b", "slow"]
            return server.state_age if server.state == "DOWN" else 0

        wait_until(lambda: slow_since() >= 1, 20, "the slow server is DOWN for a second")
        tell(address, "set server once/c state maint")
        read = found()
        said = next(
            row for row in csv.DictReader(tell(address, "show stat")[0].splitlines()) if row["svname"] == "slow"
        )
    slow, tls = read["b", "slow"], read["b", "tls"]
    assert (slow.mode, slow.check, slow.host, slow.tls) == ("tcp", "L7TOUT", "", "0")
    assert (slow.check_seconds, slow.address) == (int(said["check_duration"]) / 1000, "127.0.0.1")
    assert (tls.host, tls.tls, tls.check, tls.check_seconds) == ("localhost", "1", "", None)
    assert [read["more", "a"].source, read["once", "a"].source, slow.source] == [("b", "slow")] * 3
    assert [key for key, server in read.items() if server.unresolved] == [("b", "unresolved"), ("once", "b")]


def test_a_quoted_field_may_have_lines_ends_in_it() -> None:
    lines = ["# a b c", '1 "2', '> ""x', "", '"" " 3', "4 5 6"]
    assert list(runtime.rows(lines, " ", ("c", "b")))[-1] == ("6", "5")
    assert list(runtime.rows(lines, " ", ("a", "c"))) == [("1", "3"), ("4", "6")]
    with pytest.raises(ValueError, match="1"):
        list(runtime.rows(lines[:2], " ", ("a", "c")))


@pytest.mark.parametrize("words", ["O\x85K", "O\x0cK", 'a",\u2028b'])
def test_what_a_server_answers_to_a_check_of_haproxys_own_is_never_taken_for_a_table(words: str) -> None:
    answer = f"HTTP/1.1 404 {words}\r\ncontent-length: 0\r\n\r\n".encode()
    with servers.Server(servers.answers(answer)) as server:
        check = f"server a {server.address}:{server.port} check inter 50ms"
        with haproxy(f"backend b\n    option httpchk\n    {check}") as address:
            wait_until(lambda: told(address)[0] == ("b", "a", "DOWN", 1), 10, "the server is DOWN")


def test_a_server_that_tracks_one_of_a_disabled_backend_is_as_any_other() -> None:
    backends = "server a 127.0.0.1:1 track d/a\nbackend d\n    disabled\n    server a 127.0.0.1:1 check"
    with haproxy(f"backend b\n    {backends}") as address:
        found = {server.key: server for server in servers_of(address)}
    assert ("b", "a") in found
    unsaid = found.get(("d", "a"), runtime.Server("d", "a", "UP", 1))
    assert (unsaid.mode, unsaid.check, unsaid.code, unsaid.state_age) == ("http", "", "", 0)
    assert unsaid.check_seconds is None


def with_stat(**columns: str) -> runtime.Server:
    """A server of which `show stat` says this."""
    server = runtime.Server("b", "a", "UP", 1)
    runtime._add_stat(server, runtime.StatRow(**dict.fromkeys(runtime.StatRow._fields, "") | columns))
    return server


def test_a_check_that_is_under_way_hides_not_the_last_one() -> None:
    counters = {"chkfail": "3", "hanafail": "1", "check_health": "1", "check_rise": "3"}
    server = with_stat(check_status="* L7TOUT", check_duration="25", **counters)
    assert (server.check, server.check_seconds, server.state_age) == ("L7TOUT", 0.025, 0)
    assert (server.failures, server.rise_left) == (2, 2)


def test_failures_beside_an_agent_are_not_known_since_haproxy_counts_its_too() -> None:
    server = with_stat(check_status="L7OK", chkfail="3", agent_status="L7STS")
    assert server.failures == 0


def test_a_haproxy_without_servers_has_none() -> None:
    with haproxy("") as address:
        assert told(address) == []


def test_weights_are_set(router: str) -> None:
    assert set_weights(router, {"eu": 256, "us": 0}) == []
    assert weights(router) == {"eu": 256, "us": 0}


def test_a_refused_weight_is_told_and_the_others_are_set(router: str) -> None:
    assert set_weights(router, {"no1": 1, "eu": 3, "no2": 1, "us": 4}) == [
        f"{router}: 'set server upstream/{name} weight 1' was refused: No such server." for name in ("no1", "no2")
    ]
    assert weights(router) == {"eu": 3, "us": 4}


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]", "::1"])
def test_the_runtime_api_can_be_a_host_and_a_port(host: str) -> None:
    port = free_port()
    try:
        socket.create_server(("::1", port), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    extra = f"stats socket 127.0.0.1:{port} level admin\n    stats socket [::1]:{port} level admin"
    with haproxy(UPSTREAM, extra=extra):
        set_weights(f"{host}:{port}", {"eu": 9})
        assert weights(f"{host}:{port}") == {"eu": 9, "us": 2}


def test_the_runtime_api_can_be_an_abstract_socket() -> None:
    name = f"abns@multicloud-{os.getpid()}"
    with haproxy(UPSTREAM, extra=f"stats socket {name} level admin"):
        set_weights(name, {"eu": 9})
        assert weights(name) == {"eu": 9, "us": 2}


def test_a_name_that_would_control_a_terminal_is_escaped() -> None:
    row = runtime.StateRow(**dict.fromkeys(runtime.StateRow._fields, "1"))
    assert runtime._server(row._replace(srv_fqdn="a\x1b[2J.example.com")).host == r"a\x1b[2J.example.com"


@pytest.mark.parametrize("before", [30, 700])
def test_how_far_the_mean_time_moves_says_what_the_last_requests_took(before: int) -> None:
    """Of fewer requests than the mean is of, and of more."""
    port = free_port()
    with Regions(["eu"], tls=False) as regions:
        eu = next(iter(regions))
        backend = f"listen app\n    bind 127.0.0.1:{port}\n    server eu 127.0.0.1:{eu.port}"
        with haproxy(backend) as address, contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as user:

            def ask(count: int) -> sharing.Load:
                for _ in range(count):
                    user.request("GET", "/")
                    user.getresponse().read()
                return sharing.loads(servers_of(address))["app", "eu"]

            first = ask(before)
            eu.delay = 0.1
            second = ask(30)
    assert (first.answers, second.answers) == (before, before + 30)
    assert 0.04 < sharing.took(first, second) < 0.2
    assert sharing.took(first, first) == 0


def fail(use: Callable[[], object]) -> str:
    """What RuntimeAPIError says: always a single line."""
    with pytest.raises(runtime.RuntimeAPIError) as caught:
        use()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_a_socket_that_is_missing_or_that_nobody_listens_at_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = str(tmp_path / "haproxy.sock")
    asks = "is it the `stats socket` of a running HAProxy?"
    for missing in (path, f"{path}:99", "haproxy.sock"):
        assert fail(functools.partial(told, missing)) == f"{missing}: no such file or directory; {asks}"
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(path)
    assert fail(lambda: told(path)) == f"{path}: connection refused; {asks}"
    port = free_port()
    assert fail(lambda: told(f"127.0.0.1:{port}")) == f"127.0.0.1:{port}: connection refused; {asks}"
    too_long = "/" + "x" * 200
    assert fail(lambda: told(too_long)) == f"{too_long}: af_unix path too long; {asks}"


@pytest.mark.parametrize(
    ("level", "balance", "reason"),
    [
        ("user", "roundrobin", "Permission denied"),
        ("admin", "source", "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."),
    ],
)
def test_what_haproxy_does_not_allow_is_refused(level: str, balance: str, reason: str) -> None:
    with haproxy(UPSTREAM.replace("roundrobin", balance), level=level) as address:
        refused = f"{address}: 'set server upstream/eu weight 5' was refused: {reason}"
        assert set_weights(address, {"eu": 5}) == [refused]


def test_a_queue_that_stays_full_is_no_answer_in_time(tmp_path: Path) -> None:
    path = str(tmp_path / "haproxy.sock")
    with frozen(path):
        message = fail(lambda: runtime.RuntimeAPI(path, timeout=0.2))
    assert message == f"{path}: no answer in time; is it the `stats socket` of a running HAProxy?"


def test_what_was_tried_is_in_the_error(places: tuple[str, str, str]) -> None:
    first, second, third = places
    message = fail(lambda: told(first))
    assert message.startswith(f"{first}: no such file or directory; nor is there {second} or {third}; is it the")
    assert "nor" not in fail(lambda: told(second))
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(third)
        assert "nor" not in fail(lambda: told(first))
        assert "nor" not in fail(lambda: told(third))


def test_a_host_that_cannot_be_looked_up_is_an_error() -> None:
    assert fail(lambda: told("a..b:99")) == "a..b:99: not a host name"


PROMPT = b"\n> "
HEADER = b"1\n# be_name srv_name srv_use_ssl srv_addr srv_port srv_fqdn "
HEADER += b"srv_op_state srv_admin_state srv_uweight\n"
TWO = HEADER + b"b a 0 - - - 2 0 1\nb c 0 - - - 2 0 1"
OTHERS = runtime.StatRow._fields[3:]
CIRCLE = f"# pxname,svname,tracked,{','.join(OTHERS)}\nb,a,b/c{',' * len(OTHERS)}\nb,c,b/a{',' * len(OTHERS)}".encode()


def script(*answers: bytes) -> Callable[[socket.socket], None]:
    """Answer each thing that is said with the next of these; then close."""

    def answer(connection: socket.socket) -> None:
        for each in answers:
            connection.recv(1 << 16)
            connection.sendall(each)

    return answer


def say_nothing_of_use(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"x")
        time.sleep(0.05)


def never_stop(connection: socket.socket) -> None:
    while True:
        connection.sendall(b"\n> x" * 1000)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (say_nothing, "no answer in time"),
        (say_nothing_of_use, "no answer in time"),
        (never_stop, "no answer in time"),
        (script(b"master> "), "HAProxy closed the connection at 'prompt'"),
        (lambda _: None, "HAProxy closed the connection at 'prompt'|connection reset by peer|broken pipe"),
        (script(PROMPT), "HAProxy closed the connection at 'show servers state'|connection reset by peer|broken pipe"),
        (script(PROMPT, HEADER + b"upstream eu - - - - 2"), "HAProxy closed the connection at 'show servers state'"),
        (script(PROMPT, PROMPT), "no server states in the answer: ''"),
        (script(PROMPT, b"2" + HEADER[1:] + PROMPT), "no server states in the answer: '2"),
        (script(PROMPT, HEADER + b"upstream eu - - - - 2 0" + PROMPT), "no server states in the answer: 'upstream eu"),
        (script(PROMPT, HEADER + b"upstream eu - - - - 2 0 many" + PROMPT), "no server states in the answer: .*'many'"),
        (script(PROMPT, TWO + PROMPT, CIRCLE + PROMPT), "b/a tracks itself"),
        (script(PROMPT, HEADER + PROMPT, b"x" + PROMPT), "no statistics in the answer: 'x'"),
        (script(PROMPT, bytes(range(256)) + PROMPT), "no server states in the answer: '"),
        (script(b"HTTP/1.1 400 Bad request\r\n\r\n"), "HAProxy closed the connection at 'prompt'"),
    ],
)
def test_one_that_is_no_haproxy_or_a_dying_one_is_an_error(
    answer: Callable[[socket.socket], None], message: str
) -> None:
    def use() -> None:
        with runtime.RuntimeAPI(path, timeout=0.5) as api:
            api.servers()

    with listening(answer) as path:
        assert re.search(message, fail(use))
