"""What is in the image, as tests/container.sh built it: run by that script, in a network namespace of its own.

A container is what Docker makes of an image: its files with a writable layer on top, its user, variables and command,
and a process 1. Ports are the image's own, since the network is the test's alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import tarfile
import time
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from multicloud import haproxy_cfg, plan
from multicloud.console import config
from tests.client import Traffic
from tests.edge import regions_at, wait_until
from tests.machine import Machine
from tests.names import name_server, own_network
from tests.regions import Regions
from tests.test_drop_in import DELAYS, shell_version
from tests.test_traffic import failures
from tests.user import asked

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

ROOT = Path(os.environ["IMAGE_ROOT"])
LAYERS = Path(os.environ["IMAGE_LAYERS"])
CONFIG: dict[str, Any] = json.loads(Path(os.environ["IMAGE_CONFIG"]).read_text())["Docker"]["config"]
FLY: dict[str, Any] = tomllib.loads(Path("fly.toml").read_text())
POD: dict[str, Any] = next(yaml.safe_load_all(Path("deploy/kubernetes.yaml").read_text()))["spec"]["template"]["spec"]
HAPROXY_CFG = "/usr/local/etc/haproxy/haproxy.cfg"
SOCKET = dict(variable.split("=", 1) for variable in CONFIG["Env"])["MULTICLOUD_SOCKET"]

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
PROXY = b"PROXY TCP4 192.0.2.7 192.0.2.8 4242 443\r\n"
EMPTY_SETTINGS = b"\0\0\0\4\0\0\0\0\0"
"""A frame of HTTP/2 (RFC 9113, section 6.5): three bytes of length, a byte of type, flags and stream."""


class Container(Machine):
    """A running container, with `files` in their places; `command` is for a shell, instead of the image's own."""

    def __init__(
        self,
        files: Mapping[str, str] | None = None,
        variables: Mapping[str, str] | None = None,
        *,
        user: str = CONFIG["User"],
        command: str = "",
        volumes: Sequence[str] = (),
    ) -> None:
        super().__init__(
            ROOT,
            ["sh", "-c", command] if command else [*CONFIG["Entrypoint"], *CONFIG["Cmd"]],
            # It has no network, and HAProxy warns of a name server to which there is no way.
            files={"etc/resolv.conf": "nameserver 127.0.0.1\n", **(files or {})},
            variables=[*CONFIG["Env"], *(f"{name}={value}" for name, value in (variables or {}).items())],
            user=user,
            home=CONFIG["WorkingDir"],
            volumes=volumes,
        )

    def weights(self) -> list[int]:
        """The weights of the servers; none before there are samples."""
        return [row["weight"] for row in self.status()]

    def settle(self) -> None:
        """Wait for the right weights."""
        wait_until(lambda: self.weights() == [256, 1, 0, 0], 120, "256/1/0/0")

    def ask(self, command: str) -> str:
        """The Runtime API's answer."""
        program = f"from multicloud.runtime import RuntimeAPI; print(RuntimeAPI('{SOCKET}').ask('{command}'))"
        return self.run("python3", "-I", "-S", "-c", program).stdout


@pytest.fixture(scope="module")
def regions() -> Iterator[Regions]:
    with regions_at(DELAYS) as regions:
        yield regions


def trusting(regions: Regions) -> dict[str, str]:
    """The file of the regions' authority."""
    return {"etc/regions.pem": regions.authority.cert_pem.bytes().decode()}


def servers(regions: Regions, at: str = "127.0.0.1") -> list[str]:
    """The regions as `multicloud config` is told them, all `at` one address or host name."""
    return [f"{region.name}={at}:{region.port}" for region in regions]


@contextlib.contextmanager
def router(
    regions: Regions, *, volumes: Sequence[str] = (), mounted: str = "", backends: str = "", at: str = "127.0.0.1"
) -> Iterator[Container]:
    """The image as it is, with the servers in its variable; `mounted` is a configuration in place of that.

    With `backends`, HAProxy's own checks are the samples.
    """
    files = trusting(regions)
    if mounted:
        files[HAPROXY_CFG.lstrip("/")] = mounted
    variables = {
        **({} if mounted else {"MULTICLOUD_SERVERS": " ".join(servers(regions, at))}),
        **({"MULTICLOUD_BACKENDS": backends, "MULTICLOUD_PATH": "/healthz"} if backends else {}),
        "FLY_REGION": "test1",
        "UPSTREAM_CA": "/etc/regions.pem",
        "MULTICLOUD_CA_FILE": "/etc/regions.pem",
        "MULTICLOUD_MIN_SAMPLES": "0",  # percentiles from the first sample on: most of what is used of numpy
    }
    with Container(files, variables, volumes=volumes) as running:
        running.settle()
        yield running


def test_the_commands_run_as_the_unprivileged_user() -> None:
    with Container(command="exec sleep 60") as running:
        assert running.run("id", "-u").stdout == "99\n"
        for command in ("multicloud-check", "multicloud-reweigh", "multicloud"):
            assert running.run("which", command).stdout.startswith("/usr/bin/")
        assert running.run("multicloud", "--version").stdout.startswith("multicloud, version ")
        usage = running.run("env", "-i", "/scripts/check_server_https.sh")
        assert (usage.returncode, usage.stderr.partition(",")[0]) == (2, "error: no server address")
        nobody = running.run("env", "-i", "/scripts/set_server_weights.sh")
        assert (nobody.returncode, nobody.stderr.partition(":")[0]) == (1, "error")
        assert "/var/run/haproxy.sock" in nobody.stderr


def test_a_mounted_settings_file_says_the_servers_as_well(regions: Regions) -> None:
    text = f"ca_file = /etc/regions.pem\n[app]\nservers = {' '.join(servers(regions))}\n"
    with Container({**trusting(regions), "etc/multicloud.conf": text}) as running:
        running.settle()
        assert asked(8080) == (200, "eu")


def test_the_loop_reaches_its_weights_and_the_container_is_healthy(regions: Regions) -> None:
    with router(regions) as running:
        assert asked(8080) == (200, "eu")
        health = running.run("sh", "-c", CONFIG["Healthcheck"]["Test"][1])
        assert (health.returncode, health.stderr) == (0, "")


def test_a_name_with_both_kinds_of_address_is_served_in_a_network_without_ipv6() -> None:
    with (
        own_network(ipv6=False),
        name_server("127.0.0.1", "2001:db8::2", port=53),
        regions_at(DELAYS) as regions,
        router(regions, at="regions.demo"),
    ):
        assert asked(8080) == (200, "eu")


def test_health_is_lost_where_haproxy_does_not_answer() -> None:
    with Container(command="exec sleep 60") as running:
        health = running.run("sh", "-c", CONFIG["Healthcheck"]["Test"][1])
        assert health.returncode == 1
        assert "connection refused" in health.stderr


@pytest.mark.parametrize("scheme", ["tcp", "tls", "http", "https"])
def test_the_check_speaks_every_scheme(regions: Regions, scheme: str) -> None:
    with Regions(["eu"], tls=False) as plain, Container(trusting(regions), command="exec sleep 60") as running:
        eu = next(iter(regions if scheme in ("tls", "https") else plain))
        names = ["HAPROXY_PROXY_NAME=upstream", "HAPROXY_SERVER_NAME=eu"]
        settings = [f"MULTICLOUD_SCHEME={scheme}", "MULTICLOUD_CA_FILE=/etc/regions.pem"]
        arguments = ["multicloud-check", "NOT_USED", "NOT_USED", "127.0.0.1", str(eu.port)]
        checked = running.run("env", *names, *settings, *arguments)
        assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
        assert measured(running) == {"upstream eu"}
        shown = running.run(
            "multicloud", "check", f"{scheme}://127.0.0.1:{eu.port}", "--host=eu", "--ca-file=/etc/regions.pem"
        )
        assert (shown.returncode, shown.stderr) == (0, "")


def test_the_check_refuses_a_certificate_that_it_cannot_verify(regions: Regions) -> None:
    with Container(command="exec sleep 60") as running:
        checked = running.run("multicloud", "check", f"https://127.0.0.1:{next(iter(regions)).port}")
    assert checked.returncode == 1
    assert "certificate not accepted" in checked.stderr


def test_every_command_of_a_person_works(regions: Regions) -> None:
    formats = [f"status --format {form}" for form in ("table", "json", "prometheus")]
    with router(regions) as running:
        for command in ("reweigh", "reweigh --dry-run", "reweigh --help", *formats):
            shown = running.run("multicloud", *command.split())
            assert (shown.returncode, shown.stderr) == (0, ""), command


@pytest.mark.parametrize("service", FLY["services"], ids=lambda service: str(service["ports"][-1]["port"]))
def test_the_ports_of_fly_toml_take_the_proxy_protocol(regions: Regions, service: dict[str, Any]) -> None:
    address = ("127.0.0.1", service["internal_port"])
    with router(regions), socket.create_connection(address, timeout=10) as client:
        client.sendall(PROXY + GET)
        assert client.recv(12) == b"HTTP/1.1 200"
        assert asked(FLY["checks"]["stats"]["port"])[0] == 200


def test_http_2_is_understood_behind_an_edge_that_took_the_tls_away(regions: Regions) -> None:
    with router(regions), socket.create_connection(("127.0.0.1", 8081), timeout=10) as client:
        client.sendall(PROXY + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + EMPTY_SETTINGS)
        with client.makefile("rb") as answer:
            assert answer.read(9)[3] == EMPTY_SETTINGS[3]


@pytest.mark.parametrize("backends", ["", "app"])
def test_docker_stop_is_quick_and_clean_under_load(regions: Regions, backends: str) -> None:
    with router(regions, backends=backends) as running, socket.create_connection(("127.0.0.1", 8080)) as idle:
        idle.sendall(GET)
        assert idle.recv(1)
        assert running.stop(signal.Signals[CONFIG["StopSignal"]]) in (0, 128 + signal.SIGTERM)


@contextlib.contextmanager
def request_under_way(running: Container, regions: Regions, seconds: float) -> Iterator[None]:
    """A request that takes so long is with its server, and gets its answer when what is done meanwhile is done."""
    eu = next(iter(regions))
    eu.delay = seconds
    try:
        with socket.create_connection(("127.0.0.1", 8080), timeout=10) as client:
            client.sendall(GET)
            wait_until(lambda: "srv=eu" in running.ask("show sess"), 10, "the request is with the server")
            yield
            assert client.recv(12) == b"HTTP/1.1 200"
    finally:
        eu.delay = DELAYS["eu"]


def test_the_signal_of_fly_toml_lets_requests_finish(regions: Regions) -> None:
    with router(regions) as running, request_under_way(running, regions, 1.5):
        assert running.stop(signal.Signals[FLY["kill_signal"]]) == 0


def test_the_hook_of_kubernetes_lets_requests_finish(regions: Regions) -> None:
    # Longer than the hook waits before its signal.
    with router(regions) as running, request_under_way(running, regions, 8):
        running.run(*POD["containers"][0]["lifecycle"]["preStop"]["exec"]["command"])  # ends with the container
        assert running.ended() == 0


def test_the_volumes_of_kubernetes_are_all_that_it_writes_to(regions: Regions) -> None:
    mounts = {mount["name"]: mount["mountPath"] for mount in POD["containers"][0]["volumeMounts"]}
    written = [mounts[volume["name"]] for volume in POD["volumes"] if "emptyDir" in volume]
    with router(regions, volumes=written) as running:
        assert running.run("touch", "/var/tmp/file").returncode != 0
        assert asked(8080) == (200, "eu")


def test_with_one_variable_haproxys_own_checks_are_the_samples(regions: Regions) -> None:
    with router(regions, backends="app") as running:
        assert "uri /healthz" in running.run("cat", "/var/lib/haproxy/haproxy.cfg").stdout
        wait_until(lambda: measured(running) == {f"app {name}" for name in DELAYS}, 10, "a sample of each server")
        assert asked(8080) == (200, "eu")
        assert "external-check" not in running.run("cat", "/var/lib/haproxy/haproxy.cfg").stdout
        doctor = running.run("multicloud", "doctor", "-f", "/var/lib/haproxy/haproxy.cfg")
        assert [line for line in doctor.stdout.splitlines() if line.startswith("problem ")] == []


def test_the_loop_that_ends_is_started_again_and_haproxy_stays(regions: Regions) -> None:
    with router(regions, backends="app") as running:
        haproxy = running.processes("haproxy")
        (before,) = running.processes("multicloud-run")
        running.run("sh", "-c", f"kill -KILL {before}")
        wait_until(lambda: running.processes("multicloud-run").keys() not in (set(), {before}), 30, "another one")
        assert running.processes("haproxy") == haproxy


def test_signals_reach_haproxy_with_the_loop_beside_it(regions: Regions) -> None:
    with router(regions, backends="app") as running:
        old = running.processes("haproxy").keys()
        os.kill(running.pid, signal.SIGUSR2)
        wait_until(lambda: len(old - running.processes("haproxy").keys()) == 1, 30, "a new worker, and no old one")
        running.settle()
        assert "Z" not in running.processes("haproxy").values()
        with request_under_way(running, regions, 1.5):
            assert running.stop(signal.SIGUSR1) == 0


@pytest.mark.parametrize("mounted", [False, True])
def test_a_reload_keeps_the_samples_and_leaves_no_dead_process(regions: Regions, mounted: bool) -> None:
    text = haproxy_cfg.configuration(plan.Plan(config.servers(servers(regions)), (3, 0, 0))) if mounted else ""
    with router(regions, mounted=text) as running:
        old = running.processes("haproxy")
        os.kill(running.pid, signal.SIGUSR2)
        wait_until(lambda: old.keys() & running.processes("haproxy").keys() == {1}, 30, "a new worker, and no old one")
        running.settle()
        assert "Z" not in running.processes("haproxy").values()


def test_a_configuration_for_the_shell_version_runs_unchanged(regions: Regions) -> None:
    files = {
        "usr/local/etc/haproxy/haproxy.cfg": shell_version(regions, 8080),
        "usr/local/share/ca-certificates/regions.crt": regions.authority.cert_pem.bytes().decode(),
    }
    start = f"update-ca-certificates >/dev/null 2>&1; exec {' '.join(CONFIG['Cmd'])}"
    with Container(files, {"MULTICLOUD_SOCKET": "/var/run/haproxy.sock"}, user="root", command=start) as running:
        wait_until(lambda: measured(running) == {f"upstream {name}" for name in DELAYS}, 60, "a sample of each server")
        running.settle()
        assert asked(8080) == (200, "eu")


NAMED = "SERVER[=ADDRESS[:PORT]], or `servers` in /etc/multicloud.conf"


@pytest.mark.parametrize(
    ("named", "error"),
    [
        (
            "eu.example.com a_b!",
            "error: 'a_b!': 'a_b!' cannot be a server's name; accepted: letters, digits and . : _ -",
        ),
        ("* eu.example.com", "error: '*': '*' cannot be a server's name; accepted: letters, digits and . : _ -"),
        (
            "-h",
            "error: '-h': '-h' is no address; accepted: a host name, an IPv4 address, or an IPv6 address in brackets",
        ),
        *((empty, f"error: no server named; accepted: {NAMED}") for empty in (" ", "")),
    ],
)
def test_servers_that_cannot_be_are_one_clear_line_and_the_container_ends(named: str, error: str) -> None:
    with Container(command="exec sleep 60") as running:
        done = running.run("env", f"MULTICLOUD_SERVERS={named}", *CONFIG["Cmd"])
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"{error}\n")


def test_from_debians_own_configuration_one_edit_and_one_paste_route_and_lose_nothing_with_the_favourite() -> None:
    """Debian's HAProxy is what this image stands on, and its configuration is in it, too."""
    paste = """
mkdir -p /run/haproxy; chown haproxy:haproxy /run/haproxy; chmod 2775 /run/haproxy  # as Debian's tmpfiles.d does
update-ca-certificates >/dev/null 2>&1
sed -i /chroot/d /etc/haproxy/haproxy.cfg
multicloud config --blocks --backend app {servers} >>/etc/haproxy/haproxy.cfg
exec haproxy -W -db -f /etc/haproxy/haproxy.cfg
"""
    with regions_at(DELAYS) as regions:
        files = {"usr/local/share/ca-certificates/regions.crt": regions.authority.cert_pem.bytes().decode()}
        start = paste.format(servers=" ".join(servers(regions)))
        with Container(files, {"MULTICLOUD_SOCKET": ""}, user="root", command=start) as running:
            running.settle()
            assert running.run("stat", "-c", "%U %G %a", "/run/haproxy/admin.sock").stdout == "root haproxy 660\n"
            assert running.run("stat", "-c", "%U", "/tmp/times.txt").stdout == "haproxy\n"
            with Traffic(8080, rate=50) as traffic:
                time.sleep(2)
                eu = next(iter(regions))
                regions.stop(eu)
                wait_until(lambda: running.weights()[1] == 256, 60, "us as favourite")
                time.sleep(1)
    assert failures(traffic) == []


def measured(running: Container) -> set[str]:
    """Backend and server of the lines of the sample file at its default place."""
    lines = running.run("cat", "/tmp/times.txt").stdout.splitlines()
    return {" ".join(line.split()[:2]) for line in lines}


def test_nothing_is_in_it_that_only_developers_need() -> None:
    for name in ("pip*", "gcc*", "cc", "f2py*", "*.pyi", "*.pxd", "*.h", "*.a", "__pycache__", "tests"):
        assert list((ROOT / "usr/lib/python3.13").rglob(name)) == []
        assert list((ROOT / "usr/bin").glob(name)) == []
    assert list((ROOT / "usr/lib/python3.13").rglob("*.py")) == []


def test_the_image_is_small() -> None:
    index = json.loads((LAYERS / "index.json").read_text())
    manifest = json.loads(_blob(index["manifests"][0]["digest"]).read_text())
    base, *added = [layer["size"] for layer in manifest["layers"]]
    python = ROOT / "usr/lib/python3.13"
    blas, lapack, fortran, expat = (
        next(ROOT.glob(f"usr/lib/*/{name}.so.?")) for name in ("libblas", "liblapack", "libgfortran", "libexpat")
    )
    ours = [python / "multicloud", *python.glob("multicloud-*"), *ROOT.glob("usr/bin/multicloud*"), ROOT / "scripts"]
    parts = {
        "Python: the interpreter": [ROOT / "usr/bin/python3.13", expat],
        "Python: the standard library": sorted({*python.iterdir()} - {python / "numpy", python / "click", *ours}),
        "numpy": [python / "numpy"],
        "numpy's LAPACK": [lapack],
        "numpy's BLAS": [blas],
        "numpy's Fortran runtime": [fortran],
        "click": [python / "click"],
        "multicloud": ours,
    }
    print("\n\nMB compressed")
    for name, paths in parts.items():
        print(f"{name:<34}{_compressed(paths) / 1e6:6.2f}")
    print(f"{'all that is added':<34}{sum(added) / 1e6:6.2f}")
    print(f"{'the base of this test':<34}{base / 1e6:6.2f}")
    assert sum(added) < 16e6


def _blob(digest: str) -> Path:
    return LAYERS / "blobs" / digest.replace(":", "/")


def _compressed(paths: Sequence[Path]) -> int:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=6) as archive:
        for path in paths:
            archive.add(path, path.relative_to(ROOT))
    return len(buffer.getvalue())
