"""One at a time: a turn is one process's, ends with it, and no stranger can take it away."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from contextlib import ExitStack, closing

import pytest

from multicloud import turn
from tests.edge import wait_until

NAME = f"test {os.getpid()}"
HOLD = """
import sys
from multicloud import turn
taken = turn.take(sys.argv[1])
print(taken is not None, flush=True)
input()
"""
BIND = """
import socket, sys
held = socket.socket(socket.AF_UNIX)
held.bind(f"\\0multicloud {sys.argv[1]}")
print(True, flush=True)
input()
"""
NOBODY = 65534


def test_a_turn_is_taken_once_and_free_again_when_it_is_closed() -> None:
    first = turn.take(NAME)
    assert first is not None
    with closing(first):
        assert turn.take(NAME) is None
        assert turn.take(NAME, wait=0.05) is None
        other = turn.take(f"{NAME} of another")
        assert other is not None
        other.close()
    again = turn.take(NAME)
    assert again is not None
    again.close()


def test_who_has_the_turn_is_told_that_another_asked() -> None:
    first = turn.take(NAME)
    assert first is not None
    with closing(first):
        assert turn.asked(first) is False
        assert turn.take(NAME) is None
        assert turn.asked(first)
        assert not turn.asked(first)


def test_a_turn_ends_with_its_process_however_that_ends() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        assert turn.take(NAME) is None
        holder.kill()
        holder.wait(30)
    again = turn.take(NAME)
    assert again is not None
    again.close()


def free() -> bool:
    """Whether the turn can be had."""
    taken = turn.take(NAME)
    if taken is not None:
        taken.close()
    return taken is not None


def test_one_that_is_stopped_keeps_nobody_from_the_turn() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, NAME], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"True\n"
        os.kill(holder.pid, signal.SIGSTOP)
        wait_until(free, 30, "the turn")
        os.kill(holder.pid, signal.SIGCONT)
        wait_until(lambda: not free(), 30, "its turn again")
        holder.kill()


def test_names_that_differ_only_at_their_ends_are_different_turns() -> None:
    first, second = turn.take("x" * 200 + "/eu"), turn.take("x" * 200 + "/us")
    assert first is not None
    assert second is not None
    assert len(first.getsockname()) == 107
    first.close()
    second.close()


@pytest.mark.root("be another user")
@pytest.mark.parametrize("listens", [True, False])
def test_a_stranger_who_takes_the_name_stops_nobody(listens: bool) -> None:
    code = HOLD if listens else BIND
    words = [sys.executable, "-c", code, NAME]
    environ = {**os.environ, "PYTHONPATH": os.getcwd()}
    with subprocess.Popen(
        ["setpriv", f"--reuid={NOBODY}", "--clear-groups", *words],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:
        assert holder.stdout is not None
        if holder.stdout.readline() != b"True\n":
            pytest.skip("another user cannot run this Python")
        taken = turn.take(NAME)
        assert taken is not None
        taken.close()
        if listens:
            assert turn.take(NAME, {NOBODY}) is None
        holder.kill()


def test_one_that_nobody_can_ask_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "QUEUE", 0)
    first = turn.take(NAME)
    assert first is not None
    with closing(first), ExitStack() as queue:
        with contextlib.suppress(BlockingIOError):
            while True:
                waiting = queue.enter_context(socket.socket(socket.AF_UNIX))
                waiting.setblocking(False)
                waiting.connect(first.getsockname())
        second = turn.take(NAME)
        assert second is not None
        second.close()


def test_a_turn_is_a_socket_that_no_file_stands_for() -> None:
    taken = turn.take(NAME)
    assert taken is not None
    with closing(taken):
        assert taken.family == socket.AF_UNIX
        assert taken.getsockname()[:1] == b"\0"


def test_one_that_nobody_can_ask_any_more_is_a_stranger_unless_that_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turn, "QUEUE", 0)
    first = turn.take(NAME)
    assert first is not None
    with closing(first):
        assert turn.take(NAME) is None
        assert turn.take(NAME, {turn.CROWDED}) is None
        other = turn.take(NAME)
        assert other is not None
        other.close()
