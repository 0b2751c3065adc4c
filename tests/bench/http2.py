"""What HTTP/2 to a region is worth beside connections of HTTP/1.1 that are kept, in round trips that users wait.

    python -m tests.bench.http2                 half a minute
    python -m tests.bench.http2 --loss 0.01     with one packet in a hundred lost

A region is 100 ms away, and answers at once. One user asks over a new connection, and then others over the one that was
kept; twenty ask at once, twice; and twenty ask all the time, 1,200 requests in all. HAProxy has a single thread, since
each thread has connections of its own. It needs what tests.bench.users needs.
"""

import argparse
import http.client
import statistics
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import trustme

from multicloud.demo.router import configuration, haproxy_binary
from tests.bench import wan
from tests.bench.table import Table
from tests.edge import Router, listen_anywhere

ROUND_TRIP = 0.100
USERS = 20
REGION = """
defaults
    mode http
    timeout connect 5s
    timeout client 60s
    timeout server 60s
frontend region
    bind :8443 ssl crt {directory}/region.pem alpn h2,http/1.1
    http-request return status 200 content-type text/plain string ok
"""
LINE = "    default-server alpn h2,http/1.1\n"  # as docs/traffic.md has it


def serve(directory: str, orders: Connection) -> None:
    """Be the region until the end."""
    Path(directory, "region.cfg").write_text(REGION.format(directory=directory))
    with subprocess.Popen([haproxy_binary(), "-f", f"{directory}/region.cfg"]) as running:
        time.sleep(1)
        orders.send("serves")
        running.wait()


def ask(port: int, _: int = 0) -> float:
    """The round trips that a new user waits."""
    began = time.monotonic()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", "/", headers={"connection": "close"})
    assert connection.getresponse().read() == b"ok"
    return (time.monotonic() - began) / ROUND_TRIP


def measured(directory: str, line: str) -> list[float]:
    """The row of the table for HAProxy with that line in the backend."""
    variables = listen_anywhere(Path(directory, "authority.pem"))
    text = configuration({"region": 8443}).replace("127.0.0.1:8443", f"{wan.FAR[0]}:8443")
    text = text.replace("global\n", "global\n    nbthread 1\n", 1)
    text = text.replace("backend upstream from regions\n", f"backend upstream from regions\n{line}")
    seldom = {"MULTICLOUD_INTER": "600s", "MULTICLOUD_REWEIGH_INTER": "600s", "FLY_REGION": ""}
    port = int(variables["PORT"])
    with (
        tempfile.TemporaryDirectory() as name,
        Router(Path(name), text, commands={}, environ={**variables, **seldom}),
        ThreadPoolExecutor(USERS) as users,
    ):
        time.sleep(1)
        first, *kept = [ask(port) for _ in range(6)]
        at_once = [statistics.fmean(users.map(partial(ask, port), range(USERS))) for _ in range(2)]
        all_the_time = list(users.map(partial(ask, port), range(1200)))
    percentile = statistics.quantiles(all_the_time, n=100)[98]
    return [first, statistics.fmean(kept), *at_once, statistics.fmean(all_the_time), percentile]


def main() -> None:
    """Measure, print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.http2", description=__doc__.splitlines()[0])
    parser.add_argument("--loss", type=float, default=0.0, help="the part of the packets that is lost (0)")
    options = parser.parse_args()
    wan.enter()
    with tempfile.TemporaryDirectory() as directory:
        authority = trustme.CA()
        authority.issue_cert("region").private_key_and_cert_chain_pem.write_to_path(f"{directory}/region.pem")
        authority.cert_pem.write_to_path(f"{directory}/authority.pem")
        with wan.network(partial(serve, directory), [wan.Way(ROUND_TRIP, 0.0, options.loss)] * 4) as (_, region):
            region.recv()
            table = Table("to the region", "new", "kept", "20 at once", "again", "20 all the time", "p99")
            for name, line in (("HTTP/1.1", ""), ("HTTP/2", LINE)):
                table.row(name, *(f"{trips:.1f}" for trips in measured(directory, line)))


if __name__ == "__main__":
    main()
