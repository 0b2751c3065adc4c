"""`multicloud config`: what it writes is valid for each HAProxy, whole or in a configuration that is there."""

import grp
import http.client
import os
import pwd
import re
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from multicloud import installed, runtime, settings
from multicloud.console import config, parser
from multicloud.demo.router import Router, haproxy_binary
from multicloud.haproxy_cfg import configuration
from multicloud.light import UsageError
from multicloud.plan import RELAYED, Plan, Server
from tests.client import Traffic
from tests.command import run
from tests.edge import edge, wait_until
from tests.test_haproxy_cfg import HAPROXIES, assert_valid, here
from tests.test_traffic import DELAYS, failures

LISTED = ("eu.example.com=203.0.113.7", "us=[2001:db8::1]:80", "ap=203.0.113.8:8443")
"""Addresses: at a name that does not resolve, HAProxy 2.6 gives a warning."""

DEBIAN = """\
global
	log /dev/log	local0
	log /dev/log	local1 notice
	chroot /var/lib/haproxy
	stats socket /run/haproxy/admin.sock mode 660 level admin
	stats timeout 30s
	user haproxy
	group haproxy
	daemon

	# Default SSL material locations
	ca-base /etc/ssl/certs
	crt-base /etc/ssl/private

	# See: https://ssl-config.mozilla.org/#server=haproxy&server-version=2.0.3&config=intermediate
        ssl-default-bind-ciphers ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:DHE-RSA-AES256-GCM-SHA384
        ssl-default-bind-ciphersuites TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:TLS_CHACHA20_POLY1305_SHA256
        ssl-default-bind-options ssl-min-ver TLSv1.2 no-tls-tickets

defaults
	log	global
	mode	http
	option	httplog
	option	dontlognull
        timeout connect 5000
        timeout client  50000
        timeout server  50000
	errorfile 400 /etc/haproxy/errors/400.http
	errorfile 503 /etc/haproxy/errors/503.http
"""
"""Debian's own haproxy.cfg (bookworm and trixie), less some ciphers and error files."""


def written(*arguments: str, haproxy: str = haproxy_binary(), to: tuple[str, ...] = LISTED, **environ: str) -> str:
    """What the command writes for a HAProxy."""
    done = run("config", *arguments, *to, environ={"HAPROXY_BINARY": haproxy, **environ})
    assert done.returncode == 0, done.stderr
    return done.stdout


def debian(directory: Path, *, chroot: bool) -> str:
    """Debian's configuration where its user, its group and its files need not be there."""
    (directory / "error.http").write_text("HTTP/1.0 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    text = re.sub(r"/etc/haproxy/errors/\d+\.http", str(directory / "error.http"), DEBIAN)
    text = text.replace("user haproxy", f"user {pwd.getpwuid(os.getuid()).pw_name}")
    text = text.replace("group haproxy", f"group {grp.getgrgid(os.getgid()).gr_name}")
    return text if chroot else text.replace("\tchroot /var/lib/haproxy\n", "")


@pytest.mark.parametrize("haproxy", HAPROXIES.values())
@pytest.mark.parametrize("options", ["", "--backend app", "--beside", "--mode tcp", "--mode tcp --beside"])
def test_blocks_at_the_end_of_debians_configuration_are_valid_without_a_warning(
    tmp_path: Path, haproxy: str, options: str
) -> None:
    beside = "--beside" in options
    text = written("--blocks", *options.split(), haproxy=haproxy)
    assert_valid(haproxy, debian(tmp_path, chroot=beside) + text, tmp_path)


@pytest.mark.parametrize("haproxy", HAPROXIES.values())
def test_a_second_application_is_the_second_part_of_its_blocks(tmp_path: Path, haproxy: str) -> None:
    text = debian(tmp_path, chroot=False) + written("--blocks", "--backend", "app", haproxy=haproxy)
    second = written("--blocks", "--backend", "api", haproxy=haproxy, MULTICLOUD_BIND=":8088")
    assert_valid(haproxy, text + "#" + second.partition("# ---- For the application")[2], tmp_path)


@pytest.mark.parametrize(("first", "second"), [(80, 443), (443, 80)])
def test_a_second_application_has_its_own_tls_and_its_own_names(tmp_path: Path, first: int, second: int) -> None:
    def blocks(backend: str, port: int) -> str:
        text = written("--blocks", "--backend", backend, to=(f"eu=127.0.0.1:{port}",))
        return text.replace("bind :8080", f"bind unix@{tmp_path}/{backend}")

    text = 'global\n    stats socket "${MULTICLOUD_SOCKET}" mode 600 level admin\n'
    text += blocks("app", first).replace("sni srv_name", "sni str(www.example.com)")
    text += "#" + blocks("api", second).partition("# ---- For the application")[2]
    with (
        Router(tmp_path, text, commands={}, environ={}) as router,
        runtime.RuntimeAPI(router.settings["MULTICLOUD_SOCKET"]) as haproxy,
    ):
        tls = {server.backend: server.tls for server in haproxy.servers() if server.name == "eu"}
    assert (tls["app"], tls["api"]) == (str(int(first == 443)), str(int(second == 443)))
    path = tmp_path / "two.cfg"
    path.write_text(text)
    sections = {section.name: section for section in parser.read([str(path)], {}).proxies()}
    assert parser.value(parser.options(sections["app"])["eu"], "sni") == "str(www.example.com)"
    assert parser.value(parser.options(sections["api"])["eu"], "sni") == "srv_name"


def test_the_first_line_is_the_command_that_writes_the_same_again() -> None:
    text = written("--haproxy", "2.8", "--backend", "app", "--beside", "--path", "/a'b")
    command = shlex.split(text.partition("\n")[0].removeprefix("# "))
    assert command[0] == "multicloud"
    assert run(*command[1:]).stdout == text


def test_a_server_more_is_a_name_more() -> None:
    one, two = (
        written("--haproxy", "2.8", to=names) for names in (("eu.example.com",), ("eu.example.com", "us.example.com"))
    )
    more = set(two.splitlines()) - set(one.splitlines())
    assert {line.split()[1] for line in more if "  server " in line} == {"us.example.com"}
    assert all("us.example.com" in line for line in more)


def from_settings(directory: Path, text: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the command says and writes for a settings file."""
    conf = directory / "multicloud.conf"
    conf.write_text(text)
    return run("config", *arguments, environ={"MULTICLOUD_CONF": str(conf), "HAPROXY_BINARY": haproxy_binary()})


APPLICATIONS = """
ca_file = /etc/ssl/cert.pem
[app]
servers = eu.example.com=203.0.113.7 us.example.com=203.0.113.8
bind = 127.0.0.1:8080 name site
[app/us.example.com]
insecure = 1
[api]
servers = eu=203.0.113.7 us=203.0.113.8
host = www.example.com
bind = none
[db]
servers = eu=203.0.113.7:5432
mode = tcp
bind = :5432
insecure = 1
"""


@pytest.mark.parametrize("haproxy", HAPROXIES.values())
@pytest.mark.parametrize("options", [(), ("--blocks",), ("--beside",), ("--blocks", "--beside")])
def test_all_applications_of_the_settings_file_are_written(
    tmp_path: Path, ca_file: str, haproxy: str, options: tuple[str, ...]
) -> None:
    version = subprocess.run([haproxy, "-v"], capture_output=True, text=True, check=True).stdout.split()[2]
    text = APPLICATIONS.replace("/etc/ssl/cert.pem", ca_file)
    done = from_settings(tmp_path, text, "--haproxy", version.partition("-")[0], *options)
    assert done.returncode == 0, done.stderr
    own = debian(tmp_path, chroot="--beside" in options) if "--blocks" in options else ""
    assert_valid(haproxy, own + done.stdout, tmp_path)
    sections = {section.name: section for section in parser.read([str(tmp_path / "haproxy.cfg")], {}).sections}
    app, api, db = (parser.options(sections[name]) for name in ("app", "api", "db"))
    assert {name: parser.value(words, "verify") for name, words in app.items()} == {
        "eu.example.com": "required",
        "us.example.com": "none",
    }
    assert {parser.value(words, "sni") for words in api.values()} == {"str(www.example.com)"}
    assert parser.value(db["eu"], "verify") == "none"
    assert sections["db"].last("mode") == ["tcp"]
    assert sections["app-router"].last("bind") == ["127.0.0.1:8080", "name", "site"]
    assert "api-router" not in sections


def test_without_a_frontend_its_lines_stand_in_a_comment_each_with_the_applications_condition(tmp_path: Path) -> None:
    text = from_settings(tmp_path, APPLICATIONS, "--blocks", "--haproxy", "2.8").stdout
    lines = [line.removeprefix("#     ") for line in text.splitlines() if line.startswith("#     ")]
    assert [line for line in lines if not line.startswith("# ")] == [
        "acl is_api hdr(host) -i api.example.com",
        "use_backend api-last-resort if is_api { nbsrv(api) lt 1 }",
        "use_backend api-once if is_api !{ method GET HEAD OPTIONS }",
        "use_backend api if is_api",
    ]


def test_the_lines_for_a_frontend_of_ones_own_take_no_other_requests() -> None:
    def with_own_frontend(text: str) -> str:
        """The lines stand where the comment says: below another `use_backend`."""
        places = re.findall(r"^    server (\S+\.demo) (127\.0\.0\.1):(\d+)", text, re.MULTILINE)
        plan = Plan([Server(name, at, int(port)) for name, at, port in places[:1]], here(), bind="none")
        written = configuration(plan)
        lines = [line[2:] for line in written.splitlines() if line.startswith("#     ")]
        own = [
            "frontend mine from common",
            '    bind "127.0.0.1:${PORT}"',
            "    use_backend admin if { path_beg /admin }",
        ]
        admin = "backend admin from common\n    http-request return status 200 content-type text/plain string admin"
        return written + "\n".join([*own, *lines, admin, ""]).replace(
            "hdr(host) -i upstream.example.com", "path_beg /app"
        )

    with edge({"eu.demo": 0.0}, interval="600s", configure=with_own_frontend) as running:
        for method in ("GET", "POST"):
            for path, status, region in (("/app", 200, "eu.demo"), ("/admin/app", 200, None), ("/", 503, None)):
                connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
                connection.request(method, path)
                answer = connection.getresponse()
                assert (answer.status, answer.headers["upstream"]) == (status, region)
                connection.close()


A, B = "[a]\nservers = x\n", "[b]\nservers = y\n"


@pytest.mark.parametrize(
    ("text", "arguments", "error"),
    [
        (A + B, "", "frontend a-router and frontend b-router listen at port 8080, and each gets a part of its"),
        (A + "bind = :::8080 v4v6\n" + B, "", "a-router and frontend b-router listen at port 8080, and"),
        ("bind = :80,:81\n" + A + B + "bind = *:81\n", "", "a-router and frontend b-router listen at port 81, and"),
        (
            "backends = a\n" + A,
            "",
            "2: backends has a, which `multicloud run` measures by HAProxy's own checks; accepted: --beside, or",
        ),
        (A + B, "--backend c", "no server named; accepted: SERVER"),
        (A + "[a/x]\nhost = y\n", "", "5: host: HAProxy cannot be told this of one server; accepted: in [a], or"),
        (A + "[a/x]\npath = /y\n", "--beside", "5: path: HAProxy cannot be told this of one server; accepted"),
        (A + "host = y:80\n", "", "4: host: 'y:80'; accepted: a name of a certificate"),
        ("[a]\nservers = x x\n", "", "'x': there is a server x already"),
        (A + "[a-once]\nservers = y\nbind = :81\n", "", "`backend a-once` stands 2 times"),
        (A + "bind = :9000\n", "", "listen at port 9000, and each gets a part"),
        (A + "bind = :81\n[upstream]\nservers = y\n[b]\nservers = z\nbind = :8081\n", "", "listen at port 8081, and"),
        (A + "host = y\n[a/x]\nhost = x\n", "", "6: host: HAProxy cannot be told this of one server"),
        (A.replace("x", "x:81") + "[a/x]\nhost = y\n", "", "accepted: in [a], or the server y=x:81"),
        (A, "--with /dev/null", "--with names what stands beside --blocks"),
        (A, "--output {}/no/such/file", "/no/such/file is not written: no such file or directory"),
    ],
)
def test_what_the_settings_cannot_mean_is_one_clear_line(tmp_path: Path, text: str, arguments: str, error: str) -> None:
    done = from_settings(tmp_path, f"# first line\n{text}", *arguments.format(tmp_path).split())
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1 if "output" in arguments else 2, "", 1)
    assert error in done.stderr


def test_a_file_is_replaced_whole_or_not_at_all_and_only_where_haproxy_accepts_it(tmp_path: Path) -> None:
    own, written = tmp_path / "own.cfg", tmp_path / "multicloud.cfg"
    own.write_text(debian(tmp_path, chroot=False))
    words = ("--blocks", "--output", str(written), "--with", str(own))
    text = f"[api]{APPLICATIONS.partition('[api]')[2]}".replace("203.0.113.7:5432", "203.0.113.7:5433")
    done = from_settings(tmp_path, text, *words)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    before = written.read_text()
    assert before.startswith(f"# multicloud config {shlex.join(words)}\n")
    assert written.stat().st_mode & 0o777 == 0o644
    for wrong in ("no-such-word", "ssl crt /no/such/file"):
        done = from_settings(tmp_path, text.replace(":5432\n", f":5432 {wrong}\n"), *words)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
        assert done.stderr.startswith(f"error: {written} is not written: HAProxy does not accept it: ")
        assert str(written) in done.stderr.partition("accept it: ")[2]
        assert written.read_text() == before
    assert {path.name for path in tmp_path.iterdir()} == {"own.cfg", "multicloud.cfg", "multicloud.conf", "error.http"}
    written.chmod(0o640)
    assert from_settings(tmp_path, text, *words).returncode == 0
    assert written.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("mode", ["http", "tcp"])
def test_beside_a_configuration_without_a_log_nothing_is_logged_which_haproxy_would_warn_of(
    tmp_path: Path, mode: str
) -> None:
    own, output = tmp_path / "own.cfg", tmp_path / "multicloud.cfg"
    own.write_text("global\n    stats socket /run/haproxy.sock level admin\n    zero-warning\n")
    text = f"[app]\nmode = {mode}\nservers = eu=203.0.113.7\n"
    done = from_settings(tmp_path, text, "--blocks", "--output", str(output), "--with", str(own))
    assert (done.returncode, done.stderr) == (0, "")
    own.write_text(own.read_text().replace("global\n", "global\n    log stdout format raw local0\n"))
    assert from_settings(tmp_path, text, "--blocks", "--output", str(output), "--with", str(own)).returncode == 0
    assert f"option {mode}log" in output.read_text()


def test_a_written_file_is_outdated_when_the_settings_would_make_another_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = haproxy_binary()
    monkeypatch.setenv("HAPROXY_BINARY", binary)
    path, conf, running = tmp_path / "multicloud.cfg", tmp_path / "multicloud.conf", ""

    def outdated() -> str:
        return config.outdated(str(path), [], settings.Sources({settings.CONF: str(conf)}), running)

    one, two = "[app]\nservers = eu=203.0.113.7\n", "[app]\nservers = eu=203.0.113.7 us=203.0.113.8\n"
    words = ("--beside", "--output", str(path))
    assert from_settings(tmp_path, one, *words).returncode == 0
    assert outdated() == ""
    running = ".".join(map(str, here()))
    monkeypatch.setenv("HAPROXY_BINARY", "/no/such/haproxy")  # it is the one that runs whose lines are to be there
    assert outdated() == ""
    running = "2.6.1-1+deb12u4"
    assert outdated() != ""
    monkeypatch.setenv("HAPROXY_BINARY", binary)
    running = ""
    conf.write_text(f"{one}max_age = 100\n")
    assert outdated() == ""
    conf.write_text(two)
    assert outdated() == shlex.join(["multicloud", "config", *words])
    for other in (
        from_settings(tmp_path, one, "--beside").stdout,
        "global\n",
        "# it's mine\n",
        "# multicloud config -o\n",
        "# multicloud config --help\n",
    ):
        path.write_text(other)
        conf.write_text(two)
        assert outdated() == ""


def test_a_directory_is_read_as_haproxy_reads_it_and_may_have_the_written_file_itself(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "own.cfg").write_text(debian(tmp_path, chroot=False))
    words = ("--blocks", "--output", f"{tmp_path}/conf.d/multicloud.cfg", "--with", f"{tmp_path}/conf.d")
    for servers in ("eu=203.0.113.7", "eu=203.0.113.7 us=203.0.113.8"):
        done = from_settings(tmp_path, f"[app]\nservers = {servers}\n", *words)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "conf.d" / "multicloud.cfg").read_text().count("server us") == 3 + (here() >= RELAYED)


def test_where_no_haproxy_says_what_stands_beside_it_that_is_said(tmp_path: Path) -> None:
    for bind in (":8080", "none"):  # without a frontend of its own HAProxy would not start, but finds no error
        text = f"socket = {tmp_path}/none\n[app]\nservers = eu=203.0.113.7\nbind = {bind}\n"
        done = from_settings(tmp_path, text, "--blocks", "--output", f"{tmp_path}/multicloud.cfg")
        assert (done.returncode, done.stderr.count("\n")) == (0, 1), done.stderr
        assert "note: HAProxy accepts this file alone; none runs" in done.stderr


def test_a_relative_path_of_a_running_haproxy_is_where_that_was_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here a stranger may have put a file of that name, whose Lua HAProxy would run as root."""
    there, strangers = tmp_path / "there", tmp_path / "strangers"
    address = tmp_path / "admin.sock"
    for directory in (there, strangers):
        directory.mkdir()
        (directory / "own.cfg").write_text(f"# {directory.name}\nglobal\n    stats socket {address} level admin\n")
    monkeypatch.chdir(strangers)
    process = subprocess.Popen([haproxy_binary(), "-f", "own.cfg"], cwd=there)
    try:
        wait_until(address.exists, 10, "HAProxy answers")
        sources = settings.Sources({"MULTICLOUD_SOCKET": str(address), settings.CONF: os.devnull})
        found = config.running(sources)
        assert [Path(file).read_text().partition("\n")[0] for file in found] == ["# there"]
        (there / "own.cfg").chmod(0o1666)  # in a directory that bit keeps others from a file, of a file it says nothing
        with pytest.raises(UsageError, match=r"own.cfg: others may write"):
            config.running(sources)
        (there / "own.cfg").chmod(0o644)
        if os.geteuid() == 0:  # nor is a file of somebody else's believed, whatever answers at the socket
            os.chown(there / "own.cfg", 12345, -1)
            with pytest.raises(UsageError, match=r"own.cfg: others may write what HAProxy reads; accepted"):
                config.running(sources)
            os.chown(there / "own.cfg", 0, -1)
            there.chmod(0o777)
            with pytest.raises(UsageError, match=r"/there: others may write"):
                config.running(sources)
    finally:
        process.kill()
        process.wait()


def test_an_address_of_the_other_files_is_not_bound_again(tmp_path: Path) -> None:
    own = tmp_path / "own.cfg"
    own.write_text(debian(tmp_path, chroot=False) + "frontend mine\n    bind *:8080\n")
    done = from_settings(tmp_path, "[app]\nservers = x\n", "--blocks", "--with", str(own))
    assert done.returncode == 2
    assert "frontend mine and frontend app-router listen at port 8080, and each gets a part of" in done.stderr


@pytest.mark.parametrize(
    ("mode", "server", "line"),
    [
        ("http", "eu.example.com", "eu.example.com eu.example.com:443 tls"),
        ("http", "eu.example.com:8443", "eu.example.com eu.example.com:8443 tls"),
        ("http", "eu=eu.example.com", "eu eu.example.com:443 tls"),
        ("http", "eu=203.0.113.7:80", "eu 203.0.113.7:80"),
        ("http", "eu=[2001:db8::1]", "eu [2001:db8::1]:443 tls"),
        ("http", "e:u=[2001:db8::1]:8443", "e:u [2001:db8::1]:8443 tls"),
        ("tcp", "eu.example.com", "eu.example.com eu.example.com:443 tls"),
        ("tcp", "eu=eu.example.com:5432", "eu eu.example.com:5432"),
    ],
)
def test_a_server_is_spoken_to_over_tls_unless_its_port_says_otherwise(mode: str, server: str, line: str) -> None:
    tls = line.endswith("tls")
    text = written("--haproxy", "2.8", "--mode", mode, to=(server,))
    lines = re.findall(r"^    server (.*)$", text, re.MULTILINE)
    assert line.removesuffix(" tls") in lines
    assert ("default-server ssl ciphers DEFAULT:!DHE verify required" in text) is tls
    if tls:
        mixed = written("--haproxy", "2.8", "--mode", mode, to=(server, "plain=127.0.0.1:80"))
        assert "default-server ciphers DEFAULT:!DHE verify required" in mixed
        assert f"    server {line.removesuffix(' tls')} ssl\n" in mixed


@pytest.mark.parametrize("place", ["/it's a #1", '/a"b', "/a}b", "/a$b", "/a\\b"])
def test_where_the_commands_and_the_authorities_are_is_written_as_haproxy_reads_it(
    monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    monkeypatch.setattr(installed, "command", lambda name: f"{place}/{name}")
    sources = settings.Sources({settings.CONF: os.devnull, "MULTICLOUD_CA_FILE": f"{place}/ca.pem"})
    wanted = config.Wanted(["eu"], "2.8.25")
    for blocks in (False, True):
        text, _ = config.write("multicloud config eu", sources, wanted._replace(blocks=blocks))
        for name in ("check", "reweigh"):
            [line] = re.findall(rf"external-check command .*{name}.*", text)
            assert parser.split(line, {})[2] == f"{place}/multicloud-{name}"
        [line] = re.findall(r"default-server ssl .*", text)
        assert parser.value(parser.split(line, {}), "ca-file") == f"{place}/ca.pem"


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ("a_b!", "'a_b!': 'a_b!' cannot be a server's name; accepted: letters, digits and . : _ -"),
        ("a/b=eu.example.com", "'a/b=eu.example.com': 'a/b' cannot be a server's name"),
        ("=eu.example.com", "'=eu.example.com': '' cannot be a server's name"),
        ("[2001:db8::1]:443", "'[2001:db8::1]' cannot be a server's name"),
        ("eu us eu", "'eu': there is a server eu already"),
        ("eu:1 eu:2", "'eu:2': there is a server eu already; accepted: another NAME=ADDRESS:PORT"),
        ("eu=a:0", "'eu=a:0': '0' is no port; accepted: 1 to 65535"),
        ("eu=a:65536", "'65536' is no port"),
        ("eu=a:", "'' is no port"),
        ("eu=", "'eu=': '' is no address; accepted: a host name, an IPv4 address, or an IPv6 address in brackets"),
        ("eu=2001:db8::1", "'2001:db8:' is no address"),
        ("eu=[2001:db8::x]", "'[2001:db8::x]' is no address"),
        ("eu=[127.0.0.1]", "'[127.0.0.1]' is no address"),
        ("eu=127.0.0.300", "'127.0.0.300' is no address"),
        ("eu=[fe80::1%eth0]", "'[fe80::1%eth0]' is no address"),
        ("eu=/run/app.sock", "'/run/app.sock' is no address"),
        ("--haproxy 2.5.9 eu", "HAProxy 2.5.9 is too old; accepted: 2.6 and newer"),
        ("--haproxy 3.4.0 eu", "HAProxy 3.4.0 crashes on any external check; accepted: such as 3.4.1"),
        ("--haproxy new eu", "HAProxy 'new': cannot read the version; accepted: such as 2.8 or 2.8.25"),
        ("--backend a/b eu", "--backend 'a/b'; accepted: letters, digits and . : _ -"),
        (
            "--backend reweigh eu",
            "`backend reweigh` stands 2 times in the configuration: leave out all but one; accepted: ",
        ),
        ("https://eu.example.com", "'https://eu.example.com': a URL is no server; accepted: its host"),
        ("--path healthz eu", "--path 'healthz'; accepted: a path that starts with /"),
        ("--mode tcp --path /healthz eu", "--path '/healthz': in mode tcp, checks ask for no path"),
        ("", "no server named; accepted: SERVER[=ADDRESS[:PORT]], or `servers` in /etc/multicloud.conf"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(arguments: str, error: str) -> None:
    wanted = config.Wanted(**config.config.make_context("config", ["--haproxy", "2.8", *arguments.split()]).params)
    with pytest.raises(UsageError) as refused:
        config.write("multicloud config", settings.Sources({}), wanted)
    assert error in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("named", ["/no/such/haproxy", "/bin/true", ""])
def test_a_haproxy_that_does_not_tell_its_version_is_one_clear_line(tmp_path: Path, named: str) -> None:
    if not named and (shutil.which("haproxy", path="/usr/local/sbin:/usr/sbin")):
        pytest.skip("HAProxy is installed here")
    done = run("config", "eu", environ={"HAPROXY_BINARY": named, "PATH": str(tmp_path)})
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)


@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ("--path /healthz", "the checks need `[app]` and, below it, `path = /healthz` in /etc/multicloud.conf"),
        ("--beside", "`multicloud run` needs `backends = app` in /etc/multicloud.conf, beside those that are there"),
        ("", ""),
    ],
)
def test_what_the_settings_file_needs_is_said_and_written(options: str, needed: str) -> None:
    done = run("config", "--haproxy", "2.8", "--backend", "app", *options.split(), "eu.example.com")
    assert done.stderr == (f"note: {needed}\n" if needed else "")
    assert needed in done.stdout


def test_when_the_favourite_is_killed_behind_debians_configuration_with_blocks_no_request_fails() -> None:
    with edge(DELAYS, interval="2s", configure=in_debians) as running:
        wait_until(lambda: running.weights("app") == dict(zip(DELAYS, (256, 1, 0, 0), strict=True)), 30, "256/1/0/0")
        with Traffic(running.port, rate=100.0) as traffic:
            time.sleep(2)
            running.regions.stop(running.region["eu.demo"])
            killed = time.monotonic()
            wait_until(lambda: running.weights("app")["us.demo"] == 256, 20, "us.demo as favourite")
            time.sleep(1)
    assert failures(traffic) == []
    assert "eu.demo" not in traffic.regions_since(killed)


def in_debians(text: str) -> str:
    """Debian's configuration with blocks for the servers of another one, at the places of a test."""
    regions = dict(re.findall(r"^    server (\S+) (127\.0\.0\.1:\d+)\b(?! check)", text, re.MULTILINE))
    names = [f"{name}={address}" for name, address in regions.items()]
    blocks = written("--blocks", "--backend", "app", to=tuple(names))
    for place, there in (
        (r"bind :8080", 'bind "127.0.0.1:${PORT}"'),
        (r"abns@\S+", '"abns@${RELAY}"'),
        (r"ca-file \S+", 'ca-file "${UPSTREAM_CA}"'),
        (
            r"external-check command \S+-(check|reweigh)",
            lambda c: f'external-check command "${{MULTICLOUD_{c[1].upper()}}}"',
        ),
    ):
        blocks, count = re.subn(place, there, blocks)
        assert count or "abns" in place
    own = re.sub(r"\t(chroot|user|group|daemon|errorfile) .*\n", "", DEBIAN.replace("\tdaemon", "\tdaemon "))
    return own.replace("/run/haproxy/admin.sock", '"${MULTICLOUD_SOCKET}"') + blocks


def test_the_file_is_what_the_settings_say_of_the_socket_and_names_have_no_dot_at_their_end(tmp_path: Path) -> None:
    """A fully qualified name: HAProxy would ask for a certificate with the dot, and a check for one without."""
    text = "socket = /run/mine.sock\n[app]\nhost = www.example.com.\nservers = eu.example.com.\n"
    written = from_settings(tmp_path, text).stdout
    assert 'stats socket "${MULTICLOUD_SOCKET-/run/mine.sock}" mode 600' in written
    assert "    server eu.example.com eu.example.com.:443 " in written
    assert "sni str(www.example.com)" in written
