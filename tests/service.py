"""The unit of the Debian package under a systemd that runs, as tests/package.sh made the machine and runs this.

The tests are in an operator's order: enable, reload, restart HAProxy, kill, hang, misspell a setting, stop.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.edge import regions_at, wait_until
from tests.machine import Booted
from tests.package import CONFIGURATION, ROOT, WEB, append, install, named, shell, weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.machine import Machine

DELAYS = {"eu.example.com": 0.02, "us.example.com": 0.06}
SETTINGS = """
socket = /run/haproxy/admin.sock
times = /run/multicloud/times.txt
backends = app
"""


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """A machine with the package and Debian's HAProxy, which checks its regions itself."""
    with regions_at(DELAYS) as regions, Booted(ROOT) as running:
        authority = Path(f"/proc/{running.pid}/root/usr/local/share/ca-certificates/regions.crt")
        authority.write_bytes(regions.authority.cert_pem.bytes())
        install(running)
        servers = named(regions, *DELAYS)
        command = f"multicloud config --blocks --beside --backend app {servers}"
        shell(running, f"{command} | sed 's/bind :8080/bind 127.0.0.1:{WEB}/' >>{CONFIGURATION}")
        append(running, "/etc/multicloud.conf", SETTINGS)
        shell(running, f"haproxy -c -f {CONFIGURATION} && systemctl reload haproxy")
        yield running


def state(machine: Machine, name: str) -> str:
    """What systemd says of the unit."""
    return shell(machine, f"systemctl show --property {name} --value multicloud").strip()


def said(machine: Machine) -> list[str]:
    """What the service has said since the machine was started."""
    return shell(machine, "journalctl --unit multicloud --identifier multicloud-run --output cat").splitlines()


def routes(machine: Machine) -> bool:
    """Whether the nearer region is the favourite."""
    return weights(machine, "app") == {"eu.example.com": 256, "us.example.com": 1}


def test_it_is_started_once_it_has_set_weights_as_a_user_of_its_own(machine: Machine) -> None:
    shell(machine, "systemctl enable --now multicloud")
    assert said(machine)
    wait_until(lambda: routes(machine), 30, "256/1")
    pid = state(machine, "MainPID")
    user, group = shell(machine, f"stat --format='%u %G' /proc/{pid}").split()
    assert int(user) in range(61184, 65520)  # systemd's dynamic ones
    assert group == "haproxy"
    assert state(machine, "IPAddressDeny") == ""  # it connects to servers, to see who is far
    doctor = machine.run("multicloud", "doctor", "-f", CONFIGURATION)
    assert [line for line in doctor.stdout.splitlines() if not line.startswith("ok")] == []


def test_a_reload_reads_the_settings_and_a_restart_keeps_the_samples(machine: Machine) -> None:
    shell(machine, "systemctl reload multicloud")
    wait_until(lambda: "the settings were read again" in said(machine), 10, "it says so")
    before = shell(machine, "head -n 1 /run/multicloud/times.txt")
    shell(machine, "systemctl restart multicloud")
    assert shell(machine, "head -n 1 /run/multicloud/times.txt") == before


def test_haproxy_may_be_restarted_and_reloaded(machine: Machine) -> None:
    pid = state(machine, "MainPID")
    for how in ("reload", "restart"):
        shell(machine, f"systemctl {how} haproxy")
        wait_until(lambda: routes(machine), 30, f"256/1 after the {how}")
    assert state(machine, "MainPID") == pid


def test_it_is_started_again_when_it_is_killed(machine: Machine) -> None:
    pid = state(machine, "MainPID")
    shell(machine, f"kill -KILL {pid}")
    wait_until(lambda: state(machine, "MainPID") not in ("0", pid), 30, "another one")
    wait_until(lambda: state(machine, "ActiveState") == "active", 30, "that is ready")


def test_it_is_started_again_when_it_hangs(machine: Machine) -> None:
    drop_in = "/run/systemd/system/multicloud.service.d"
    shell(machine, f"mkdir -p {drop_in}; printf '[Service]\nWatchdogSec=8\n' >{drop_in}/soon.conf")
    shell(machine, "systemctl daemon-reload; systemctl restart multicloud")
    pid = state(machine, "MainPID")
    shell(machine, f"kill -STOP {pid}")
    wait_until(lambda: state(machine, "MainPID") not in ("0", pid), 60, "another one")
    assert "watchdog" in shell(machine, "journalctl --unit multicloud --output cat")


def test_a_setting_that_cannot_be_read_is_said_once_and_it_is_not_started_again(machine: Machine) -> None:
    append(machine, "/etc/multicloud.conf", "intervall = 2\n")
    before = len(said(machine))
    assert machine.run("systemctl", "restart", "multicloud").returncode == 1
    assert (state(machine, "ActiveState"), state(machine, "ExecMainStatus")) == ("failed", "2")
    new = said(machine)[before:]
    assert len(new) == 1
    assert new[0].startswith("error: /etc/multicloud.conf:")
    shell(machine, "sed -i '/^intervall/d' /etc/multicloud.conf; systemctl start multicloud")


def test_it_stops_with_exit_code_0_and_leaves_no_samples(machine: Machine) -> None:
    shell(machine, "systemctl stop multicloud")
    assert (state(machine, "Result"), state(machine, "ExecMainStatus")) == ("success", "0")
    assert not os.path.exists(f"/proc/{machine.pid}/root/run/private/multicloud")
