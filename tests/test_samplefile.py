"""Appending to the sample file: who waits for whom, and what is never written."""

from __future__ import annotations

import fcntl
import os
import re
import stat
import threading
from pathlib import Path

import pytest

from multicloud import history, samplefile

EU = ("upstream", "eu.example.com")
LINE = "upstream eu.example.com 0.100000 5.000\n"


@pytest.fixture
def times(times: Path) -> str:
    return str(times)


def test_a_new_file_is_for_its_owner_to_write_and_for_the_group_to_read(times: str) -> None:
    before = os.umask(0)
    try:
        samplefile.append(times, *EU, 0.1, 5)
    finally:
        os.umask(before)
    assert stat.S_IMODE(os.stat(times).st_mode) == 0o640


@pytest.mark.parametrize("name", ["a b", "a\nb", "", "a/b", "$(id)", "é", "not UTF-8: \udcff"])
def test_a_name_that_haproxy_does_not_allow_is_not_written(times: str, name: str) -> None:
    with pytest.raises(samplefile.SampleFileError, match="not the names of a backend and a server: 'upstream' "):
        samplefile.append(times, "upstream", name, 0.1, 5)
    assert not Path(times).exists()


def test_a_lock_that_is_never_released_does_not_hold_an_append_for_long(times: str) -> None:
    samplefile.append(times, *EU, 0.1, 5)
    with open(times) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(samplefile.LockedError, match=r"locked by another process for more than 0.5 s"):
            samplefile.append(times, *EU, 0.2, 6)
        os.unlink(times)
        samplefile.append(times, *EU, 0.3, 7)  # an operator who deletes the file is rid of the lock
    assert history.read(times, 30).series[EU] == [(0.3, 7.0, False)]


def test_an_append_waits_for_a_lock_that_is_soon_released(times: str) -> None:
    samplefile.append(times, *EU, 0.1, 5)
    with open(times) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        threading.Timer(0.05, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        samplefile.append(times, *EU, 0.2, 6)
    assert history.read(times, 30).series[EU] == [(0.2, 6.0, False), (0.1, 5.0, False)]


def test_a_file_that_is_removed_while_an_append_takes_its_lock_is_made_again(
    times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplefile.append(times, *EU, 0.1, 5)
    original = fcntl.flock

    def remove_then_lock(fd: int, operation: int) -> None:
        monkeypatch.undo()
        os.unlink(times)
        original(fd, operation)

    monkeypatch.setattr(fcntl, "flock", remove_then_lock)
    samplefile.append(times, *EU, 0.2, 6)
    assert history.read(times, 30).series[EU] == [(0.2, 6.0, False)]


def test_a_directory_that_is_not_there_is_said(tmp_path: Path) -> None:
    path = tmp_path / "none" / "times.txt"
    with pytest.raises(samplefile.SampleFileError, match=f"^{re.escape(str(path))}: no such directory$"):
        samplefile.append(str(path), *EU, 0.1, 5)


def test_a_file_that_has_grown_to_its_limit_takes_no_more(times: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samplefile, "MAX_BYTES", len(LINE) + 1)
    samplefile.append(times, *EU, 0.1, 5)
    samplefile.append(times, *EU, 0.1, 5)
    monkeypatch.setattr(samplefile, "MAX_BYTES", 2 * len(LINE))
    with pytest.raises(samplefile.SampleFileError, match="has grown to 0 MiB"):
        samplefile.append(times, *EU, 0.1, 5)
    assert Path(times).read_text() == 2 * LINE


def test_a_file_that_is_made_and_removed_by_others_meanwhile_is_made_again(
    times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = os.open
    turns = []

    def interfere(path: str, flags: int, mode: int = 0o777) -> int:
        if path == times:
            turns.append(flags & os.O_EXCL)
            if len(turns) == 1:  # just before it is made here
                os.mknod(path)
            if len(turns) == 2:  # just before what somebody else made is opened
                os.unlink(path)
        return original(path, flags, mode)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", interfere)
        samplefile.append(times, *EU, 0.1, 5)
    assert turns == [os.O_EXCL, 0, os.O_EXCL]
    assert history.read(times, 30).series[EU] == [(0.1, 5.0, False)]


@pytest.mark.parametrize("cut", range(1, len(LINE)))
def test_what_a_killed_writer_left_is_never_taken_for_a_sample(times: str, cut: int) -> None:
    Path(times).write_text(LINE + LINE[:cut])
    samplefile.append(times, *EU, 0.3, 3)
    found = history.read(times, 30)
    assert (found.series, found.garbage) == ({EU: [(0.3, 3.0, False), (0.1, 5.0, False)]}, 1)


def test_a_lock_on_the_directory_keeps_nobody_from_a_file_that_is_there(times: str) -> None:
    directory = os.path.dirname(times)
    held = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(samplefile.LockedError, match=f"^{directory}: locked by another process for more than 0.2"):
            samplefile.append(times, *EU, 0.1, 5, wait=0.2)
        assert not os.path.exists(times)
        Path(times).write_text(3 * LINE)
        samplefile.append(times, *EU, 0.1, 5)
        assert history.trim(times, 1) == 3
    finally:
        os.close(held)
    assert Path(times).read_text() == LINE
