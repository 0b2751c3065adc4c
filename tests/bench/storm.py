"""Faults drawn at random, for as long as it is told: who leads after each, and which requests fail beyond the promises.

    python -m tests.bench.storm                            ten minutes
    python -m tests.bench.storm --seconds 3600 --seed 1    an hour; the same seed draws the same faults
    python -m tests.bench.storm --beside                   with multicloud-run in place of external checks

The shipped haproxy.cfg in front of four regions of 10, 40, 70 and 100 ms, with 50 requests a second: GET over new and
kept connections, and POST. HAProxy finds them by their host names through a name server on this machine. That one has
an IPv6 address for each, too, where there is no way, and another address for names that a search domain completes.
Regions die, hang, slow down or answer 500; the sample file is deleted, cut, filled with garbage, locked or unwritable;
checks are killed and stopped, or multicloud-run is; HAProxy is reloaded; DNS goes away (tests.bench.faults). Each fault
is undone after a while, and the next one waits until all is as it should be. One time in four a second comes on top.

After each it prints how soon the right region led, by the regions' true delays, and which requests failed. At the end:
all faults, what failed beyond what docs/promises.md allows, and what grew. Exit code 1 where a request failed beyond
that, or where not all was well again within SETTLE seconds. Ctrl-C ends it early. It needs the extra `test`, and Linux.
"""

import argparse
import contextlib
import math
import os
import random
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from multicloud.demo.router import haproxy_binary
from multicloud.runtime import RuntimeAPIError, Server
from tests.bench.faults import BESIDE, FAULTS, TOGETHER, Deed, Fault, Scene, processes
from tests.bench.load import TIMEOUT, Failure, Load
from tests.bench.processes import memory
from tests.bench.table import Table
from tests.edge import Edge, edge
from tests.names import NameServer, by_name, name_server

DELAYS = {"eu.demo": 0.010, "us.demo": 0.040, "ap.demo": 0.070, "sa.demo": 0.100}

# Seconds within which the right region must lead again once all is undone; docs/ranking says 60 for the worst case.
SETTLE = 90.0
# Seconds for which all must have been well before the next fault: no request of the last one is under way then.
QUIET = TIMEOUT + 1
OVERLAPS = 0.25  # how often a second fault comes on top
BUSY = 0.2  # seconds: if this program is so late with a request, the machine was slow, and perhaps the regions, too
OLD = 10.0  # seconds after which a check that is still there has been left behind: HAProxy ends them after two


class Event(NamedTuple):
    """A fault, when doing it began and ended (time.monotonic), and what was done."""

    fault: Fault
    began: float
    done: float
    deed: Deed


class Result(NamedTuple):
    """What became of a fault, or of two at once.

    `led` and `back` are seconds until the right region led for good, and until all was well once the fault was undone:
    infinite where it never came to that, and not a number where nobody waited. The others count requests: all, those
    that failed as the promises allow, and those that failed beyond them.
    """

    led: float
    back: float
    requests: int
    allowed: int
    beyond: int


@contextlib.contextmanager
def started(*, beside: bool) -> Iterator[tuple[Edge, NameServer]]:
    """The router with the shipped configuration at its pace, in front of its regions, and their name server."""
    with name_server("127.0.0.1", "2001:db8::1") as names:
        os.environ["LOCALDOMAIN"] = names.search  # the search domain of the C library, resolv.conf(5)

        def configure(text: str) -> str:
            # At the start HAProxy knows the addresses from the system, before it asks for them itself.
            return by_name(names.address)(text).replace("init-addr none", "init-addr 127.0.0.1")

        with edge(DELAYS, interval="2s", configure=configure, beside=beside) as running:
            yield running, names


def measured(running: Edge) -> list[list[Server]]:
    """The servers of each backend that has weights; none while nobody answers, as in the middle of a reload."""
    try:
        servers = running.servers()
    except RuntimeAPIError:
        return []
    backends: dict[str, list[Server]] = {}
    for server in servers:
        if server.source[0] == "upstream":
            backends.setdefault(server.backend, []).append(server)
    return list(backends.values())


def leader(running: Edge) -> str:
    """The region that is UP and has more weight than all others, in every backend; "nobody" where there is none."""
    found = set()
    for servers in measured(running):
        weights = Counter({server.name: server.weight for server in servers if server.state == "UP"})
        (first, most), (_, second) = [*weights.most_common(2), ("", 0), ("", 0)][:2]
        found.add(first if most > second else "nobody")
    return found.pop() if len(found) == 1 else "nobody"


def is_well(running: Edge, right: set[str]) -> bool:
    """All regions are UP, the right one is the favourite, and there is a backup."""
    backends = measured(running)
    for servers in backends:
        weights = {server.weight: server.name for server in servers if server.state == "UP"}
        if any(server.state != "UP" for server in servers) or weights.get(256) not in right or 1 not in weights:
            return False
    return backends != []


def watch(seconds: float, condition: Callable[[], bool], enough: float = math.inf) -> float:
    """Look for so many seconds, or until the condition has held for `enough`: after how many it held for good.

    0 where it always did, infinite where it does not at the end.
    """
    began = since = now = time.monotonic()
    holds = True
    while now < began + seconds and not (holds and now >= since + enough):
        time.sleep(0.1)
        holds, now = condition(), time.monotonic()
        if not holds:
            since = now
    return since - began if holds else math.inf


class Storm:
    """Fault after fault, and what became of each."""

    def __init__(self, scene: Scene, load: Load, faults: Sequence[Fault]) -> None:
        self.results: dict[str, list[Result]] = {}
        self.reopened = 0
        self._scene = scene
        self._load = load
        self._faults = faults
        self._events: list[Event] = []
        self._began = time.monotonic()
        self._files = set(os.listdir(scene.running.router.directory))
        self.sizes = [(self._began, sizes(scene.running, self._files))]

    def run(self, seconds: float) -> None:
        """Do faults for so long; the last one is seen to its end."""
        self._settle("all is well")
        while time.monotonic() < self._began + seconds:
            self._episode(drawn(self._scene.draw, self._faults))

    def end(self) -> None:
        """Judge what was under way."""
        if self._events:
            self._judge(math.nan, math.nan)

    def _say(self, text: str) -> None:
        print(f"{time.monotonic() - self._began:7.1f}  {text}", flush=True)

    def _episode(self, faults: Sequence[Fault]) -> None:
        with contextlib.ExitStack() as stack:
            for fault in faults:
                led = self._strike(stack, fault)
        self._judge(led, self._settle("undone"))

    def _strike(self, stack: contextlib.ExitStack, fault: Fault) -> float:
        """Do a fault and watch it for as long as chance says; after how many seconds the right region led."""
        running = self._scene.running
        before, hold = leader(running), self._scene.draw.uniform(*fault.hold)
        began = time.monotonic()
        deed = stack.enter_context(contextlib.contextmanager(fault.do)(self._scene))
        self._events.append(Event(fault, began, time.monotonic(), deed))
        right = self._scene.right()
        led = watch(hold, lambda: leader(running) in right)
        now = leader(running)
        if led == math.inf:
            self._say(f"{deed.words}: after {hold:.1f} s {now} leads instead of {' or '.join(sorted(right))}")
        else:
            self._say(f"{deed.words}: {now} {'leads on' if led == 0 and now == before else f'led after {led:.1f} s'}")
        return led

    def _settle(self, words: str) -> float:
        """Wait until all is well and has been for QUIET seconds; after how many it was."""
        running, right = self._scene.running, self._scene.right()
        took = watch(SETTLE, lambda: is_well(running, right), QUIET)
        if took == math.inf:
            states = ", ".join(f"{each.name} {each.state} {each.weight}" for each in (measured(running) or [[]])[0])
            self._say(f"{words}: NOT WELL after {SETTLE:.0f} s: {states or 'HAProxy does not answer'}")
        else:
            self._say(f"{words}: {leader(running)} leads and all regions are UP after {took:.1f} s")
            self.sizes.append((time.monotonic(), sizes(running, self._files)))
        return took

    def _judge(self, led: float, back: float) -> None:
        """Compare the requests that failed with what the promises allow for what happened."""
        taken = self._load.take()
        allowed: list[Failure] = []
        beyond: list[Failure] = []
        for failure in taken.failures:
            (allowed if is_allowed(failure, self._events) else beyond).append(failure)
        for some, verdict in ((allowed, "as allowed"), (beyond, "BEYOND what is allowed")):
            if some:
                words = described(some, [event.done for event in self._events])
                self._say(f"  {len(some)} of {taken.requests} requests failed {verdict}: {words}")
        if taken.late > BUSY:
            self._say(f"  this machine was too busy: a request was sent {taken.late:.1f} s late")
        name = self._events[0].fault.name if len(self._events) == 1 else "two of these at once"
        self.results.setdefault(name, []).append(Result(led, back, taken.requests, len(allowed), len(beyond)))
        self.reopened += taken.reopened
        self._events.clear()


def drawn(draw: random.Random, everything: Sequence[Fault]) -> list[Fault]:
    """A fault, or two that may come together."""

    def one_of(faults: Sequence[Fault]) -> Fault:
        return draw.choices(faults, [fault.chances for fault in faults])[0]

    first = one_of(everything)
    if first.group == "alone" or draw.random() >= OVERLAPS:
        return [first]
    others = [each for each in everything if each.group not in ("alone", first.group)]
    return [first, one_of([*others, *(each for each in everything if each.group == first.group == "region")])]


def is_allowed(failure: Failure, events: Sequence[Event]) -> bool:
    """Whether one of the faults allows it, or the second region that failed did so too soon after the first."""
    rules = [(event, event.deed.allows) for event in events]
    hurt = [event for event in events if event.fault.group == "region"]
    rules += [(event, TOGETHER) for event in hurt[1:]]
    return any(failure.ended >= event.began and allows(failure, failure.sent - event.done) for event, allows in rules)


def described(failures: Sequence[Failure], faults: Sequence[float]) -> str:
    """How many of which kind got what, and when they were sent, from the last fault before the first of them."""
    kinds = Counter(f"{each.kind}: {each.status or 'no answer'}" for each in failures)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    sent = [failure.sent for failure in failures]
    fault = max((done for done in faults if done <= min(sent)), default=faults[0])
    return f"{counts}; sent {min(sent) - fault:+.2f} to {max(sent) - fault:+.2f} s from the fault"


def sizes(running: Edge, files: set[str]) -> dict[str, float]:
    """What must not grow; `files` are the names that were in the directory at first."""
    beside = running.router.beside
    found = [each for each in processes() if not beside or each.pid != beside.pid]
    alive = [each for each in found if each.haproxy and each.state != "Z"]
    directory = running.router.directory
    samples = directory / "times.txt"
    measured = {"HAProxy": min(alive, key=lambda each: each.age).pid}
    if beside:
        measured["multicloud-run"] = beside.pid
    return {
        **{f"{name}: descriptors": len(os.listdir(f"/proc/{pid}/fd")) for name, pid in measured.items()},
        **{f"{name}: resident memory, MB": memory(pid) for name, pid in measured.items()},
        "HAProxy: processes": len(alive),
        f"checks older than {OLD:.0f} s": sum(each.age > OLD and not each.haproxy for each in found),
        "sample file, kB": samples.stat().st_size / 1000 if samples.exists() else 0,
        "files left behind": len(set(os.listdir(directory)) - files - {samples.name}),
        "this program: resident memory, MB": memory(os.getpid()),
    }


def report(storm: Storm) -> int:
    """Print the tables; the exit code."""
    print()
    faults = Table("fault", "times", "led after, s", "well again after, s", "requests", "failed as allowed", "beyond")
    everything = [result for results in storm.results.values() for result in results]
    for name, results in [*sorted(storm.results.items()), ("all", everything)]:
        spans = span(each.led for each in results), span(each.back for each in results)
        counts = [sum(column) for column in zip(*(each[2:] for each in results), strict=True)]
        faults.row(name, len(results), *spans, *counts)
    print()
    grown = Table("size, median of", "the first tenth", "the last tenth")
    begin, end = storm.sizes[0][0], storm.sizes[-1][0]
    first = [found for when, found in storm.sizes if when <= begin + (end - begin) / 10]
    last = [found for when, found in storm.sizes if when >= end - (end - begin) / 10]
    for name in first[0]:
        grown.row(name, *(f"{statistics.median(found[name] for found in some):.1f}" for some in (first, last)))
    late = sum(math.isinf(result.back) for result in everything)
    print(
        f"\n{late} times not all was well within {SETTLE:.0f} s. {storm.reopened} kept connections turned out closed."
    )
    return 1 if late or any(result.beyond for result in everything) else 0


def span(seconds: Iterable[float]) -> str:
    """The median, and the most."""
    found = [each for each in seconds if not math.isnan(each)]
    return f"{statistics.median(found):.1f}, at most {max(found):.1f}" if found else ""


def main() -> int:
    """Let it storm, print what became of it."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.storm", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="how long (600)")
    parser.add_argument("--seed", type=int, default=1, help="what the faults are drawn from (1)")
    parser.add_argument("--beside", action="store_true", help="with multicloud-run in place of external checks")
    options = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    print(f"{haproxy_binary()}, seed {options.seed}, {options.seconds:.0f} s")
    with started(beside=options.beside) as (running, names), Load(running.port, options.seed) as load:
        scene = Scene(running, names, random.Random(options.seed))
        storm = Storm(scene, load, BESIDE if options.beside else FAULTS)
        try:
            storm.run(options.seconds)
        except KeyboardInterrupt:
            print("interrupted")
        storm.end()
        return report(storm)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
