"""Whole processes timed against each other: in turn, A B A B ..., so that a machine that slows down slows both."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


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
    print(f"  {'':<34}{'CPU ms':>9}{'wall ms':>9}{'peak MB':>9}{'CPU ratio':>11}{'wall ratio':>12}")
    first = next(iter(commands))
    for name, each in costs.items():
        cpu, wall = statistics.median(cost.cpu for cost in each), statistics.median(cost.wall for cost in each)
        line = f"  {name:<34}{cpu:9.1f}{wall:9.1f}" + (f"{peaks[name]:9.1f}" if peaks[name] else f"{'-':>9}")
        if name != first:
            both = list(zip(costs[first], each, strict=True))
            line += f"{statistics.median(ours.cpu / max(theirs.cpu, 0.1) for ours, theirs in both):11.2f}"
            line += f"{statistics.median(ours.wall / theirs.wall for ours, theirs in both):12.2f}"
        print(line, flush=True)
