"""A real HAProxy with the shipped configuration in front of simulated regions, for tests and benchmarks."""

from __future__ import annotations

import contextlib
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from multicloud.demo import router as demo
from tests import haproxy, user
from tests.ports import free_port
from tests.regions import Regions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from multicloud import runtime


def listen_anywhere(authority: Path) -> dict[str, str]:
    """Variables for the shipped configuration: free ports of loopback, and whom to trust with its servers."""
    ports = {name: str(free_port()) for name in ("PORT", "PROXY_PORT", "STATS_PORT", "STATS_PROXY_PORT")}
    return {"ADDRESS": "127.0.0.1", **ports, "RELAY": f"multicloud-{ports['PORT']}", "UPSTREAM_CA": str(authority)}


def wait_until(condition: Callable[[], bool], seconds: float, what: str) -> None:
    """Return as soon as the condition holds; fail the test if it does not within thrice `seconds`.

    So many are enough for a machine that has nothing else to do; one that has stands still for seconds.
    """
    deadline = time.monotonic() + 3 * seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {3 * seconds} s: {what}"
        time.sleep(0.05)


class Router(demo.Router):
    """A router that can be reloaded and restarted."""

    def reload(self) -> None:
        """Let a new HAProxy take over from the running one, as `systemctl reload haproxy` does."""
        before = self._pid()
        self._start("-x", self.settings["MULTICLOUD_SOCKET"], "-sf", str(self._processes[-1].pid))
        wait_until(lambda: self._pid() not in ("", before), 10, "the new HAProxy answers")

    def restart(self) -> None:
        """End HAProxy, and start a new one."""
        self._processes[-1].terminate()
        self._processes[-1].wait()
        self._start()


class Edge:
    """Regions, and the router in front of them. `region` finds a region by its name."""

    def __init__(self, regions: Regions, router: Router, port: int, stats_port: int) -> None:
        self.regions = regions
        self.router = router
        self.port = port
        self.stats_port = stats_port
        self.region = {region.name: region for region in regions}

    def get(self, path: str = "/") -> tuple[int, str]:
        """Status of a request over a connection of its own, and the region that answered ("" if none did)."""
        return user.asked(self.port, path)

    def weights(self, backend: str = "upstream") -> dict[str, int]:
        """The weights of a backend's servers as HAProxy has them."""
        return haproxy.weights(self.router.settings["MULTICLOUD_SOCKET"], backend)

    def states(self, backend: str = "upstream") -> dict[str, str]:
        """The states of a backend's servers as HAProxy has them."""
        return {server.name: server.state for server in self.servers() if server.backend == backend}

    def backends(self) -> list[str]:
        """The backends whose servers are measured, by themselves or through those that they track."""
        return list(dict.fromkeys(server.backend for server in self.servers() if server.source[0] == "upstream"))

    def servers(self) -> list[runtime.Server]:
        """All servers."""
        return haproxy.servers(self.router.settings["MULTICLOUD_SOCKET"])

    def tell(self, command: str) -> str:
        """Give HAProxy a command as an operator does."""
        return haproxy.tell(self.router.settings["MULTICLOUD_SOCKET"], command)[0]

    def times(self) -> list[str]:
        """The lines of the sample file."""
        path = Path(self.router.settings["MULTICLOUD_TIMES"])
        return path.read_text().splitlines() if path.exists() else []

    def log(self) -> str:
        """What HAProxy, its checks and multicloud-run said."""
        return (self.router.directory / "haproxy.log").read_text()


def measured(delays: Mapping[str, float], count: int) -> str:
    """A sample file's text: so many samples of each region until now, as its checks would have made them."""
    now = time.time()
    return "".join(
        f"upstream {name} {delay:.6f} {now - 2 * before:.3f}\n"
        for before in range(count, 0, -1)
        for name, delay in delays.items()
    )


@contextlib.contextmanager
def regions_at(delays: Mapping[str, float]) -> Iterator[Regions]:
    """Running regions of these names, with their delays in seconds."""
    with Regions(list(delays)) as regions:
        for region in regions:
            region.delay = delays[region.name]
        yield regions


@contextlib.contextmanager
def edge(
    delays: Mapping[str, float],
    *,
    interval: str = "1s",
    commands: Mapping[str, str] | None = None,
    configure: Callable[[str], str] = str,
    times: str = "",
    beside: bool = False,
) -> Iterator[Edge]:
    """Run it: a region of each name with its delay in seconds.

    `interval` is that of the checks and of the reweigh; `configure` may change the configuration's text, and `times` is
    what the sample file holds at first. `beside` has multicloud-run set the weights in place of external checks and
    reweighs, and none of these be run.
    """
    with tempfile.TemporaryDirectory() as name, regions_at(delays) as regions:
        directory = Path(name)
        authority = directory / "authority.pem"
        regions.authority.cert_pem.write_to_path(str(authority))
        if times:
            (directory / "times.txt").write_text(times)
        listening = listen_anywhere(authority)
        router = Router(
            directory,
            configure(demo.configuration({region.name: region.port for region in regions}, beside=beside)),
            commands={"MULTICLOUD_CA_FILE": str(authority), **(demo.BESIDE if beside else {}), **(commands or {})},
            environ={
                **listening,
                "MULTICLOUD_INTER": interval,
                "MULTICLOUD_REWEIGH_INTER": interval,
                "FLY_REGION": "test1",
            },
        )
        with router:
            running = Edge(regions, router, int(listening["PORT"]), int(listening["STATS_PORT"]))
            try:
                yield running
            except BaseException:  # pytest shows it
                codes = [process.poll() for process in router._processes]
                print(f"exit codes of HAProxy: {codes}; what was said at last:\n{running.log()[-3000:]}")
                raise
