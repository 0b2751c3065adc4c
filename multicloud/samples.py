"""The sample file: one line for each check, appended by many processes, read and trimmed by one.

    <backend> <server> <seconds> <unix time>
    <backend> <server> <seconds> <unix time> failed

A check that failed has the seconds that it was allowed. Whoever holds the file's lock (flock) owns it: appends take
turns, and a trim puts a shorter file in its place with a rename, so that a process killed at any moment leaves either
the old file or the new one. Where there is no space or no right for that, it moves the lines that stay to the front of
the file instead: none of them moves back, so that one that is not yet at its new place is still at its old one, less
the one that is moved when the process is killed. A writer that waited for the lock makes sure that the file it holds is
still the one at the path. Readers need no lock: a line is written in one piece, and what follows the last newline is
not a line yet. One that reads in the very moment in which lines move may see some of them twice.

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
    from collections.abc import Collection, Iterator, Sequence

    Sample = tuple[float, float | None, bool]

KEEP = 100
"""Samples of a server that a trim leaves in the file."""

LOCK_WAIT = 0.5
"""Seconds to wait for the lock: less than HAProxy gives a check, and far more than a trim holds it."""

MAX_SECONDS = 3600.0
MAX_TIME = 1e11
MAX_SERVERS = 20_000
MAX_BYTES = 32 << 20
"""What the file may grow to, and how much of its end is read."""

MAX_LINES = 1_000_000
"""How many lines are read, which takes about as long as numpy does to be loaded five times over."""

MAX_GARBAGE = 100_000
FAILED = b" failed"
BLOCK = 256 << 10


class SampleFileError(Exception):
    """The sample file cannot be used. The text says which file and why."""


class LockedError(SampleFileError):
    """Another process holds the lock."""


class Samples:
    """What a sample file says.

    `series` maps (backend, server) to the newest samples of that server, newest first. A sample is its seconds, the
    UNIX time at which it was taken, None where the line does not say, and whether the check failed. `lines` counts the
    lines that were read, `garbage` those of them that are no samples, and `size` is the file's, in bytes. `place` is
    where reading ended: the file's device and inode, the offset behind its last line, and the bytes before that.
    """

    __slots__ = ("garbage", "lines", "place", "series", "size")

    def __init__(self) -> None:
        self.series: dict[tuple[str, str], list[Sample]] = {}
        self.lines = 0
        self.garbage = 0
        self.size = 0
        self.place: tuple[int, int, int, bytes] | None = None

    def add(self, backend: str, server: str, sample: Sample, newest: int) -> None:
        """Add a sample that was taken after those that are there, and keep the `newest`."""
        known = self.series.setdefault((backend, server), [])
        known.insert(0, sample)
        del known[newest:]


def line(backend: str, server: str, seconds: float, when: float, *, failed: bool = False) -> bytes:
    """A sample as it stands in the file. Raises SampleFileError where the names cannot stand there."""
    if not is_name(backend) or not is_name(server):
        raise SampleFileError(f"not the names of a backend and a server: {backend!r} {server!r}")
    return f"{backend} {server} {seconds:.6f} {when:.3f}".encode() + (FAILED if failed else b"") + b"\n"


def append(path: str, backend: str, server: str, seconds: float, when: float, *, failed: bool = False) -> None:
    """Add one sample, making the file where there is none. Raises SampleFileError, and then nothing was added."""
    append_all(path, 0, [line(backend, server, seconds, when, failed=failed)])


def append_all(path: str, newest: int, lines: Sequence[bytes], samples: Samples | None = None) -> None:
    """Add samples as `line` gives them, and read what others added to `samples`, which has these already.

    Raises SampleFileError, and then nothing was added.
    """
    fd = _lock(path, LOCK_WAIT, create=True)
    try:
        try:
            known = samples is not None and _read_rest(fd, newest, samples)
            _write_lines(fd, path, b"".join(lines))
            if samples is not None and known:  # else the file is read as a whole the next time
                samples.lines += len(lines)
                samples.size = os.fstat(fd).st_size
                samples.place = _place(fd, samples.size)
        finally:
            os.close(fd)  # on a network's file system it may tell that nothing was written
    except OSError as error:
        raise _unusable(path, error) from None


def _write_lines(fd: int, path: str, lines: bytes) -> None:
    """Append to the locked file: all of it, or nothing. Raises SampleFileError and OSError."""
    size = os.fstat(fd).st_size
    if size >= MAX_BYTES:
        raise SampleFileError(f"{path}: has grown to {size >> 20} MiB: does a reweigh run, which trims it?")
    if size and os.pread(fd, 1, size - 1) != b"\n":
        lines = b"?\n" + lines  # what a killed writer left is no line, even where it looks like a shorter one
    if os.write(fd, lines) < len(lines):
        os.ftruncate(fd, size)
        raise SampleFileError(f"{path}: no space left on device")


def read(path: str, newest: int) -> Samples:
    """The `newest` samples of each server; none where there is no file. Raises SampleFileError.

    Of a file larger than MAX_BYTES, or of more lines than MAX_LINES, only the end is read, of its servers no more than
    MAX_SERVERS, and nothing more once MAX_GARBAGE lines were no samples: a reweigh must come to its end however much
    there is.
    """
    samples = Samples()
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return samples
    known: dict[bytes, list[Sample]] = {}
    try:
        samples.size = os.fstat(fd).st_size
        end = _end_of_lines(fd)
        samples.place = _place(fd, end)
        for lines in _blocks(fd, end):
            if samples.garbage > MAX_GARBAGE or samples.lines > MAX_LINES:
                break
            samples.lines += len(lines)
            for line in reversed(lines):
                # Nearly every line is `backend server seconds time` of a server met before: one split, one look-up.
                failed = line.endswith(FAILED)
                fields = (line[: -len(FAILED)] if failed else line).rsplit(b" ", 2)
                kept = known.get(fields[0])
                if kept is None:  # three fields, perhaps
                    kept = known.get(line.rpartition(b" ")[0])
                    fields = fields[1:]
                if kept is None:
                    names = _names(line)
                    full = names not in known and len(known) >= MAX_SERVERS
                    if names is None or full or _sample(line.split()[2:4], failed=failed) is None:
                        samples.garbage += 1
                        continue
                    kept = known.setdefault(names, [])
                    fields = line.split()[1:4]  # server, seconds, time
                if len(kept) < newest:
                    sample = _sample(fields[1:], failed=failed)
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


def read_on(path: str, newest: int, samples: Samples, own: Collection[tuple[str, str]]) -> Samples:
    """`samples` with what was appended to the file since they were read, of each server the `newest` ones.

    Where it is another file by now, or was shortened, it is read as a whole, and what `samples` has and the file has
    not is kept of the servers that are this process's `own`. Where there is no file, `samples` are as they were. Raises
    SampleFileError.
    """
    try:
        fd = _open(path, os.O_RDONLY)
    except FileNotFoundError:
        return samples
    try:
        if _read_rest(fd, newest, samples):
            return samples
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(fd)
    whole = read(path, newest)
    for names in own:
        known = samples.series.get(names, [])
        in_file = whole.series.get(names, [])
        lacking = list(known)
        for sample in in_file:
            if sample in lacking:
                lacking.remove(sample)
        if lacking:
            merged = sorted([*lacking, *in_file], key=lambda sample: sample[1] or 0.0, reverse=True)
            whole.series[names] = merged[:newest]
    return whole


def _read_rest(fd: int, newest: int, samples: Samples) -> bool:
    """Add to `samples` what follows the place up to which they were read; False where the file has no such place."""
    end = _end_of_lines(fd)
    device, inode, offset, last = samples.place or (0, 0, 0, b"")
    found = os.fstat(fd)
    if (found.st_dev, found.st_ino) != (device, inode) or not 0 <= end - offset <= BLOCK:
        return False
    if os.pread(fd, len(last), offset - len(last)) != last:
        return False
    lines = os.pread(fd, end - offset, offset).split(b"\n")[:-1]
    for line in lines:
        backend, _, server = (_names(line) or b"").decode().partition(" ")
        sample = _sample(line.split()[2:4], failed=line.endswith(FAILED)) if backend else None
        if sample is None or ((backend, server) not in samples.series and len(samples.series) >= MAX_SERVERS):
            samples.garbage += 1
        else:
            samples.add(backend, server, sample, newest)
    samples.lines += len(lines)
    samples.size = found.st_size
    samples.place = _place(fd, end)
    return True


def _place(fd: int, end: int) -> tuple[int, int, int, bytes]:
    """The place at the offset `end` of a file."""
    found = os.fstat(fd)
    start = max(0, end - 256)
    return found.st_dev, found.st_ino, end, os.pread(fd, end - start, start)


def trim(path: str, keep: int, oldest: float = 0.0) -> int:
    """Leave the `keep` newest samples of each server and no garbage; return how many lines were dropped.

    Samples from before the UNIX time `oldest` are dropped, too, so that servers that are no more go in the end. The
    lines to keep are written beside the file; then, under the lock, what was appended meanwhile is added and the new
    file takes the place of the old one, or else the lines move to its front. Nothing is dropped where another trim is
    at work, or where somebody else truncated or replaced the file meanwhile. Raises SampleFileError, also where the
    file belongs to somebody else.
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
        read = _Read(path, old, end, os.pread(old, min(end, 4096), max(0, end - 4096)))
        kept, dropped = _newest_lines(old, end, keep, oldest)
        if not dropped:
            return 0
        try:
            replaced = _replace(read, b"".join(kept), owner)
        except LockedError:  # somebody holds the file itself, so neither way can be gone now
            raise
        except (OSError, SampleFileError):  # no right or no space for another file, or the file's path is a mount
            replaced = _shrink(read, b"".join(kept))
        return dropped if replaced else 0
    except OSError as error:
        raise _unusable(path, error) from None
    finally:
        os.close(old)


class _Read:
    """A file that was read up to the offset `end`; `last` are its bytes right before that."""

    __slots__ = ("end", "fd", "last", "path")

    def __init__(self, path: str, fd: int, end: int, last: bytes) -> None:
        self.path = path
        self.fd = fd
        self.end = end
        self.last = last

    def lock(self) -> int | None:
        """The file at the path, locked; None where it was replaced, or truncated and has perhaps grown again since.

        Raises OSError and SampleFileError.
        """
        try:
            locked = _lock(self.path, LOCK_WAIT, create=False)
        except FileNotFoundError:
            return None
        same = os.path.samestat(os.fstat(locked), os.fstat(self.fd))
        if same and os.pread(locked, len(self.last), self.end - len(self.last)) == self.last:
            return locked
        os.close(locked)
        return None

    def appended(self, locked: int) -> bytes:
        """What was appended after `end`."""
        return os.pread(locked, os.fstat(locked).st_size - self.end, self.end)


def _replace(read: _Read, kept: bytes, owner: os.stat_result) -> bool:
    """Put a file of the `kept` lines, and what was appended since, in the place of the one that was read.

    False where that is no longer the one at the path, or another trim is at work. Raises OSError and SampleFileError.
    """
    beside = f"{read.path}.trim"
    try:
        new = _lock(beside, 0, create=True)
    except LockedError:
        if os.lstat(beside).st_uid not in (os.geteuid(), owner.st_uid):
            raise SampleFileError(f"{beside}: belongs to somebody else") from None
        return False
    replaced = False
    try:
        if os.fstat(new).st_uid not in (os.geteuid(), owner.st_uid):
            raise SampleFileError(f"{beside}: belongs to somebody else")
        try:
            _make_own(new, owner)
            _write(new, kept)
            locked = read.lock()
            if locked is not None:
                try:
                    _write(new, read.appended(locked))
                    os.rename(beside, read.path)
                    replaced = True
                finally:
                    os.close(locked)
        finally:
            if not replaced:
                os.unlink(beside)  # on a full disk its space is wanted back
    finally:
        os.close(new)
    return replaced


def _shrink(read: _Read, kept: bytes) -> bool:
    """Move the `kept` lines, and what was appended since, to the front of the file, which needs no space.

    False where the file is no longer the one at the path. Raises OSError and SampleFileError.
    """
    locked = read.lock()
    if locked is None:
        return False
    try:
        lines = memoryview(kept + read.appended(locked))
        fcntl.fcntl(locked, fcntl.F_SETFL, 0)  # what is open for appending writes nowhere else
        done = 0
        while done < len(lines):
            done += os.pwrite(locked, lines[done:], done)
        os.ftruncate(locked, done)
        return True
    finally:
        os.close(locked)


def _make_own(fd: int, owner: os.stat_result) -> None:
    """Empty the file and give it to `owner`."""
    found = os.fstat(fd)
    os.ftruncate(fd, 0)
    if found.st_uid != owner.st_uid or found.st_gid != owner.st_gid:
        os.fchown(fd, owner.st_uid, owner.st_gid)
    os.fchmod(fd, owner.st_mode & 0o777)  # only now, and never set-user-ID: it may be root who makes this file


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _newest_lines(fd: int, end: int, keep: int, oldest: float) -> tuple[list[bytes], int]:
    """The lines to keep, in the order of the file and with their newlines, and the number of all the others."""
    counts: dict[bytes, int] = {}
    kept: list[bytes] = []
    dropped = garbage = 0
    for lines in _blocks(fd, end):
        if garbage > MAX_GARBAGE or dropped + len(kept) > MAX_LINES:  # what lies before is dropped with it
            dropped += 1
            break
        for line in reversed(lines):
            names = line.rsplit(b" ", 2)[0]
            if names not in counts:
                names = _names(line) or b""
                garbage += not names
            count = counts.get(names, 0)
            if names and count < keep and (count or len(counts) < MAX_SERVERS) and _is_kept(line, oldest):
                counts[names] = count + 1
                kept.append(line + b"\n")
            else:
                dropped += 1
    if end > MAX_BYTES:
        dropped += 1  # what lies before, whatever it is
    kept.reverse()
    return kept, dropped


def _is_kept(line: bytes, oldest: float) -> bool:
    sample = _sample(line.split()[2:4])
    return sample is not None and (sample[1] is None or sample[1] >= oldest)


def _names(line: bytes) -> bytes | None:
    """`backend server` of a line that has the shape of a sample, or None."""
    fields = line.split()
    if len(fields) == 5 and line.endswith(FAILED):
        fields.pop()
    if len(fields) not in (3, 4) or not _is_name(fields[0]) or not _is_name(fields[1]):
        return None
    return fields[0] + b" " + fields[1]


def _is_name(name: bytes) -> bool:
    return not name.translate(None, NAME_CHARACTERS)


def _sample(numbers: list[bytes], *, failed: bool = False) -> Sample | None:
    """A sample from the seconds and the UNIX time of a line, or its seconds alone; None if they are no such."""
    try:
        seconds = float(numbers[0])
        when = float(numbers[1]) if len(numbers) > 1 else None
    except ValueError:
        return None
    if not 0 < seconds <= MAX_SECONDS or not (when is None or 0 <= when <= MAX_TIME) or b"_" in b"".join(numbers):
        return None
    return seconds, when, failed


def _end_of_lines(fd: int) -> int:
    """The offset behind the last newline; 0 where there is none, the end where the last MAX_BYTES have none."""
    size = end = os.fstat(fd).st_size
    first = max(0, end - MAX_BYTES)
    while end > first:
        start = max(first, end - 4096)
        newline = os.pread(fd, end - start, start).rfind(b"\n")
        if newline >= 0:
            return start + newline + 1
        end = start
    return size if first else 0


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
