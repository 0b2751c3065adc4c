"""What depends on the terminal: whether to use colour, and a screen that is redrawn in place."""

import contextlib
import math
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable

import click

# The alternate screen, without a cursor and without wrapping; and back to what was there before.
ENTER, LEAVE = "\x1b[?1049h\x1b[?25l\x1b[?7l", "\x1b[?7h\x1b[?25h\x1b[?1049l"
HOME, END_OF_LINE, END_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"


def is_terminal() -> bool:
    """Whether standard output is a terminal that understands control sequences."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def colorful() -> bool:
    """Whether to use colour on standard output (https://no-color.org)."""
    return is_terminal() and not os.environ.get("NO_COLOR")


def watch(draw: Callable[[], str], *, interval: float, duration: float | None = None) -> None:
    """Show what `draw` returns every `interval` seconds, for `duration` or until Ctrl-C.

    On a terminal each picture takes the place of the one before, and the last one stays; elsewhere they follow each
    other.
    """
    in_place = is_terminal()
    end = math.inf if duration is None else time.monotonic() + duration
    stopped = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    picture = ""
    try:
        if in_place:
            click.echo(ENTER, nl=False)
        while time.monotonic() < end:
            picture = draw()
            click.echo(_frame(picture) if in_place else picture, nl=not in_place)
            time.sleep(max(0.0, min(interval, end - time.monotonic())))
    except KeyboardInterrupt:
        pass
    finally:
        signal.signal(signal.SIGTERM, stopped)
        if in_place:
            with contextlib.suppress(OSError):  # the terminal may be gone
                click.echo(LEAVE + picture, nl=False)


def _frame(picture: str) -> str:
    """Control sequences that write over the picture before: what stays the same never flickers."""
    height = shutil.get_terminal_size().lines
    lines = picture.rstrip("\n").split("\n")
    if len(lines) > height:
        lines = [*lines[: height - 1], f"… {len(lines) - height + 1} more lines; a taller window shows them"]
    return HOME + "\n".join(END_OF_LINE + line for line in lines) + END_OF_SCREEN
