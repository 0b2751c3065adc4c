"""multicloud-check, started as HAProxy starts it: four arguments, a clean environment, an exit code."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from multicloud.demo.router import haproxy_binary
from tests import servers
from tests.edge import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CHECK = str(Path(sys.executable).with_name("multicloud-check"))

EU = "eu.example.com"
NOT_USED = "NOT_USED"
SAMPLE = re.compile(rf"upstream {re.escape(EU)} \d+\.\d{{6}} \d+\.\d{{3}}\n")
FAILED = re.compile(rf"upstream {re.escape(EU)} \d+\.\d{{6}} \d+\.\d{{3}} failed\n")
SAMPLES = re.compile(f"({SAMPLE.pattern}|{FAILED.pattern})*")


class Said(NamedTuple):
    """The exit code of a command, and what it wrote."""

    code: int
    out: str
    err: str


def environment(at: tuple[str, int | None], times: Path, **variables: str | None) -> dict[str, str]:
    """What HAProxy 2.6 and newer give a check of a server without TLS. None takes a variable away."""
    address, port = at
    everything: dict[str, str | None] = {
        "PATH": os.defpath,
        "HAPROXY_PROXY_NAME": "upstream",
        "HAPROXY_PROXY_ID": "3",
        "HAPROXY_SERVER_NAME": EU,
        "HAPROXY_SERVER_ID": "1",
        "HAPROXY_SERVER_ADDR": address,
        "HAPROXY_SERVER_PORT": "" if port is None else str(port),
        "HAPROXY_SERVER_MAXCONN": "0",
        "HAPROXY_SERVER_CURCONN": "0",
        "HAPROXY_SERVER_SSL": "0",
        "HAPROXY_SERVER_PROTO": "h1",
        "MULTICLOUD_TIMES": str(times),
        **variables,
    }
    return {name: value for name, value in everything.items() if value is not None}


def started(at: tuple[str, int | None], times: Path, **variables: str | None) -> tuple[list[str], dict[str, str]]:
    """The command line and the environment of a check."""
    address, port = at
    words = [CHECK, NOT_USED, NOT_USED, address, NOT_USED if port is None else str(port)]
    return words, environment(at, times, **variables)


def check(at: tuple[str, int | None], times: Path, **variables: str | None) -> Said:
    return run(*started(at, times, **variables))


def run(words: list[str], environ: Mapping[str, str] = os.environ) -> Said:
    done = subprocess.run(words, env=environ, capture_output=True, text=True, timeout=60, check=False)
    return Said(done.returncode, done.stdout, done.stderr)


def status(code: int) -> servers.Behaviour:
    return servers.answers(f"HTTP/1.1 {code} Reason\r\nContent-Length: 0\r\n\r\n".encode())


def test_a_server_that_is_up_is_one_sample_and_no_word(times: Path) -> None:
    before = time.time()
    with servers.Server(status(200)) as server:
        assert [check(server.at, times) for _ in range(2)] == [(0, "", "")] * 2
    lines = times.read_text().splitlines(keepends=True)
    assert len(lines) == 2
    for line in lines:
        assert SAMPLE.fullmatch(line)
        _, _, seconds, when = line.split()
        assert 0 < float(seconds) < 60
        assert before - 1 <= float(when) <= time.time()


def test_a_server_that_is_down_is_one_line_and_a_sample_that_says_so(times: Path) -> None:
    with servers.Server(status(503)) as server:
        result = check(server.at, times)
    message = f"error: http://{EU}:{server.port} (127.0.0.1): status 503, expected 200\n"
    assert result == (1, "", message)
    assert FAILED.fullmatch(times.read_text())


def test_a_failure_is_told_once_when_it_begins_and_once_when_it_is_over(times: Path) -> None:
    codes = [200, 503, 503, 500, 200, 200, 503]
    told = []
    for code in codes:
        with servers.Server(status(code)) as server:
            result = check(server.at, times)
            check(server.at, times, HAPROXY_SERVER_NAME="us.example.com")
        assert result.code == (code != 200)
        told.append(result.err.replace(f":{server.port}", ""))
    where = f"http://{EU} (127.0.0.1)"
    begins = f"error: {where}: status 503, expected 200\n"
    assert told == ["", begins, "", "", f"{where}: up again\n", "", begins]


@pytest.mark.parametrize(
    ("tls", "proto", "scheme"),
    [
        ("1", "h1", "https"),
        ("1", "h2", "https"),
        ("1", "tcp", "tls"),
        ("1", None, "https"),
        ("0", "h1", "http"),
        ("0", "h2", "http"),
        ("0", "tcp", "tcp"),
        ("0", None, "http"),
        (None, "h1", "https"),
        (None, "tcp", "tls"),
        (None, None, "https"),
    ],
)
def test_the_scheme_is_what_haproxy_speaks_to_the_server(
    tls: str | None, proto: str | None, scheme: str, times: Path
) -> None:
    with servers.refusing() as port:
        result = check(("127.0.0.1", port), times, HAPROXY_SERVER_SSL=tls, HAPROXY_SERVER_PROTO=proto)
    assert result == (1, "", f"error: {scheme}://{EU}:{port} (127.0.0.1): connection refused, connecting\n")
    assert FAILED.fullmatch(times.read_text())


@pytest.mark.parametrize("scheme", ["tcp", "tls", "http", "https"])
def test_the_scheme_can_be_set(scheme: str, times: Path, ca_file: str) -> None:
    tls = servers.good() if scheme in ("tls", "https") else None
    behaviour = status(200) if scheme in ("http", "https") else servers.silent
    with servers.Server(behaviour, tls=tls) as server:
        assert check(server.at, times, MULTICLOUD_SCHEME=scheme, MULTICLOUD_CA_FILE=ca_file) == (0, "", "")
    assert SAMPLE.fullmatch(times.read_text())


def test_a_certificate_is_verified_unless_insecure_is_set(times: Path) -> None:
    with servers.Server(status(200), tls=servers.good()) as server:
        verified = check(server.at, times, HAPROXY_SERVER_SSL="1")
        insecure = check(server.at, times, HAPROXY_SERVER_SSL="1", MULTICLOUD_INSECURE="1")
    reason = "certificate not accepted: unable to get local issuer certificate, in the TLS handshake"
    assert verified == (1, "", f"error: https://{EU}:{server.port} (127.0.0.1): {reason}\n")
    assert insecure == (0, "", f"https://{EU}:{server.port} (127.0.0.1): up again\n")


def test_the_settings_reach_the_server(times: Path) -> None:
    asked = {"MULTICLOUD_HOST": "www.example.com", "MULTICLOUD_PATH": "/healthz?deep=1"}
    with servers.Server(status(204)) as server:
        assert check(server.at, times, MULTICLOUD_EXPECT="200,204", **asked) == (0, "", "")
    assert server.requests[0].startswith(b"GET /healthz?deep=1 HTTP/1.1\r\nHost: www.example.com\r\n")
    assert SAMPLE.fullmatch(times.read_text())


def test_the_timeout_is_for_the_whole_probe(times: Path) -> None:
    with servers.Server(servers.drips(b"HTTP/1.1 200 OK\r\n\r\n", every=0.1)) as server:
        result = check(server.at, times, MULTICLOUD_TIMEOUT="1")
    reason = "timed out after 1 s, reading the headers"
    assert result == (1, "", f"error: http://{EU}:{server.port} (127.0.0.1): {reason}\n")
    assert times.read_text().startswith(f"upstream {EU} 1.000000 ")
    assert FAILED.fullmatch(times.read_text())


def test_a_check_that_haproxy_ends_says_what_it_waited_for_and_is_a_sample_of_the_time_it_had(times: Path) -> None:
    with servers.Server(servers.drips(b"HTTP/1.1 200 OK\r\n" * 1000, every=0.1)) as server:
        words, environ = started(server.at, times)
        with subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, text=True) as running:
            wait_until(lambda: bool(server.requests), 30, "the request")
            running.terminate()
            assert running.stderr is not None
            error = running.stderr.read()
    assert running.returncode == 1
    said_so = r"stopped after \d+.\d s, (waiting for the answer|reading the headers)"
    assert re.fullmatch(rf"error: http://{EU}:\d+ \(127.0.0.1\): {said_so}\n", error)
    assert FAILED.fullmatch(times.read_text())
    assert 0 < float(times.read_text().split()[2]) < 10


def test_without_arguments_the_variables_say_which_server(times: Path) -> None:
    with servers.Server(status(200)) as server:
        assert run([CHECK], environment(server.at, times)) == (0, "", "")
    assert SAMPLE.fullmatch(times.read_text())


@pytest.mark.parametrize("missing", ["HAPROXY_PROXY_NAME", "HAPROXY_SERVER_NAME"])
def test_a_server_without_a_name_is_not_recorded(missing: str, times: Path) -> None:
    with servers.Server(status(200)) as server:
        result = check(server.at, times, **{missing: None})
    warning = "warning: not recorded: HAPROXY_PROXY_NAME and HAPROXY_SERVER_NAME do not name a server\n"
    assert result == (0, "", warning)
    assert not times.exists()


@pytest.mark.parametrize(
    ("variables", "error"),
    [
        ({"MULTICLOUD_PATH": "/\r\nX: y"}, r"MULTICLOUD_PATH: cannot read '/\r\nX: y'; accepted: a path that starts"),
        (
            {"MULTICLOUD_CA_FILE": "/missing.pem", "HAPROXY_SERVER_SSL": "1"},
            "MULTICLOUD_CA_FILE: cannot load '/missing.pem': no such file or directory",
        ),
    ],
)
def test_a_wrong_setting_is_one_line(variables: dict[str, str], error: str, times: Path) -> None:
    with servers.refusing() as port:
        assert_is_one_line(check(("127.0.0.1", port), times, **variables), error)


def assert_is_one_line(result: Said, error: str) -> None:
    assert (result.code, result.out) == (2, "")
    assert result.err.startswith(f"error: {error}")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "variables", "error"),
    [
        (["127.0.0.1"], {}, "usage: multicloud-check [proxy_addr proxy_port server_addr server_port]"),
        ([NOT_USED, NOT_USED, "", "80"], {}, "no server address, neither as an argument nor in HAPROXY_SERVER_ADDR"),
        ([], {"HAPROXY_SERVER_ADDR": None}, "no server address, neither as an argument nor in HAPROXY_SERVER_ADDR"),
        ([NOT_USED, NOT_USED, "127.0.0.1", "http"], {}, "not a port: 'http'"),
        ([NOT_USED, NOT_USED, "127.0.0.1", "65536"], {}, "not a port: '65536'"),
        ([NOT_USED, NOT_USED, "127.0.0.1", "9" * 5000], {}, "not a port: '999"),
        ([NOT_USED, NOT_USED, "abns@name", NOT_USED], {}, "cannot probe 'abns@name'; give an IP address"),
        (
            [NOT_USED, NOT_USED, "127.0.0.1", "0"],
            {"HAPROXY_SERVER_PROTO": "tcp"},
            "no server port for tcp, neither as an argument nor in HAPROXY_SERVER_PORT",
        ),
    ],
)
def test_a_server_that_is_not_said_is_one_line(
    words: list[str], variables: dict[str, str | None], error: str, times: Path
) -> None:
    assert_is_one_line(run([CHECK, *words], environment(("127.0.0.1", 1), times, **variables)), error)


def test_a_sample_that_cannot_be_recorded_changes_no_verdict(times: Path) -> None:
    times.mkdir()
    with servers.Server(status(200)) as server:
        assert check(server.at, times) == (0, "", f"warning: not recorded: {times}: is a directory\n")
    with servers.Server(status(503)) as server:
        down = check(server.at, times)
    assert (down.code, down.err.count("\n")) == (1, 1)


def test_the_verdict_does_not_depend_on_how_the_end_of_a_child_is_told(times: Path) -> None:
    with servers.Server(status(200)) as server:
        words, environ = started(server.at, times)
        result = run(["/bin/sh", "-c", 'trap "" CHLD; exec "$@"', "sh", *words], environ)
    assert result == (0, "", "")
    assert SAMPLE.fullmatch(times.read_text())


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "2>&-", "</dev/null >/dev/full 2>/dev/full"])
def test_the_verdict_needs_no_standard_streams(streams: str, times: Path, tmp_path: Path) -> None:
    def code(server: servers.Server, path: Path) -> int:
        words, environ = started(server.at, path)
        return run(["/bin/sh", "-c", f'exec "$@" {streams}', "sh", *words], environ).code

    with servers.Server(status(200)) as server:
        assert code(server, times) == 0
        assert SAMPLE.fullmatch(times.read_text())
        assert code(server, tmp_path) == 0  # not a file: there is a warning to be said
    with servers.Server(status(503)) as server:
        assert code(server, times) == 1
        assert code(server, Path("\n")) == 2
    good, bad = times.read_text().splitlines(keepends=True)
    assert SAMPLE.fullmatch(good)
    assert FAILED.fullmatch(bad)


def test_the_verdict_needs_nobody_who_reads(times: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    try:
        with servers.Server(status(200)) as server:
            words, environ = started(server.at, times.parent)
            result = subprocess.run(words, env=environ, stdout=writing, stderr=writing, timeout=60, check=False)
    finally:
        os.close(writing)
    assert result.returncode == 0


def test_a_check_that_is_killed_leaves_no_partial_line(times: Path) -> None:
    chance = random.Random(1)
    with servers.Server(status(200)) as server:
        words, environ = started(server.at, times)
        codes = set()
        for _ in range(30):
            with subprocess.Popen(words, env=environ, stderr=subprocess.DEVNULL) as process:
                time.sleep(chance.uniform(0, 0.2))
                process.terminate()
                codes.add(process.wait(60))
                assert not times.exists() or SAMPLES.fullmatch(times.read_text())
        assert -signal.SIGTERM in codes
        killed = times.read_text() if times.exists() else ""
        assert run(words, environ).code == 0  # and the server is up again, where the last one was stopped
    assert times.read_text().startswith(killed)
    assert SAMPLES.fullmatch(times.read_text()[len(killed) :])


def test_a_wrapper_of_two_lines_sets_what_haproxy_does_not_hand_on(times: Path, tmp_path: Path) -> None:
    wrapper = tmp_path / "check-eu"
    wrapper.write_text(f'#!/bin/sh\nMULTICLOUD_PATH=/healthz MULTICLOUD_TIMES={times} exec multicloud-check "$@"\n')
    wrapper.chmod(0o755)
    with servers.Server(status(200)) as server:
        path = f"{Path(CHECK).parent}:{os.defpath}"
        (_, *arguments), environ = started(server.at, times, PATH=path, MULTICLOUD_TIMES=None)
        assert run([str(wrapper), *arguments], environ) == (0, "", "")
    assert server.requests[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: eu.example.com\r\n")
    assert SAMPLE.fullmatch(times.read_text())


def configured(directory: Path, times: Path, backends: str) -> str:
    """The path of a configuration of HAProxy that has each server checked.

    `backends` are the servers of the backend `web`, and further backends.
    """
    path, command = directory / "haproxy.cfg", directory / "check"
    command.write_text(f'#!/bin/sh\nMULTICLOUD_INSECURE=1 MULTICLOUD_TIMES={times} exec {CHECK} "$@"\n')
    command.chmod(0o755)
    path.write_text(
        f"""
        global
            insecure-fork-wanted
            external-check
        defaults
            timeout connect 10s
            timeout client 10s
            timeout server 10s
            option external-check
            external-check path "{os.defpath}"
            external-check command "{command}"
            default-server check inter 1s
        frontend front
            mode http
            bind "unix@{directory}/front.sock"
            default_backend web
        backend web
            mode http
        {backends}
        \n"""
    )
    return str(path)


def test_haproxy_itself_names_address_port_and_scheme(times: Path, tmp_path: Path) -> None:
    def checked() -> set[str]:
        return {line.split()[1] for line in times.read_text().splitlines()} if times.exists() else set()

    with (
        servers.Server(status(200), address=str(tmp_path / "app.sock")) as unix,
        servers.Server(status(200), address="::1") as ipv6,
        servers.Server(status(200), tls=servers.good()) as https,
        servers.Server(servers.silent, tls=servers.good()) as tls,
        servers.Server(servers.silent) as tcp,
    ):
        configuration = configured(
            tmp_path,
            times,
            f"""
                server unix "unix@{unix.address}"
                server ipv6 [::1]:{ipv6.port}
                server https 127.0.0.1:{https.port} ssl verify none
            backend raw
                mode tcp
                server tls 127.0.0.1:{tls.port} ssl verify none
                server tcp 127.0.0.1:{tcp.port}
            """,
        )
        with subprocess.Popen([haproxy_binary(), "-db", "-q", "-f", configuration]) as haproxy:
            try:
                wait_until(lambda: checked() >= {"unix", "ipv6", "https", "tls", "tcp"}, 60, "a sample of each")
            finally:
                haproxy.terminate()
    hosts = [server.requests[0].split(b"\r\n")[1] for server in (unix, ipv6, https)]
    assert hosts == [b"Host: unix", b"Host: ipv6", b"Host: https"]
    assert (https.names[0], tls.names[0]) == ("https", "tls")


PROCESS_1 = """
import os, subprocess, sys
haproxy = subprocess.Popen(sys.argv[1:])
input()
stats = [open(f"/proc/{name}/stat").read() for name in os.listdir("/proc") if name.isdigit()]
print(sum(stat.rpartition(")")[2].startswith(" Z 1 ") for stat in stats))
haproxy.kill()
"""
"""It starts HAProxy and never waits for a child. When it is asked, it says how many zombies it has, and ends."""


@pytest.mark.root("make a namespace of processes")
@pytest.mark.parametrize("behaviour", [status(200), servers.endless(b"HTTP/1.1 200 OK\r\n\r\n", b"x", pause=0.03)])
def test_a_check_leaves_no_zombie_where_process_1_does_not_reap(
    behaviour: servers.Behaviour, times: Path, tmp_path: Path
) -> None:
    apart = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if shutil.which("unshare") is None or run([*apart, "true"]).code:
        pytest.skip("unshare does not work here")
    with servers.Server(behaviour) as server:
        configuration = configured(tmp_path, times, f"server eu 127.0.0.1:{server.port}")
        words = [*apart, sys.executable, "-c", PROCESS_1, haproxy_binary(), "-db", "-q", "-f", configuration]
        with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process_1:
            try:
                wait_until(lambda: times.exists() and times.read_text().count("\n") >= 4, 30, "four checks")
                zombies, _ = process_1.communicate("\n", timeout=30)
            finally:
                process_1.kill()
    assert zombies == "0\n"


def test_a_failure_that_nobody_thought_of_is_one_line(times: Path, tmp_path: Path) -> None:
    # A Python without its ssl module: built so, or with an OpenSSL that is gone.
    (tmp_path / "ssl.py").write_text("raise ImportError('no OpenSSL')\n")
    with servers.refusing() as port:
        result = check(("127.0.0.1", port), times, HAPROXY_SERVER_SSL="1", PYTHONPATH=str(tmp_path))
    assert result == (1, "", "error: ImportError: no OpenSSL (ssl.py:1); please report it\n")


def test_the_settings_of_a_backend_and_of_a_server_are_read_from_the_file(times: Path, tmp_path: Path) -> None:
    conf = tmp_path / "multicloud.conf"
    conf.write_text(f"times = {times}\nexpect = 500\n[upstream]\nexpect = 204\n[upstream/{EU}]\nexpect = 201\n")
    given = {"MULTICLOUD_CONF": str(conf), "MULTICLOUD_TIMES": None}
    for code, name, backend in ((201, EU, "upstream"), (204, "us", "upstream"), (500, "us", "other")):
        with servers.Server(status(code)) as server:
            result = check(server.at, times, HAPROXY_SERVER_NAME=name, HAPROXY_PROXY_NAME=backend, **given)
        assert result == (0, "", ""), code
    assert len(times.read_text().splitlines()) == 3


def test_a_settings_file_that_cannot_be_read_is_one_line_and_exit_code_2(times: Path, tmp_path: Path) -> None:
    conf = tmp_path / "multicloud.conf"
    conf.write_text("[upstream\npath = /healthz\n")
    result = check(("127.0.0.1", 1), times, MULTICLOUD_CONF=str(conf))
    assert result == (2, "", f"error: {conf}:1: cannot read '[upstream'; accepted: [backend] or [backend/server]\n")


@contextlib.contextmanager
def frozen_disk(directory: Path, name: str) -> Iterator[Path]:
    """A directory on a disk of its own, with a file of that name, on which every process waits that writes."""
    image, disk = directory / "disk.img", directory / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(8 << 20)
    for words in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(disk)]):
        if shutil.which(words[0]) is None or run(words).code:
            pytest.skip(f"{words[0]} does not work here")
    try:
        (disk / name).touch()
        if run(["fsfreeze", "--freeze", str(disk)]).code:
            pytest.skip("fsfreeze does not work here")
        try:
            yield disk
        finally:
            run(["fsfreeze", "--unfreeze", str(disk)])
    finally:
        run(["umount", "--lazy", str(disk)])


@pytest.mark.root("mount a disk")
@pytest.mark.parametrize("there", [True, False])
def test_on_a_frozen_disk_a_check_has_its_verdict_and_only_one_waits_for_the_disk(there: bool, tmp_path: Path) -> None:
    with servers.Server(status(200)) as server, frozen_disk(tmp_path, "there.txt") as disk:
        path = disk / ("there.txt" if there else "new.txt")
        words, environ = started(server.at, path)
        # Its child would keep a pipe of standard error open.
        assert subprocess.run(words, env=environ, stderr=subprocess.DEVNULL, timeout=60).returncode == 0
        for _ in range(3):
            reason = "locked by another process for more than 0.1 s: is its disk frozen?"
            warning = f"warning: not recorded: {path if there else disk}: {reason}\n"
            assert run(words, environ) == (0, "", warning)
        assert len(waiting_with(f"MULTICLOUD_TIMES={path}")) == 1


@pytest.mark.root("be a user who has too many processes")
def test_where_there_can_be_no_other_process_the_verdict_is_given_all_the_same(times: Path) -> None:
    nobody = ["setpriv", "--reuid=65533", "--clear-groups", "prlimit", "--nproc=0"]
    if not all(map(shutil.which, ("setpriv", "prlimit"))) or run([*nobody, CHECK], {}).code == 126:
        pytest.skip("another user cannot run this")
    with servers.Server(status(200)) as server:
        words, environ = started(server.at, times)
        result = run([*nobody, *words], environ)
    assert result == (0, "", "warning: not recorded: resource temporarily unavailable\n")


def test_what_records_ends_also_where_nobody_reads_what_it_says(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        os.set_blocking(writing, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(writing, b"x" * 4096)
        os.set_blocking(writing, True)
        with servers.Server(status(200)) as server:
            words, environ = started(server.at, tmp_path / "none" / "times.txt")
            assert subprocess.run(words, env=environ, stderr=writing, timeout=60).returncode == 0
        mark = f"MULTICLOUD_TIMES={tmp_path}/none"
        wait_until(lambda: not waiting_with(mark), 30, "the end of what records")
    finally:
        os.close(reading)
        os.close(writing)


def waiting_with(mark: str) -> list[str]:
    """The processes that have it in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in path.read_bytes():
                found.append(path.parent.name)
    return found
