"""No sample is lost: many processes append while the file is trimmed, killed, deleted and rotated.

A writer numbers its lines 1, 2, 3, …, so that what is missing, torn, twice or out of order shows in the file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multicloud import history, samplefile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEEP = 20
LINE = re.compile(r"upstream s(\d+) 0\.(\d{6}) (\d+)\.000")

# As many writers as these keep the lock longer from one than a check would wait, so they try again.
WRITER = """
import sys
from multicloud import history, samplefile
path, name, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(1, count + 1):
    while True:
        try:
            samplefile.append(path, "upstream", name, number / 1e6, number)
            break
        except samplefile.LockedError:
            pass
"""

TRIMMER = """
import sys
from multicloud import history, samplefile
path, keep = sys.argv[1], int(sys.argv[2])
while True:
    try:
        history.trim(path, keep)
        print(flush=True)
    except samplefile.LockedError:
        pass
"""


@pytest.fixture
def times(times: Path) -> str:
    return str(times)  # as the package takes it


def write_lines(path: str, writers: int, count: int) -> None:
    """Let that many processes append `count` lines each, all at once, and wait for them.

    They are nice to the tests beside this one, whose checks would wait for seconds behind dozens of busy processes.
    """
    writer = ["nice", "-n", "19", sys.executable, "-c", WRITER, path]
    processes = [subprocess.Popen([*writer, f"s{number}", str(count)]) for number in range(writers)]
    try:
        assert [process.wait(timeout=120) for process in processes] == [0] * writers
    finally:
        for process in processes:
            process.kill()
            process.wait()


@contextlib.contextmanager
def again_and_again(action: Callable[[], None]) -> Iterator[list[int]]:
    """Repeat `action` in a thread; the list has one entry, how often it was done."""
    done = [0]
    stop = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            action()
            done[0] += 1

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield done
    finally:
        stop.set()
        thread.join()


def trim_and_be_killed(path: str) -> None:
    """Start a process that trims without a pause, and kill it at a moment that nobody chose after the first time."""
    process = subprocess.Popen([sys.executable, "-c", TRIMMER, path, str(KEEP)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout as ready:
        ready.readline()
        time.sleep(random.uniform(0, 0.2))
        assert process.poll() is None, "the trimmer failed"
        process.send_signal(signal.SIGKILL)
        process.wait()


def numbers(path: str | Path) -> dict[str, list[int]]:
    """The numbers of the lines of each writer, in the order of the file. Fails at a line that nobody wrote."""
    found: dict[str, list[int]] = {}
    text = Path(path).read_text()
    assert text == "" or text.endswith("\n")
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        assert match, f"a torn line: {line!r}"
        assert int(match[2]) == int(match[3]), f"a torn line: {line!r}"
        found.setdefault(match[1], []).append(int(match[3]))
    return found


def no_gaps(series: list[int]) -> bool:
    return series == list(range(series[0], series[-1] + 1))


def test_64_processes_lose_nothing_to_a_trimmer_that_is_killed_again_and_again(times: str) -> None:
    with again_and_again(lambda: trim_and_be_killed(times)) as kills:
        write_lines(times, 64, 1000)
    found = numbers(times)
    assert len(found) == 64
    for series in found.values():
        assert series[-1] == 1000
        assert len(series) >= KEEP
        assert no_gaps(series)
    assert kills[0] > 3
    assert sum(map(len, found.values())) < 64_000  # it did trim
    history.trim(times, KEEP)
    assert numbers(times) == {name: series[-KEEP:] for name, series in found.items()}
    assert set(os.listdir(os.path.dirname(times))) <= {"times.txt", "times.txt.trim"}


def test_a_file_deleted_by_hand_is_made_again_by_the_next_append(times: str) -> None:
    def delete() -> None:
        time.sleep(random.uniform(0, 0.02))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(times)

    with again_and_again(delete) as deletions:
        write_lines(times, 16, 1000)
    samplefile.append(times, "upstream", "s99", 1 / 1e6, 1)
    found = numbers(times)
    assert found["99"] == [1]
    for name, series in found.items():
        assert name == "99" or series[-1] == 1000
        assert no_gaps(series)
    assert deletions[0] > 3


def test_a_file_rotated_by_copytruncate_loses_nothing_and_nothing_comes_back(times: str) -> None:
    """The copying and the truncation are one step here, under the lock: between them logrotate loses lines itself."""
    rotated: list[Path] = []

    def rotate() -> None:
        time.sleep(random.uniform(0, 0.05))
        with contextlib.suppress(FileNotFoundError), open(times, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(times)):
                copy = Path(f"{times}.{len(rotated)}")
                copy.write_bytes(file.read())
                rotated.append(copy)
                file.truncate(0)

    with again_and_again(rotate) as rotations, again_and_again(lambda: trim_and_be_killed(times)):
        write_lines(times, 16, 4000)
    last = dict.fromkeys(map(str, range(16)), 0)
    for path in (*rotated, Path(times)):
        for name, series in numbers(path).items():
            assert no_gaps(series)
            assert series[0] > last[name], f"{path} has lines of {name} that were rotated before"
            assert series[0] == last[name] + 1 or len(series) >= KEEP, f"lines of {name} before {path} are lost"
            last[name] = series[-1]
    assert set(last.values()) == {4000}
    assert rotations[0] > 3
