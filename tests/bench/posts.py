"""Do requests fail when regions close connections that were idle, and how many round trips do the others take?

    python -m tests.bench.posts                   two minutes, some 300 requests of each kind
    python -m tests.bench.posts --seconds 400     more of them

A region 100 ms away closes each connection that was idle for a second. A new client about every second sends a GET, and
another one a POST, so that now and then a request meets a connection that the region has just closed, while the news is
still under way. Then a POST cannot be sent again, since nobody knows whether it was served. That happens in several
places at once, each with regions, a proxy and clients of its own, for the shipped haproxy.cfg and for one that takes
kept connections for all requests (`http-reuse always`). It needs what tests.bench.users needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import statistics
import sys
import time
from typing import TYPE_CHECKING

from tests.bench import client, distant, proxies, wan
from tests.bench.distant import Service

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tests.bench.client import Answer

START_UP = 15.0
"""Seconds in which the nearer region becomes the favourite."""

WAYS = (wan.Way(0.100), *[wan.Way(0.200)] * 3)
SERVICE = Service(0.010, idle=1.0)
KINDS = {"GET": client.GET, "POST": client.POST}

PLACES = 4
"""How often each policy is there, with two regions each time."""

POLICIES = (proxies.OURS, proxies.Policy("http-reuse always", "haproxy", "first"))


async def send(port: int, request: bytes, answers: list[Answer], end: float) -> None:
    """Send such a request about every second, each from a new client, until `end`."""
    due = time.monotonic()
    while (due := max(due, time.monotonic()) + random.uniform(0.7, 1.3)) < end:
        await asyncio.sleep(due - time.monotonic())
        answers.append(await client.get(port, request))


async def drive(ports: Sequence[int], seconds: float) -> list[dict[str, list[Answer]]]:
    """Send both kinds to each port; the answers."""
    await asyncio.sleep(START_UP)
    end = time.monotonic() + seconds
    found: list[dict[str, list[Answer]]] = [{kind: [] for kind in KINDS} for _ in ports]
    async with asyncio.TaskGroup() as group:
        for port, answers in zip(ports, found, strict=True):
            for kind, request in KINDS.items():
                group.create_task(send(port, request, answers[kind], end))
    return found


def report(found: Sequence[dict[str, list[Answer]]]) -> None:
    """Print the table. A round trip is what is left of the latency without the region's time for the answer."""
    print("\n| policy            | kind | requests | failed | round trips, mean | median |  p99 |")
    print(f"|{'---|' * 7}")
    for number, policy in enumerate(POLICIES):
        for kind in KINDS:
            answers = [answer for each in found[number :: len(POLICIES)] for answer in each[kind]]
            good = [answer for answer in answers if answer.status == 200]
            trips = [(answer.seconds - SERVICE.seconds) / WAYS[0].round_trip for answer in good]
            print(
                f"| {policy.name:<17} | {kind:<4} | {len(answers):8} | {len(answers) - len(good):6} "
                f"| {statistics.fmean(trips):17.2f} | {statistics.median(trips):6.2f} "
                f"| {statistics.quantiles(trips, n=100)[98]:4.2f} |"
            )


def main() -> int:
    """Send the requests, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.posts", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=105.0, help="how long requests are sent (105)")
    options = parser.parse_args()
    wan.enter()
    with distant.running(PLACES * len(POLICIES), WAYS, [SERVICE] * 4) as distance, contextlib.ExitStack() as stack:
        ports = [
            stack.enter_context(proxies.started(policy, distant.places(number)[:2], distance.authority))
            for number, policy in enumerate(POLICIES * PLACES)
        ]
        report(asyncio.run(drive(ports, options.seconds)))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
