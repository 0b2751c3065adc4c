"""What it costs to route between many servers: external checks and reweighs, and multicloud-run beside HAProxy.

    python -m tests.bench.scale                     4, 40, 400 and 1,000 servers, both ways: about 12 minutes
    python -m tests.bench.scale 4 400 --beside      some of them, and one way only
    python -m tests.bench.scale --tls               over HTTPS, where each check is a handshake

Servers are lines of one HAProxy that lead to a few listening ports over plain HTTP, so that what serves them costs
little, or with --tls over HTTPS. Each is checked as often as said. Weights are set once a second by multicloud-run, and
every two seconds the external way, as in the shipped haproxy.cfg. CPU is in percent of one core, of what HAProxy
itself took, and of its checks and reweighs or of multicloud-run. `round` is how long one of multicloud-run's took, and
`scrape` how long its metrics took.
`step` is after how many seconds the favourite, which becomes slow, has lost its weight. Checks that fork end where the
machine's cores do: then they end late, or are killed at their interval, which `late` counts in percent of all. With
more than a quarter of them so, more servers are not tried that way: HAProxy itself would not answer in time.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from multicloud import history
from multicloud.demo.router import Router
from tests import haproxy
from tests.bench.processes import cpu, memory
from tests.bench.table import Table
from tests.command import BARE
from tests.ports import free_port
from tests.regions import Region, Regions

BIN = Path(sys.executable).parent
DELAYS = {"s0": 0.020, "s1": 0.030, "s2": 0.050, "s3": 0.080}
SLOW = 0.200
WARM_UP = 25.0  # seconds before anything is measured: what a step is held against must be there
COLUMNS = (
    *("check every", "HAProxy", "checks and deciding", "together", "HAProxy, MB", "run, MB", "round, ms", "step, s"),
    *("late", "scrape, ms"),
)

OWN = """option httpchk
    http-check set-var(check.begun) date(0,us)
    http-check send meth GET uri /
    http-check expect status 200 on-success "%[date(0,us),sub(check.begun)]us@%[date(0,ms)]"
"""
EXTERNAL = 'option external-check\n    external-check path "${PATH}"\n    external-check command '
REWEIGH = f"backend reweigh\n    {EXTERNAL}" + '"${MULTICLOUD_REWEIGH}"\n    server r 127.0.0.1:1 check inter 2s\n'


class Figures(NamedTuple):
    """CPU in percent of a core, memory in MB, a round and a scrape in ms, a step in seconds, late checks in percent."""

    haproxy: float
    others: float
    memory: float
    own_memory: float | None
    round: float | None
    step: float | None
    late: float
    scrape: float | None


@contextlib.contextmanager
def running(
    regions: Sequence[Region], count: int, inter: float, *, beside: bool, tls: bool
) -> Iterator[tuple[Router, subprocess.Popen[bytes] | None, int]]:
    """HAProxy with so many servers, multicloud-run where it is that way, and its port for scrapers."""
    lines = [
        # One of them is the fastest: the first. The others of its group are on the next ones' ports.
        f"    server s{index} 127.0.0.1:{regions[index % 4 if index < 4 else 1 + index % 3].port} "
        f"check inter {inter * 1000:.0f}ms weight 1{' ssl verify none' * tls}"
        for index in range(count)
    ]
    backends = "\n".join(["backend app", "    " + (OWN if beside else EXTERNAL + '"${MULTICLOUD_CHECK}"'), *lines, ""])
    text = haproxy.CONFIGURATION.format(
        backends=backends if beside else backends + REWEIGH,
        level="admin",
        extra="" if beside else "insecure-fork-wanted\n    external-check",
    )
    port = free_port()
    settings = {"MULTICLOUD_CONF": os.devnull, "MULTICLOUD_INSECURE": "1"}
    with (
        tempfile.TemporaryDirectory() as name,
        Router(Path(name), text, commands=settings, environ={}) as router,
    ):
        if not beside:
            yield router, None, port
            return
        environ = {**BARE, **router.settings, "MULTICLOUD_BACKENDS": "app"}
        loop = subprocess.Popen(
            [BIN / "multicloud-run", "--metrics", str(port)], env=environ, stdout=subprocess.DEVNULL
        )
        try:
            yield router, loop, port
        finally:
            loop.terminate()
            loop.wait(10)


def measure(count: int, inter: float, seconds: float, *, beside: bool, tls: bool) -> Figures:
    """Run it so, with so many seconds between the checks of a server."""
    with (
        Regions([*DELAYS], tls=tls) as regions,
        running([*regions], count, inter, beside=beside, tls=tls) as (router, loop, port),
    ):
        for region in regions:
            region.delay = DELAYS[region.name]
        address, times = router.settings["MULTICLOUD_SOCKET"], router.settings["MULTICLOUD_TIMES"]
        pid = haproxy.process(address)
        time.sleep(WARM_UP)
        began, before, start = time.time(), cpu(pid), cpu(loop.pid if loop else pid, children=not loop)
        rounds, scrapes = [], []
        while time.time() < began + seconds:
            time.sleep(2.7)  # at any moment of a round's second
            if loop:
                asked = time.monotonic()
                page = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
                scrapes.append(time.monotonic() - asked)
                rounds.append(float(re.findall(r"^multicloud_round_duration_seconds (\S+)", page, re.MULTILINE)[0]))
        spent = time.time() - began
        own = 100 * (cpu(pid) - before) / spent
        others = 100 * (cpu(loop.pid if loop else pid, children=not loop) - start) / spent
        found = history.read(times, 10_000).series
        taken = sum((when or 0) > began and not failed for newest in found.values() for _, when, failed in newest)
        late = max(0.0, 100 * (1 - taken / (count * spent / inter)))
        sizes = memory(pid), memory(loop.pid) if loop else None
        step = stepped(next(iter(regions)), address)
    of_round, of_scrape = (1000 * statistics.median(each) if each else None for each in (rounds, scrapes))
    return Figures(own, others, *sizes, of_round, step, late, of_scrape)


def stepped(fastest: Region, address: str) -> float | None:
    """Seconds until the favourite that becomes slow has lost its weight; None where it has not, or was none."""
    if haproxy.weights(address, "app")["s0"] != 256:
        return None
    fastest.delay = SLOW
    began = time.monotonic()
    while time.monotonic() < began + 60:
        if haproxy.weights(address, "app")["s0"] != 256:
            return time.monotonic() - began
        time.sleep(0.1)
    return None


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("servers", nargs="*", type=int, default=[4, 40, 400, 1000])
    parser.add_argument("--beside", action="store_true", help="multicloud-run only")
    parser.add_argument("--tls", action="store_true", help="over HTTPS")
    parser.add_argument("--inter", type=float, help="seconds between the checks of a server")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long each is measured")
    arguments = parser.parse_args()
    table = Table("servers, way", *COLUMNS)
    ended = False
    for count in arguments.servers:
        for beside in (True,) if arguments.beside or ended else (False, True):
            inter = arguments.inter or (1.0 if count == 4 and beside else 2.0)
            got = measure(count, inter, arguments.seconds, beside=beside, tls=arguments.tls)
            ended = ended or (not beside and got.late > 25)
            table.row(
                f"{count:,}, {'run' if beside else 'external'}",
                f"{inter:g} s",
                *(f"{percent:.1f} %" for percent in (got.haproxy, got.others, got.haproxy + got.others)),
                f"{got.memory:.0f}",
                f"{got.own_memory:.0f}" if got.own_memory else None,
                *(f"{value:.1f}" if value else None for value in (got.round, got.step)),
                f"{got.late:.0f} %",
                f"{got.scrape:.0f}" if got.scrape else None,
            )


if __name__ == "__main__":
    main()
