"""The picture of the dashboard: two edges, each a HAProxy with users and `multicloud run`, and a Prometheus, while one
region slows down and another one fails. Three minutes; needs Debian's package prometheus.

.venv/bin/python -m tests.bench.dashboard docs/pictures/dashboard.png
"""

import contextlib
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

from tests.ports import free_port
from tests.prometheus import prometheus
from tests.regions import Regions
from tests.test_run import Site

ROOT = Path(__file__).parents[2]
DELAYS = {"edge1": {"eu": 0.02, "us": 0.06, "ap": 0.11}, "edge2": {"eu": 0.09, "us": 0.03, "ap": 0.07}}
USERS = 3
# After so many seconds a region of an edge takes so long and has this status.
STEPS = {45: ("edge1", "eu", 0.15, 200), 90: ("edge1", "eu", 0.02, 200), 120: ("edge2", "us", 0.03, 500)}
END = 180


def ask(url: str, ended: threading.Event) -> None:
    """One user after the other."""
    while not ended.is_set():
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url, timeout=5).read()


def main() -> None:
    """Run it, and draw."""
    ended = threading.Event()
    with contextlib.ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sites, targets = {}, {}
        for edge, delays in DELAYS.items():
            regions = stack.enter_context(Regions([*delays], tls=False))
            (directory / edge).mkdir()
            port, targets[edge] = free_port(), free_port()
            web = f"frontend web\n    bind 127.0.0.1:{port}\n    default_backend app\n"
            site = sites[edge] = Site(regions, directory / edge, web, "500ms")
            for region in regions:
                region.delay = delays[region.name]
            stack.enter_context(site.router)
            stack.enter_context(site.beside("--metrics", str(targets[edge])))
            for _ in range(USERS):
                threading.Thread(target=ask, args=(f"http://127.0.0.1:{port}/", ended), daemon=True).start()
        stack.callback(ended.set)
        rules = (ROOT / "deploy/prometheus/rules.yml").read_text()
        running = stack.enter_context(prometheus(directory, targets, rules, "1s"))
        began = time.monotonic()
        for seconds, (edge, name, delay, status) in STEPS.items():
            time.sleep(began + seconds - time.monotonic())
            sites[edge].region[name].delay, sites[edge].region[name].status = delay, status
        time.sleep(began + END - time.monotonic())
        draw = [
            sys.executable,
            str(ROOT / "deploy/grafana/picture.py"),
            running.address,
            sys.argv[1],
            f"{END / 60}",
            "5s",
        ]
        subprocess.run(draw, check=True)


if __name__ == "__main__":
    main()
