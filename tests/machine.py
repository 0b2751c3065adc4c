"""A machine to try things in: the files of a directory with a writable layer on top, and processes of its own.

It needs root. The network is the one that the test itself has.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.edge import wait_until

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Self

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Debian's, for root."""

START = """
mount -t overlay overlay -o "lowerdir=$1,upperdir=$2/files,workdir=$2/work" "$2/root"
mount --rbind /dev "$2/root/dev"
mount -t proc proc "$2/root/proc"
for volume in $4; do mount -t tmpfs -o mode=777 tmpfs "$2/root$volume"; done
[ -z "$4" ] || mount -o remount,ro "$2/root"
directory=$2 user=$3; shift 4
exec chroot --userspec="$user" "$directory/root" env -i "$@"
"""


class Machine:
    """It runs while its context lasts. `pid` is its process 1, which is `command`.

    `files` are in their places below `root`, and `variables` (NAME=value) are those of every command. With `volumes`,
    only they can be written to.
    """

    def __init__(
        self,
        root: Path,
        command: Sequence[str] = ("sleep", "infinity"),
        *,
        files: Mapping[str, str] | None = None,
        variables: Sequence[str] = (),
        user: str = "root",
        home: str = "/",
        volumes: Sequence[str] = (),
    ) -> None:
        self._start = [str(root), user, " ".join(volumes), f"--chdir={home}", *variables, *command]
        self._user = user
        self._variables = variables
        self._files = files or {}

    def __enter__(self) -> Self:
        self._layer = tempfile.TemporaryDirectory()
        directory = Path(self._layer.name)
        for each in ("files", "work", "root"):
            (directory / each).mkdir()
        for path, text in self._files.items():
            (directory / "files" / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / "files" / path).write_text(text)
        self._log = directory / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._is_up, 60, "process 1 has its own root")
        except BaseException as error:
            self.__exit__(error)
            raise
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error:
            print(self._log.read_text())
        if self._process.poll() is None:
            for child in self._children():
                os.kill(child, signal.SIGKILL)  # and with process 1, all of them
            self._process.wait(timeout=10)
        self._layer.cleanup()

    def _command(self) -> list[str]:
        """What starts it, with process 1 as its child."""
        start = ["sh", "-eu", "-c", START, "sh", self._start[0], self._layer.name, *self._start[1:]]
        return ["unshare", "--mount", "--pid", "--fork", "--kill-child", *start]

    def _is_up(self) -> bool:
        """Whether process 1 is there, which `pid` is then."""
        children = self._children()
        if not children:
            return False
        self.pid = children[0]
        return not os.path.samefile(f"/proc/{self.pid}/root", "/")

    def _children(self) -> list[int]:
        path = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    def run(self, *command: str, seconds: float = 30) -> subprocess.CompletedProcess[str]:
        """Run a command in it, as `docker exec` does."""
        inside = ["nsenter", "--target", str(self.pid), "--mount", "--pid", "--root", "--wd"]
        chroot = ["chroot", f"--userspec={self._user}", "/", "env", "-i", *self._variables]
        return subprocess.run([*inside, *chroot, *command], capture_output=True, text=True, timeout=seconds)

    def status(self) -> list[dict[str, Any]]:
        """The servers, as its own command shows them; none before there are samples."""
        assert self._process.poll() is None, "process 1 has ended"
        shown = self.run("multicloud", "status", "--format", "json")
        return json.loads(shown.stdout) if shown.returncode == 0 else []

    def processes(self, name: str) -> dict[int, str]:
        """The state of each process of that name, as /proc has it."""
        lines = self.run("sh", "-c", "cat /proc/[0-9]*/stat 2>/dev/null").stdout.splitlines()
        fields = [line.split() for line in lines]
        return {int(pid): state for pid, comm, state, *_ in fields if comm == f"({name})"}

    def stop(self, number: signal.Signals) -> int:
        """Send process 1 a signal, and wait as long as `docker stop` does; its exit code."""
        os.kill(self.pid, number)
        return self.ended()

    def ended(self) -> int:
        """Wait for process 1 to end, as long as `docker stop` does; its exit code."""
        return self._process.wait(timeout=10)


class Booted(Machine):
    """A machine whose process 1 is systemd."""

    def __init__(self, root: Path) -> None:
        super().__init__(root, variables=[PATH])
        self._root = root

    def _is_up(self) -> bool:
        try:
            up = super()._is_up() and Path(f"/proc/{self.pid}/comm").read_text() == "systemd\n"
        except FileNotFoundError:  # what has started it has gone
            return False
        return up and self.run("systemctl", "is-system-running").stdout in ("running\n", "degraded\n")

    def _command(self) -> list[str]:
        alone = ["--register=no", "--keep-unit", "--console=pipe", "--kill-signal=SIGKILL"]
        return ["systemd-nspawn", "--quiet", f"--directory={self._root}", "--volatile=overlay", *alone, "--boot"]
