"""Do requests fail when regions close connections that were idle, and how many round trips do the others take?

    python -m tests.bench.posts                   two minutes, some 300 requests of each kind
    python -m tests.bench.posts --seconds 400     more of them

A region 100 ms away closes each connection that was idle for a second. A new client about every second sends a GET, and
another one a POST, so that now and then a request meets a connection that the region has just closed, while the news is
still under way. Then a POST cannot be sent again, since nobody knows whether it was served. That happens in several
places at once, each with regions, a proxy and clients of its own, for the shipped haproxy.cfg and for one that takes
kept connections for all requests (`http-reuse always`). It needs what tests.bench.users needs.
"""

import argparse
import asyncio
import contextlib
import random
import statistics
import time
from collections.abc import Sequence

from tests import client
from tests.bench import distant, proxies, wan
from tests.bench.distant import Service
from tests.bench.table import Table
from tests.client import Answer

START_UP = 15.0  # seconds in which the nearest region becomes the favourite
WAYS = (wan.Way(0.100), *[wan.Way(0.200)] * 3)
SERVICE = Service(0.010, idle=1.0)
KINDS = ("GET", "POST")
PLACES = 4  # how often each policy is there
POLICIES = (proxies.OURS, proxies.Policy("http-reuse always", "haproxy", "first"))


def gap() -> float:
    """Seconds to the next request: by then the connection of the one before has been idle for about one."""
    return random.uniform(0.95, 1.55)


async def drive(ports: Sequence[int], seconds: float) -> list[dict[str, list[Answer]]]:
    """Send both kinds to each port; the answers."""
    await asyncio.sleep(START_UP)
    end = time.monotonic() + seconds
    found: list[dict[str, list[Answer]]] = [{kind: [] for kind in KINDS} for _ in ports]
    async with asyncio.TaskGroup() as group:
        for port, answers in zip(ports, found, strict=True):
            for kind in KINDS:
                group.create_task(client.offer([port], gap, end, answers[kind], kind))
    return found


def report(found: Sequence[dict[str, list[Answer]]]) -> None:
    """Print the table. A round trip is what is left of the latency without the region's time for the answer."""
    print()
    table = Table("policy", "kind", "requests", "failed", "round trips, mean", "median", " p99")
    for number, policy in enumerate(POLICIES):
        for kind in KINDS:
            answers = [answer for each in found[number :: len(POLICIES)] for answer in each[kind]]
            good = [answer for answer in answers if answer.status == 200]
            trips = [(answer.seconds - SERVICE.seconds) / WAYS[0].round_trip for answer in good]
            averages = (statistics.fmean(trips), statistics.median(trips), statistics.quantiles(trips, n=100)[98])
            failed = len(answers) - len(good)
            table.row(policy.name, kind, len(answers), failed, *(f"{each:.2f}" for each in averages))


def main() -> None:
    """Send the requests, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.posts", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=105.0, help="how long requests are sent (105)")
    options = parser.parse_args()
    wan.enter()
    with (
        distant.running(PLACES * len(POLICIES), [SERVICE] * 4, WAYS) as distance,
        proxies.all_started(POLICIES * PLACES, distance) as ports,
    ):
        report(asyncio.run(drive([port for (port,) in ports], options.seconds)))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
