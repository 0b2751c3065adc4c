"""One probe: open tcp, tls, http or https to an address, time it, judge the answer.

The clock stops at the first byte of the answer (http, https), when the handshake is done (tls) or when the connection
stands (tcp). It starts with the request, since users wait for no more where connections are kept, or else with the
connection. What has nothing to do with the distance to the server stays outside of it: certificates are loaded before,
and the rest of the answer is read after. One deadline bounds it all, so that a server that sends a byte a second cannot
hold a probe. What goes wrong with the server is part of the result, never an exception.

The HTTP spoken is RFC 9112, as little of it as a health check needs: one GET, and the head of the answer.
"""

from __future__ import annotations

import os
import socket
from time import monotonic, sleep

from multicloud.settings import CA_FILE, SettingError

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    import ssl
    from collections.abc import Mapping

MAX_HEAD = 64 * 1024
"""Bytes of status line and headers that an answer may have."""

MAX_DRAIN = 64 * 1024
"""Bytes of an answer's body that are read, so that closing the connection resets nothing that a server still sends."""

DRAIN_TIME = 0.5
"""Seconds that draining may take."""

CHUNK = 64 * 1024

WHOLE_STORE = 50
"""Certificates by which a directory is the system's store (which has some 140), and not a few beside its bundle."""


class Target:
    """What to probe: `scheme` tcp, tls, http or https, at an IP address and port, or a UNIX socket's path (port None).

    `host` is the name for Host header, SNI and verification; `expect` the accepted status codes; `ca_file` a bundle to
    verify with ("" for the system's).
    """

    __slots__ = ("address", "ca_file", "expect", "host", "insecure", "path", "port", "scheme")

    def __init__(
        self,
        scheme: str,
        address: str,
        port: int | None,
        host: str,
        *,
        path: str = "/",
        expect: tuple[range, ...] = (range(200, 201),),
        ca_file: str = "",
        insecure: bool = False,
    ) -> None:
        self.scheme = scheme
        self.address = address
        self.port = port
        self.host = host.rstrip(".")
        self.path = path
        self.expect = expect
        self.ca_file = ca_file
        self.insecure = insecure

    def __str__(self) -> str:
        if self.port is None:
            return f"{self.scheme}://{self.host} ({self.address})"
        return f"{self.scheme}://{_in_brackets(self.host)}:{self.port} ({self.address})"


class Probe:
    """The result of a probe.

    `rtt` is the time that counts, in seconds, and `error` None, if the server is up; else `error` says what came back.
    `phases` has the seconds that each phase took, of those that were completed: connect, tls, first_byte (from the
    request to the first byte of the answer). `status` is the HTTP status; `tls_version` and `certificate` (as
    ssl.SSLSocket.getpeercert gives it) are those of the connection.
    """

    __slots__ = ("certificate", "error", "phases", "rtt", "status", "tls_version")

    def __init__(self) -> None:
        self.rtt: float | None = None
        self.error: str | None = None
        self.phases: dict[str, float] = {}
        self.status: int | None = None
        self.tls_version: str | None = None
        self.certificate: Mapping[str, object] | None = None


class ProbeError(Exception):
    """The server is not up. The text says why."""


def probe(target: Target, timeout: float, clock: str = "request") -> Probe:
    """Probe once, for at most `timeout` seconds, and count what follows the start of the `clock`.

    That is "connection" or, for http and https, "request". Raises SettingError where the CA bundle cannot be loaded.
    """
    result = Probe()
    context = tls_context(target) if target.scheme in ("tls", "https") else None
    deadline = monotonic() + timeout
    try:
        connection = _connect(target, deadline, result)
        try:
            if context is not None:
                connection = _shake_hands(connection, context, target, deadline, result)
            if target.scheme in ("http", "https"):
                _ask(connection, target, deadline, result)
        finally:
            _close(connection)
    except ProbeError as error:
        result.error = str(error)
    except TimeoutError:
        result.error = f"timed out after {timeout:g} s, {_stage(target, result)}"
    except OSError as error:
        result.error = f"{_reason(error)}, {_stage(target, result)}"
    else:
        request = result.phases.get("first_byte") if clock == "request" else None
        result.rtt = request or sum(result.phases.values())
    return result


def _connect(target: Target, deadline: float, result: Probe) -> socket.socket:
    if target.port is None:
        connection = socket.socket(socket.AF_UNIX)
        address: str | tuple[str, int] = target.address
    else:
        connection = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET)
        # Else the request would wait for the server's acknowledgement of what ended the handshake.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        address = target.address, target.port
    start = monotonic()
    try:
        connection.settimeout(_remaining(deadline))
        while True:
            try:
                connection.connect(address)
                break
            except BlockingIOError:  # a UNIX socket's queue is full, for which the kernel does not wait as in TCP
                sleep(min(0.005, _remaining(deadline)))
    except BaseException:
        connection.close()
        raise
    result.phases["connect"] = monotonic() - start
    return connection


def _shake_hands(
    connection: socket.socket, context: ssl.SSLContext, target: Target, deadline: float, result: Probe
) -> ssl.SSLSocket:
    start = monotonic()
    try:
        # As bytes where it can be: of a string, even an ASCII one, Python makes IDNA with three more modules.
        name = target.host.encode() if target.host.isascii() else target.host
        tls = context.wrap_socket(connection, server_hostname=name, do_handshake_on_connect=False)
    except ValueError:
        raise ProbeError(f"{target.host!r} cannot be a TLS server name; set MULTICLOUD_HOST") from None
    try:
        tls.settimeout(_remaining(deadline))
        tls.do_handshake()
    except BaseException:
        tls.close()
        raise
    result.phases["tls"] = monotonic() - start
    result.tls_version = tls.version()
    result.certificate = tls.getpeercert()
    return tls


def _ask(connection: socket.socket, target: Target, deadline: float, result: Probe) -> None:
    """Send the request, time the answer, drain it and judge its status."""
    start = monotonic()
    connection.settimeout(_remaining(deadline))
    connection.sendall(
        f"GET {target.path} HTTP/1.1\r\n"
        f"Host: {_in_brackets(target.host)}\r\n"
        "User-Agent: multicloud-check\r\n"
        "Accept: */*\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    received = 0
    answer = b""
    while True:
        if not b"HTTP/".startswith(answer[:5]):
            raise ProbeError(f"not an HTTP answer: {_excerpt(answer)}")
        end = _end_of_head(answer)
        if end:
            status = _status(answer)
            if status == 101 or status >= 200:
                break
            answer = answer[end:]
            if answer:
                result.phases["first_byte"] = monotonic() - start
            else:
                del result.phases["first_byte"]
        elif received > MAX_HEAD:
            raise ProbeError(f"headers of more than {MAX_HEAD // 1024} KiB")
        else:
            chunk = _receive(connection, deadline)
            if not chunk:
                raise ProbeError(f"closed the connection {'in the headers' if answer else 'without an answer'}")
            if not answer:
                result.phases["first_byte"] = monotonic() - start
            answer += chunk
            received += len(chunk)
    result.status = status
    _drain(connection, deadline, status, answer[:end], answer[end:])
    if not any(status in accepted for accepted in target.expect):
        raise ProbeError(f"status {status}, expected {_list(target.expect)}")


def _end_of_head(answer: bytes) -> int:
    """The offset of the body, or 0 while the head is not complete."""
    ends = [at + len(blank) for blank in (b"\n\r\n", b"\n\n") if (at := answer.find(blank)) >= 0]
    return min(ends, default=0)


def _status(answer: bytes) -> int:
    version, status = [*answer.split(b"\n", 1)[0].split(), b"", b""][:2]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit() or status < b"100":
        raise ProbeError(f"not an HTTP answer: {_excerpt(answer)}")
    return int(status)


def _drain(connection: socket.socket, deadline: float, status: int, head: bytes, body: bytes) -> None:
    """Read the rest of the answer as far as it is short and comes soon. Never fails."""
    left = MAX_DRAIN
    if status in (204, 304):
        left = 0
    for line in head.lower().split(b"\n"):
        name, _, value = line.partition(b":")
        value = value.strip()
        if name == b"content-length" and value.isdigit():
            left = min(left, int(value[:20]))  # Python refuses thousands of digits
    deadline = min(deadline, monotonic() + DRAIN_TIME)
    try:
        while len(body) < left and not body.endswith(b"0\r\n\r\n"):
            chunk = _receive(connection, deadline)
            if not chunk:
                return
            body += chunk
    except OSError:
        return


def _receive(connection: socket.socket, deadline: float) -> bytes:
    connection.settimeout(_remaining(deadline))
    return connection.recv(CHUNK)


def _remaining(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _close(connection: socket.socket) -> None:
    unwrap = getattr(connection, "unwrap", None)
    if unwrap:
        try:
            connection.settimeout(0)
            unwrap()  # says goodbye, without waiting for the answer
        except (OSError, ValueError):
            pass
    connection.close()


def tls_context(target: Target) -> ssl.SSLContext:
    """What the target is verified with. Raises SettingError where the CA bundle cannot be loaded."""
    import ssl  # tcp and http do without; it is half of what a check costs

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # as HAProxy's own; Debian's Python leaves it to OpenSSL
    if target.scheme == "https":
        context.set_alpn_protocols(["http/1.1"])
    if target.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif target.ca_file:
        try:
            context.load_verify_locations(cafile=target.ca_file)
        except OSError as error:
            raise SettingError(f"{CA_FILE.variable}: cannot load {target.ca_file!r}: {_reason(error)}") from None
    elif _is_whole_store(capath := ssl.get_default_verify_paths().capath):
        context.load_verify_locations(capath=capath)
    else:
        context.set_default_verify_paths()
    return context


def _is_whole_store(directory: str | None) -> bool:
    """Whether OpenSSL finds each certificate of the system's store by its name, with no need to load the bundle."""
    if directory is None or "SSL_CERT_FILE" in os.environ:
        return False
    try:
        names = os.listdir(directory)
    except OSError:
        return False
    return sum(len(name) == 10 and name.endswith(".0") for name in names) >= WHOLE_STORE


def _stage(target: Target, result: Probe) -> str:
    if "connect" not in result.phases:
        return "connecting"
    if target.scheme in ("tls", "https") and "tls" not in result.phases:
        return "in the TLS handshake"
    if "first_byte" not in result.phases:
        return "waiting for the answer"
    return "reading the headers"


def _reason(error: OSError) -> str:
    verify_message = getattr(error, "verify_message", None)
    if verify_message:
        return f"certificate not accepted: {verify_message.rstrip('.')}"
    text = (error.strerror or str(error)).lower()
    if type(error).__name__ in ("SSLEOFError", "SSLZeroReturnError"):  # by name: ssl may not have been imported
        return "closed the connection"
    return _tls_reason(text) if hasattr(error, "library") else text


def _tls_reason(text: str) -> str:
    """What matters of a text such as "[ssl: tlsv1_alert_…] tlsv1 alert protocol version (_ssl.c:1006)"."""
    reason = text.rpartition("] ")[2].partition(" (_ssl.c")[0]
    protocol, _, rest = reason.partition(" ")
    if protocol in ("ssl/tls", "sslv3", "tlsv1", "tlsv13"):  # the one that had such an alert first, not the one spoken
        reason = rest
    hint = " (is it a server without TLS?)" if reason in ("wrong version number", "record layer failure") else ""
    return f"TLS: {reason}{hint}"


def _excerpt(answer: bytes) -> str:
    line = answer.split(b"\n", 1)[0].rstrip(b"\r")[:60]
    hint = ""
    if answer.startswith(b"\x15\x03"):  # an alert
        hint = " (is it a TLS server?)"
    elif answer[3:5] == b"\4\0":  # a SETTINGS frame
        hint = " (is it a server of HTTP/2 alone?)"
    return repr(line)[1:] + hint


def _in_brackets(host: str) -> str:
    """The host as URLs and Host headers have it. One colon alone comes from a server's name, not from IPv6."""
    return f"[{host}]" if host.count(":") > 1 else host


def _list(statuses: tuple[range, ...]) -> str:
    return ",".join(str(r.start) if len(r) == 1 else f"{r.start}-{r.stop - 1}" for r in statuses)
