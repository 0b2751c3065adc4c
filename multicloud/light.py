"""How commands begin and end, and what they say of what went wrong."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, in half a millisecond
import os
import select
import sys
from time import monotonic, sleep

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from _socket import socket
    from collections.abc import Callable
    from typing import NoReturn, TextIO

CHILD_TIME = 5  # seconds after which a child process is ended that its parent has left alone


class CommandError(Exception):
    """An error with a cause outside of the program. A command writes its text as one line, and has its exit code."""

    exit_code = 1


class UsageError(CommandError):
    """Arguments, settings or files that cannot be used. The text says which, and what is accepted."""

    exit_code = 2


def run(main: Callable[[], int]) -> NoReturn:
    """Run a light command, which says all by `warn` and `print_line`, and exit with its exit code."""
    open_streams()
    os._exit(exit_code(main))  # to take the interpreter apart would cost as much as the connection that was timed


def exit_code(main: Callable[[], int]) -> int:
    """Run `main` and return what it returns. Where it fails, write one line and return the exit code that says so."""
    try:
        return main()
    except KeyboardInterrupt:
        return 130
    except CommandError as error:
        warn(f"error: {error}")
        return error.exit_code
    except Exception as error:
        report_bug(error)
        return 1


def run_in_child(work: Callable[[], int], timeout: float) -> None:
    """Do `work` in a child process, and wait for its end for at most `timeout` seconds. Raises OSError without a child.

    A child that is not done by then goes on alone, and becomes a zombie where process 1 does not reap. After CHILD_TIME
    seconds it is ended, unless it waits for a frozen disk: then nothing can end it.
    """
    ended, running = os.pipe()  # what the kernel closes when the child ends can be waited for with a timeout
    child = os.fork()
    if child == 0:
        _signal.alarm(CHILD_TIME)
        try:
            exit_code(work)
        finally:
            os._exit(0)
    os.close(running)
    if select.select([ended], [], [], timeout)[0]:
        try:
            os.waitpid(child, 0)
        except ChildProcessError:  # where SIGCHLD is ignored, the kernel has reaped it
            return


def time_left(deadline: float) -> float:
    """Seconds until the monotonic clock says `deadline`. Raises TimeoutError where it is over."""
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def connect(connection: socket, address: tuple[str, int] | str, deadline: float) -> None:
    """Connect by the `deadline`. Raises OSError."""
    while True:
        connection.settimeout(time_left(deadline))
        try:
            return connection.connect(address)
        except BlockingIOError:  # a UNIX socket's queue is full, for which the kernel does not wait as in TCP
            sleep(min(0.005, time_left(deadline)))


def report_bug(error: Exception) -> None:
    """Write one line, not a traceback, for an error that should not happen."""
    trace = error.__traceback__
    while trace and trace.tb_next:
        trace = trace.tb_next
    place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}" if trace else "nowhere"
    warn(f"error: {type(error).__name__}: {error} ({place}); please report it")


def reason(error: Exception) -> str:
    """What the system says of an error, to stand within a line."""
    return (getattr(error, "strerror", None) or str(error)).lower()


def warn(line: str) -> None:
    """Write a line to standard error, as `print_line` does."""
    print_line(line, sys.stderr)


def print_line(line: str, stream: TextIO | None = None) -> None:
    """Write a line, to standard output if it is not said. That nobody can read it changes no exit code."""
    try:
        print(printable(line), file=stream, flush=True)
    except OSError:  # a file on a full disk, or a pipe whose reader has gone
        return


def printable(text: str) -> str:
    """The text with what would control a terminal escaped: a server or a certificate may have said it."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def open_streams() -> None:
    """Open the standard streams that a HAProxy in the background has closed: another file would take their place."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:  # as it was closed when Python began
            setattr(sys, name, os.fdopen(descriptor, "r+", closefd=False))
