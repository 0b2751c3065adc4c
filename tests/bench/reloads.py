"""Do requests go to a wrong region when HAProxy is reloaded, and for how long?

    python -m tests.bench.reloads                 five reloads: a minute and a half
    python -m tests.bench.reloads --reloads 20    more of them

The shipped haproxy.cfg in front of four regions that are 30 to 150 ms away (tests.bench.wan), one of them clearly the
favourite. New clients send 50 requests a second, and HAProxy is reloaded as `systemctl reload haproxy` does it. For
each reload it prints how many requests went astray, to a region that had no weight before, and when the first and the
last of them was sent, in seconds from the moment at which the reload was asked for. (The backup gets one request in 257
at any time.) It needs what tests.bench.users needs.
"""

import argparse
import asyncio
import contextlib
import time

from tests import client
from tests.bench import distant, proxies, users, wan
from tests.bench.course import START_UP
from tests.bench.distant import NAMES
from tests.bench.table import Table
from tests.client import Answer
from tests.edge import Router

PAUSE = 10.0  # seconds after each reload in which requests are watched
RATE = 50.0


async def drive(router: Router, port: int, reloads: int) -> None:
    """Reload again and again while requests are sent; print what became of them."""
    table = Table("reload", "took, s", "requests", "failed", "went astray", "first, s", "last, s")
    answers: list[Answer] = []
    end = time.monotonic() + START_UP + (PAUSE + 1) * reloads
    offered = asyncio.create_task(client.offer([port], lambda: 1 / RATE, end, answers))
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
        span = [f"{wrong[0]:.2f}", f"{wrong[-1]:.2f}"] if wrong else [None, None]
        table.row(number, f"{took:.2f}", len(sent), failed, len(wrong), *span)
    await offered


def main() -> None:
    """Reload and print."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.reloads", description=__doc__.splitlines()[0])
    parser.add_argument("--reloads", type=int, default=5, help="how often HAProxy is reloaded (5)")
    options = parser.parse_args()
    wan.enter()
    steady = users.PHASES[0]
    with (
        distant.running(1, steady.services, steady.ways) as distance,
        proxies.router(proxies.OURS, distance.places[0], distance.authority) as (router, port),
    ):
        asyncio.run(drive(router, port, options.reloads))


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
