"""A configuration that was written for the shell version runs unchanged: its places, its clean environment, its weights.

The places (`/scripts`, `/tmp/times.txt`, `/var/run/haproxy.sock`) are the machine's, so HAProxy runs where it sees others
there: in namespaces of its own.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multicloud import demo
from tests.edge import free_ports, wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

DELAYS = {"eu": 0.01, "us": 0.06, "asia": 0.12, "africa": 0.18}

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


def shell_version(regions: demo.Regions, port: int) -> str:
    """A configuration of the shell version's shape, with the regions as its servers."""
    servers = [f"    server {r.name} 127.0.0.1:{r.port} check ssl check-ssl verify none weight 0" for r in regions]
    return SHELL_VERSION.format(port=port, servers="\n".join(servers))


# Every directory of / but three is the machine's. What the tests run from may lie under one of these: it is shown again.
OWN_PLACES = """
root=$1; shift
show() { mkdir -p "$root$1"; mount --rbind "$1" "$root$1"; }
for each in /*; do
    case $each in
        /tmp|/run|/scripts) ;;
        *) if [ -L "$each" ]; then cp -P "$each" "$root/"; elif [ -d "$each" ]; then show "$each"; fi ;;
    esac
done
mkdir -p "$root/tmp" "$root/run"
for each in {paths}; do
    case $each in /tmp/*|/run/*) show "$each" ;; esac
done
exec chroot "$root" env -i "$@"
"""
UNSHARE = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """A root directory whose /tmp, /run and /scripts are empty."""
    if not shutil.which("unshare") or subprocess.run([*UNSHARE, "true"], capture_output=True).returncode:
        pytest.skip("namespaces are not permitted here")
    root = tmp_path / "root"
    root.mkdir()
    yield root


def installed(command: str) -> str:
    return str(Path(sysconfig.get_path("scripts"), command))
