"""HAProxy's `external-check command` for each server: probe once, and append the round-trip time to the sample file.

HAProxy starts it with four arguments (proxy address and port, server address and port) and variables of the same
meaning (its configuration manual, `external-check command`). The exit code is the verdict: 0 up, 1 down, 2 settings
that cannot be read. Whether a sample can be recorded never changes it.
"""

from __future__ import annotations

import os
import sys
import time

from multicloud import probe, process, samples, settings

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE = "multicloud-check [proxy_addr proxy_port server_addr server_port]"

DEFAULT_PORTS = {"http": 80, "https": 443, "tls": 443}


class UsageError(Exception):
    """No server to probe, or not one that can be probed. The text says what is missing."""


def main() -> int:
    """Do what HAProxy asks for; return the exit code."""
    try:
        values = settings.Sources(os.environ).read(settings.CHECK, *sections(os.environ))
        target = haproxy_target(sys.argv[1:], os.environ, values)
        result = probe.probe(target, values.timeout, values.clock)
    except (settings.SettingError, UsageError) as error:
        process.tell(f"error: {error}")
        return 2
    if result.rtt is None:
        process.tell(f"error: {target}: {result.error}")
        return 1
    warning = record(os.environ, values.times, result.rtt)
    if warning:
        process.tell(f"warning: not recorded: {warning}")
    return 0


def sections(environ: Mapping[str, str]) -> tuple[str, str]:
    """The sections of the settings file that hold for the server that HAProxy named, the narrower one first."""
    backend, server = environ.get("HAPROXY_PROXY_NAME", ""), environ.get("HAPROXY_SERVER_NAME", "")
    return f"{backend}/{server}", backend


def haproxy_target(arguments: Sequence[str], environ: Mapping[str, str], values: settings.Settings) -> probe.Target:
    """The server that HAProxy means, by its arguments or, without them, its variables. Raises UsageError."""
    if arguments and len(arguments) != 4:
        raise UsageError(f"usage: {USAGE}")
    address = arguments[2] if arguments else environ.get("HAPROXY_SERVER_ADDR", "")
    port_text = arguments[3] if arguments else environ.get("HAPROXY_SERVER_PORT", "")
    if "@" in address.partition("/")[0]:
        raise UsageError(f"cannot probe {address!r}; give an IP address, or the path of a UNIX socket")
    name = environ.get("HAPROXY_SERVER_NAME", "")
    if not address:
        named = f" of {name!r} (HAProxy gives none of one such as abns@name)" if name else ""
        raise UsageError(f"no server address, neither as an argument nor in HAPROXY_SERVER_ADDR{named}; usage: {USAGE}")
    try:
        settings.HOST.parse(name)
    except ValueError:
        raise UsageError(f"HAPROXY_SERVER_NAME: {name!r} cannot be a host name") from None
    scheme = values.scheme if values.scheme != "auto" else auto_scheme(environ)
    port = None
    if not address.startswith("/"):
        port = _port(port_text) or DEFAULT_PORTS.get(scheme)
        if port is None:
            raise UsageError(f"no server port for {scheme}, neither as an argument nor in HAPROXY_SERVER_PORT")
    return probe.Target(
        scheme,
        address,
        port,
        values.host or name or address,
        path=values.path,
        expect=values.expect,
        ca_file=values.ca_file,
        insecure=values.insecure,
    )


def auto_scheme(environ: Mapping[str, str]) -> str:
    """What HAProxy itself speaks to the server: TLS unless it says no, HTTP unless in `mode tcp`."""
    tls = environ.get("HAPROXY_SERVER_SSL") != "0"
    if environ.get("HAPROXY_SERVER_PROTO") == "tcp":
        return "tls" if tls else "tcp"
    return "https" if tls else "http"


def record(environ: Mapping[str, str], path: str, seconds: float) -> str | None:
    """Append a sample for the server that HAProxy named; return why it could not be, or None."""
    backend, server = environ.get("HAPROXY_PROXY_NAME"), environ.get("HAPROXY_SERVER_NAME")
    if not backend or not server:
        return "HAPROXY_PROXY_NAME and HAPROXY_SERVER_NAME do not name a server"
    try:
        samples.append(path, backend, server, seconds, time.time())
    except samples.SampleFileError as error:
        return str(error)
    return None


def _port(text: str) -> int | None:
    if text in ("", "0", "NOT_USED"):
        return None
    try:
        return settings.port(text)
    except ValueError:
        raise UsageError(f"not a port: {text!r}") from None
