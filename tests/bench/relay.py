"""What it costs that requests to a region take one more step inside HAProxy (the relay, from HAProxy 3.3 on).

    HAPROXY_BINARY=/path/to/haproxy-3.3 python -m tests.bench.relay [REQUESTS]

The same region is asked in turn (A B A B ...) over kept connections through one HAProxy: directly, with a fixed Host
header, and through the shipped relay.
"""

import http.client
import statistics
import sys
import time

from tests.bench.table import Table
from tests.edge import edge
from tests.ports import free_port

REGION = "eu.demo"


def main() -> None:
    """Measure and print."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    direct = free_port()

    def more(configuration: str) -> str:
        upstream = configuration.partition("\nbackend upstream from regions\n")[2]
        address = next(line.split()[2] for line in upstream.splitlines() if line.startswith(f"    server {REGION}"))
        return f"""{configuration}
listen direct from common
    bind 127.0.0.1:{direct}
    http-request set-header Host {REGION}
    http-reuse always
    server {REGION} {address} ssl verify required ca-file "${{UPSTREAM_CA}}" sni str({REGION})
"""

    with edge({REGION: 0.0}, configure=more) as running:
        ways = {"direct": direct, "relay": running.port}
        connections = {way: http.client.HTTPConnection("127.0.0.1", port) for way, port in ways.items()}
        times: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(count):
            for way, connection in connections.items():
                start = time.perf_counter()
                connection.request("GET", "/")
                answer = connection.getresponse()
                answer.read()
                times[way].append((time.perf_counter() - start) * 1000)
                assert answer.status == 200
    print(f"ms, of {count} requests each")
    table = Table("", "   p50", "   p99", "p50 added", "p99 added")
    base = statistics.quantiles(times["direct"], n=100)
    for way, values in times.items():
        cuts = statistics.quantiles(values, n=100)
        found = cuts[49], cuts[98], cuts[49] - base[49], cuts[98] - base[98]
        table.row(way, *(f"{each:.3f}" for each in found))


if __name__ == "__main__":
    main()
