"""`multicloud check`: what a person means by a URL, and where the time of a probe went."""

import json
import os
import re
import shutil
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from typing import Any

import click

from multicloud import check as checks
from multicloud import light, probe, settings
from multicloud.console import terminal
from multicloud.samplefile import SampleFileError
from multicloud.settings import Settings, Sources

ACCEPTED = "https://host/path, http://host/path, tls://host:port, tcp://host:port, host or host:port"
# A host, an IPv6 address in brackets or without, and a port behind the first two.
PLACE = re.compile(r"(?:\[([^][]+)\]|([^][:]+|[^][:]*(?::[^][:]*){2,}))(?::([0-9]+))?")
BAR = "▇"


def check(url: str | None, connect: str | None, sources: Sources, *, count: int, record: bool, form: str) -> None:
    """Probe `count` times and print what was found, as "text" or "json"; `record` appends samples.

    Without a URL the server is the one that HAProxy's variables name; `connect` is as in `resolve`. Raises UsageError,
    and CommandError where the server was down.
    """
    named = checks.server_named(os.environ)
    if connect is not None and not url:
        raise light.UsageError("--connect needs a URL")
    if not url and "HAPROXY_SERVER_ADDR" not in os.environ:
        raise light.UsageError(f"no server to probe; give {ACCEPTED}")
    if record and not all(named):
        raise light.UsageError("--record needs HAPROXY_PROXY_NAME and HAPROXY_SERVER_NAME, to say whose sample it is")
    values = sources.read(settings.CHECK_SETTINGS, *(() if url else named))
    target, resolved = resolve(url, connect, values) if url else (checks.haproxy_target((), os.environ, values), None)
    if form == "text":
        click.echo(target)
    results = []
    for number in range(1, count + 1):
        result = probe.probe(target, values.timeout, values.clock)
        result.close()
        results.append(result)
        if form == "text" and count > 1:
            click.echo(one_line(number, result))
        elif form == "text":
            _show(result, resolved)
        if record:
            try:
                checks.record(os.environ, values.times, result.seconds, values.timeout)
            except SampleFileError as error:
                light.warn(f"warning: not recorded: {error}")
    errors = [result.error for result in results if result.seconds is None]
    if form == "json":
        click.echo(as_json(target, resolved, results))
    elif count > 1:
        figures = "  ".join(f"{name} {seconds * 1000:.1f}" for name, seconds in (summary(results) or {}).items())
        line = f"{count - len(errors)} of {count} up" + (f": {figures} ms" if figures else "")
        click.secho(line, fg=None if errors else "green", color=terminal.colorful())
    if errors:
        raise light.CommandError(f"{target}: {errors[0]}")


def _show(result: probe.Probe, resolved: float | None) -> None:
    """The only probe, with all that is known of it."""
    phases = result.phases if resolved is None else {"resolve": resolved, **result.phases}
    for line in (*waterfall(phases, shutil.get_terminal_size().columns), *facts(result)):
        click.echo(line)
    if result.seconds is not None:
        click.secho(verdict(result), fg="green", color=terminal.colorful())


def resolve(url: str, connect: str | None, values: Settings) -> tuple[probe.Target, float]:
    """The target that a person means, and the seconds that it took to look up its address.

    `connect` is ADDR[:PORT], where to go instead of to the URL's own host and port. Raises UsageError, and CommandError
    where the name has no address.
    """
    scheme, marked, rest = url.partition("://")
    if not marked or "/" in scheme:  # a bare host, perhaps with a URL in its query
        scheme, rest = "https" if values.scheme == "auto" else values.scheme, url
    authority, slash, path = rest.partition("/")
    try:
        host, port = _host_and_port(authority)
        port = port or checks.DEFAULT_PORTS.get(scheme)
        if scheme not in ("tcp", "tls", "http", "https") or not port:
            raise ValueError
        settings.HOST.parse(host)
        path = str(settings.PATH.parse(slash + path.partition("#")[0])) if slash else values.path
    except ValueError:
        raise light.UsageError(f"cannot probe {url!r}; give {ACCEPTED}") from None
    name = host
    if connect is not None:
        try:
            name, connect_port = _host_and_port(connect)
        except ValueError:
            accepted = "ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT"
            raise light.UsageError(f"cannot connect to {connect!r}; give {accepted}") from None
        port = connect_port or port
    start = time.monotonic()
    try:
        address = str(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        hint = "--connect ADDR goes to an address of your choice"
        raise light.CommandError(f"{name}: {light.reason(error)}; {hint}") from None
    seconds = time.monotonic() - start
    target = checks.target_of(scheme, address, port, values.host or host, values)
    target.path = path
    return target, seconds


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Of host, host:port, an IPv6 address or [an IPv6 address]:port. Raises ValueError for anything else."""
    place = PLACE.fullmatch(text)
    port = settings.port(place[3]) if place and place[3] else None
    if not place or port == 0:
        raise ValueError
    return place[1] or place[2], port


def waterfall(phases: Mapping[str, float], width: int) -> list[str]:
    """A line for each phase, and for their sum, with a bar where and as long as it took; `phases` are seconds."""
    total = sum(phases.values())
    if not total:
        return []
    room = max(8, min(48, width - 28))
    lines, over = [], 0.0
    for phase, seconds in phases.items():
        start = min(room - 1, round(over / total * room))
        over += seconds
        end = max(start + 1, round(over / total * room))
        lines.append(f"{_phase(phase, seconds)}  {' ' * start}{BAR * (end - start)}")
    return [*lines, _phase("total", total)]


def _phase(phase: str, seconds: float) -> str:
    name = "TLS" if phase == "tls" else phase.replace("_", " ")
    return f"  {name:<12}{seconds * 1000:9.1f} ms"


def one_line(number: int, result: probe.Probe) -> str:
    """One probe of several."""
    if result.seconds is None:
        return f"{number:>5}  down          {light.printable(result.error or '')}"
    phases = "  ".join(f"{phase.replace('_', ' ')} {seconds * 1000:.1f}" for phase, seconds in result.phases.items())
    return f"{number:>5}  up {result.seconds * 1000:9.1f} ms  {phases}"


def verdict(result: probe.Probe) -> str:
    """Of a probe that found the server up, the time that counts, and the other one where there are two."""
    phases, counts = result.phases, result.seconds
    connection = f"{sum(phases.values()) * 1000:.1f} ms from the start of the connection"
    if "first_byte" not in phases:
        return f"up: {connection}, which counts"
    request = f"{phases['first_byte'] * 1000:.1f} ms from the request"
    if counts == phases["connect"]:
        return f"up: {counts * 1000:.1f} ms to connect, which counts, since no answer comes sooner; {request}"
    first, other = (request, connection) if counts == phases["first_byte"] else (connection, request)
    return f"up: {first}, which counts; {other}"


def facts(result: probe.Probe) -> list[str]:
    """What else is known of the connection: status, TLS version, certificate."""
    lines = [] if result.status is None else [f"  status      {result.status}"]
    if not result.tls_version:
        return lines
    shown = "not verified"
    if certificate := describe(result.certificate):
        others = len(certificate["names"]) - 1
        more = f" and {others} more" if others > 0 else ""
        shown = f"{light.printable(certificate['subject'])}{more}, {certificate['days_left']} days left"
    return [*lines, f"  TLS         {result.tls_version}", f"  certificate {shown}"]


def describe(certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Subject, names, end and days left of a certificate as ssl.SSLSocket.getpeercert gives it; None without one."""
    if not certificate:
        return None
    end = ssl.cert_time_to_seconds(certificate["notAfter"])
    names = [name for _, name in certificate.get("subjectAltName", ())]
    subject = dict(pair for part in certificate.get("subject", ()) for pair in part)
    return {
        "subject": subject.get("commonName") or (names[0] if names else ""),
        "names": names,
        "not_after": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(end)),
        "days_left": int((end - time.time()) // 86400),
    }


def summary(results: Sequence[probe.Probe]) -> dict[str, float] | None:
    """Seconds of the fastest, the median, the 90th percentile and the slowest probe that found the server up."""
    from multicloud import scores  # numpy

    times = [result.seconds for result in results if result.seconds is not None]
    names = ("min", "p50", "p90", "max")
    return dict(zip(names, scores.percentiles(times, (0, 50, 90, 100)), strict=True)) if times else None


def as_json(target: probe.Target, resolved: float | None, results: Sequence[probe.Probe]) -> str:
    """One JSON object: the target, whether every probe found it up, and each probe; times in seconds."""
    probes = [
        {"up": result.seconds is not None, "rtt": result.seconds}
        | {name: getattr(result, name) for name in ("error", "phases", "status", "tls_version")}
        | {"certificate": describe(result.certificate)}
        for result in results
    ]
    told = {name: getattr(target, name) for name in ("scheme", "host", "address", "port")}
    told["path"] = target.path if target.scheme in ("http", "https") else None
    up = all(result.seconds is not None for result in results)
    return json.dumps(told | {"resolve": resolved, "up": up, "rtt": summary(results), "probes": probes}, indent=2)
