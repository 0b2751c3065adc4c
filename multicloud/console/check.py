"""A probe by hand: what a person means by a URL, and where the time of a probe went."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Any

from multicloud import check as checks
from multicloud import light, probe, settings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from multicloud.settings import Settings

ACCEPTED = "https://host/path, http://host/path, tls://host:port, tcp://host:port, host or host:port"
BAR = "▇"


class ResolveError(Exception):
    """The name has no address. The text says which and why."""


def resolve(url: str, connect: str | None, values: Settings) -> tuple[probe.Target, float]:
    """The target that a person means, and the seconds that it took to look up its address.

    `connect` is ADDR[:PORT], where to go instead of to the URL's own host and port. Raises UsageError, ResolveError.
    """
    scheme, marked, rest = url.partition("://")
    if not marked or "/" in scheme:  # a bare host, perhaps with a URL in its query
        scheme, marked, rest = "", "", url
    scheme = scheme if marked else "https" if values.scheme == "auto" else values.scheme
    authority, slash, path = rest.partition("/")
    host, port = _host_and_port(authority)
    port = port or checks.DEFAULT_PORTS.get(scheme)
    try:
        if scheme not in ("tcp", "tls", "http", "https") or not host or not port:
            raise ValueError
        settings.HOST.parse(host)
        path = str(settings.PATH.parse(slash + path.partition("#")[0])) if slash else values.path
    except ValueError:
        raise checks.UsageError(f"cannot probe {url!r}; give {ACCEPTED}") from None
    name = host
    if connect is not None:
        name, connect_port = _host_and_port(connect)
        port = connect_port or port
        if not name:
            raise checks.UsageError(f"cannot connect to {connect!r}; give ADDRESS, ADDRESS:PORT or [ADDRESS]:PORT")
    start = time.monotonic()
    try:
        address = str(socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)[0][4][0])
    except (OSError, UnicodeError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise ResolveError(f"{name}: {reason}; --connect ADDR goes to an address of your choice") from None
    seconds = time.monotonic() - start
    target = checks.target_of(scheme, address, port, values.host or host, values)
    target.path = path
    return target, seconds


def _host_and_port(text: str) -> tuple[str, int | None]:
    """Of host, host:port, an IPv6 address or [an IPv6 address]:port; ("", None) for anything else."""
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        if not bracket or port[:1] not in ("", ":"):
            return "", None
        port = port[1:]
    elif text.count(":") > 1:
        host, port = text, ""
    else:
        host, colon, port = text.partition(":")
        if colon and not port:
            return "", None
    try:
        number = settings.port(port) if port else None
    except ValueError:
        return "", None
    return ("", None) if number == 0 else (host, number)


def waterfall(phases: Mapping[str, float], width: int) -> list[str]:
    """A line for each phase, and for their sum, with a bar where and as long as it took; `phases` are seconds."""
    total = sum(phases.values())
    if not total:
        return []
    room = max(8, min(48, width - 28))
    lines = []
    before = 0.0
    for phase, seconds in phases.items():
        start = min(room - 1, round(before / total * room))
        end = max(start + 1, round((before + seconds) / total * room))
        before += seconds
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
    if counts == phases["first_byte"]:
        return f"up: {request}, which counts; {connection}"
    if counts == phases["connect"]:
        return f"up: {counts * 1000:.1f} ms to connect, which counts, since no answer comes sooner; {request}"
    return f"up: {connection}, which counts; {request}"


def facts(result: probe.Probe) -> list[str]:
    """What else is known of the connection: status, TLS version, certificate."""
    lines = []
    if result.status is not None:
        lines.append(f"  status      {result.status}")
    if result.tls_version:
        lines.append(f"  TLS         {result.tls_version}")
        certificate = describe(result.certificate)
        if certificate is None:
            lines.append("  certificate not verified")
        else:
            others = len(certificate["names"]) - 1
            more = f" and {others} more" if others > 0 else ""
            lines.append(
                f"  certificate {light.printable(certificate['subject'])}{more}, {certificate['days_left']} days left"
            )
    return lines


def describe(certificate: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Subject, names, end and days left of a certificate as ssl.SSLSocket.getpeercert gives it; None without one."""
    if not certificate:
        return None
    import ssl

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
    from multicloud import scores

    times = [result.seconds for result in results if result.seconds is not None]
    if not times:
        return None
    return dict(zip(("min", "p50", "p90", "max"), scores.percentiles(times, (0, 50, 90, 100)), strict=True))


def as_json(target: probe.Target, resolved: float | None, results: Sequence[probe.Probe]) -> str:
    """One JSON object: the target, whether every probe found it up, and each probe; times in seconds."""
    import json

    return json.dumps(
        {
            "scheme": target.scheme,
            "host": target.host,
            "address": target.address,
            "port": target.port,
            "path": target.path if target.scheme in ("http", "https") else None,
            "resolve": resolved,
            "up": all(result.seconds is not None for result in results),
            "rtt": summary(results),
            "probes": [
                {
                    "up": result.seconds is not None,
                    "rtt": result.seconds,
                    "error": result.error,
                    "phases": result.phases,
                    "status": result.status,
                    "tls_version": result.tls_version,
                    "certificate": describe(result.certificate),
                }
                for result in results
            ],
        },
        indent=2,
    )
