"""How often does the demo send a request to the region that is truly fastest at that moment?

    python -m tests.bench.share                   five minutes; --minutes M for more or less

It runs the demo as `multicloud demo` does, asks it ten times a second, and looks up each region's delay at the moment
of each request. Two shares are printed: of the requests that the very fastest region answered, and of those answered
by a region within a tenth of it; and the mean of the delays beside the mean of the fastest ones.
"""

import argparse
import asyncio
import statistics
import time

from multicloud import demo
from tests.bench import client

WARM_UP = 10.0  # seconds in which the demo takes its first measurements
RATE = 10.0


async def sample(running: demo.Demo, port: int, seconds: float) -> list[tuple[str, dict[str, float]]]:
    """Ask RATE times a second; give for each answer the region that it came from and the delays when it was asked."""
    found: list[tuple[str, dict[str, float]]] = []

    async def ask() -> None:
        delays = {region.name: region.delay for region in running.regions}
        answer = await client.timed(client.over_new(port))
        found.append((answer.region, delays))

    async with asyncio.TaskGroup() as group:
        async for _ in client.moments(lambda: 1 / RATE, time.monotonic() + seconds):
            group.create_task(ask())
    return found


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.share", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=5.0, help="how long to ask (5)")
    parser.add_argument("--port", type=int, default=8080, help="the demo's (8080)")
    parser.add_argument("--stats-port", type=int, default=9000, help="the demo's (9000)")
    options = parser.parse_args()
    with demo.running(options.port, options.stats_port) as running:
        time.sleep(WARM_UP)
        found = asyncio.run(sample(running, options.port, options.minutes * 60))
    answered = [(delays[region], min(delays.values())) for region, delays in found if region]
    fastest = sum(delay == best for delay, best in answered) / len(found)
    near = sum(delay <= 1.1 * best for delay, best in answered) / len(found)
    mean, best_mean = (1000 * statistics.fmean(column) for column in zip(*answered, strict=True))
    print(f"{len(found)} requests, {len(found) - len(answered)} without an answer")
    print(f"answered by the fastest region:       {fastest:6.1%}")
    print(f"by one within a tenth of the fastest: {near:6.1%}")
    print(f"mean delay {mean:.1f} ms, of the fastest {best_mean:.1f} ms: {mean / best_mean:.2f} x the oracle")


if __name__ == "__main__":
    main()
