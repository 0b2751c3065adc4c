"""Each kind of traffic of docs/traffic.md in a real HAProxy, with the lines of the page, which are read out of it."""

from __future__ import annotations

import contextlib
import functools
import http.client
import http.server
import json
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme

from multicloud import haproxy_cfg, installed, runtime, settings
from multicloud.console import config
from multicloud.demo.router import haproxy_binary
from multicloud.plan import RELAYED, Plan, Server
from tests import command, haproxy
from tests.edge import Router, listen_anywhere, wait_until
from tests.names import own_network
from tests.ports import free_port
from tests.user import fetch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

PAGE = (Path(__file__).parents[1] / "docs/traffic.md").read_text()
COOKIE, UPLOADS = "Must a user stay on one region?", "Can users upload large files?"
HTTP2, TLS = "Does it speak HTTP/2 and gRPC?", "How do users come in over TLS?"
NAMES = ("eu.demo", "us.demo")
AUTHORITY = trustme.CA()
EVENT = b"data: news\n\n"


def shown(question: str, language: str = "haproxy") -> list[str]:
    """The pieces of haproxy.cfg, or of another language, in the section of the page that has this heading."""
    section = PAGE.partition(f"\n## {question}\n")[2].partition("\n## ")[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def upstream(piece: str) -> str:
    """A piece for the names that the demo's sections have."""
    piece = piece.replace("frontend mine", "frontend router").replace("defaults app-regions", "defaults regions")
    return re.sub(r"\bapp(-once)?(?=[ \n)])", r"upstream\1", piece)


def with_lines(text: str, piece: str) -> str:
    """A configuration with the lines that a piece shows, where the page says that they go.

    A line that is in the section already says where those before it go: above it.
    """
    for name, added in re.findall(r"^(\w+ \S+)\n((?:    .*\n)+)", piece, re.MULTILINE):
        found = re.search(rf"^{name}\b.*\n(?:(?: |\.|#).*\n)*", text, re.MULTILINE)
        if not found:
            text = f"{OWN}{name}\n{added}\n{text}"
            continue
        head, *lines = found[0].splitlines(keepends=True)
        binds = [line for line in lines if line.startswith("    bind ")]
        place = next((line for line in added.splitlines(keepends=True) if line in lines), "")
        if place:
            section = found[0].replace(place, added)
        else:
            section = "".join([head, *binds, added, *(line for line in lines if line not in binds)])
        text = text.replace(found[0], section)
    return text


OWN = """
defaults
    mode http
    timeout connect 2s
    timeout client 30s
    timeout server 30s

"""
"""What the operator's own haproxy.cfg begins with."""


VERSION = installed.haproxy_version({"HAPROXY_BINARY": haproxy_binary()})
before_the_relay = pytest.mark.skipif(VERSION >= RELAYED, reason="with a relay, these lines go elsewhere")


class Application(http.server.BaseHTTPRequestHandler):
    """What the regions serve. `region` is the name of the one that this is."""

    protocol_version = "HTTP/1.1"
    region = ""

    def do_GET(self) -> None:
        if self.headers["upgrade"] == "websocket":
            self.echo()
        elif self.path == "/events":
            self.events()
        else:
            time.sleep(float(self.headers["x-work"] or 0))
            self.answer({"region": self.region, **self.asked()})

    def do_POST(self) -> None:
        if self.headers["content-type"] == "application/grpc":
            self.call()
            return
        size = len(self.rfile.read(int(self.headers["content-length"])))
        time.sleep(float(self.headers["x-work"] or 0))
        self.answer({"region": self.region, **self.asked(), "size": size})

    def asked(self) -> dict[str, str]:
        """The headers of the request."""
        headers = {name.lower(): value for name, value in self.headers.items()}
        return {"x-connection": str(self.client_address[1]), **headers}

    def answer(self, said: Mapping[str, Any]) -> None:
        body = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        for name in ("location", "set-cookie"):
            if f"x-{name}" in self.headers:
                self.send_header(name, self.headers[f"x-{name}"])
        self.end_headers()
        self.wfile.write(body)

    def call(self) -> None:
        """What a gRPC server does: an answer whose status comes in a trailer."""
        self.rfile.read(int(self.headers["content-length"]))
        said = json.dumps({"region": self.region, **self.asked()}).encode()
        self.send_response(200)
        self.send_header("content-type", "application/grpc")
        self.send_header("transfer-encoding", "chunked")
        self.send_header("trailer", "grpc-status")
        self.end_headers()
        self.wfile.write(b"%x\r\n%b\r\n0\r\ngrpc-status: 0\r\n\r\n" % (len(said), said))

    def echo(self) -> None:
        self.send_response(101)
        self.send_header("connection", "upgrade")
        self.send_header("upgrade", "websocket")
        self.send_header("sec-websocket-accept", "BACScCJPNqyz+UBoqMH89VmURoA=")
        self.end_headers()
        while said := self.connection.recv(100):
            self.wfile.write(said)
        self.close_connection = True

    def events(self) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for pause in (0, 2.5):
            time.sleep(pause)
            self.wfile.write(b"%x\r\n%b\r\n" % (len(EVENT), EVENT))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_: object) -> None:
        pass


class Listener(http.server.ThreadingHTTPServer):
    def handle_error(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def applications() -> Iterator[dict[str, int]]:
    """The ports of running regions, by their names."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    AUTHORITY.issue_cert(*NAMES).configure_cert(context)
    with contextlib.ExitStack() as stack:
        ports = {}
        for name in NAMES:
            server = stack.enter_context(Listener(("127.0.0.1", 0), type(name, (Application,), {"region": name})))
            server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
            threading.Thread(target=server.serve_forever, daemon=True).start()
            stack.callback(server.shutdown)
            ports[name] = server.server_port
        yield ports


class Routed:
    """HAProxy in front of the applications: its port, and what an operator and a user do with it."""

    def __init__(self, port: int, address: str) -> None:
        self.port = port
        self._address = address

    def tell(self, *commands: str) -> list[str]:
        return haproxy.tell(self._address, *commands)

    def lead(self, name: str) -> None:
        """Give one server all the weight."""
        for server in self.servers():
            if server.source[0] == "upstream":
                self.tell(f"set server {server.backend}/{server.name} weight {256 * (server.name == name)}")

    def servers(self) -> list[runtime.Server]:
        return haproxy.servers(self._address)

    def ask(
        self, path: str = "/", body: bytes | None = None, at: str = "127.0.0.1", source: str = "", **headers: str
    ) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
        """An answer, and what the application says in it."""
        answer, said = fetch(self.port, path, body, at=at, source=source, **headers)
        return answer, json.loads(said) if said[:1] == b"{" else {}

    def region(self, path: str = "/", cookie: str = "", body: bytes | None = None) -> str:
        return str(self.ask(path, body, cookie=cookie)[1]["region"])


@contextlib.contextmanager
def behind_haproxy(bind: str, *lines: str) -> Iterator[dict[str, int]]:
    """The ports at which a HAProxy in front of each region listens, with these words and lines."""
    fronts = {name: free_port() for name in NAMES}
    with applications() as ports, AUTHORITY.issue_cert(*NAMES).private_key_and_cert_chain_pem.tempfile() as pem:
        sections = ""
        for name, port in ports.items():
            listening = f"    bind 127.0.0.1:{fronts[name]} ssl crt {pem} {bind}\n"
            rest = "".join(f"    {line}\n" for line in (*lines, f"server application 127.0.0.1:{port} ssl verify none"))
            sections += f"listen {name}\n{listening}{rest}"
        with haproxy.haproxy(sections):
            yield fronts


ASKED = (
    'http-request set-header X-Asked "%[req.ver] %[req.hdr(host)]"',
    "http-request set-header X-Connection %[src_port]",
)
"""They tell the application by which name it was asked, and over which connection."""


only_http2 = functools.partial(behind_haproxy, "alpn h2", "http-request reject unless { ssl_fc_alpn h2 }", *ASKED)
"""Regions that speak HTTP/2 alone."""

also_http2 = functools.partial(behind_haproxy, "alpn h2,http/1.1", *ASKED)
"""Regions that speak HTTP/1.1, too."""

behind_proxy_protocol = functools.partial(behind_haproxy, "accept-proxy", "http-request set-header X-User %[src]")
"""Regions that want the PROXY protocol, and tell the application whom it names."""


@contextlib.contextmanager
def routed(
    *pieces: str,
    change: Callable[[str], str] = str,
    regions: Callable[[], AbstractContextManager[dict[str, int]]] = applications,
    interval: str = "600s",
    http: bool = True,
    beside: bool = False,
    bind: str = "",
) -> Iterator[Routed]:
    """Run it with these pieces of the page; `change` is what a test must change of them, such as a time or a place."""
    with regions() as ports, tempfile.TemporaryDirectory() as name:
        authority = Path(name) / "authority.pem"
        AUTHORITY.cert_pem.write_to_path(str(authority))
        servers = [Server(name, "127.0.0.1", port) for name, port in ports.items()]
        text = haproxy_cfg.configuration(Plan(servers, VERSION, http=http, beside=beside, bind=bind))
        for piece in pieces:
            text = with_lines(text, upstream(piece))
        variables = listen_anywhere(authority)
        environ = {**variables, "MULTICLOUD_INTER": interval, "MULTICLOUD_REWEIGH_INTER": "600s", "FLY_REGION": "test1"}
        commands = {"MULTICLOUD_CA_FILE": str(authority)}
        with Router(Path(name), change(text), commands=commands, environ=environ) as router:
            log = (router.directory / "haproxy.log").read_text()
            assert re.findall(r"\[WARNING\].* : config : (?!.*nameserver).*", log) == []
            routing = Routed(int(variables["PORT"]), router.settings["MULTICLOUD_SOCKET"])
            routing.lead("eu.demo")
            yield routing


def test_lines_that_are_added_are_kept_as_a_patch_and_are_nothing_to_complain_about(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = {"MULTICLOUD_CONF": str(tmp_path / "multicloud.conf"), "HAPROXY_BINARY": haproxy_binary()}
    monkeypatch.setenv("HAPROXY_BINARY", haproxy_binary())
    servers = tmp_path / "multicloud.conf"
    servers.write_text("[app]\nservers = eu.example.com us.example.com\n")
    written = tmp_path / "multicloud.cfg"

    def write() -> None:
        done = command.run("config", "--blocks", "--output", str(written), environ=environ)
        assert done.returncode == 0, done.stderr

    def outdated() -> bool:
        return bool(config.outdated(str(written), [], settings.Sources(environ), ""))

    write()
    (tmp_path / "multicloud.written").write_text(written.read_text())
    written.write_text(with_lines(written.read_text(), shown(COOKIE)[0]))
    mine = written.read_text()
    assert not outdated()
    servers.write_text("[app]\nservers = eu.example.com us.example.com ap.example.com\n")
    assert outdated()
    if shutil.which("patch"):
        make, apply = re.findall(r"diff -u .*|patch multicloud.cfg .*", PAGE)
        subprocess.run(make, shell=True, cwd=tmp_path, check=False)
        write()
        subprocess.run(apply, shell=True, cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        assert "dynamic-cookie-key" in written.read_text()
        assert not outdated()
    written.write_text(mine)
    servers.write_text("[app]\nservers = eu.example.com\n")
    assert outdated()


@before_the_relay
def test_a_cookie_keeps_a_user_on_a_region_of_weight_0_until_its_time_is_over() -> None:
    with routed(shown(COOKIE)[0], change=lambda text: text.replace("1h", "2s")) as running:
        answer, said = running.ask()
        assert said["region"] == "eu.demo"
        cookie = str(answer.headers["set-cookie"]).partition(";")[0]
        running.lead("us.demo")
        assert running.region(cookie=cookie) == running.region(cookie=cookie, body=b"") == "eu.demo"
        assert running.region() == "us.demo"
        # HAProxy counts a cookie's time in steps of four seconds.
        wait_until(lambda: running.region(cookie=cookie) == "us.demo", 15, "the user has moved")


@before_the_relay
def test_where_only_a_part_remembers_its_users_the_rest_goes_to_the_fastest() -> None:
    with routed(*shown(COOKIE)) as running:
        cookie = str(running.ask("/cart")[0].headers["set-cookie"]).partition(";")[0]
        running.lead("us.demo")
        assert running.region("/cart/1", cookie=cookie) == "eu.demo"
        assert running.region("/", cookie=cookie) == "us.demo"
        assert running.region("/cart", cookie=cookie, body=b"") == "eu.demo"
        assert running.region("/", cookie=cookie, body=b"") == "us.demo"


@contextlib.contextmanager
def web_socket(port: int) -> Iterator[socket.socket]:
    """One that a region echoes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        upgrade = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: MDEyMzQ1Njc4OWFiY2RlZg=="
        connection.sendall(f"GET /socket HTTP/1.1\r\nhost: app\r\n{upgrade}\r\n\r\n".encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            answer += connection.recv(1)
        assert answer.startswith(b"HTTP/1.1 101 ")
        yield connection


def short(text: str) -> str:
    """With a second in place of the half minute between two bytes."""
    text, count = re.subn(r"timeout (client|server) 30s", r"timeout \1 1s", text)
    assert count >= 2
    return text


def test_a_web_socket_may_be_silent_and_stays_where_it_is_until_its_region_is_down() -> None:
    with routed(*shown("Do WebSockets work?"), change=short) as running, web_socket(running.port) as connection:
        running.lead("us.demo")
        for pause in (0, 2):
            time.sleep(pause)
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"
        running.tell("set server upstream/eu.demo health down")
        assert connection.recv(100) == b""


def test_an_operator_closes_the_connections_to_a_region() -> None:
    with routed() as running, web_socket(running.port) as connection:
        command = re.findall(r'echo "(shutdown sessions .*?)"', PAGE)[0]
        assert running.tell(command.replace("app/eu.example.com", "upstream/eu.demo")) == [""]
        assert connection.recv(100) == b""


@before_the_relay
@pytest.mark.parametrize("lines", [False, True])
def test_an_event_goes_on_as_it_comes_and_the_next_may_take_long(*, lines: bool) -> None:
    pieces = shown("Do event streams and slow answers work?") if lines else []
    with routed(*pieces, change=short) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
        connection.request("GET", "/events", headers={"accept": "text/event-stream"})
        began = time.monotonic()
        answer = connection.getresponse()
        assert answer.read(len(EVENT)) == EVENT
        assert time.monotonic() - began < 2
        if lines:
            assert answer.read() == EVENT
        else:
            with pytest.raises(http.client.IncompleteRead):
                answer.read()
        connection.close()


class Doors:
    """Where users come in over TLS: other ports than the usual ones, and a certificate."""

    def __init__(self) -> None:
        self.http, self.https = free_port(), free_port()
        self._directory = tempfile.TemporaryDirectory()
        self._pem = Path(self._directory.name) / "site.pem"
        AUTHORITY.issue_cert("www.example.com").private_key_and_cert_chain_pem.write_to_path(str(self._pem))
        self.bind = bind(TLS).replace(":443 ", f":{self.https} ").replace("/etc/haproxy/site.pem", str(self._pem))
        self.redirect = shown(TLS)[0].replace(":80 ", f":{self.http} ")


def bind(question: str) -> str:
    """What stands after `bind =` there."""
    return str(re.findall(r"bind = (.*)", shown(question, "ini")[0])[0])


@contextlib.contextmanager
def http2_user(port: int) -> Iterator[int]:
    """A port at which a HAProxy hands on to that one, over HTTP/2, what it is asked over HTTP/1.1."""
    here = free_port()
    listen = f"listen user\n    bind 127.0.0.1:{here}\n    server router 127.0.0.1:{port} ssl verify none alpn h2\n"
    with haproxy.haproxy(listen):
        yield here


def in_one_thread(text: str) -> str:
    """Each thread of HAProxy has connections of its own."""
    return text.replace("global\n", "global\n    nbthread 1\n", 1)


@pytest.mark.parametrize(("pieces", "regions", "most"), [(0, applications, 20), (1, only_http2, 1)])
def test_how_many_connections_twenty_users_at_once_take(
    pieces: int, regions: Callable[[], AbstractContextManager[dict[str, int]]], most: int
) -> None:
    with routed(*shown(HTTP2)[:pieces], change=in_one_thread, regions=regions) as running:
        running.ask()
        with ThreadPoolExecutor(20) as users:
            answers = [said for _, said in users.map(lambda _: running.ask(x_work="0.5"), range(20))]
    assert {said["region"] for said in answers} == {"eu.demo"}
    connections = len({said["x-connection"] for said in answers})
    print(f"{connections} connections")
    assert most / 2 < connections <= most


def test_a_check_of_a_region_that_speaks_http2_alone_times_the_handshake(tmp_path: Path) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    with only_http2() as ports:
        for scheme, code in (("https", 1), ("tls", 0)):
            target = f"{scheme}://eu.demo:{ports['eu.demo']}"
            checked = command.run("check", target, "--connect=127.0.0.1", f"--ca-file={tmp_path}/authority.pem")
            assert checked.returncode == code, checked.stdout + checked.stderr


@before_the_relay
def test_over_http2_a_region_is_asked_by_its_name_and_a_post_has_its_own_connection_of_http1() -> None:
    with routed(shown(HTTP2)[0], change=in_one_thread, regions=also_http2) as running:
        gets = [running.ask()[1] for _ in range(5)]
        posts = [running.ask(body=b"", content_type="application/grpc")[1] for _ in range(5)]
    assert {said["x-asked"] for said in gets} == {"2.0 eu.demo"}
    assert len({said["x-connection"] for said in gets}) == 1
    assert {said["x-asked"] for said in posts} == {"1.1 eu.demo"}
    assert len({said["x-connection"] for said in posts}) == 5


@before_the_relay
def test_grpc_has_kept_connections_and_its_trailers() -> None:
    doors = Doors()
    request = "POST /hello HTTP/1.1\r\nhost: www.example.com\r\ncontent-type: application/grpc\r\nte: trailers\r\n"
    answers = []
    with (
        routed(shown(HTTP2)[1], change=in_one_thread, regions=only_http2, bind=doors.bind) as running,
        http2_user(doors.https) as user,
    ):
        running.lead("us.demo")
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", user), timeout=10) as connection:
                connection.sendall(f"{request}connection: close\r\ncontent-length: 2\r\n\r\nok".encode())
                answers.append(b"".join(iter(lambda: connection.recv(65536), b"")).decode())
    for answer in answers:
        assert answer.endswith("\r\n0\r\ngrpc-status: 0\r\n\r\n")
        assert '"x-asked": "2.0 us.demo"' in answer
        assert '"te": "trailers"' in answer
    assert len(set(re.findall(r'"x-connection": "(\d+)"', "".join(answers)))) == 1


def test_users_come_in_over_tls_and_http2_and_are_sent_there() -> None:
    doors = Doors()
    context = ssl.create_default_context(cadata=AUTHORITY.cert_pem.bytes().decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    with routed(doors.redirect, bind=doors.bind):
        answer, _ = fetch(doors.http, "/page", host="www.example.com")
        assert (answer.status, answer.headers["location"]) == (301, "https://www.example.com/page")
        plain = socket.create_connection(("::1", doors.https), timeout=10)
        with context.wrap_socket(plain, server_hostname="www.example.com") as secured:
            assert secured.selected_alpn_protocol() == "h2"


@before_the_relay
@pytest.mark.parametrize(("lines", "status"), [(False, 504), (True, 200)])
def test_an_upload_arrives_whole_and_may_take_long_to_be_done(*, lines: bool, status: int) -> None:
    with routed(*shown(UPLOADS) * lines, change=short) as running:
        answer, said = running.ask("/upload", bytes(5_000_000), x_work="2")
        assert answer.status == status
        assert said.get("size") == (5_000_000 if lines else None)


def test_an_upload_that_is_too_large_is_refused_before_it_comes() -> None:
    with routed(*shown(UPLOADS)) as running:
        assert running.ask("/upload", b"", content_length="100000001")[0].status == 413


def test_users_come_in_over_ipv6_and_ipv4() -> None:
    both = bind("How do users come in over IPv6?").replace("8080", "${PORT}")
    with routed(bind=f'"{both.split()[0]}" {both.split()[1]}') as running:
        for host in ("::1", "127.0.0.1"):
            assert running.ask(at=host)[1]["region"] == "eu.demo"


@pytest.mark.parametrize(
    ("location", "goes_to"),
    [
        ("https://eu.demo/there?q=1", "/there?q=1"),
        ("http://eu.demo/", "/"),
        ("https://eu.demo.example.com/", "https://eu.demo.example.com/"),
        ("https://www.example.com/https://eu.demo/", "https://www.example.com/https://eu.demo/"),
        ("/there", "/there"),
    ],
)
def test_a_redirect_to_the_region_is_one_to_the_router(location: str, goes_to: str) -> None:
    with routed(*shown("Why are users redirected to a region?")) as running:
        cookie = "id=1; Path=/; Domain=eu.demo; Secure"
        answer, said = running.ask(x_location=location, x_set_cookie=cookie)
        assert answer.headers["location"] == goes_to
        assert answer.headers["set-cookie"] == "id=1; Path=/; Secure"
        assert said["host"] == "eu.demo"


@pytest.mark.parametrize("proxy", ["10.0.0.0/8", "127.0.0.0/8"])
def test_that_tls_ended_before_haproxy_is_believed_of_the_proxy_that_is_named_alone(proxy: str) -> None:
    [piece] = shown("What if TLS ends before HAProxy?")
    with routed(piece.replace("10.0.0.0/8", proxy)) as running:
        for scheme in ("https", "http"):
            believed = scheme if proxy == "127.0.0.0/8" else "http"
            for body in (None, b"a"):
                assert running.ask("/", body, x_forwarded_proto=scheme)[1]["x-forwarded-proto"] == believed


def test_nobody_sees_where_the_regions_are() -> None:
    with routed() as running:
        assert running.ask()[0].headers["upstream"] == "eu.demo"
    with routed(*shown("Who sees where my regions are?")) as running:
        assert running.ask()[0].headers["upstream"] is None


def test_an_edge_says_whether_it_is_well() -> None:
    with routed(shown("Can there be several HAProxys?")[0]) as running:
        assert running.ask("/edge-is-well")[0].status == 200
        running.tell(*(f"set server upstream/{name} health down" for name in NAMES))
        assert running.ask("/edge-is-well")[0].status == 503
        assert running.ask()[1]["region"] in NAMES  # and it tries all the same


@pytest.mark.root("give this machine another address")
def test_haproxy_listens_at_an_address_that_it_has_later() -> None:
    with own_network(ipv6=False), routed(bind=re.findall(r"`bind = (.* transparent)`", PAGE)[0]):
        with pytest.raises(OSError, match="unreachable"):
            socket.create_connection(("192.0.2.10", 8080))
        subprocess.run(["ip", "address", "add", "192.0.2.10/32", "dev", "lo"], check=True)
        assert fetch(8080, at="192.0.2.10")[0].status == 200


def test_over_tcp_a_connection_stays_where_it_is_and_may_be_silent() -> None:
    with routed(change=short, http=False) as running:
        connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
        for pause in (0, 2):
            time.sleep(pause)
            connection.request("GET", "/")
            assert json.loads(connection.getresponse().read())["region"] == "eu.demo"
            running.lead("us.demo")
        connection.close()
        assert running.region() == "us.demo"


def test_regions_see_a_user_s_address_by_the_proxy_protocol() -> None:
    piece = shown("Does it do TCP?")[0]
    with routed(piece, http=False, beside=True, regions=behind_proxy_protocol, interval="200ms") as running:

        def checks() -> set[str]:
            return {each.check for each in running.servers() if each.backend == "upstream"}

        wait_until(lambda: checks() == {"L6OK"}, 10, "both are checked")
        assert running.ask(source="127.0.0.2")[1]["x-user"] == "127.0.0.2"
