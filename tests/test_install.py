"""The table of docs/install.md, row by row, on Debian's own configuration: what is edited, and where users are then."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multicloud import runtime
from tests.console.test_config import DEBIAN
from tests.edge import regions_at, wait_until
from tests.haproxy import process, weights
from tests.ports import free_port
from tests.test_haproxy_cfg import HAPROXIES
from tests.user import asked

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

DELAYS = {"eu.example.com": 0.005, "us.example.com": 0.06, "ap.example.com": 0.1}
WRITE = "multicloud config --blocks --output /etc/haproxy/multicloud.cfg"
DOCTOR = "multicloud doctor -f /etc/haproxy/haproxy.cfg -f /etc/haproxy/multicloud.cfg"
BIN = Path(__file__).parent.parent / ".venv" / "bin"

START = """
mount -t tmpfs none "$1"
for place in /etc /root; do
    mkdir -p "$1$place/new" "$1$place/work"
    mount -t overlay overlay -o "lowerdir=$place,upperdir=$1$place/new,workdir=$1$place/work" "$place"
done
chmod 755 /root # Python may be there
mount -t tmpfs none /tmp; chmod 1777 /tmp
mount -t tmpfs none /run; mkdir -p /run/haproxy /etc/haproxy/errors /etc/default
grep -q ^haproxy: /etc/group || echo haproxy:x:990: >>/etc/group
grep -q ^haproxy: /etc/passwd || echo haproxy:x:990:990::/:/bin/false >>/etc/passwd
chown haproxy:haproxy /run/haproxy; chmod 2775 /run/haproxy # as Debian's tmpfiles.d
touch /etc/haproxy/errors/400.http; : >/etc/default/haproxy; rm -f /etc/multicloud.conf
echo ready; exec sleep infinity
"""
"""A machine's files as the test wants them, which nobody else sees."""


class Debian:
    """A machine with Debian's haproxy.cfg, on which an operator types commands as root."""

    def __init__(self, directory: Path, haproxy: str) -> None:
        self.haproxy = haproxy
        command = ["unshare", "--mount", "sh", "-euc", START, "sh", str(directory)]
        self._files = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._files.stdout
        assert self._files.stdout.readline() == "ready\n"
        self._root = Path(f"/proc/{self._files.pid}/root")
        self.put("/etc/haproxy/haproxy.cfg", re.sub(r"\terrorfile 503.*\n", "", DEBIAN))
        self._master: subprocess.Popen[str] | None = None
        self.socket = str(self._root / "run/haproxy/admin.sock")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        self._files.kill()
        self._files.wait()
        assert self._files.stdout
        self._files.stdout.close()

    def put(self, path: str, text: str) -> None:
        """Write a file as an editor does."""
        (self._root / path[1:]).write_text(text)

    def read(self, path: str) -> str:
        """What is in a file."""
        return (self._root / path[1:]).read_text()

    def edit(self, path: str, old: str, new: str) -> None:
        """Put a text in the place of another one, which is there once."""
        text = self.read(path)
        assert text.count(old) == 1
        self.put(path, text.replace(old, new))

    def _inside(self, *command: str) -> list[str]:
        path = f"PATH={BIN}:{os.environ['PATH']}:/usr/sbin"
        return ["nsenter", f"--mount=/proc/{self._files.pid}/ns/mnt", "--", "env", "-i", path, *command]

    def type(self, command: str) -> subprocess.CompletedProcess[str]:
        """What a command says, which HAProxy's place is told."""
        words = ["env", f"HAPROXY_BINARY={self.haproxy}", "sh", "-c", command]
        return subprocess.run(self._inside(*words), capture_output=True, text=True, check=False)

    def _options(self) -> str:
        """The options of Debian's unit."""
        return "".join(re.findall(r'^EXTRAOPTS="(.*)"', self.read("/etc/default/haproxy"), re.MULTILINE))

    def restart(self) -> None:
        """What `systemctl restart haproxy` does."""
        self._stop()
        # `daemon` is the operator's word, which -W -db has it do without.
        options = f"-W -db -f /etc/haproxy/haproxy.cfg -p /run/haproxy.pid {self._options()}"
        command = self._inside("sh", "-c", f"ulimit -S -n 1024; exec {self.haproxy} {options}")
        self._master = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: self._pid() != 0, 20, "HAProxy answers")

    def reload(self) -> None:
        """What `systemctl reload haproxy` does, once HAProxy has taken the configuration."""
        assert self.type(f"{self.haproxy} -W -c -f /etc/haproxy/haproxy.cfg {self._options()}").returncode == 0
        before = self._pid()
        assert self._master
        self._master.send_signal(signal.SIGUSR2)
        wait_until(lambda: self._pid() not in (0, before), 20, "the new one answers")

    def write_and_reload(self) -> None:
        """What the operator does after each edit of the settings."""
        assert self.type(WRITE).stderr == ""
        self.reload()

    def _pid(self) -> int:
        """The HAProxy that answers; 0 where none does."""
        with contextlib.suppress(runtime.RuntimeAPIError):
            return process(self.socket)
        assert self._master
        assert self._master.poll() is None, self._master.stderr and self._master.stderr.read()
        return 0

    def start(self, command: str) -> subprocess.Popen[bytes]:
        """Start a program, as systemd does."""
        return subprocess.Popen(self._inside(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _stop(self) -> None:
        if self._master:
            self._master.terminate()
            self._master.communicate(timeout=20)
            self._master = None

    def routes(self, backend: str, port: int, *names: str) -> None:
        """Wait until users reach the first of these, and the second is the backup."""
        expected = dict(zip(names, (256, 1, 0), strict=False))
        wait_until(lambda: weights(self.socket, backend) == expected, 30, f"{expected} for {backend}")
        assert {asked(port) for _ in range(20)} <= {(200, name) for name in names[:2]}


@pytest.fixture(params=HAPROXIES.values(), ids=[".".join(map(str, version)) for version in HAPROXIES])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Debian]:
    """A machine with one of the HAProxies that are here."""
    with Debian(tmp_path, request.param) as machine:
        yield machine


@pytest.mark.root("mount")
@pytest.mark.skipif(__file__.startswith("/tmp/"), reason="each machine has a /tmp of its own, without this checkout")
@pytest.mark.slow
def test_each_row_of_the_table_is_as_many_edits_as_it_says_and_traffic_is_right_after_each(machine: Debian) -> None:
    with regions_at(DELAYS) as regions:
        machine.put("/etc/haproxy/regions.pem", regions.authority.cert_pem.bytes().decode())
        eu, us, ap = (f"{region.name}=127.0.0.1:{region.port}" for region in regions)
        app, api = free_port(), free_port()

        # The first application: the settings, the option of Debian's unit, and `chroot`.
        machine.restart()
        first = f"ca_file = /etc/haproxy/regions.pem\n[app]\nservers = {eu} {us}\nbind = 127.0.0.1:{app}\n"
        machine.put("/etc/multicloud.conf", first)
        machine.put("/etc/default/haproxy", 'EXTRAOPTS="-S /run/haproxy-master.sock -f /etc/haproxy/multicloud.cfg"\n')
        done = machine.type(WRITE)
        assert (done.returncode, done.stdout) == (0, "")
        assert "a `chroot` in `global` must" in done.stderr
        machine.edit("/etc/haproxy/haproxy.cfg", "\tchroot /var/lib/haproxy\n", "")
        machine.restart()
        machine.routes("app", app, "eu.example.com", "us.example.com")

        # A second one is a section.
        second = f"[api]\nservers = {us} {eu}\nbind = 127.0.0.1:{api}\npath = /healthz\n"
        machine.put("/etc/multicloud.conf", first + second)
        assert "problem" in machine.type(DOCTOR).stdout
        machine.write_and_reload()
        for backend, port in (("app", app), ("api", api)):
            machine.routes(backend, port, "eu.example.com", "us.example.com")

        # One more region is one more word, and one less a word less.
        machine.edit("/etc/multicloud.conf", f"[app]\nservers = {eu} {us}", f"[app]\nservers = {eu} {us} {ap}")
        assert f"run `{WRITE}`" in machine.type(DOCTOR).stdout
        machine.write_and_reload()
        machine.routes("app", app, "eu.example.com", "us.example.com", "ap.example.com")
        machine.edit("/etc/multicloud.conf", f"[app]\nservers = {eu} {us}", f"[app]\nservers = {us}")
        machine.write_and_reload()
        machine.routes("app", app, "us.example.com", "ap.example.com")
        assert machine.type(DOCTOR).returncode == 0

        # After an upgrade the same command writes what is new.
        written = machine.read("/etc/haproxy/multicloud.cfg")
        machine.put("/etc/haproxy/multicloud.cfg", written.replace("    retries 3\n", "    retries 2\n"))
        assert f"run `{WRITE}`" in machine.type(DOCTOR).stdout
        assert machine.type(WRITE).stderr == ""
        assert machine.read("/etc/haproxy/multicloud.cfg") == written

        # It is removed with its file and its option; the rest is Debian's again.
        machine.put("/etc/default/haproxy", "")
        machine.type("rm /etc/haproxy/multicloud.cfg")
        machine.restart()
        assert weights(machine.socket, "app") == weights(machine.socket, "api") == {}


@pytest.mark.root("mount")
@pytest.mark.skipif(__file__.startswith("/tmp/"), reason="each machine has a /tmp of its own, without this checkout")
@pytest.mark.slow
def test_with_multicloud_run_beside_haproxy_no_line_of_debians_configuration_changes(machine: Debian) -> None:
    with regions_at(DELAYS) as regions:
        machine.put("/etc/haproxy/regions.pem", regions.authority.cert_pem.bytes().decode())
        names = " ".join(f"{region.name}=127.0.0.1:{region.port}" for region in regions)
        port = free_port()
        text = (
            f"backends = app\nca_file = /etc/haproxy/regions.pem\n[app]\nservers = {names}\nbind = 127.0.0.1:{port}\n"
        )
        machine.put("/etc/multicloud.conf", text)
        machine.restart()
        machine.put("/etc/default/haproxy", 'EXTRAOPTS="-S /run/haproxy-master.sock -f /etc/haproxy/multicloud.cfg"\n')
        assert machine.type(WRITE.replace("--blocks", "--blocks --beside")).stderr == ""
        machine.restart()
        with machine.start("multicloud-run") as running:
            machine.routes("app", port, *DELAYS)
            doctor = machine.type(DOCTOR)
            running.terminate()
        assert doctor.returncode == 0, doctor.stdout
