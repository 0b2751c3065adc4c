"""A sample's line, and how it gets into the sample file: all that a check loads of it.

    <backend> <server> <seconds> <unix time>
    <backend> <server> <seconds> <unix time> failed

A check that failed has the seconds that it was allowed. Whoever holds the file's lock (flock) owns it: appends take
turns with each other and with a trim (history.py). A writer that waited for the lock makes sure that the file it holds
is still the one at the path. A line is written in one piece, and what follows the last newline is not a line yet.

A disk can be frozen. Then opening a file that is there and locking it do not wait, but making a file and writing do. So
nobody does that without a lock, the directory's or the file's: one process waits for the disk, and all others find it
locked. Others may write where the file lies, so it must be a regular file, and is followed through no link.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from multicloud.light import UsageError, reason
from multicloud.settings import is_name

FAILED_MARK = b" failed"  # how the line of a check ends that failed
LOCK_WAIT = 0.5  # seconds to wait for the lock: a trim holds it far shorter, and waits as long beside dozens of writers
MAX_BYTES = 32 << 20  # what the file may grow to
TAIL = 1 << 16  # so many bytes at its end have the newest sample of a server, of up to a thousand


class SampleFileError(UsageError):
    """The sample file cannot be used. The text says which file and why."""


class LockedError(SampleFileError):
    """Another process holds the lock."""


def format_line(backend: str, server: str, seconds: float, when: float, *, failed: bool = False) -> bytes:
    """A sample as it stands in the file. Raises SampleFileError where the names cannot stand there."""
    if not is_name(backend) or not is_name(server):
        raise SampleFileError(f"not the names of a backend and a server: {backend!r} {server!r}")
    return f"{backend} {server} {seconds:.6f} {when:.3f}".encode() + (FAILED_MARK if failed else b"") + b"\n"


def append(
    path: str, backend: str, server: str, seconds: float, when: float, *, failed: bool = False, wait: float = LOCK_WAIT
) -> bool:
    """Add one sample, as `append_lines` does; return whether the file says that the check before failed, too."""
    _, _, tail = append_lines(path, format_line(backend, server, seconds, when, failed=failed), wait)
    _, found, rest = (b"\n" + tail).rpartition(f"\n{backend} {server} ".encode())
    return bool(found) and rest.partition(b"\n")[0].endswith(FAILED_MARK)


def append_lines(path: str, lines: bytes, wait: float = LOCK_WAIT) -> tuple[os.stat_result, os.stat_result, bytes]:
    """Add lines as `format_line` gives them, to a new file where there is none.

    Return its state before and after, and its last TAIL bytes before. Raises LockedError after `wait` seconds, and
    SampleFileError. Then nothing was added.
    """
    try:
        fd = lock(path, wait, create=True)
        try:
            before = os.fstat(fd)
            if before.st_size >= MAX_BYTES:
                grown = f"has grown to {before.st_size >> 20} MiB"
                raise SampleFileError(f"{path}: {grown}: does a reweigh run, which trims it?")
            tail = os.pread(fd, TAIL, max(0, before.st_size - TAIL))
            if tail[-1:] not in (b"", b"\n"):
                lines = b"?\n" + lines  # what a killed writer left is no line, even where it looks like a shorter one
            if os.write(fd, lines) < len(lines):
                os.ftruncate(fd, before.st_size)
                raise SampleFileError(f"{path}: no space left on device")
            return before, os.fstat(fd), tail
        finally:
            os.close(fd)  # on a network's file system it may tell that nothing was written
    except OSError as error:
        raise unusable(path, error) from None


def lock(path: str, wait: float, *, create: bool) -> int:
    """Open the file at `path` for appending and lock it, in `wait` seconds.

    Raises LockedError, SampleFileError and OSError; without `create`, FileNotFoundError where there is no file.
    """
    deadline = time.monotonic() + wait
    while True:
        try:
            return _open_locked(path, create)
        except LockedError as error:
            if time.monotonic() >= deadline:
                raise LockedError(f"{error} for more than {wait} s: is its disk frozen?") from None
        time.sleep(0.002)


def _open_locked(path: str, create: bool) -> int:
    """One attempt of `lock`."""
    try:
        fd = open_file(path, os.O_RDWR | os.O_APPEND)
    except FileNotFoundError:
        if not create:
            raise
        fd = _create(path)
    mine = False
    try:
        _flock(fd, path)
        mine = os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        pass
    finally:
        if not mine:
            os.close(fd)
    if not mine:
        raise LockedError(f"{path}: replaced by another process")
    return fd


def _create(path: str) -> int:
    """Make the file and open it for appending, while its directory is locked. Raises SampleFileError and OSError."""
    directory = os.path.dirname(path) or "."
    try:
        held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _flock(held, directory)
            return os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640)
        finally:
            os.close(held)
    except FileExistsError:
        raise LockedError(f"{path}: replaced by another process") from None
    except FileNotFoundError:
        raise SampleFileError(f"{path}: no such directory") from None


def _flock(fd: int, path: str) -> None:
    """Lock what is open there, without waiting. Raises LockedError and OSError."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise LockedError(f"{path}: locked by another process") from None


def open_file(path: str, flags: int) -> int:
    """Open a regular file that is there. Raises OSError, which `unusable` words, and SampleFileError."""
    os.lstat(path)  # on a frozen disk, to open for writing what the kernel has not looked up yet would wait
    fd = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise SampleFileError(f"{path}: not a regular file")
        if found.st_nlink > 1:
            raise SampleFileError(f"{path}: a hard link, perhaps to somebody else's file")
    except BaseException:
        os.close(fd)
        raise
    return fd


def unusable(path: str, error: OSError) -> SampleFileError:
    """What the system said of the file, in words."""
    if error.errno == errno.ELOOP:
        return SampleFileError(f"{path}: a symbolic link, which is not followed")
    return SampleFileError(f"{path}: {reason(error)}")
