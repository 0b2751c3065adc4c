"""HAProxy's `external-check command` for each server: probe it once, and append a sample to the sample file.

HAProxy starts it with four arguments (proxy address and port, server address and port) and variables of the same
meaning (its configuration manual, `external-check command`). The exit code is the verdict: 0 up, 1 down, 2 settings
that cannot be read. Whether a sample can be recorded never changes it. A child process records, so that a frozen disk
holds up no verdict. By the sample before, it tells a failure once when it begins, and once when it is over.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # what `signal` wraps, in half a millisecond
import os
import sys
import time

from multicloud import light, probe, samplefile, settings
from multicloud.light import UsageError

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

USAGE = "multicloud-check [proxy_addr proxy_port server_addr server_port]"
LOCK_TIME = 0.1  # seconds that a check waits for the sample file's lock
RECORD_TIME = 0.2  # and that the verdict waits for the child: then only one that a frozen disk holds is left alone
DEFAULT_PORTS = {"http": 80, "https": 443, "tls": 443}


def main() -> int:
    """Do what HAProxy asks for; return the exit code."""
    began = time.monotonic()
    values = settings.Sources(os.environ).read(settings.CHECK_SETTINGS, *server_named(os.environ))
    target = haproxy_target(sys.argv[1:], os.environ, values)
    result = _probe(target, values)
    error = f"error: {target}: {result.error}" if result.error is not None else ""
    allowed = time.monotonic() - began if result.stopped else values.timeout
    result.close()

    def work() -> int:
        try:
            if bool(error) != record(os.environ, values.times, result.seconds, allowed):  # else it was told before
                light.warn(error or f"{target}: up again")
        except samplefile.SampleFileError as problem:
            light.warn(error or f"warning: not recorded: {problem}")
        return 0

    try:
        light.run_in_child(work, RECORD_TIME)
    except OSError as problem:
        light.warn(error or f"warning: not recorded: {light.reason(problem)}")
    return 1 if error else 0


def _probe(target: probe.Target, values: settings.Settings) -> probe.Probe:
    """Probe once. HAProxy sends SIGTERM when the time is over that it allows; that is a result, too."""

    def stop(*_: object) -> None:
        raise probe.StoppedError

    _signal.signal(_signal.SIGTERM, stop)
    try:
        return probe.probe(target, values.timeout, values.clock)
    except probe.StoppedError:  # before the probe has begun, or when it had ended
        result = probe.Probe()
        result.stopped, result.error = True, "stopped in its last moment"
        return result
    finally:
        _signal.signal(_signal.SIGTERM, _signal.SIG_IGN)  # what follows ends by itself, and leaves no child behind


def server_named(environ: Mapping[str, str]) -> tuple[str, str]:
    """The backend and the server that HAProxy named, "" for a name that it did not give."""
    return environ.get("HAPROXY_PROXY_NAME", ""), environ.get("HAPROXY_SERVER_NAME", "")


def haproxy_target(arguments: Sequence[str], environ: Mapping[str, str], values: settings.Settings) -> probe.Target:
    """The server that HAProxy means, by its arguments or, without them, its variables. Raises UsageError."""
    if arguments and len(arguments) != 4:
        raise UsageError(f"usage: {USAGE}")
    address = arguments[2] if arguments else environ.get("HAPROXY_SERVER_ADDR", "")
    port_text = arguments[3] if arguments else environ.get("HAPROXY_SERVER_PORT", "")
    _, name = server_named(environ)
    if "@" in address.partition("/")[0]:
        raise UsageError(f"cannot probe {address!r}; give an IP address, or the path of a UNIX socket")
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
        try:
            port = settings.port(port_text.replace("NOT_USED", "") or "0") or DEFAULT_PORTS.get(scheme)
        except ValueError:
            raise UsageError(f"not a port: {port_text!r}") from None
        if port is None:
            raise UsageError(f"no server port for {scheme}, neither as an argument nor in HAPROXY_SERVER_PORT")
    return target_of(scheme, address, port, values.host or name or address, values)


def target_of(scheme: str, address: str, port: int | None, host: str, values: settings.Settings) -> probe.Target:
    """A target, to be probed as the settings say."""
    asked = values.path, values.expect, values.ca_file, values.insecure, values.user_agent
    return probe.Target(scheme, address, port, host, *asked)


def auto_scheme(environ: Mapping[str, str]) -> str:
    """What HAProxy itself speaks to the server: TLS unless it says no, HTTP unless in `mode tcp`."""
    plain, tls = ("tcp", "tls") if environ.get("HAPROXY_SERVER_PROTO") == "tcp" else ("http", "https")
    return plain if environ.get("HAPROXY_SERVER_SSL") == "0" else tls


def record(environ: Mapping[str, str], path: str, seconds: float | None, allowed: float) -> bool:
    """Append a sample for the server that HAProxy named; return whether its check before failed.

    `seconds` is None where the check failed, and `allowed` the seconds that it had. Raises SampleFileError.
    """
    backend, server = server_named(environ)
    if not backend or not server:
        raise samplefile.SampleFileError("HAPROXY_PROXY_NAME and HAPROXY_SERVER_NAME do not name a server")
    counts = allowed if seconds is None else seconds
    return samplefile.append(path, backend, server, counts, time.time(), failed=seconds is None, wait=LOCK_TIME)
