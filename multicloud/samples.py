"""The sample file: one line for each successful check, appended by many processes, read and trimmed by one.

    <backend> <server> <seconds> <unix time>

Whoever holds the file's lock (flock) owns it: appends take turns, and a trim puts a shorter file in its place with a
rename, so that a process killed at any moment leaves either the old file or the new one. A writer that waited for the
lock makes sure that the file it holds is still the one at the path. Readers need no lock: a line is written in one
piece, and what follows the last newline is not a line yet.

Others may write where the file lies, so it must be a regular file, is not followed through a symbolic or a hard link,
and nothing in it is trusted: a line that is no sample is skipped and counted.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time

from multicloud.settings import NAME_CHARACTERS, is_name

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Iterator

KEEP = 100
"""Samples of a server that a trim leaves in the file."""

LOCK_WAIT = 0.5
"""Seconds to wait for the lock: less than HAProxy gives a check, and far more than a trim holds it."""

MAX_SECONDS = 3600.0
MAX_TIME = 1e11
MAX_SERVERS = 20_000
MAX_BYTES = 64 << 20
MAX_GARBAGE = 100_000
BLOCK = 256 << 10


class SampleFileError(Exception):
    """The sample file cannot be used. The text says which file and why."""


class LockedError(SampleFileError):
    """Another process holds the lock."""


class Samples:
    """What a sample file says.

    `series` maps (backend, server) to the newest samples of that server, newest first; a sample is a pair of seconds
    and the UNIX time at which it was taken, None where the line does not say. `lines` counts the lines that were read,
    `garbage` those of them that are no samples, and `size` is the file's, in bytes.
    """

    __slots__ = ("garbage", "lines", "series", "size")

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], list[tuple[float, float | None]]] = {}
        self.lines = 0
        self.garbage = 0
        self.size = 0


def append(path: str, backend: str, server: str, seconds: float, when: float) -> None:
    """Add one sample, making the file where there is none. Raises SampleFileError, and then nothing was added."""
    if not is_name(backend) or not is_name(server):
        raise SampleFileError(f"{path}: not the names of a backend and a server: {backend!r} {server!r}")
    line = f"{backend} {server} {seconds:.6f} {when:.3f}\n".encode()
    fd = _lock(path, LOCK_WAIT, create=True)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"?\n" + line  # what a killed writer left is no line, even where it looks like a shorter one
        if os.write(fd, line) < len(line):
            os.ftruncate(fd, size)
            raise SampleFileError(f"{path}: no space left on device")
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(fd)


def read(path: str, newest: int) -> Samples:
    """The `newest` samples of each server; none where there is no file. Raises SampleFileError.

    Of a file larger than MAX_BYTES only the end is read, of its servers no more than MAX_SERVERS, and nothing more once
    MAX_GARBAGE lines were no samples: a reweigh must come to its end however much of them there is.
    """
    samples = Samples()
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return samples
    known: dict[bytes, list[tuple[float, float | None]]] = {}
    try:
        samples.size = os.fstat(fd).st_size
        for lines in _blocks(fd, _end_of_lines(fd)):
            if samples.garbage > MAX_GARBAGE:
                break
            samples.lines += len(lines)
            for line in reversed(lines):
                # Nearly every line is `backend server seconds time` of a server met before: one split, one look-up.
                fields = line.rsplit(b" ", 2)
                kept = known.get(fields[0])
                if kept is None:
                    names = _names(line)
                    full = names not in known and len(known) >= MAX_SERVERS
                    if names is None or full or _sample(line.split()[2:]) is None:
                        samples.garbage += 1
                        continue
                    kept = known.setdefault(names, [])
                    fields = line.split()[1:]  # server, seconds, time
                if len(kept) < newest:
                    sample = _sample(fields[1:])
                    if sample is None:
                        samples.garbage += 1
                    else:
                        kept.append(sample)
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(fd)
    for names, kept in known.items():
        backend, server = names.decode().split()
        samples.series[backend, server] = kept
    return samples


def trim(path: str, keep: int) -> int:
    """Leave the `keep` newest samples of each server and no garbage; return how many lines were dropped.

    The lines to keep are written beside the file; then, under the lock, what was appended meanwhile is added and the
    new file takes the place of the old one. Nothing is dropped where another trim is at work, or where somebody else
    truncated or replaced the file meanwhile. Raises SampleFileError, also where the file belongs to somebody else.
    """
    try:
        old = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return 0
    try:
        owner = os.fstat(old)
        if os.geteuid() not in (0, owner.st_uid):
            raise SampleFileError(f"{path}: belongs to somebody else")
        end = _end_of_lines(old)
        last = os.pread(old, min(end, 4096), max(0, end - 4096))
        kept, dropped = _newest_lines(old, end, keep)
        if not dropped:
            return 0
        beside = f"{path}.trim"
        try:
            new = _lock(beside, 0, create=True)
        except LockedError:
            return 0
        try:
            _make_own(new, beside, owner)
            replaced = False
            try:
                _write(new, b"".join(kept))
                replaced = _replace(path, old, end, last, beside, new)
            finally:
                if not replaced:
                    os.unlink(beside)  # on a full disk its space is wanted back
            return dropped if replaced else 0
        finally:
            os.close(new)
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(old)


def _replace(path: str, old: int, end: int, last: bytes, beside: str, new: int) -> bool:
    """Rename `beside` to `path` with all that was appended to it after `end`.

    False where it is not the file that was read, whose lines up to `end` closed with `last`: it was replaced, or it was
    truncated and has perhaps grown again since.
    """
    try:
        locked = _lock(path, LOCK_WAIT, create=False)
    except FileNotFoundError:
        return False
    try:
        now = os.fstat(locked)
        if not os.path.samestat(now, os.fstat(old)) or os.pread(locked, len(last), end - len(last)) != last:
            return False
        _write(new, os.pread(locked, now.st_size - end, end))
        os.rename(beside, path)
        return True
    finally:
        os.close(locked)


def _make_own(fd: int, path: str, owner: os.stat_result) -> None:
    """Empty the file and give it to `owner`. Raises SampleFileError where somebody else put it there."""
    found = os.fstat(fd)
    if found.st_uid not in (os.geteuid(), owner.st_uid):
        raise SampleFileError(f"{path}: belongs to somebody else; remove it")
    os.ftruncate(fd, 0)
    if found.st_uid != owner.st_uid or found.st_gid != owner.st_gid:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    os.fchmod(fd, owner.st_mode & 0o777)  # only now, and never set-user-ID: it may be root who makes this file


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _newest_lines(fd: int, end: int, keep: int) -> tuple[list[bytes], int]:
    """The lines to keep, in the order of the file and with their newlines, and the number of all the others."""
    counts: dict[bytes, int] = {}
    kept: list[bytes] = []
    dropped = garbage = 0
    for lines in _blocks(fd, end):
        if garbage > MAX_GARBAGE:  # what lies before is dropped with it
            break
        for line in reversed(lines):
            names = line.rsplit(b" ", 2)[0]
            if names not in counts:
                names = _names(line) or b""
                garbage += not names
            count = counts.get(names, 0)
            if names and count < keep and (count or len(counts) < MAX_SERVERS) and _sample(line.split()[2:]):
                counts[names] = count + 1
                kept.append(line + b"\n")
            else:
                dropped += 1
    if end > MAX_BYTES:
        dropped += 1  # what lies before, whatever it is
    kept.reverse()
    return kept, dropped


def _names(line: bytes) -> bytes | None:
    """`backend server` of a line that has the shape of a sample, or None."""
    fields = line.split()
    if len(fields) not in (3, 4) or not _is_name(fields[0]) or not _is_name(fields[1]):
        return None
    return fields[0] + b" " + fields[1]


def _is_name(name: bytes) -> bool:
    return not name.translate(None, NAME_CHARACTERS)


def _sample(numbers: list[bytes]) -> tuple[float, float | None] | None:
    """Seconds and UNIX time from the last two fields of a line, or from its only one; None if they are no such."""
    try:
        seconds = float(numbers[0])
        when = float(numbers[1]) if len(numbers) > 1 else None
    except ValueError:
        return None
    if not 0 < seconds <= MAX_SECONDS or not (when is None or 0 <= when <= MAX_TIME) or b"_" in b"".join(numbers):
        return None
    return seconds, when


def _end_of_lines(fd: int) -> int:
    """The offset behind the last newline; 0 where there is none, or none in the last MAX_BYTES."""
    end = os.fstat(fd).st_size
    first = max(0, end - MAX_BYTES)
    while end > first:
        start = max(first, end - 4096)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return 0


def _blocks(fd: int, end: int) -> Iterator[list[bytes]]:
    """The lines before the offset `end`, in blocks: the newest block first, the lines of a block in file order."""
    first = max(0, end - MAX_BYTES)
    tail = b""  # of a line that begins in the block before; all of a line that is longer than a block is garbage
    end -= 1  # not the last newline
    while end > first:
        start = max(first, end - BLOCK)
        block = os.pread(fd, end - start, start)
        if len(block) < end - start:  # truncated by somebody else meanwhile
            return
        lines = (block + tail).split(b"\n")
        tail = lines.pop(0)[:BLOCK]
        yield lines
        end = start
    if first == 0 and end == 0:
        yield [tail]


def _lock(path: str, wait: float, *, create: bool) -> int:
    """Open the file at `path` for appending and lock it. Raises LockedError after `wait` seconds.

    Raises FileNotFoundError unless `create`, and SampleFileError, too.
    """
    deadline = time.monotonic() + wait
    while True:
        fd = _open(path, os.O_RDWR | os.O_APPEND, create=create)
        mine = False
        try:
            mine = _locked(fd) and _is_at(path, fd)
        except OSError as error:
            raise _unusable(path, error) from None
        finally:
            if not mine:
                os.close(fd)
        if mine:
            return fd
        if time.monotonic() >= deadline:
            raise LockedError(f"{path}: locked by another process for more than {wait} s")
        time.sleep(0.002)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(path: str, fd: int) -> bool:
    try:
        return os.path.samestat(os.lstat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _open(path: str, flags: int, *, create: bool = False) -> int:
    """Open a regular file. Raises FileNotFoundError unless `create`, and SampleFileError."""
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        try:
            fd = os.open(path, flags)
        except FileNotFoundError:
            if not create:
                raise
            # Never O_CREAT alone: in /tmp the kernel refuses it, to root too, where the file is somebody else's.
            fd = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
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
    except FileExistsError:  # somebody else made it in between, and may have removed it since
        return _open(path, flags, create=create)
    except FileNotFoundError:
        if create:
            raise SampleFileError(f"{path}: no such directory") from None
        raise
    except OSError as error:
        raise _unusable(path, error) from None


def _unusable(path: str, error: OSError) -> SampleFileError:
    if error.errno == errno.ELOOP:
        return SampleFileError(f"{path}: a symbolic link, which is not followed")
    return SampleFileError(f"{path}: {(error.strerror or str(error)).lower()}")
