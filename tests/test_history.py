"""The sample file: its format, and that nothing in it or around it is trusted."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicloud import history, samplefile, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    Change = Callable[[str], object]

EU = ("upstream", "eu.example.com")


@pytest.fixture
def times(times: Path) -> str:
    return str(times)  # as the package takes it


def read_text(tmp_path: Path, text: str | bytes, newest: int = 30) -> history.Samples:
    path = tmp_path / "read.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return history.read(str(path), newest)


def lines_of(*values: int) -> str:
    return "".join(f"upstream eu.example.com {value / 10:.6f} {value}.000\n" for value in values)


def refusing(number: int) -> Callable[..., object]:
    """A call that the system refuses."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_a_sample_is_a_line_of_backend_server_seconds_and_time(times: str) -> None:
    samplefile.append(times, "upstream", "eu.example.com", 0.0842131, 1763870000.1234)
    assert Path(times).read_text() == "upstream eu.example.com 0.084213 1763870000.123\n"
    found = history.read(times, 30)
    assert (found.series, found.size) == ({EU: [(0.084213, 1763870000.123, False)]}, os.path.getsize(times))
    assert samplefile.format_line(*EU, 0.1, 5) == b"upstream eu.example.com 0.100000 5.000\n"


def test_samples_are_read_newest_first_and_no_more_than_asked_for(times: str) -> None:
    for i in range(1, 6):
        samplefile.append(times, *EU, i / 1000, i)
        samplefile.append(times, "upstream", "us", i / 10, i)
    found = history.read(times, 3)
    assert found.series[EU] == [(0.005, 5.0, False), (0.004, 4.0, False), (0.003, 3.0, False)]
    assert found.series["upstream", "us"] == [(0.5, 5.0, False), (0.4, 4.0, False), (0.3, 3.0, False)]
    assert (found.lines, found.garbage) == (10, 0)


def test_there_are_no_samples_where_there_is_no_file(times: str) -> None:
    found = history.read(times, 30)
    assert (found.series, found.lines, found.size, history.trim(times, 30)) == ({}, 0, 0, 0)
    assert not os.path.exists(times)


@pytest.mark.parametrize(("text", "lines"), [("", 0), ("\n", 1), ("upstream eu.example.com 0.1 5", 0)])
def test_a_file_without_a_whole_line_of_a_server_has_no_samples(tmp_path: Path, text: str, lines: int) -> None:
    found = read_text(tmp_path, text)
    assert (found.series, found.lines, found.garbage) == ({}, lines, lines)


@pytest.mark.parametrize("numbers", ["3600 5", "0.000001 5", "0.1 0", "0.1 1e11"])
def test_the_largest_and_smallest_numbers_are_read_and_kept(times: str, numbers: str) -> None:
    seconds, when = map(float, numbers.split())
    Path(times).write_text(f"upstream eu.example.com {numbers}\n?\n")
    assert history.read(times, 30).series == {EU: [(seconds, when, False)]}
    assert history.trim(times, 30) == 1
    assert history.read(times, 30).series == {EU: [(seconds, when, False)]}


def test_lines_of_three_fields_are_samples_without_a_time(tmp_path: Path) -> None:
    found = read_text(tmp_path, "upstream eu.example.com 0.084213\nupstream eu.example.com 0.1 5\n")
    assert found.series == {EU: [(0.1, 5.0, False), (0.084213, None, False)]}


NO_SECONDS = ("nan", "inf", "-0.1", "0", "9e-7", "1e400", "1e-400", "3601", "1_0", "0x1", "٣", "failed")
NO_TIMES = ("nan", "-5", "1e400", "٣", "5 6", "failed", "5 Failed", "5 failed failed", "5  failed x")
NO_NAMES = ("eu;id", "$(id)", "a/b", "#1", "é", "eu/../us")


@pytest.mark.parametrize(
    "line",
    [
        "upstream eu.example.com",
        *(f"upstream eu.example.com {seconds} 5" for seconds in NO_SECONDS),
        *(f"upstream eu.example.com {seconds}" for seconds in NO_SECONDS),
        *(f"upstream eu.example.com 0.1 {when}" for when in NO_TIMES),
        *(f"upstream {name} 0.1 5" for name in NO_NAMES),
        "up\0stream eu 0.1 5",
        "\x7fELF\x02",
    ],
)
def test_a_line_that_is_no_sample_is_skipped_and_counted(tmp_path: Path, line: str) -> None:
    good = "upstream eu.example.com 0.1 5\n"
    found = read_text(tmp_path, f"{good}{line}\n{good}")
    assert (found.series, found.garbage) == ({EU: [(0.1, 5.0, False)] * 2}, 1)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_without_an_error_and_leave_the_valid_lines(data: bytes) -> None:
    good = b"upstream eu.example.com 0.1 5\n"
    with tempfile.TemporaryDirectory() as name:
        found = read_text(Path(name), good + data + b"\n" + good)
    assert found.series[EU][0] == found.series[EU][-1] == (0.1, 5.0, False)
    for backend, server in found.series:
        assert not set((backend + server).encode()) - set(settings.NAME_CHARACTERS)


@pytest.mark.parametrize("size", [history.BLOCK - 1, history.BLOCK, history.BLOCK + 1, 10_000_000])
def test_long_lines_are_garbage_and_blocks_do_not_matter(tmp_path: Path, size: int) -> None:
    good = b"upstream eu.example.com 0.1 5\n"
    found = read_text(tmp_path, good + b"x" * size + b"\n" + good)
    assert (found.series, found.lines, found.garbage) == ({EU: [(0.1, 5.0, False)] * 2}, 3, 1)


def test_every_line_is_read_across_blocks(tmp_path: Path) -> None:
    count = 3 * history.BLOCK // 40
    text = "".join(f"upstream s{i % 7} 0.{i:06d} {i}\n" for i in range(1, count + 1))
    found = read_text(tmp_path, text, newest=count)
    values = sorted(sample for series in found.series.values() for sample in series)
    assert (found.lines, found.garbage) == (count, 0)
    assert [when for _, when, _ in values] == [float(i) for i in range(1, count + 1)]


def make_link(path: Path) -> None:
    (path.parent / "elsewhere").write_text("")
    path.symlink_to(path.parent / "elsewhere")


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(path))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (make_link, "a symbolic link, which is not followed"),
        (Path.mkdir, "a directory|not a regular file"),
        (os.mkfifo, "not a regular file"),
        (make_socket, "no such device or address"),
    ],
)
def test_what_is_not_a_regular_file_is_not_used(tmp_path: Path, make: Callable[[Path], None], reason: str) -> None:
    path = tmp_path / "times.txt"
    make(path)
    before = {each.name: each.lstat().st_mtime_ns for each in tmp_path.iterdir()}
    uses: list[Callable[[], object]] = [
        lambda: samplefile.append(str(path), *EU, 0.1, 5),
        lambda: history.trim(str(path), 10),
    ]
    for use in uses:
        with pytest.raises(samplefile.SampleFileError, match=reason):
            use()
    assert {each.name: each.lstat().st_mtime_ns for each in tmp_path.iterdir()} == before


@pytest.mark.parametrize("line", [b"\n", b"a\n", b"upstream eu.example.com nan 5\n"])
def test_a_flood_of_lines_that_are_no_samples_is_not_read_to_its_end_and_is_trimmed(times: str, line: bytes) -> None:
    good = b"upstream eu.example.com 0.1 5\n"
    Path(times).write_bytes(good + line * 1_000_000 + good)
    found = history.read(times, 30)
    assert found.series == {EU: [(0.1, 5.0, False)]}
    assert history.MAX_LINES <= found.garbage < 1_000_000
    history.trim(times, 30)
    assert Path(times).read_bytes() == good


@pytest.mark.parametrize(("line", "kept"), [("?\n", 0), ("a b 1\n", 30)])
def test_of_more_lines_than_can_be_read_in_time_the_newest_count(
    times: str, monkeypatch: pytest.MonkeyPatch, line: str, kept: int
) -> None:
    monkeypatch.setattr(history, "MAX_LINES", 1000)
    monkeypatch.setattr(history, "BLOCK", 1000)
    Path(times).write_text(lines_of(1) + line * 5000 + lines_of(2))
    found = history.read(times, 30)
    assert (found.series[EU], found.lines < 2000) == ([(0.2, 2.0, False)], True)
    assert history.trim(times, 30) > 900
    assert Path(times).read_text() == line * kept + lines_of(2)


def test_lines_that_were_not_read_are_dropped_though_all_that_were_are_kept(
    times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_LINES", 1000)
    monkeypatch.setattr(history, "BLOCK", 1000)
    older = "".join(lines_of(number) for number in range(4000)) + "?" * 1500 + "\n"
    Path(times).write_text(older + "".join(lines_of(number) for number in range(1001)))
    assert history.trim(times, 9000) > 0
    assert 1000 <= len(Path(times).read_text().splitlines()) < 2000


def test_a_trim_leaves_the_newest_of_each_server_in_order(times: str) -> None:
    for i in range(1, 6):
        samplefile.append(times, *EU, i / 10, i)
        samplefile.append(times, "other", "x", i / 10, i)
    with open(times, "a") as file:
        file.write("garbage\nupstream once 0.5\n")
    assert history.trim(times, 2) == 7
    assert Path(times).read_text().splitlines() == [
        "upstream eu.example.com 0.400000 4.000",
        "other x 0.400000 4.000",
        "upstream eu.example.com 0.500000 5.000",
        "other x 0.500000 5.000",
        "upstream once 0.5",
    ]
    assert history.trim(times, 2) == 0


@pytest.mark.parametrize("owner", [(1234, 1234), (1234, 0), (0, 1234)])
def test_a_trim_keeps_owner_and_mode_but_set_user_id_and_leaves_no_other_file(
    times: str, owner: tuple[int, int]
) -> None:
    Path(times).write_text(lines_of(1, 2, 3))
    if os.geteuid() == 0:
        os.chown(times, *owner)
    os.chmod(times, 0o4640)  # the shorter one never runs as its owner
    before = os.stat(times)
    history.trim(times, 1)
    after = os.stat(times)
    assert (after.st_uid, after.st_gid, stat.S_IMODE(after.st_mode)) == (before.st_uid, before.st_gid, 0o640)
    assert os.listdir(os.path.dirname(times)) == ["times.txt"]


def test_a_trim_that_died_does_not_stop_the_next_one(times: str) -> None:
    Path(times).write_text(lines_of(1, 2, 3))
    Path(f"{times}.trim").write_text("half a li")
    assert history.trim(times, 1) == 2
    assert Path(times).read_text() == lines_of(3)


USES: dict[str, Callable[[str], object]] = {
    "append": lambda path: samplefile.append(path, *EU, 0.1, 5),
    "read": lambda path: history.read(path, 30),
    "trim": lambda path: history.trim(path, 1),
    "follow": lambda path: history.follow(path, 30, history.Samples(), []),
    "record": lambda path: history.Samples().record(path, [samplefile.format_line(*EU, 0.1, 5)]),
}


@pytest.mark.parametrize(
    ("use", "module", "call", "number"),
    [
        *[(use, os, "open", number) for use in USES for number in (errno.EACCES, errno.EROFS, errno.EIO, errno.ESTALE)],
        *[(use, os, "fstat", errno.ESTALE) for use in USES],
        *[(use, os, "pread", errno.EIO) for use in USES],
        *[(use, fcntl, "flock", errno.ENOLCK) for use in ("append", "record", "trim")],
        *[(use, os, "lstat", errno.ESTALE) for use in ("append", "record", "trim")],
        ("append", os, "write", errno.ENOSPC),
        ("record", os, "write", errno.ENOSPC),
        ("append", os, "close", errno.EDQUOT),
    ],
)
def test_whatever_the_system_refuses_is_a_sample_file_error_and_leaves_nothing_open(
    times: str, monkeypatch: pytest.MonkeyPatch, use: str, module: Any, call: str, number: int
) -> None:
    Path(times).write_text(lines_of(1, 2, 3))
    refuse, close = refusing(number), os.close

    def close_and_refuse(fd: int) -> None:
        close(fd)
        refuse()

    if call == "close":  # which says that nothing was written
        monkeypatch.setattr(os, "write", lambda _, data: len(data))
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(module, call, close_and_refuse if call == "close" else refuse)
        with pytest.raises(samplefile.SampleFileError, match=f"^{re.escape(times)}: {os.strerror(number).lower()}$"):
            USES[use](times)
    assert os.listdir("/proc/self/fd") == before
    assert Path(times).read_text() == lines_of(1, 2, 3)


@pytest.mark.parametrize("use", USES)
def test_a_file_that_is_there_is_never_opened_as_if_to_be_made(
    times: str, monkeypatch: pytest.MonkeyPatch, use: str
) -> None:
    """Linux refuses that even root, of a file of another user's in a directory like /tmp (fs.protected_regular)."""
    Path(times).write_text(lines_of(1, 2, 3))
    opened = []

    def note(path: str, flags: int, *mode: int) -> int:
        opened.append((path, flags & os.O_CREAT))
        return original(path, flags, *mode)

    original = os.open
    monkeypatch.setattr(os, "open", note)
    USES[use](times)
    assert (times, 0) in opened
    assert (times, os.O_CREAT) not in opened


@pytest.mark.parametrize(
    ("call", "number"), [("fchown", errno.EPERM), ("fchmod", errno.EPERM), ("rename", errno.EBUSY)]
)
def test_a_trim_that_cannot_put_a_file_in_its_place_shrinks_the_one_that_is_there(
    times: str, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    Path(times).write_text("?\n" + lines_of(1, 2, 3) + "upstream eu.exam")
    inode = os.stat(times).st_ino
    before = os.listdir("/proc/self/fd")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refusing(number))
        assert history.trim(times, 2) == 2
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(os.path.dirname(times)) == ["times.txt"]
    assert Path(times).read_text() == lines_of(2, 3) + "upstream eu.exam"
    assert os.stat(times).st_ino == inode


def test_a_file_is_shrunk_to_the_end_however_little_is_written_at_once(
    times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(times).write_text(lines_of(1, 2, 3, 4))
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:7], offset))
    monkeypatch.setattr(os, "rename", refusing(errno.EBUSY))
    assert history.trim(times, 2) == 2
    assert Path(times).read_text() == lines_of(3, 4)


def test_a_trim_tells_an_unfinished_line_from_what_was_appended(times: str) -> None:
    Path(times).write_text(lines_of(*range(1, 300)) + "upstream eu")
    assert history.trim(times, 1) == 298
    assert Path(times).read_text() == lines_of(299) + "upstream eu"


@pytest.mark.parametrize("done", range(len("upstream eu.example.com 0.1 1\n") * 2))
def test_a_trim_that_is_killed_while_it_shrinks_the_file_loses_no_sample(
    times: str, monkeypatch: pytest.MonkeyPatch, done: int
) -> None:
    Path(times).write_text(lines_of(1, 2, 3, 4))
    pwrite = os.pwrite

    def write_some(fd: int, data: bytes, offset: int) -> int:
        if offset:
            raise KeyboardInterrupt
        return pwrite(fd, data[:done], offset) or 1

    monkeypatch.setattr(os, "pwrite", write_some)
    monkeypatch.setattr(os, "rename", refusing(errno.EBUSY))
    with pytest.raises(KeyboardInterrupt):
        history.trim(times, 2)
    found = set(history.read(times, 30).series[EU])
    assert found >= set(read_text(Path(times).parent, lines_of(3, 4)).series[EU])


def append_two(path: str) -> None:
    for value in (4, 5):
        samplefile.append(path, *EU, value / 10, value)


def replace(path: str) -> None:
    os.unlink(path)
    append_two(path)


def half_a_line(path: str) -> None:
    with open(path, "a") as file:
        file.write("upstream eu.example.com 0.4")


@pytest.mark.parametrize(
    ("change", "after", "dropped"),
    [
        (append_two, lines_of(3, 4, 5), 2),
        (half_a_line, lines_of(3) + "upstream eu.example.com 0.4", 2),
        (replace, lines_of(4, 5), 0),
        (lambda path: os.truncate(path, 0), "", 0),
        (lambda path: Path(path).write_text(lines_of(4, 5, 6, 7)), lines_of(4, 5, 6, 7), 0),
        (os.unlink, None, 0),
    ],
)
@pytest.mark.parametrize("shrinks", [False, True])
def test_what_happens_to_the_file_while_a_trim_reads_it_is_kept(
    times: str, monkeypatch: pytest.MonkeyPatch, change: Change, after: str | None, dropped: int, shrinks: bool
) -> None:
    Path(times).write_text(lines_of(1, 2, 3))
    newest = history._newest

    def read_then_change(*arguments: Any) -> object:
        result = newest(*arguments)
        change(times)
        return result

    monkeypatch.setattr(history, "_newest", read_then_change)
    if shrinks:
        monkeypatch.setattr(os, "fchmod", refusing(errno.EPERM))
    assert history.trim(times, 1) == dropped
    assert (Path(times).read_text() if os.path.exists(times) else None) == after
    assert not os.path.exists(f"{times}.trim")


@pytest.mark.parametrize("after", ["", lines_of(4, 5, 6, 7, 8)])
def test_a_file_truncated_while_a_trim_looks_for_its_end_loses_nothing(
    times: str, monkeypatch: pytest.MonkeyPatch, after: str
) -> None:
    """logrotate's `copytruncate` between two system calls: the offset that was found is in the middle of a line."""
    Path(times).write_text(lines_of(1, 2, 3).replace("eu.example.com", "eu"))
    changes: list[Callable[[], object]] = [lambda: os.truncate(times, 0), lambda: Path(times).write_text(after)]
    reads = iter([dict, *changes])  # nothing at the first one
    pread = os.pread

    def read(fd: int, size: int, offset: int) -> bytes:
        next(reads, dict)()
        return pread(fd, size, offset)

    with monkeypatch.context() as patched:
        patched.setattr(os, "pread", read)
        assert history.trim(times, 1) == 0
    for change in reads:
        change()
    assert Path(times).read_text() == after


def test_a_trim_that_cannot_be_finished_leaves_the_file_as_it_was_and_nothing_beside_it(times: str) -> None:
    Path(times).write_text(lines_of(1, 2, 3))
    with open(times) as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(samplefile.LockedError):
            history.trim(times, 1)
    assert Path(times).read_text() == lines_of(1, 2, 3)
    assert os.listdir(os.path.dirname(times)) == ["times.txt"]


@pytest.mark.parametrize("name", ["times.txt", "times.txt.trim"])
def test_a_hard_link_to_another_file_is_not_written_to(tmp_path: Path, name: str) -> None:
    other = tmp_path / "other"
    other.write_text("another file\n" * 3)
    path = tmp_path / "times.txt"
    path.write_text(lines_of(1, 2, 3))
    (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / name).hardlink_to(other)
    if name == path.name:
        for use in USES.values():
            with pytest.raises(samplefile.SampleFileError, match=f"{name}: a hard link"):
                use(str(path))
    else:
        assert history.trim(str(path), 1) == 2
    assert other.read_text() == "another file\n" * 3


def test_any_number_of_made_up_servers_hides_no_server_known_before(
    times: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history, "MAX_SERVERS", 10)
    flood = "".join(f"upstream s{i} 0.1 5\n" for i in range(20))
    Path(times).write_text(lines_of(1, 2) + flood + lines_of(3))
    for _ in range(2):
        found = history.read(times, 30).series
        assert (len(found), found[EU]) == (10, [(0.3, 3.0, False), (0.2, 2.0, False), (0.1, 1.0, False)])
        history.trim(times, 30)
    assert len(Path(times).read_text().splitlines()) == 12


def test_lines_that_are_no_samples_take_no_servers_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MAX_SERVERS", 10)
    found = read_text(tmp_path, lines_of(1) + "".join(f"upstream s{i} nan 5\n" for i in range(20)))
    assert (found.series, found.garbage) == ({EU: [(0.1, 1.0, False)]}, 20)


def test_only_the_end_of_a_huge_file_is_read_and_a_trim_makes_it_small(times: str) -> None:
    Path(times).write_text(lines_of(1))
    os.truncate(times, 1 << 40)  # a hole: it takes no space, but would take minutes to read
    assert history.read(times, 30).series == {}
    with pytest.raises(samplefile.SampleFileError, match="has grown to 1048576 MiB: does a reweigh run"):
        samplefile.append(times, *EU, 0.2, 2)
    with open(times, "a") as file:
        file.write("?\n" + lines_of(2))
    assert history.read(times, 30).series == {EU: [(0.2, 2.0, False)]}
    history.trim(times, 30)
    assert Path(times).read_text() == lines_of(2)


def test_a_trim_empties_a_huge_file_without_lines(times: str) -> None:
    Path(times).touch()
    os.truncate(times, 1 << 40)
    history.trim(times, 30)
    assert Path(times).read_text() == ""
    samplefile.append(times, *EU, 0.1, 1)


NOBODY = 65534
needs_root = pytest.mark.root("mount a disk, and be another user")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A directory on a disk of 64 kB that has no room left but a few lines' in the file `times.txt`."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount: {mounted.stderr.decode().strip()}")
    try:
        path = disk / "times.txt"
        path.write_text(lines_of(*range(1, 90)))
        filler = os.open(disk / "filler", os.O_WRONLY | os.O_CREAT)
        with contextlib.suppress(OSError):
            while True:
                os.write(filler, b"x" * 4096)
        os.close(filler)
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@needs_root
def test_on_a_full_disk_what_fits_is_whole_and_the_rest_is_refused(full_disk: Path) -> None:
    path = full_disk / "times.txt"
    value, refusal = 90, ""
    while not refusal:
        try:
            samplefile.append(str(path), *EU, value / 10, value)
            value += 1
        except samplefile.SampleFileError as error:
            refusal = str(error)
    assert refusal == f"{path}: no space left on device"
    assert path.read_text() == lines_of(*range(1, value))
    history.trim(str(path), 85)
    assert path.read_text() == lines_of(*range(value - 85, value))
    assert sorted(os.listdir(full_disk)) == ["filler", "times.txt"]


def as_nobody(use: Callable[[], object]) -> str:
    """What `use` returns as a user without any rights, or its SampleFileError, as text."""
    groups, group, user = os.getgroups(), os.getegid(), os.geteuid()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        return str(use())
    except samplefile.SampleFileError as error:
        return f"refused: {error}"
    finally:
        os.seteuid(user)
        os.setegid(group)
        os.setgroups(groups)


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory like /tmp."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o1777)
        yield Path(name)


@needs_root
def test_a_file_of_somebody_else_is_read_but_neither_written_nor_trimmed(shared: Path) -> None:
    path = shared / "times.txt"
    path.write_text(lines_of(1, 2, 3))
    path.chmod(0o644)
    assert as_nobody(lambda: samplefile.append(str(path), *EU, 0.4, 4)) == f"refused: {path}: permission denied"
    assert as_nobody(lambda: history.read(str(path), 30).lines) == "3"
    assert as_nobody(lambda: history.trim(str(path), 1)) == f"refused: {path}: belongs to somebody else"
    path.chmod(0o600)
    assert as_nobody(lambda: history.read(str(path), 30)) == f"refused: {path}: permission denied"
    assert path.read_text() == lines_of(1, 2, 3)
    assert os.listdir(shared) == ["times.txt"]


@needs_root
def test_a_file_that_all_may_write_is_appended_to_by_all_and_trimmed_by_its_owner(shared: Path) -> None:
    path = shared / "times.txt"
    path.write_text(lines_of(1, 2, 3))
    path.chmod(0o666)
    assert as_nobody(lambda: samplefile.append(str(path), *EU, 0.4, 4)) == "False"
    assert as_nobody(lambda: history.trim(str(path), 1)) == f"refused: {path}: belongs to somebody else"
    assert history.trim(str(path), 1) == 3
    assert path.read_text() == lines_of(4)


@needs_root
@pytest.mark.parametrize("text", ["", "somebody else's"])
def test_a_file_planted_where_a_trim_writes_is_left_alone_and_stops_no_trim(shared: Path, text: str) -> None:
    path, planted = shared / "times.txt", shared / "times.txt.trim"
    path.write_text(lines_of(1, 2, 3))
    os.chown(path, NOBODY, NOBODY)
    planted.write_text(text)
    planted.chmod(0o666)
    assert as_nobody(lambda: history.trim(str(path), 1)) == "2"
    assert (path.read_text(), planted.read_text()) == (lines_of(3), text)
    os.chown(planted, NOBODY, NOBODY)
    path.write_text(lines_of(1, 2, 3))
    assert history.trim(str(path), 1) == 2  # root takes it away
    assert sorted(os.listdir(shared)) == ["times.txt"]


HOG = """
import sys
from multicloud import history, samplefile
found = history.read(sys.argv[1], 30)
history.trim(sys.argv[1], 100)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(len(found.series), peak.split()[1])
"""


def test_a_hundred_megabytes_of_made_up_servers_take_bounded_memory(times: str) -> None:
    with open(times, "wb") as file:
        file.truncate(40_000_000)
        file.seek(40_000_000)
        for start in range(0, 2_000_000, 100_000):
            file.write(b"".join(b"upstream s%d 0.1 5\n" % number for number in range(start, start + 100_000)))
        file.write(b"x" * 20_000_000 + b"\n")
        file.write(lines_of(1).encode())
    assert os.path.getsize(times) > 100_000_000
    result = subprocess.run([sys.executable, "-c", HOG, times], capture_output=True, text=True, check=True)
    servers, kilobytes = map(int, result.stdout.split())
    assert servers == history.MAX_SERVERS
    assert kilobytes < 300_000
    assert len(Path(times).read_text().splitlines()) == history.MAX_SERVERS


def test_a_check_that_failed_is_a_sample_of_its_own_kind(times: str) -> None:
    samplefile.append(times, *EU, 0.1, 5)
    samplefile.append(times, *EU, 10, 6, failed=True)
    assert Path(times).read_text().splitlines()[1] == "upstream eu.example.com 10.000000 6.000 failed"
    found = history.read(times, 30)
    assert (found.series, found.garbage) == ({EU: [(10.0, 6.0, True), (0.1, 5.0, False)]}, 0)
    assert history.trim(times, 1) == 1
    assert history.read(times, 30).series == {EU: [(10.0, 6.0, True)]}


def test_a_trim_forgets_servers_that_have_no_new_samples(times: str) -> None:
    Path(times).write_text("upstream gone 0.1 5.0\nupstream here 0.1 99\nupstream old 0.1\nupstream here 0.1 100\n")
    assert history.trim(times, 10, 99.0) == 1
    assert set(history.read(times, 30).series) == {("upstream", "here"), ("upstream", "old")}


OWN = tuple(("app", name) for name in ("eu", "us"))


def test_a_file_that_nobody_else_writes_is_read_once(times: str) -> None:
    found = history.Samples()
    for number in range(3):
        assert history.follow(times, 5, found, OWN) is found
        found.add("app", "eu", history.Sample(0.1, number), 5)
        found.record(times, [samplefile.format_line("app", "eu", 0.1, number)])
    whole = history.read(times, 5)
    assert (found.series, found.lines, found.size, found.stamp) == (whole.series, 3, whole.size, whole.stamp)


def test_what_others_have_written_since_is_read(times: str) -> None:
    samplefile.append(times, "app", "eu", 0.1, 1.0)
    found = history.read(times, 3)
    assert history.follow(times, 3, found, OWN) is found
    samplefile.append(times, "app", "eu", 0.2, 2.0)
    samplefile.append(times, "app", "us", 0.3, 3.0, failed=True)
    with open(times, "a") as file:
        file.write("no sample\napp eu 0.9 4.0")  # the last line has no end yet
    found = history.follow(times, 3, found, OWN)
    assert found.series == {("app", "eu"): [(0.2, 2.0, False), (0.1, 1.0, False)], ("app", "us"): [(0.3, 3.0, True)]}
    assert (found.lines, found.garbage) == (4, 1)


def test_beside_another_file_what_that_one_has_not_is_kept(times: str) -> None:
    for number in range(4):
        samplefile.append(times, "app", "eu", 0.1 + number, float(number))
    found = history.read(times, 10)
    Path(times).unlink()
    assert history.follow(times, 10, found, OWN) is found
    assert (found.lines, found.size) == (0, 0)
    samplefile.append(times, "app", "eu", 3.1, 3.0)  # which it has
    samplefile.append(times, "app", "eu", 9.0, 9.0)
    found = history.follow(times, 10, found, OWN)
    assert [when for _, when, _ in found.series["app", "eu"]] == [9.0, 3.0, 2.0, 1.0, 0.0]
    assert found.lines == 2


def test_what_is_kept_of_another_file_is_in_the_order_of_time(times: str) -> None:
    for number, seconds in enumerate((0.3, 0.1, 0.4)):
        samplefile.append(times, "app", "eu", seconds, float(number))
    found = history.read(times, 10)
    Path(times).write_text("app eu 0.200000 9.000\n")
    found = history.follow(times, 10, found, OWN)
    assert [seconds for seconds, _, _ in found.series["app", "eu"]] == [0.2, 0.4, 0.1, 0.3]


def test_of_samples_that_are_equal_none_is_lost_in_another_file(times: str) -> None:
    Path(times).write_text("app us 0.5 1.0\n")
    found = history.read(times, 10)
    for sample in ((2.0, 5.0, True), (2.0, 5.0, True), (0.1, 5.0, False)):  # of one round
        found.add("app", "eu", history.Sample(*sample), 10)
    Path(times).write_text("app eu 2.0 5.0 failed\n")
    found = history.follow(times, 10, found, OWN)
    assert sorted(found.series["app", "eu"]) == [(0.1, 5.0, False), (2.0, 5.0, True), (2.0, 5.0, True)]


def test_a_file_that_was_shortened_and_has_grown_again_is_read_anew(times: str) -> None:
    for number in range(20):
        samplefile.append(times, "app", "eu", 0.1, float(number))
    found = history.read(times, 3)
    Path(times).write_text("app us 0.5 50.0\n" * 40)
    found = history.follow(times, 3, found, OWN)
    assert len(found.series["app", "us"]) == 3
    assert found.lines == 40


def test_many_samples_are_appended_at_once_beside_what_others_append(times: str) -> None:
    samplefile.append(times, "app", "eu", 0.1, 1.0)
    found = history.read(times, 5)
    samplefile.append(times, "other", "ap", 0.7, 2.0)
    found.add("app", "eu", history.Sample(0.2, 3.0), 5)
    found.add("app", "us", history.Sample(0.3, 3.0, failed=True), 5)
    lines = [samplefile.format_line("app", "eu", 0.2, 3.0), samplefile.format_line("app", "us", 0.3, 3.0, failed=True)]
    found.record(times, lines)
    found = history.follow(times, 5, found, OWN)
    assert found.series == history.read(times, 5).series
    assert found.lines == 4


def test_a_file_that_is_not_there_yet_is_made_and_what_was_added_counts_once(times: str) -> None:
    found = history.follow(times, 5, history.Samples(), OWN)
    found.add("app", "eu", history.Sample(0.2, 3.0), 5)
    found.record(times, [samplefile.format_line("app", "eu", 0.2, 3.0)])
    assert history.follow(times, 5, found, OWN).series == {("app", "eu"): [(0.2, 3.0, False)]}
