"""`multicloud doctor` as a function, about a real HAProxy whose configuration is broken, and mended as it says."""

import contextlib
import multiprocessing
import os
import pwd
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path

from multicloud import settings
from multicloud.console import doctor, status
from multicloud.demo.router import haproxy_binary
from tests.edge import Edge, Router, measured, wait_until
from tests.haproxy import tell

NOBODY = pwd.getpwnam("nobody")
VERSION = subprocess.run([haproxy_binary(), "-v"], capture_output=True, text=True, check=True).stdout.split()[2]

# With the samples that `examine` writes, nothing is wrong with it.
GOOD = """
global
    stats socket "${MULTICLOUD_SOCKET-/var/run/haproxy.sock}" mode 600 level admin
    insecure-fork-wanted
    external-check
defaults
    mode http
    timeout connect 2s
    timeout client 5s
    timeout server 5s
    timeout tunnel 1h
frontend web
    bind "unix@${MULTICLOUD_SOCKET}.web"
    http-request set-uri %[pathq] if { url -m beg -i http:// https:// }
    http-request deny deny_status 405 if METH_CONNECT
    default_backend upstream
backend upstream
    balance roundrobin
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command true  # stands for multicloud-check
.if version_before(3.3)
    http-send-name-header Host
.endif
    default-server check inter 300
    server eu 127.0.0.1:1 weight 256
    server us 127.0.0.1:2 weight 1
"""

# So begins what is told of HAProxy where the tests are run as root, and would be told beside everything else.
AS_ROOT = "HAProxy runs as root"


def look(environ: Mapping[str, str], *files: Path) -> tuple[list[str], list[str]]:
    """The problems, and all other findings, as they are printed."""
    lines = [
        f"{kind} {text}" for kind, text in doctor.examine(settings.Sources(environ), [str(file) for file in files])
    ]
    lines = [line for line in lines if AS_ROOT not in line]
    wrong = [line for line in lines if line.startswith("problem ")]
    return wrong, [line for line in lines if line not in wrong]


def examine(router: Router) -> tuple[list[str], list[str]]:
    """The same about a running HAProxy of `small`, and its configuration; its samples are as they should be."""
    Path(router.settings["MULTICLOUD_TIMES"]).write_text(measured({"eu": 0.01, "us": 0.1}, 5))
    return look(router.settings, router.directory / "haproxy.cfg")


def look_at(running: Edge) -> tuple[list[str], list[str]]:
    """The same about the shipped configuration and its regions."""
    return look(running.router.settings, running.router.directory / "haproxy.cfg")


def shown(environ: Mapping[str, str]) -> str:
    """The problems and notes that status has below its table."""
    found = status.collect(settings.Sources(environ))
    return " ".join([*found.problems, *found.notes])


def one(lines: list[str], part: str) -> str:
    """The only line with this part."""
    having = [line for line in lines if part in line]
    assert len(having) == 1, lines
    return having[0]


@contextlib.contextmanager
def small(text: str = GOOD, **commands: str) -> Iterator[Router]:
    """Run HAProxy with this configuration."""
    with tempfile.TemporaryDirectory() as name, Router(Path(name), text, commands=commands, environ={}) as router:
        yield router


@contextlib.contextmanager
def of_nobody(text: str, **commands: str) -> Iterator[Router]:
    """The same as nobody, whose sample file and directory it has."""
    line = f"global\n    uid {NOBODY.pw_uid}\n    gid {NOBODY.pw_gid}\n"
    with small(text.replace("global\n", line, 1), **commands) as router:
        (router.directory / "times.txt").touch()
        os.chown(router.directory / "times.txt", NOBODY.pw_uid, NOBODY.pw_gid)
        router.directory.chmod(0o711)
        yield router


def asked_by_somebody(ask: Callable[[], list[str]]) -> list[str]:
    """What a function gives where somebody calls it who has no rights and no groups; only root can."""

    def call(told: Connection) -> None:
        os.setgroups([])
        os.setuid(1)
        told.send(ask())

    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=call, args=(there,))
    child.start()
    answer: list[str] = here.recv()
    child.join()
    return answer


def say(router: Router, command: str) -> str:
    """What HAProxy answers at its Runtime API."""
    return tell(router.settings["MULTICLOUD_SOCKET"], command)[0]


def rewrite(router: Router, change: Callable[[str], str]) -> None:
    """Change the configuration, and start HAProxy again with it."""
    path = router.directory / "haproxy.cfg"
    path.write_text(change(path.read_text()))
    router.restart()


def told(router: Router, *parts: str) -> str:
    """Wait for the only problem, which has these parts."""

    def alone() -> bool:
        wrong = examine(router)[0]
        return len(wrong) == 1 and all(part in wrong[0] for part in parts)

    wait_until(alone, 15, f"{parts} alone is told")
    return examine(router)[0][0]


def well(router: Router) -> None:
    """Wait until no problem is left."""
    wait_until(lambda: examine(router)[0] == [], 15, "nothing is wrong any more")
