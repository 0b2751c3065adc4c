"""What HAProxy starts all day imports nothing that it does not need: a module more is a millisecond more, for ever."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import multicloud
from tests import servers
from tests.edge import edge
from tests.test_check import environment

OURS = {"multicloud"} | {f"multicloud.{name}" for name in ("light", "samplefile", "settings")}
CHECK = OURS | {"multicloud.check", "multicloud.probe"}
REWEIGH = OURS | {f"multicloud.{name}" for name in ("history", "reweigh", "ranking", "runtime", "scores", "sharing")}
RUN = REWEIGH | {"multicloud.run", "multicloud.haproxy_checks", "multicloud.overview", "multicloud.scrape"}


def modules(code: str, environ: dict[str, str]) -> set[str]:
    """The modules that are loaded after a fresh interpreter has run `code`."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules, file=sys.stderr)"],
        env=environ,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stderr.split())


def loaded_by(command: str, allowed: str, environ: dict[str, str], before: str = "") -> set[str]:
    """What a command has loaded when it is done, beyond the public modules `allowed` and what they load themselves."""
    code = f"{before}from multicloud.{command} import main\nfrom multicloud.light import run\nassert main() == 0"
    return modules(code, environ) - modules(f"import __future__, {allowed}", environ)


@pytest.mark.parametrize(
    ("scheme", "allowed"),
    [
        ("tcp", "_socket, errno, fcntl, os, select, stat, time"),
        ("http", "_socket, errno, fcntl, os, select, stat, time"),
        ("https", "errno, fcntl, os, socket, ssl, stat, time"),
    ],
)
def test_a_check_imports_nothing_else(times: Path, ca_file: str, scheme: str, allowed: str) -> None:
    tls = servers.good() if scheme == "https" else None
    with servers.Server(servers.answers(servers.OK), tls=tls) as server:
        environ = environment(server.at, times, MULTICLOUD_SCHEME=scheme, MULTICLOUD_CA_FILE=ca_file)
        assert loaded_by("check", allowed, environ) == CHECK


def test_a_reweigh_imports_nothing_else_but_numpy() -> None:
    with edge({"eu.demo": 0.0}, interval="600s", times="upstream eu.demo 0.1\n") as running:
        environ = {"PATH": os.environ["PATH"], **running.router.settings}
        assert loaded_by("reweigh", "errno, fcntl, math, numpy, os, socket, stat, time, typing", environ) == REWEIGH


def test_run_imports_nothing_else_but_numpy() -> None:
    # The signal that ends it after its first round waits for it already.
    ended = (
        "import os, signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
        "os.kill(os.getpid(), signal.SIGTERM)\n"
    )
    with edge({"eu.demo": 0.0}, interval="600s", times="upstream eu.demo 0.1\n") as running:
        environ = {"PATH": os.environ["PATH"], "MULTICLOUD_BACKENDS": "upstream", **running.router.settings}
        allowed = "bisect, contextlib, errno, fcntl, gc, json, math, numpy, select, signal, socket, threading, typing"
        assert loaded_by("run", allowed, environ, ended) == RUN


def imported(path: Path) -> set[str]:
    """The modules of the package that a module imports when it runs, by their names in the package."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("multicloud"):
            folder = (node.module or "").removeprefix("multicloud").removeprefix(".")
            found |= {folder} if folder else {alias.name for alias in node.names}
    return found


def test_imports_of_the_machines_wing_point_to_rooms_that_the_manual_names_before() -> None:
    package = Path(multicloud.__file__).parent
    page = (package.parent / "docs" / "development.md").read_text()
    rooms = re.findall(r"^\| `(\w+)\.py` \|", page, re.MULTILINE)
    assert sorted(rooms) == sorted(path.stem for path in package.glob("*.py") if path.stem != "__init__")
    for place, room in enumerate(rooms):
        assert imported(package / f"{room}.py") <= {*rooms[:place]}, room


def test_nobody_but_the_command_line_imports_the_demo_and_the_demo_nothing_of_the_console() -> None:
    package = Path(multicloud.__file__).parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        if path.name != "cli.py" and path.parent.name != "demo":
            assert "demo" not in {*re.findall(r"^ *from multicloud import .*\b(demo)\b", text, re.MULTILINE)}, path
            assert "multicloud.demo" not in text, path
        if path.parent.name == "demo":
            assert "console" not in text, path
