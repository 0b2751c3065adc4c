"""What a check and a reweigh cost, against programs of the shell that do the same (tests/bench/shell).

    python -m tests.bench.cost [check] [reweigh] [accuracy] [idle]

prints the tables that are named, or all. It takes five minutes and wants a machine that does nothing else. It needs
curl, GNU time and a netcat that knows UNIX sockets: apt-get install curl time netcat-openbsd
"""

import contextlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from tests import haproxy
from tests.bench.processes import compare, cpu, run
from tests.bench.table import Table
from tests.edge import Edge, edge
from tests.regions import Regions

BIN = Path(sys.executable).parent
CHECK, REWEIGH = str(BIN / "multicloud-check"), str(BIN / "multicloud-reweigh")
SHELL = Path(__file__).parent / "shell"
CLEAN = {"PATH": "/usr/bin:/bin"}
FOUR = {"eu.demo": 0.020, "us.demo": 0.040, "ap.demo": 0.060, "sa.demo": 0.080}


def main() -> None:
    """Print the tables that are asked for."""
    tables = {"check": check, "reweigh": reweigh, "accuracy": accuracy, "idle": idle}
    for name in sys.argv[1:] or tables:
        tables[name]()


@contextlib.contextmanager
def probed(scheme: str, delay: float = 0.0) -> Iterator[tuple[dict[str, str], list[str]]]:
    """A region, and the variables and arguments with which HAProxy starts a check of it, ours or the shell's.

    Both trust what the system trusts and the region's authority: ours finds it in a directory of hashed links, as in
    /etc/ssl/certs, and curl in a bundle, as it does by default.
    """
    with tempfile.TemporaryDirectory() as name, Regions(["eu.demo"], tls=scheme == "https") as regions:
        region = next(iter(regions))
        region.delay = delay
        store = Path(name, "certs")
        shutil.copytree("/etc/ssl/certs", store, ignore_dangling_symlinks=True)
        regions.authority.cert_pem.write_to_path(str(store / "authority.pem"))
        subprocess.run(["openssl", "rehash", str(store)], check=True, capture_output=True)
        regions.authority.cert_pem.write_to_path(str(store / "ca-certificates.crt"), append=True)
        environ = {
            **CLEAN,
            "HAPROXY_PROXY_NAME": "upstream",
            "HAPROXY_SERVER_NAME": region.name,
            "HAPROXY_SERVER_SSL": "1" if scheme == "https" else "0",
            "HAPROXY_SERVER_PROTO": "tcp" if scheme == "tcp" else "h1",
            "MULTICLOUD_TIMES": f"{name}/times.txt",
            "SSL_CERT_DIR": str(store),
            "SCHEME": scheme,
            "BUNDLE": str(store / "ca-certificates.crt"),
            "TIMES": f"{name}/shell.txt",
        }
        yield environ, ["NOT_USED", "NOT_USED", "127.0.0.1", str(region.port)]


def check() -> None:
    """One check, by scheme."""
    for scheme in ("https", "http", "tcp"):
        with probed(scheme) as (environ, arguments):
            commands = {"multicloud-check": [CHECK, *arguments], "sh + curl": [str(SHELL / "check.sh"), *arguments]}
            compare(f"Check over {scheme}", commands, environ)


def accuracy() -> None:
    """How far the recorded time is from the region's true delay."""
    delay, count = 0.020, 50
    print(f"\nRecorded time less the region's delay of {delay * 1000:.0f} ms, {count} checks each")
    table = Table("", "p50 ms", "p90 ms")
    for scheme in ("http", "https"):
        with probed(scheme, delay) as (environ, arguments):
            for _ in range(count):
                run([CHECK, *arguments], environ)
                run([str(SHELL / "check.sh"), *arguments], environ)
            for title, variable in ((f"multicloud-check, {scheme}", "MULTICLOUD_TIMES"), (f"curl, {scheme}", "TIMES")):
                lines = Path(environ[variable]).read_text().splitlines()
                errors = [(float(line.split()[2]) - delay) * 1000 for line in lines]
                table.row(title, f"{statistics.median(errors):.1f}", f"{statistics.quantiles(errors, n=10)[8]:.1f}")


def reweigh() -> None:
    """One reweigh that has nothing to change."""
    now = time.time()
    names = list(FOUR)
    history = "".join(f"upstream {names[i % 4]} {FOUR[names[i % 4]]:.6f} {now - 250 + i / 2:.3f}\n" for i in range(500))
    with edge(FOUR, interval="600s", times=history) as running:
        socket = running.router.settings["MULTICLOUD_SOCKET"]
        times = running.router.settings["MULTICLOUD_TIMES"]
        environ = {**CLEAN, "MULTICLOUD_TIMES": times, "MULTICLOUD_SOCKET": socket, "TIMES": times, "SOCKET": socket}
        commands = {
            "multicloud-reweigh": [REWEIGH],
            "python -c 'import numpy'": [sys.executable, "-c", "import numpy"],
            "the same, one BLAS thread": ["env", "OPENBLAS_NUM_THREADS=1", sys.executable, "-c", "import numpy"],
            "sort | awk | nc": [str(SHELL / "reweigh.sh")],
        }
        run([REWEIGH], environ)
        compare("Reweigh, 4 servers, 500 lines, weights already right", commands, environ)


def idle() -> None:
    """What all checks and reweighs together cost behind the shipped configuration, ours and the shell's at once."""
    with (
        edge(FOUR, interval="2s") as ours,
        edge(FOUR, interval="2s") as shell,
    ):
        for command in ("check", "reweigh"):
            settings = shell.router.settings
            (shell.router.directory / f"multicloud-{command}").write_text(
                f"#!/bin/sh\nSCHEME=https BUNDLE={shell_bundle(shell)} TIMES={settings['MULTICLOUD_TIMES']} "
                f'SOCKET={settings["MULTICLOUD_SOCKET"]} exec {SHELL}/{command}.sh "$@"\n'
            )
        time.sleep(10)
        pids = [haproxy.process(each.router.settings["MULTICLOUD_SOCKET"]) for each in (ours, shell)]
        start = [cpu(pid, children=True) for pid in pids]
        time.sleep(60)
        spent = [cpu(pid, children=True) - before for pid, before in zip(pids, start, strict=True)]
    print("\nThe loop: checks of 4 servers and a reweigh every 2 s; CPU seconds a minute")
    print(f"  multicloud {spent[0]:.2f}   shell {spent[1]:.2f}   ratio {spent[0] / spent[1]:.2f}")


def shell_bundle(running: Edge) -> str:
    """The system's bundle and the regions' authority, for curl."""
    bundle = running.router.directory / "bundle.pem"
    bundle.write_bytes(Path("/etc/ssl/certs/ca-certificates.crt").read_bytes())
    running.regions.authority.cert_pem.write_to_path(str(bundle), append=True)
    return str(bundle)


if __name__ == "__main__":
    main()
