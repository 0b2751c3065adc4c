"""The Debian package in a machine that has nothing but it, as tests/package.sh built it and that script runs this.

The tests are an operator's hour, in its order: install, route, add a second application, remove, purge.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.edge import regions_at, wait_until
from tests.machine import PATH, Machine
from tests.ports import demo_ports, free_port
from tests.user import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.regions import Regions

ROOT = Path(os.environ["MACHINE_ROOT"])
PACKAGE = Path(os.environ["PACKAGE"])
CONFIGURATION, SETTINGS = "/etc/haproxy/haproxy.cfg", "/etc/multicloud.conf"
WRITTEN = "/etc/haproxy/multicloud.cfg"
WRITE = f"multicloud config --blocks --output {WRITTEN}"
DELAYS = {"eu.example.com": 0.0, "us.example.com": 0.1, "ap.example.com": 0.2}
WEIGHTS = dict(zip(DELAYS, (256, 1, 0), strict=True))
WEB, API = free_port(), free_port()


def named(regions: Regions, *names: str) -> str:
    """The servers of these names as `multicloud config` is told them."""
    return " ".join(f"{region.name}=127.0.0.1:{region.port}" for region in regions if region.name in names)


def shell(machine: Machine, script: str, seconds: float = 30) -> str:
    """What a script says; it must not fail."""
    done = machine.run("sh", "-euc", script, seconds=seconds)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def append(machine: Machine, path: str, text: str) -> None:
    """Write it at the end of a file."""
    done = machine.run("sh", "-euc", 'printf %s "$1" >>"$2"', "sh", text, path)
    assert done.returncode == 0, done.stderr


def weights(machine: Machine, backend: str) -> dict[str, int]:
    """The weights of a backend's servers."""
    return {row["server"]: row["weight"] for row in machine.status() if row["backend"] == backend}


def assert_reached(port: int, *names: str) -> None:
    """Users reach the favourite, or its backup once in a while."""
    assert {asked(port) for _ in range(10)} <= {(200, name) for name in names}


def traces(machine: Machine) -> set[str]:
    """The files, directories and links whose names are the package's, and the users who are."""
    found = shell(
        machine, "find / -xdev -path /proc -prune -o -name '*multicloud*' -print; cut -d: -f1 /etc/passwd /etc/group"
    )
    return {line for line in found.splitlines() if "multicloud" in line and line != f"/root/{PACKAGE.name}"}


@pytest.fixture(scope="module")
def regions() -> Iterator[Regions]:
    with regions_at({**DELAYS, "sa.example.com": 0.3, "near": 0.0, "far": 0.2}) as regions:
        yield regions


def install(machine: Machine) -> None:
    """Install the package and what it recommends, which is HAProxy, and trust whom the machine was told to."""
    (Path(f"/proc/{machine.pid}/root/root") / PACKAGE.name).write_bytes(PACKAGE.read_bytes())
    packages = f"apt-get update; DEBIAN_FRONTEND=noninteractive apt-get install --yes /root/{PACKAGE.name}"
    shell(machine, f"update-ca-certificates; {packages}", 600)


@pytest.fixture(scope="module")
def machine(regions: Regions) -> Iterator[Machine]:
    """A machine with the package, and with the regions' authority among those that it trusts."""
    authority = {"usr/local/share/ca-certificates/regions.crt": regions.authority.cert_pem.bytes().decode()}
    with Machine(ROOT, files=authority, variables=[PATH, "DEBIAN_FRONTEND=noninteractive"]) as running:
        assert traces(running) == set()
        install(running)
        yield running


def test_the_commands_are_there_and_say_their_version(machine: Machine) -> None:
    assert shell(machine, "multicloud --version").startswith("multicloud, version 0.2.0.dev")
    for program in os.listdir("multicloud/bin"):
        assert shell(machine, f"which {program}") == f"/usr/bin/{program}\n"


def test_nothing_in_the_environment_changes_what_runs(machine: Machine) -> None:
    shell(machine, "mkdir /tmp/other; echo 'raise SystemExit(7)' >/tmp/other/click.py")
    shell(machine, "cd /tmp/other; cp click.py gc.py; PYTHONPATH=/tmp/other multicloud --version")
    for program in os.listdir("multicloud/bin"):
        assert shell(machine, f"head -n 1 /usr/bin/{program}") == "#!/usr/bin/python3 -IS\n"


def test_bytecode_is_there_for_the_python_of_the_release(machine: Machine) -> None:
    tag = shell(machine, "python3 -c 'import sys; print(sys.implementation.cache_tag)'").strip()
    assert shell(machine, f"ls /usr/share/multicloud/multicloud/__pycache__/check.{tag}.pyc")


def test_the_unit_is_there_and_not_enabled(machine: Machine) -> None:
    assert shell(machine, "find /lib/ /usr/lib -name multicloud.service -path '*/systemd/system/*'")
    assert shell(machine, "find /etc/systemd -name multicloud.service") == ""


def test_bash_completes_the_commands(machine: Machine) -> None:
    script = """
        . /usr/share/bash-completion/completions/multicloud
        COMP_WORDS=(multicloud st) COMP_CWORD=1
        _multicloud_completion multicloud
        echo "${COMPREPLY[@]}"
    """
    assert machine.run("bash", "-c", script).stdout == "status\n"


def test_the_settings_file_and_the_manual_are_there(machine: Machine) -> None:
    assert shell(machine, f"stat --format='%a %U' {SETTINGS}") == "644 root\n"
    assert SETTINGS in shell(machine, "dpkg-query --show --showformat='${Conffiles}' multicloud")
    pages = shell(machine, "ls /usr/share/man/man1 /usr/share/man/man5")
    assert {"multicloud.1.gz", "multicloud.conf.5.gz"} <= set(pages.split())
    assert "backend reweigh" in shell(machine, "cat /usr/share/doc/multicloud/haproxy.cfg")
    shell(machine, "cd /usr/share/doc/multicloud/deploy; test -s prometheus/rules.yml; test -s grafana/multicloud.json")
    assert shell(machine, "head -n 1 /usr/share/doc/multicloud/docs/install.md") == "# Install\n"


def test_a_package_that_was_built_later_upgrades(machine: Machine) -> None:
    later = f"""
        cd /tmp
        dpkg-deb --raw-extract /root/{PACKAGE.name} later
        sed -i 's/^Version: .*/&.1/' later/DEBIAN/control
        dpkg-deb --build later multicloud_later_all.deb
        apt-get install --yes ./multicloud_*.deb
        rm -r later multicloud_later_all.deb
    """
    assert "\n1 upgraded" in shell(machine, later, 120)


def test_the_settings_and_one_option_route_beside_debians_configuration(machine: Machine, regions: Regions) -> None:
    servers = named(regions, *DELAYS)
    # Percentiles from the start: numpy's.
    append(machine, SETTINGS, f"min_samples = 0\n[app]\nservers = {servers}\nbind = 127.0.0.1:{WEB}\n")
    append(machine, "/etc/default/haproxy", f'EXTRAOPTS="-f {WRITTEN}"\n')  # there is no systemd, and so no master
    shell(machine, rf"{WRITE} && sed -i '/^\s*chroot/d' {CONFIGURATION} && service haproxy restart")
    wait_until(lambda: weights(machine, "app") == WEIGHTS, 60, "256/1/0")
    assert_reached(WEB, "eu.example.com", "us.example.com")
    assert shell(machine, "stat -c '%U %a' /tmp/times.txt") == "haproxy 640\n"


def test_a_second_application_is_a_section(machine: Machine, regions: Regions) -> None:
    section = f"[api]\nservers = {named(regions, 'near', 'far')}\nbind = 127.0.0.1:{API}\npath = /healthz\n"
    append(machine, SETTINGS, section)
    shell(machine, f"{WRITE} && service haproxy reload")
    wait_until(lambda: weights(machine, "api") == {"near": 256, "far": 1}, 60, "256/1")
    assert_reached(API, "near", "far")
    assert weights(machine, "app") == WEIGHTS


def test_one_more_region_is_a_word(machine: Machine, regions: Regions) -> None:
    shell(machine, f"sed -i 's/^servers = eu.*/& {named(regions, 'sa.example.com')}/' {SETTINGS}")
    shell(machine, f"{WRITE} && service haproxy reload")
    wait_until(lambda: "sa.example.com" in weights(machine, "app"), 60, "the new region is measured, or has no weight")
    assert_reached(WEB, "eu.example.com", "us.example.com")


def test_the_demo_runs_with_what_the_package_suggests(machine: Machine) -> None:
    said = machine.run("multicloud", "demo")
    assert said.returncode == 2
    shell(machine, f"{said.stderr[said.stderr.index('apt install') :].strip()} --yes", 120)
    port, stats_port = demo_ports()
    shell(machine, f"multicloud demo --duration=3 --port={port} --stats-port={stats_port}")


def test_removing_it_leaves_haproxy_and_the_settings(machine: Machine) -> None:
    shell(machine, f"sed -i /EXTRAOPTS=.*multicloud/d /etc/default/haproxy; rm {WRITTEN}; service haproxy restart")
    running = set(machine.processes("haproxy"))
    shell(machine, "apt-get remove --yes multicloud", 120)
    assert set(machine.processes("haproxy")) == running
    assert "path = /healthz" in shell(machine, f"cat {SETTINGS}")
    left = traces(machine) - {SETTINGS}
    assert {path for path in left if not path.startswith(("/var/lib/dpkg/", "/var/lib/systemd/"))} == set()


def test_purging_it_leaves_nothing(machine: Machine) -> None:
    shell(machine, "apt-get purge --yes multicloud", 120)
    assert traces(machine) == set()
    assert machine.processes("haproxy")
