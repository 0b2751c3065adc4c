"""A configuration that was written for the shell version runs unchanged: places, clean environment, initial weights.

Its places (`/scripts`, `/tmp/times.txt`, `/var/run/haproxy.sock`) are the machine's own, so HAProxy runs here with a
root directory in which they are the test's.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multicloud import history
from multicloud.demo.router import haproxy_binary
from tests.edge import regions_at, wait_until
from tests.haproxy import weights
from tests.ports import free_port
from tests.user import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.regions import Regions

DELAYS = {"eu": 0.02, "us": 0.3, "asia": 0.6, "africa": 0.9}

SHELL_VERSION = """
global
    stats socket /var/run/haproxy.sock mode 600 level admin
    insecure-fork-wanted
    external-check

defaults
    mode http
    timeout connect 2s
    timeout client 10s
    timeout server 10s

frontend app
    bind 127.0.0.1:{port}
    default_backend upstream

backend upstream
    balance roundrobin
    http-response set-header Upstream %s
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command /scripts/check_server_https.sh
    default-server inter 2s
{servers}

backend weights
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command /scripts/set_server_weights.sh
    server weights 127.0.0.1:1 check inter 2s
"""


def shell_version(regions: Regions, port: int) -> str:
    """A configuration of the shell version's shape, with the regions as its servers."""
    servers = [f"    server {r.name} 127.0.0.1:{r.port} check ssl check-ssl verify none weight 0" for r in regions]
    return SHELL_VERSION.format(port=port, servers="\n".join(servers))


# All that is in / is shown again in a root directory, but for the three directories that this one has of its own. What
# the test runs from may lie under one of these.
CHANGE_ROOT = """
root=$1 needed=$2; shift 2
show() { mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; }
for each in /*; do
    if [ -L "$each" ]; then cp -P "$each" "$root/"; elif [ -d "$each" ] && [ ! -d "$root$each" ]; then show "$each"; fi
done
for each in $needed; do
    case $each in /tmp/*|/run/*|/scripts/*) show "$each" ;; esac
done
exec chroot "$root" env -i "$@"
"""
NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-eu", "-c"]


def test_a_configuration_for_the_shell_version_runs_unchanged() -> None:
    if not shutil.which("unshare") or subprocess.run([*NAMESPACES, "mount -t tmpfs none /tmp"], check=False).returncode:
        pytest.skip("mount namespaces are not permitted here")
    port = free_port()
    with tempfile.TemporaryDirectory() as name, regions_at(DELAYS) as regions:
        root = Path(name)
        for each in ("tmp", "run", "scripts"):
            (root / each).mkdir()
        (root / "tmp" / "haproxy.cfg").write_text(shell_version(regions, port))
        regions.authority.cert_pem.write_to_path(str(root / "tmp" / "authority.pem"))
        commands = Path(sysconfig.get_path("scripts"))
        (root / "scripts" / "set_server_weights.sh").symlink_to(commands / "multicloud-reweigh")
        # The regions' authority is not among the system's, which the shell version verifies with too.
        check = root / "scripts" / "check_server_https.sh"
        check.write_text(f'#!/bin/sh\nMULTICLOUD_CA_FILE=/tmp/authority.pem exec {commands}/multicloud-check "$@"\n')
        check.chmod(0o755)
        with router(root):
            api, times = str(root / "run" / "haproxy.sock"), str(root / "tmp" / "times.txt")
            wait_until(lambda: Path(api).exists(), 10, "HAProxy starts")
            measured = {("upstream", region) for region in DELAYS}
            wait_until(lambda: set(history.read(times, 30).series) == measured, 60, "a sample of each server")
            wait_until(lambda: [*weights(api).values()] == [256, 1, 0, 0], 120, "256/1/0/0")
            assert asked(port) == (200, "eu")


@contextlib.contextmanager
def router(root: Path) -> Iterator[None]:
    """HAProxy, started without any variables, with its configuration in `root` and `root` for its /."""
    binary = haproxy_binary()
    needed = " ".join({sys.prefix, sys.base_prefix, str(Path(history.__file__).parent), str(Path(binary).parent)})
    command = [*NAMESPACES, CHANGE_ROOT, "sh", str(root), needed, binary, "-f", "/tmp/haproxy.cfg"]
    with (root / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    try:
        yield
    except BaseException:
        print((root / "log").read_text())
        raise
    finally:
        process.terminate()
        process.wait(timeout=10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # checks that are still under way
