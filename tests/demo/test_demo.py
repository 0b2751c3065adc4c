"""The demo as a new user starts it: a real process, and nothing left behind."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.command import PROGRAM, run
from tests.edge import wait_until
from tests.ports import demo_ports


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A directory with a short name: a UNIX socket's path has no more than 108 bytes."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@contextlib.contextmanager
def started(temporary: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """The demo, its port and that of its stats."""
    port, stats_port = demo_ports()
    demo = subprocess.Popen(
        # Where the tests run in the background, Ctrl-C is ignored, and so it would be by what they start.
        ["env", "--default-signal=INT", PROGRAM, "demo", f"--port={port}", f"--stats-port={stats_port}", *arguments],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield demo, port, stats_port
    finally:
        demo.kill()


def upstream(port: int) -> str | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/")
        return connection.getresponse().headers["upstream"]
    except OSError:
        return None
    finally:
        connection.close()


def processes_with(text: str) -> list[str]:
    """Command lines of the processes that name `text`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line:
            found.append(line)
    return found


@pytest.mark.parametrize(
    ("end", "way"), [(signal.SIGINT, []), (signal.SIGTERM, []), (None, []), (signal.SIGINT, ["--beside"])]
)
def test_it_serves_and_shows_and_leaves_nothing_behind(
    temporary: Path, end: signal.Signals | None, way: list[str]
) -> None:
    duration = ["--duration=6"] if end is None else []
    with started(temporary, *duration, *way) as (demo, port, stats_port):
        assert demo.stdout
        shown = demo.stdout.readline() + demo.stdout.readline()
        wait_until(lambda: (upstream(port) or "").endswith(".demo"), 20, "an answer of a region")
        if end is not None:
            demo.send_signal(end)
        _, err = demo.communicate(timeout=30)
    assert f"http://localhost:{port}/" in shown
    assert f"http://localhost:{stats_port}/" in shown
    assert "Traceback" not in err
    assert demo.returncode == (143 if end is signal.SIGTERM else 0)
    assert list(temporary.iterdir()) == []
    assert processes_with(str(temporary)) == []


def test_beside_it_has_no_external_checks_and_measures(temporary: Path) -> None:
    with started(temporary, "--duration=8", "--beside") as (demo, _, _):
        wait_until(lambda: bool(list(temporary.glob("*/times.txt"))), 20, "samples")
        [written] = temporary.glob("*/haproxy.cfg")
        assert "external-check" not in written.read_text()
        out, err = demo.communicate(timeout=30)
    assert (demo.returncode, err) == (0, "")
    assert "multicloud-run" not in out  # no problem is shown


def test_a_taken_port_is_one_clear_line(temporary: Path) -> None:
    others = "choose others with --port and --stats-port, each of which needs the next one, too"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run("demo", f"--port={port}", environ={"TMPDIR": str(temporary)})
    said = f"error: port {port}: address already in use; {others}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", said)
    port, _ = demo_ports()
    done = run("demo", f"--port={port}", f"--stats-port={port + 1}", environ={"TMPDIR": str(temporary)})
    assert (done.returncode, done.stderr) == (1, f"error: port {port + 1}: address already in use; {others}\n")


def test_a_haproxy_that_cannot_be_run_is_one_clear_line(temporary: Path) -> None:
    port, stats_port = map(str, demo_ports())
    environ = {"TMPDIR": str(temporary), "HAPROXY_BINARY": "/no/such/haproxy"}
    done = run("demo", "--port", port, "--stats-port", stats_port, environ=environ)
    assert (done.returncode, done.stderr) == (1, "error: HAPROXY_BINARY: cannot run '/no/such/haproxy'\n")
