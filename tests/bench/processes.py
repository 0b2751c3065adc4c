"""What processes cost: running ones, and whole ones against each other.

These run in turn, A B A B ..., so that a machine that slows down slows both.
"""

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.bench.table import Table


def cpu(pid: int, *, children: bool = False) -> float:
    """Seconds of processor time of a process so far, or of its children that have ended (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[13:15] if children else fields[11:13])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int) -> float:
    """Megabytes (2^20 bytes) that are resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


class Cost(NamedTuple):
    """One run: milliseconds of processor time (user and system, children included) and of wall time."""

    cpu: float
    wall: float


def run(command: Sequence[str], environ: Mapping[str, str]) -> Cost:
    """Run a command to its end, which must be a success."""
    start = time.perf_counter()
    process = subprocess.Popen(command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit code {process.returncode}")
    return Cost((usage.ru_utime + usage.ru_stime) * 1000, wall * 1000)


def peak(command: Sequence[str], environ: Mapping[str, str]) -> float | None:
    """Megabytes that the largest process of a command had at most; None without GNU time."""
    if not shutil.which("time"):
        return None
    with tempfile.NamedTemporaryFile() as file:
        run(["time", "--format", "%M", "--output", file.name, *command], environ)
        return int(Path(file.name).read_text()) / 1024


def compare(title: str, commands: Mapping[str, Sequence[str]], environ: Mapping[str, str], *, pairs: int = 30) -> None:
    """Print the medians of each command, and of the ratio of the first one's cost to each other's, pair by pair."""
    costs: dict[str, list[Cost]] = {name: [] for name in commands}
    peaks = {name: peak(command, environ) for name, command in commands.items()}
    for _ in range(pairs):
        for name, command in commands.items():
            costs[name].append(run(command, environ))
    print(f"\n{title}, {pairs} times each")
    table = Table("", "CPU ms", "wall ms", "peak MB", "CPU ratio", "wall ratio")
    first = next(iter(costs.values()))
    for name, each in costs.items():
        medians = [statistics.median(column) for column in zip(*each, strict=True)]
        both = list(zip(first, each, strict=True))
        cpu_ratio = statistics.median(ours.cpu / max(theirs.cpu, 0.1) for ours, theirs in both)
        wall_ratio = statistics.median(ours.wall / theirs.wall for ours, theirs in both)
        table.row(
            name, *(each and f"{each:.1f}" for each in (*medians, peaks[name])), f"{cpu_ratio:.2f}", f"{wall_ratio:.2f}"
        )
