"""The faults of tests.bench.storm: how each is done and undone, and which requests docs/promises.md lets it fail.

A fault is a function that is given the scene: it does the fault, yields what it did, and undoes it when it goes on.
Chance comes from the scene alone, so that a seed always means the same faults.
"""

import contextlib
import fcntl
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from tests.bench.load import POST, Failure
from tests.edge import Edge
from tests.names import NameServer
from tests.regions import Region

SLOWEST = 1.0  # seconds that a region takes at most: less than a check may
# Seconds for which a region may hang before it is DOWN: two checks that take their time, and two pauses.
UNNOTICED = 8.0
# Seconds within which two checks have failed, each with a chance of 1 in 3, in all but one of 200 cases.
SEEN_TWICE = 46.0
NEAR = 1.2  # regions are equally right whose delays differ by no more than this: the hysteresis, and some noise


class Scene:
    """What the faults happen to. `sick` has the regions that do not serve now; `shared`: none can serve all traffic."""

    def __init__(self, running: Edge, names: NameServer, draw: Random) -> None:
        self.running = running
        self.regions = running.regions
        self.names = names
        self.draw = draw
        self.sick: set[Region] = set()
        self.shared = False
        self.times = Path(running.router.settings["MULTICLOUD_TIMES"])

    def healthy(self) -> list[Region]:
        """The regions that serve, the fastest first."""
        return sorted(set(self.regions) - self.sick, key=lambda region: region.delay)

    def right(self) -> set[str]:
        """The regions of which one should lead; "nobody" need lead where they share."""
        if self.shared:
            return {"nobody", *(region.name for region in self.healthy())}
        fastest, *others = self.healthy()
        return {fastest.name, *(region.name for region in others if region.delay <= NEAR * fastest.delay)}

    def pick(self) -> Region:
        """A region that serves, and more often than not the fastest."""
        fastest, *others = self.healthy()
        return fastest if not others or self.draw.random() < 0.6 else self.draw.choice(others)

    @contextlib.contextmanager
    def without(self, *regions: Region) -> Iterator[str]:
        """The regions do not serve meanwhile; gives their names."""
        self.sick.update(regions)
        yield " and ".join(region.name for region in regions)
        self.sick.difference_update(regions)


Rule = Callable[[Failure, float], bool]  # whether a request may fail that was sent so many seconds after the fault


def nothing(_failure: Failure, _after: float) -> bool:
    """No request may fail."""
    return False


def posts_in_flight(failure: Failure, after: float) -> bool:
    """Nobody knows whether the region did what those ask for."""
    return failure.kind == POST and after <= 0


def own_answer(failure: Failure, _after: float) -> bool:
    """A 500 is the application's answer."""
    return failure.status == 500 and failure.region != ""


def until(seconds: float) -> Rule:
    """Any request that is sent so soon."""
    return lambda _failure, after: after <= seconds


def as_many_as(connections: int) -> Rule:
    """One request for each connection that was open, be it in flight or sent over one that was kept."""
    left = iter(range(connections))
    return lambda _failure, after: after <= UNNOTICED and next(left, None) is not None


# For two regions that fail at once: until both are DOWN and the next reweigh, 2 s after the one before, has ended.
TOGETHER = until(2.5)


class Deed(NamedTuple):
    """What was done, in words, and whether a request may fail that was sent so many seconds after it."""

    words: str
    allows: Rule = nothing


def _die(scene: Scene, regions: Sequence[Region], words: str, allows: Rule) -> Iterator[Deed]:
    with scene.without(*regions) as names:
        for region in regions:
            scene.regions.stop(region)
        yield Deed(f"{names} {words}", allows)
        for region in regions:
            scene.regions.start(region)


def dies(scene: Scene) -> Iterator[Deed]:
    return _die(scene, [scene.pick()], "dies", posts_in_flight)


def two_die(scene: Scene) -> Iterator[Deed]:
    return _die(scene, scene.healthy()[:2], "die together", TOGETHER)


def hangs(scene: Scene) -> Iterator[Deed]:
    region = scene.pick()
    delay = region.delay
    with scene.without(region) as name:
        scene.regions.freeze(region)
        time.sleep(0.2)  # until those are open, too, that were being made
        kept = region.connections
        yield Deed(f"{name} hangs, with {kept} connections", as_many_as(kept))
        scene.regions.stop(region)
        region.delay = delay
        scene.regions.start(region)


def hangs_now_and_then(scene: Scene) -> Iterator[Deed]:
    region = scene.pick()
    with scene.without(region) as name:
        region.hangs = 3
        yield Deed(f"{name} hangs on every third request", until(SEEN_TWICE))
        region.hangs = 0


def answers_500(scene: Scene) -> Iterator[Deed]:
    region = scene.pick()
    with scene.without(region) as name:
        region.status = 500
        yield Deed(f"{name} answers 500", own_answer)
        region.status = 200


def slows_down(scene: Scene) -> Iterator[Deed]:
    region = scene.pick()
    delay = region.delay
    region.delay = min(SLOWEST, delay * scene.draw.uniform(1.5, 20))
    yield Deed(f"{region.name} takes {region.delay * 1000:.0f} ms instead of {delay * 1000:.0f}")
    region.delay = delay


def all_slow_down(scene: Scene) -> Iterator[Deed]:
    delays = {region: region.delay for region in scene.healthy()}
    factor = min(10, SLOWEST / max(delays.values()))
    for region in delays:
        region.delay *= factor
    yield Deed(f"all regions take {factor:.0f} times as long")
    for region, delay in delays.items():
        region.delay = delay


def too_much_traffic(scene: Scene) -> Iterator[Deed]:
    """Each region serves 25 to 33 requests a second, one at a time or a few, and gets 50 (tests.bench.load)."""
    fastest = scene.healthy()[0]
    delay = fastest.delay
    fastest.delay = 0.030
    for region in scene.regions:
        region.workers = max(1, round(30 * region.delay))
    scene.shared = True
    yield Deed("there is more traffic than one region serves")
    scene.shared = False
    for region in scene.regions:
        region.workers = 0
    fastest.delay = delay


def file_deleted(scene: Scene) -> Iterator[Deed]:
    scene.times.unlink(missing_ok=True)
    yield Deed("the sample file is deleted")


def file_truncated(scene: Scene) -> Iterator[Deed]:
    size = scene.draw.choice((0, scene.draw.randrange(20_000)))
    with contextlib.suppress(FileNotFoundError):
        size = min(size, scene.times.stat().st_size)
        os.truncate(scene.times, size)
    yield Deed(f"the sample file is cut to {size} bytes")


def file_filled(scene: Scene) -> Iterator[Deed]:
    garbage = scene.draw.randbytes(scene.draw.randrange(8 << 20))
    lines = [
        f"upstream gone{scene.draw.randrange(1 << 30)}.demo 0.000100 {time.time():.3f}\n"
        for _ in range(scene.draw.randrange(2_000))
    ]
    with scene.times.open("ab") as file:
        file.write(garbage + b"\n" + "".join(lines).encode())
    yield Deed(f"{len(garbage) / 1e6:.1f} MB of garbage and {len(lines)} unknown servers are in the sample file")


def file_locked(scene: Scene) -> Iterator[Deed]:
    with scene.times.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield Deed("the sample file is locked")


def file_unwritable(scene: Scene) -> Iterator[Deed]:
    aside = scene.times.with_name("aside.txt")
    aside.touch()
    with contextlib.suppress(FileNotFoundError):
        scene.times.rename(aside)
    scene.times.mkdir()  # root, who may run this, can write to any file
    yield Deed("the sample file is a directory")
    scene.times.rmdir()
    aside.rename(scene.times)


class Process(NamedTuple):
    """One of HAProxy's: `age` in seconds, `haproxy` whether it is one itself and no check."""

    pid: int
    age: float
    state: str
    haproxy: bool


def processes() -> list[Process]:
    """All HAProxys that this process has started, and all that these have started, even where those are gone."""
    uptime = float(Path("/proc/uptime").read_text().split()[0])
    table = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            state, parent, _, session, *rest = path.read_text().rpartition(")")[2].split()
            began = int(rest[15]) / os.sysconf("SC_CLK_TCK")
            table.append((int(path.parent.name), state, int(parent), int(session), uptime - began))
    leaders = {pid for pid, _, parent, session, _ in table if parent == os.getpid() and session == pid}
    return [Process(pid, age, state, pid in leaders) for pid, state, _, session, age in table if session in leaders]


def signal_checks(scene: Scene, number: signal.Signals, most: int) -> set[int]:
    """Send a signal to some checks (a reweigh is one) at random moments; the processes that got it."""
    hit: set[int] = set()
    count = scene.draw.randint(1, most)
    deadline = time.monotonic() + 5 * count
    while len(hit) < count and time.monotonic() < deadline:
        checks = {each.pid for each in processes() if not each.haproxy and each.state not in "ZT"} - hit
        if not checks:
            time.sleep(0.01)
            continue
        with contextlib.suppress(ProcessLookupError):
            os.kill(max(checks), number)
            hit.add(max(checks))
        time.sleep(scene.draw.uniform(0, 1))
    return hit


def checks_killed(scene: Scene) -> Iterator[Deed]:
    yield Deed(f"{len(signal_checks(scene, signal.SIGKILL, 8))} checks are killed")


def checks_stopped(scene: Scene) -> Iterator[Deed]:
    hit = signal_checks(scene, signal.SIGSTOP, 4)
    yield Deed(f"{len(hit)} checks are stopped (SIGSTOP)")
    for each in processes():
        if each.pid in hit and each.state == "T":
            os.kill(each.pid, signal.SIGCONT)


def two_reweighs(scene: Scene) -> Iterator[Deed]:
    command = [scene.running.router.directory / "multicloud-reweigh"]
    codes = []
    for _ in range(scene.draw.randint(5, 15)):
        pair = [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(2)]
        codes += [process.wait(timeout=30) for process in pair]
        time.sleep(scene.draw.uniform(0, 0.5))
    yield Deed(
        f"{len(codes)} reweighs by hand, two at once, {len(codes) - codes.count(0)} of them not with exit code 0"
    )


def reweigh_breaks(scene: Scene) -> Iterator[Deed]:
    script = scene.running.router.directory / "multicloud-reweigh"
    aside = script.rename(script.with_suffix(".aside"))
    yield Deed("the reweigh's script is gone")
    aside.rename(script)


def every_check_fails(scene: Scene) -> Iterator[Deed]:
    script = scene.running.router.directory / "multicloud-check"
    right, wrong = script.with_suffix(".right"), script.with_suffix(".wrong")
    wrong.write_text(script.read_text().replace("\n", "\nMULTICLOUD_EXPECT=204 ", 1))
    wrong.chmod(0o755)
    script.rename(right)
    wrong.rename(script)
    yield Deed("every check fails")
    right.rename(script)


def run_killed(scene: Scene) -> Iterator[Deed]:
    router = scene.running.router
    assert router.beside
    router.beside.kill()
    router.beside.wait()
    yield Deed("multicloud-run is killed")
    router.start_beside()


def run_stopped(scene: Scene) -> Iterator[Deed]:
    process = scene.running.router.beside
    assert process
    process.send_signal(signal.SIGSTOP)
    yield Deed("multicloud-run is stopped (SIGSTOP)")
    process.send_signal(signal.SIGCONT)


def restarted(scene: Scene) -> Iterator[Deed]:
    scene.running.router.restart()
    yield Deed("HAProxy is restarted", until(0.0))


def reloaded(scene: Scene) -> Iterator[Deed]:
    scene.running.router.reload()
    yield Deed("HAProxy is reloaded")


def dns_silent(scene: Scene) -> Iterator[Deed]:
    scene.names.answers = False
    yield Deed("DNS is silent")
    scene.names.answers = True


def dns_forgets(scene: Scene) -> Iterator[Deed]:
    scene.names.unknown = {region.name for region in scene.regions}
    yield Deed("DNS knows no name any more")
    scene.names.unknown = set()


class Fault(NamedTuple):
    """Two faults overlap only where their groups differ and neither is "alone", or where both are "region".

    `hold` is for how many seconds, at least and at most, it lasts, and `chances` how often it is drawn.
    """

    name: str
    do: Callable[[Scene], Iterator[Deed]]
    group: str
    hold: tuple[float, float] = (3, 20)
    chances: int = 2


OF_REGIONS_AND_FILE = (
    Fault("a region dies", dies, "region", chances=4),
    Fault("favourite and backup die", two_die, "region"),
    Fault("a region hangs", hangs, "region", chances=4),
    Fault("one hangs on every third request", hangs_now_and_then, "alone", (20, 60), 3),
    Fault("a region answers 500", answers_500, "region", chances=3),
    Fault("a region slows down", slows_down, "region", (5, 25), 4),
    Fault("all regions slow down", all_slow_down, "alone", (5, 25), 1),
    Fault("more traffic than one region serves", too_much_traffic, "alone", (20, 60), 3),
    Fault("sample file deleted", file_deleted, "file"),
    Fault("sample file cut", file_truncated, "file"),
    Fault("sample file filled with garbage", file_filled, "file", chances=3),
    Fault("sample file locked", file_locked, "file"),
    Fault("sample file unwritable", file_unwritable, "file"),
)
OF_CHECKS = (
    Fault("checks killed", checks_killed, "checks"),
    Fault("checks stopped", checks_stopped, "checks", (1, 15)),
    Fault("two reweighs at once", two_reweighs, "checks", (1, 5)),
    Fault("reweigh broken", reweigh_breaks, "checks", (5, 15), 1),
    Fault("every check fails", every_check_fails, "alone", (8, 20), 1),
)
OF_RUN = (
    Fault("multicloud-run killed", run_killed, "checks", (1, 15), 3),
    Fault("multicloud-run stopped", run_stopped, "checks", (1, 15)),
    Fault("two reweighs at once", two_reweighs, "checks", (1, 5)),
    Fault("HAProxy restarted", restarted, "haproxy", (1, 10)),
)
OF_HAPROXY = (
    Fault("HAProxy reloaded", reloaded, "haproxy", (1, 10), 3),
    Fault("DNS silent", dns_silent, "haproxy", (10, 70), 1),
    Fault("DNS knows no name", dns_forgets, "haproxy", (10, 70), 1),
)
FAULTS = (*OF_REGIONS_AND_FILE, *OF_CHECKS, *OF_HAPROXY)  # where there are external checks
BESIDE = (*OF_REGIONS_AND_FILE, *OF_RUN, *OF_HAPROXY)  # where there is multicloud-run
