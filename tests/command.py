"""The command `multicloud` as a person runs it: in a pipe, or on a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

PROGRAM = str(Path(sys.executable).with_name("multicloud"))

BARE = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith(("MULTICLOUD_", "HAPROXY_")) and name not in ("NO_COLOR", "COLUMNS", "LINES", "TERM")
}
"""What is around a command, less what would change it."""


def run(
    *arguments: str, environ: Mapping[str, str] | None = None, program: str = PROGRAM
) -> subprocess.CompletedProcess[str]:
    """Run it, or another program beside it, in pipes to its end."""
    return subprocess.run(
        [program, *arguments],
        env={**BARE, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Terminal:
    """It runs on a terminal of its own, which has Ctrl-C and a size; a context manager. `output` is all it wrote."""

    def __init__(
        self, *arguments: str, environ: Mapping[str, str] | None = None, rows: int = 24, columns: int = 80
    ) -> None:
        self.output = ""
        self._terminal, other_end = pty.openpty()
        self.resize(rows, columns)
        # Where the tests run in the background, Ctrl-C is ignored, and so it would be by what they start.
        start = ("env", "--default-signal=INT", "setsid", "--ctty")
        self._process = subprocess.Popen(
            [*start, PROGRAM, *arguments],
            env={**BARE, "TERM": "xterm-256color", **(environ or {})},
            stdin=other_end,
            stdout=other_end,
            stderr=other_end,
        )
        os.close(other_end)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def resize(self, rows: int, columns: int) -> None:
        """Change the size, of which the command is told as by any terminal."""
        fcntl.ioctl(self._terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, key: bytes) -> None:
        """Press a key."""
        os.write(self._terminal, key)

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait_for(self, text: str, *, after: int = 0, seconds: float = 30) -> int:
        """Return where the text ends that appears behind the offset `after`; fail if it does not within `seconds`."""
        deadline = time.monotonic() + seconds
        while (at := self.output.find(text, after)) < 0:
            assert self._read(deadline), f"ended or said nothing more, without {text!r}: {self.output[-2000:]!r}"
        return at + len(text)

    def wait(self, seconds: float = 30) -> int:
        """Its exit code, once it has ended."""
        deadline = time.monotonic() + seconds
        while self._read(deadline):
            pass
        assert time.monotonic() < deadline, f"not within {seconds} s: the end, after {self.output[-2000:]!r}"
        return self._process.wait()

    def _read(self, deadline: float) -> bool:
        readable, _, _ = select.select([self._terminal], [], [], max(0.0, deadline - time.monotonic()))
        if not readable:
            return False
        try:
            received = os.read(self._terminal, 1 << 16)
        except OSError:  # the other end is closed
            return False
        self.output += received.decode(errors="replace")
        return bool(received)
