"""The history of each server's checks: the sample file (samplefile.py) read, followed and trimmed.

Readers need no lock, and trust nothing: what is no sample is skipped and counted. Lines of three fields are samples
without a time.

A trim puts a shorter file in the place of the file with a rename, so that a process killed at any moment leaves either
the old file or the new one. Where there is no space or no right for that, it moves the lines that stay to the front of
the file: a killed trim, or who reads just then, can see one twice, and never loses one.
"""

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from multicloud import samplefile
from multicloud.settings import NAME_CHARACTERS, Key

KEEP_IN_ALL = 10_000  # samples that a trim leaves in the file of few servers, for who asks about the last hour
MIN_SECONDS, MAX_SECONDS, MAX_TIME = 1e-6, 3600.0, 1e11
MAX_SERVERS = 20_000
MAX_LINES = 200_000  # how many lines are read: a reweigh that also trims has time for twice as many in its 2 s
BLOCK = 256 << 10


class Sample(NamedTuple):
    """A check: its seconds, the UNIX time at which it ended, None where that is not known, and whether it failed."""

    seconds: float
    time: float | None = None
    failed: bool = False


class Samples:
    """What a sample file says."""

    def __init__(self) -> None:
        self.series: dict[Key, list[Sample]] = {}  # by backend and server, the newest sample first
        self.lines = self.garbage = self.size = 0  # lines that were read, those that are no samples; the file's bytes
        self.stamp: tuple[int, ...] | None = None  # the state of the file that all of this is from, if it is from one

    def add(self, backend: str, server: str, sample: Sample, newest: int) -> None:
        """Add a sample that was taken after those that are there, and keep the `newest`."""
        known = self.series.setdefault((backend, server), [])
        known.insert(0, sample)
        del known[newest:]

    def record(self, path: str, lines: Sequence[bytes]) -> None:
        """Append to the file the lines of samples that were added here. Raises SampleFileError."""
        before, after, _ = samplefile.append_lines(path, b"".join(lines))
        # Where somebody else has written, too, the file is read as a whole the next time.
        self.stamp = _stamp(after) if self.stamp == _stamp(before) or not before.st_size else None
        self.lines += len(lines)
        self.size = after.st_size


def read(path: str, newest: int) -> Samples:
    """The `newest` samples of each server, and none where there is no file. Raises SampleFileError.

    Of a file larger than MAX_BYTES, or of more lines than MAX_LINES, only the end is read, and of its servers no more
    than MAX_SERVERS: a reweigh must come to its end however much there is.
    """
    try:
        fd = samplefile.open_file(path, os.O_RDONLY)
        try:
            found = os.fstat(fd)
            end, _ = _end_of_lines(fd)
            samples, _ = _newest(fd, end, newest)
        finally:
            os.close(fd)
    except FileNotFoundError:
        return Samples()
    except OSError as error:
        raise samplefile.unusable(path, error) from None
    samples.size, samples.stamp = found.st_size, _stamp(found)
    return samples


def _newest(fd: int, end: int, newest: int, oldest: float = 0.0) -> tuple[Samples, list[bytes]]:
    """The `newest` samples of each server since `oldest`, and their lines in the order of the file."""
    samples = Samples()
    known: dict[bytes, list[Sample]] = {}
    kept: list[bytes] = []
    for lines in _blocks(fd, end):
        if samples.lines > MAX_LINES:
            break
        samples.lines += len(lines)
        for line in reversed(lines):
            names = b" ".join(line.split(None, 2)[:2])
            if len(known.get(names, ())) >= newest:  # most lines, so nothing more is done with them
                continue
            sample = _parse(line)
            if sample is None or (names not in known and len(known) >= MAX_SERVERS):
                samples.garbage += 1
            elif sample.time is None or sample.time >= oldest:
                known.setdefault(names, []).append(sample)
                kept.append(line + b"\n")
    for names, of_server in known.items():
        backend, server = names.decode().split()
        samples.series[backend, server] = of_server
    return samples, kept[::-1]


def follow(path: str, newest: int, samples: Samples, own: Iterable[Key]) -> Samples:
    """`samples` where nobody else has written the file since they were read, else what it has now.

    What `samples` has and the file has not is kept of the servers that are this process's `own`. Where there is no
    file, `samples` are as they were. Raises SampleFileError.
    """
    try:
        if _stamp(os.lstat(path)) == samples.stamp:
            return samples
    except FileNotFoundError:
        samples.stamp, samples.lines, samples.size = None, 0, 0
        return samples
    except OSError as error:
        raise samplefile.unusable(path, error) from None
    whole = read(path, newest)
    for key in own:
        in_file = whole.series.get(key, [])
        every = Counter(samples.series.get(key, ())) | Counter(in_file)  # equal ones as often as either has them
        if every.total() > len(in_file):
            whole.series[key] = sorted(every.elements(), key=lambda each: each.time or 0.0, reverse=True)[:newest]
    return whole


def _stamp(found: os.stat_result) -> tuple[int, ...]:
    """What changes when somebody writes the file, or puts another one in its place."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def trim(path: str, keep: int, oldest: float = 0.0) -> int:
    """Leave the `keep` newest samples of each server and no garbage; return how many lines were dropped.

    Samples from before the UNIX time `oldest` are dropped, too, so that servers that are no more go in the end. Nothing
    is dropped where somebody truncated or replaced the file meanwhile. Raises SampleFileError.
    """
    try:
        if os.geteuid() not in (0, os.lstat(path).st_uid):
            raise samplefile.SampleFileError(f"{path}: belongs to somebody else")
        fd = samplefile.open_file(path, os.O_RDONLY)
        try:
            end, last = _end_of_lines(fd)
            samples, kept = _newest(fd, end, keep, oldest)
            whole = b"".join(kept)
            dropped = samples.lines - len(kept) or int(len(whole) < end)  # what was not read, however much it is
            # Without `last` nothing tells whether it is still that file.
            return dropped if dropped and last and _leave(path, os.fstat(fd), end, last, whole) else 0
        finally:
            os.close(fd)
    except FileNotFoundError:
        return 0
    except OSError as error:
        raise samplefile.unusable(path, error) from None


def _leave(path: str, read: os.stat_result, end: int, last: bytes, kept: bytes) -> bool:
    """Lock the file, and leave `kept` in it and what was appended since it was read up to the offset `end`.

    False where it is no longer the file that was `read`, or has not the bytes `last` before `end`. Raises OSError.
    """
    fd = samplefile.lock(path, samplefile.LOCK_WAIT, create=False)
    try:
        found = os.fstat(fd)
        if not os.path.samestat(found, read) or os.pread(fd, len(last), end - len(last)) != last:
            return False
        lines = kept + os.pread(fd, found.st_size - end, end)
        try:
            _replace(path, found, lines)
        except OSError:  # no right or no space for another file, or the file's path is a mount
            fcntl.fcntl(fd, fcntl.F_SETFL, 0)  # what is open for appending writes nowhere else
            _write(fd, lines)
        return True
    finally:
        os.close(fd)


def _replace(path: str, owner: os.stat_result, lines: bytes) -> None:
    """Put a file of these lines in the place of the locked one, with its owner and mode. Raises OSError."""
    beside = f"{path}.trim"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(beside)  # what a killed trim has left
    new = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.fchown(new, owner.st_uid, owner.st_gid)
        os.fchmod(new, owner.st_mode & 0o777)  # never set-user-ID: it may be root who makes this file
        _write(new, lines)
        os.rename(beside, path)
    except BaseException:
        os.unlink(beside)  # on a full disk its space is wanted back
        raise
    finally:
        os.close(new)


def _write(fd: int, lines: bytes) -> None:
    """Write these lines from the front of the file, and end it behind them. Raises OSError."""
    done = 0
    while done < len(lines):
        done += os.pwrite(fd, lines[done:], done)
    os.ftruncate(fd, done)


def _parse(line: bytes) -> Sample | None:
    """The sample of a line; None for a line that is none."""
    fields = line.split()
    failed = len(fields) == 5 and line.endswith(samplefile.FAILED_MARK)
    names, numbers = fields[:2], fields[2 : len(fields) - failed]
    if len(numbers) not in (1, 2) or b"".join(names).translate(None, NAME_CHARACTERS) or b"_" in b"".join(numbers):
        return None
    try:
        seconds = float(numbers[0])
        when = float(numbers[1]) if len(numbers) > 1 else None
    except ValueError:
        return None
    if not MIN_SECONDS <= seconds <= MAX_SECONDS or not (when is None or 0 <= when <= MAX_TIME):
        return None
    return Sample(seconds, when, failed)


def _end_of_lines(fd: int) -> tuple[int, bytes]:
    """The offset behind the last newline, or the file's end where its last 4 KiB have none, and the bytes before it.

    One read gives both. The file can be truncated between two, and then be longer again than it was.
    """
    start = max(0, os.fstat(fd).st_size - 4096)
    last = os.pread(fd, 4096, start)
    if start == 0 or b"\n" in last:
        last = last[: last.rfind(b"\n") + 1]
    return start + len(last), last


def _blocks(fd: int, end: int) -> Iterator[list[bytes]]:
    """The lines before the offset `end`, in blocks: the newest block first, the lines of a block in file order."""
    first = max(0, end - samplefile.MAX_BYTES)
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
