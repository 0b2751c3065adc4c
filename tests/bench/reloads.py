"""Do requests go to a wrong region when HAProxy is reloaded, and for how long?

    python -m tests.bench.reloads                 five reloads: a minute and a half
    python -m tests.bench.reloads --reloads 20    more of them

The shipped haproxy.cfg in front of four regions that are 30 to 150 ms away (tests.bench.wan), one of them clearly the
favourite. New clients send 50 requests a second, and HAProxy is reloaded as `systemctl reload haproxy` does it. For
each reload it prints how many requests went astray, to a region that had no weight before, and when the first and the
last of them was sent, in seconds from the moment at which the reload was asked for. (The backup gets one request in 257
at any time.) It needs what tests.bench.users needs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import time
from typing import TYPE_CHECKING

from tests.bench import distant, proxies, users, wan
from tests.bench.distant import NAMES

if TYPE_CHECKING:
    from tests.bench.client import Answer
    from tests.edge import Router

START_UP = 30.0
PAUSE = 10.0
"""Seconds after each reload in which requests are watched."""

RATE = 50.0


async def drive(router: Router, port: int, reloads: int) -> None:
    """Reload again and again while requests are sent; print what became of them."""
    print("|  reload | took, s | requests | failed | went astray | first, s | last, s |")
    print(f"|{'---|' * 7}", flush=True)
    answers: list[Answer] = []
    offered = asyncio.create_task(users.offer(port, answers, RATE, time.monotonic() + START_UP + (PAUSE + 1) * reloads))
    await asyncio.sleep(START_UP)
    for number in range(1, reloads + 1):
        start = time.monotonic()
        await asyncio.to_thread(router.reload)
        took = time.monotonic() - start
        await asyncio.sleep(PAUSE)
        sent = [answer for answer in answers if answer.sent >= start]
        failed = sum(answer.status != 200 for answer in sent)
        wrong = sorted(
            answer.sent - start for answer in sent if answer.status == 200 and answer.region not in NAMES[:2]
        )
        span = f"{wrong[0]:8.2f} | {wrong[-1]:7.2f}" if wrong else f"{'-':>8} | {'-':>7}"
        print(f"| {number:7} | {took:7.2f} | {len(sent):8} | {failed:6} | {len(wrong):11} | {span} |", flush=True)
    await offered


def main() -> int:
    """Reload and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reloads", description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=5, help="how often HAProxy is reloaded (5)")
    options = parser.parse_args()
    wan.enter()
    steady = users.PHASES[0]
    with (
        distant.running(1, steady.ways, steady.services) as distance,
        proxies.router(proxies.haproxy(proxies.OURS, distant.places(0)), distance.authority) as (router, port),
    ):
        asyncio.run(drive(router, port, options.reloads))
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
