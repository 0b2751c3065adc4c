"""The demo: simulated regions, and a real HAProxy in front of them.

All of it is on loopback and in one temporary directory, and is gone at the end.
"""

import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from multicloud import light
from multicloud.demo import regions as simulated
from multicloud.demo.router import BESIDE, Router, configuration
from multicloud.light import CommandError


@contextlib.contextmanager
def running(
    port: int, stats_port: int, *, beside: bool = False
) -> Iterator[tuple[Mapping[str, str], Callable[[], str]]]:
    """Run the demo, with multicloud-run `beside` HAProxy or with external checks. Raises CommandError.

    Gives the settings of its commands, and what says its heading.
    """
    ports = {"PORT": port, "PROXY_PORT": port + 1, "STATS_PORT": stats_port, "STATS_PROXY_PORT": stats_port + 1}
    _require_free(ports.values())
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: its terminal was closed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="multicloud-demo-") as name, simulated.running(Path(name)) as regions:
        authority = f"{name}/{simulated.AUTHORITY}"
        text = configuration({region.name: region.port for region in regions}, beside=beside)
        # As its regions change places so quickly, it counts fewer samples and measures more often than by default.
        commands = {"MULTICLOUD_CA_FILE": authority, "MULTICLOUD_WINDOW": "4"} | (BESIDE if beside else {})
        environ = {variable: str(number) for variable, number in ports.items()} | {
            "ADDRESS": "127.0.0.1",
            "RELAY": f"multicloud-{port}",
            "UPSTREAM_CA": authority,
            "MULTICLOUD_INTER": "1s",
            "MULTICLOUD_REWEIGH_INTER": "1s",
            "FLY_REGION": os.environ.get("FLY_REGION", "localhost"),
        }
        app, stats = (f"http://localhost:{number}/" for number in (port, stats_port))

        def heading() -> str:
            fastest = min(regions, key=lambda region: region.delay)
            now = f"fastest region right now: {fastest.name}, {fastest.delay * 1000:.0f} ms"
            return f"app:   {app}    try: curl -sD- {app}\nstats: {stats}\n{now}\n\n"

        with Router(Path(name), text, commands=commands, environ=environ) as router:
            yield router.settings, heading


def _require_free(ports: Iterable[int]) -> None:
    """That all can be listened at, at once. Raises CommandError."""
    with contextlib.ExitStack() as stack:
        for port in ports:
            try:
                probe = stack.enter_context(socket.socket())
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
                probe.listen()
            except (OSError, OverflowError) as error:
                others = "choose others with --port and --stats-port, each of which needs the next one, too"
                raise CommandError(f"port {port}: {light.reason(error)}; {others}") from None
