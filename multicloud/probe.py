"""One probe: open tcp, tls, http or https to an address, time it, judge the answer.

The clock starts with the request, since users wait for no more where connections are kept, or else with the connection.
It stops at the first byte of the answer (http, https), when the handshake is done (tls), or when the connection stands
(tcp). Outside of it are the loading of certificates, before, and the rest of the answer, after.

One deadline bounds it all, so that a server that sends a byte a second cannot hold a probe. What goes wrong with the
server is part of the result, never an exception. Of RFC 9112 it speaks what a check needs: one GET, and a head.
"""

from __future__ import annotations

import _socket as socket  # what `socket` adds is four milliseconds, and `ssl` loads it only where there is TLS
import os
from time import monotonic

from multicloud import light
from multicloud.settings import CA_FILE, USER_AGENT, SettingError

TYPE_CHECKING = False  # `typing` costs a check more than this whole module does
if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

MAX_HEAD, MAX_PIECES = 64 * 1024, 4096  # bytes of an answer's status line and headers, and in how many pieces they come
MAX_BYTES = 1024 * 1024  # what a server may send in all, TLS included: session tickets could keep a processor busy
DRAIN_BYTES, DRAIN_TIME = 64 * 1024, 0.1  # of the rest of an answer that is read, and seconds: the verdict waits for it
CHUNK = 64 * 1024
WHOLE_STORE = 50  # certificates that make a directory the system's store, of some 140, and not a few beside a bundle


class Target:
    """What to probe: `scheme` tcp, tls, http or https, at an IP address and port, or a UNIX socket's path (port None).

    `host` is for Host header, SNI and verification, `expect` are accepted statuses, `ca_file` is a bundle or "", the
    system's.
    """

    def __init__(
        self,
        scheme: str,
        address: str,
        port: int | None,
        host: str,
        path: str = "/",
        expect: tuple[range, ...] = (range(200, 201),),
        ca_file: str = "",
        insecure: bool = False,
        user_agent: str = USER_AGENT.default,
    ) -> None:
        self.scheme, self.address, self.port, self.host = scheme, address, port, host.rstrip(".")
        self.path, self.expect, self.user_agent = path, expect, user_agent
        self.ca_file, self.insecure = ca_file, insecure

    def __str__(self) -> str:
        port = "" if self.port is None else f":{self.port}"
        return f"{self.scheme}://{_in_brackets(self.host)}{port} ({self.address})"


class StoppedError(Exception):
    """Somebody wants the probe to end now. Whoever handles the signal raises it."""


class ProbeError(Exception):
    """The server is not up. The text says why."""


class Probe:
    """The result of a probe. Whoever asked for it must `close` it."""

    def __init__(self) -> None:
        self.seconds: float | None = None  # the time that counts; None if the server is not up
        self.error: str | None = None  # what came back if it is not up
        self.phases: dict[str, float] = {}  # of those completed: connect, tls, first_byte (from the request to it)
        self.status: int | None = None  # of HTTP
        self.tls_version: str | None = None
        self.certificate: Mapping[str, object] | None = None  # as ssl.SSLSocket.getpeercert gives it
        self.stopped = False  # whether StoppedError ended the probe
        self.connection: _Connection | None = None

    def close(self) -> None:
        """Close the connection, after DRAIN_TIME at most for the rest of the answer, which else would reset it."""
        if self.connection is None:
            return
        left = 0 if self.status is None else DRAIN_BYTES
        self.connection.deadline = monotonic() + DRAIN_TIME
        try:
            while left > 0 and (chunk := self.connection.receive()):
                left -= len(chunk)
        except (OSError, ProbeError):
            pass
        self.connection.close()


def probe(target: Target, timeout: float, clock: str = "request") -> Probe:
    """Probe once, for at most `timeout` seconds, and count what follows the start of the `clock`.

    That is "connection" or, for http and https, "request". Raises SettingError where the CA bundle cannot be loaded.
    """
    result = Probe()
    start = monotonic()
    try:
        context = tls_context(target) if target.scheme in ("tls", "https") else None
        result.connection = _Connection(target, monotonic() + timeout)
        result.connection.connect(target, result)
        if context is not None:
            result.connection = tls = _TLS(result.connection, context, target.host)
            tls.shake_hands(result)
        if target.scheme in ("http", "https"):
            _ask(result.connection, target, result)
    except ProbeError as error:
        result.error = str(error)
    except StoppedError:
        result.stopped = True
        result.error = f"stopped after {monotonic() - start:.1f} s, {_stage(target, result)}"
    except TimeoutError:
        result.error = f"timed out after {timeout:g} s, {_stage(target, result)}"
    except OSError as error:
        result.error = f"{_reason(error)}, {_stage(target, result)}"
    else:
        result.seconds = sum(result.phases.values())
        if clock == "request" and "first_byte" in result.phases:
            # No answer comes sooner than a round trip. One that does was sent before it was asked for.
            result.seconds = max(result.phases["first_byte"], result.phases["connect"])
    return result


class _Connection:
    """A connection to the target. Its methods raise OSError, TimeoutError after `deadline`, and ProbeError."""

    def __init__(self, target: Target, deadline: float) -> None:
        self.deadline, self.left = deadline, MAX_BYTES
        if target.port is None:
            self.socket = socket.socket(socket.AF_UNIX)
        else:
            self.socket = socket.socket(socket.AF_INET6 if ":" in target.address else socket.AF_INET)
            # Else the request would wait for the server's acknowledgement of what ended the handshake.
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connect(self, target: Target, result: Probe) -> None:
        start = monotonic()
        address = target.address if target.port is None else (target.address, target.port)
        light.connect(self.socket, address, self.deadline)
        result.phases["connect"] = monotonic() - start

    def send(self, data: bytes) -> None:
        self.socket.settimeout(light.time_left(self.deadline))
        self.socket.sendall(data)

    def receive(self, *, wait: bool = True) -> bytes:
        """What comes next, or without `wait` has come already; b"" at the end, and where nothing has."""
        self.socket.settimeout(light.time_left(self.deadline) if wait else 0)
        try:
            received = self.socket.recv(CHUNK)
        except BlockingIOError:
            return b""
        self.left -= len(received)
        if self.left < 0:
            raise ProbeError(f"sent more than {MAX_BYTES // 1024} KiB")
        return received

    def close(self) -> None:
        self.socket.close()


class _TLS(_Connection):
    """TLS over a connection.

    What comes is given to OpenSSL piece by piece. From a socket it would read on for as long as key updates or session
    tickets follow each other, and come back to nobody who could see that the time is over.
    """

    def __init__(self, plain: _Connection, context: ssl.SSLContext, host: str) -> None:
        import ssl

        self.ssl = ssl
        self.socket, self.deadline, self.left = plain.socket, plain.deadline, plain.left
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        # As bytes where it can be: of a string, even an ASCII one, Python makes IDNA with three more modules.
        name = host.encode() if host.isascii() else host
        try:
            self.object = context.wrap_bio(self.incoming, self.outgoing, server_hostname=name)
        except ValueError:
            raise ProbeError(f"{host!r} cannot be a TLS server name; set MULTICLOUD_HOST") from None

    def shake_hands(self, result: Probe) -> None:
        start = monotonic()
        self._until_done(self.object.do_handshake)
        result.phases["tls"] = monotonic() - start
        result.tls_version = self.object.version()
        try:
            result.certificate = self.object.getpeercert()
        except ValueError:
            result.certificate = None  # it has what is no text, and only people would read it

    def send(self, data: bytes) -> None:
        self._until_done(self.object.write, data)

    def receive(self, *, wait: bool = True) -> bytes:
        try:
            if wait:
                return self._until_done(self.object.read, CHUNK)
            self.incoming.write(super().receive(wait=False))
            return self.object.read(CHUNK)
        except (self.ssl.SSLEOFError, self.ssl.SSLWantReadError):  # no goodbye; or session tickets, if anything
            return b""

    def close(self) -> None:
        """Say goodbye, without waiting for the answer, where there is a connection to say it on."""
        try:
            self.socket.settimeout(0)
            try:
                self.object.unwrap()
            finally:
                self.socket.send(self.outgoing.read())  # the goodbye, or what was wrong with the handshake
        except (OSError, ValueError):
            pass
        self.socket.close()

    def _until_done(self, do: Callable[..., T], *arguments: object) -> T:
        while True:
            try:
                done, ended = do(*arguments), True
            except self.ssl.SSLWantReadError:
                ended = False
            if self.outgoing.pending:
                super().send(self.outgoing.read())
            if ended:
                return done
            if received := super().receive():
                self.incoming.write(received)
            else:
                self.incoming.write_eof()


def _ask(connection: _Connection, target: Target, result: Probe) -> None:
    """Send the request, time the answer and judge its status."""
    if early := connection.receive(wait=False):
        raise ProbeError(f"answered before it was asked: {_excerpt(early)}")
    start = monotonic()
    connection.send(
        f"GET {target.path} HTTP/1.1\r\n"
        f"Host: {_in_brackets(target.host)}\r\n"
        f"User-Agent: {target.user_agent}\r\n"
        "Accept: */*\r\n"
        "Connection: close\r\n\r\n".encode()
    )
    answer, searched, left = b"", 0, MAX_HEAD
    for _ in range(MAX_PIECES):
        if answer and "first_byte" not in result.phases:
            result.phases["first_byte"] = monotonic() - start
        if not b"HTTP/".startswith(answer[:5]):
            raise ProbeError(f"not an HTTP answer: {_excerpt(answer)}")
        ends = [at + len(blank) for blank in (b"\n\r\n", b"\n\n") if (at := answer.find(blank, searched)) >= 0]
        searched = max(0, len(answer) - 2)
        if ends:
            status = _status(answer)
            if status == 101 or status >= 200:
                break
            answer, searched = answer[min(ends) :], 0  # after an interim response the answer is still to come
            del result.phases["first_byte"]
        elif left < 0:
            raise ProbeError(f"headers of more than {MAX_HEAD // 1024} KiB")
        elif chunk := connection.receive():
            answer += chunk
            left -= len(chunk)
        else:
            raise ProbeError(f"closed the connection {'in the headers' if answer else 'without an answer'}")
    else:
        raise ProbeError(f"headers in more than {MAX_PIECES} pieces")
    result.status = status
    if not any(status in accepted for accepted in target.expect):
        expected = (str(each.start) if len(each) == 1 else f"{each.start}-{each.stop - 1}" for each in target.expect)
        raise ProbeError(f"status {status}, expected {','.join(expected)}")


def _status(answer: bytes) -> int:
    version, status = [*answer.split(b"\n", 1)[0].split(), b"", b""][:2]
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or len(status) != 3 or not status.isdigit() or status < b"100":
        raise ProbeError(f"not an HTTP answer: {_excerpt(answer)}")
    return int(status)


def tls_context(target: Target) -> ssl.SSLContext:
    """What the target is verified with. Raises SettingError where the CA bundle cannot be loaded."""
    import ssl  # tcp and http do without; it is half of what a check costs

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # as HAProxy's own; Debian's Python leaves it to OpenSSL
    # OpenSSL's own list, as in HAProxy, since Python may have been built with a shorter one. Not DHE: a server chooses
    # its numbers, and large ones take a second of processor time.
    context.set_ciphers("DEFAULT:!DHE")
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
    ahead = {"connect": "connecting", "tls": "in the TLS handshake", "first_byte": "waiting for the answer"}
    if target.scheme not in ("tls", "https"):
        del ahead["tls"]
    return next((words for phase, words in ahead.items() if phase not in result.phases), "reading the headers")


def _reason(error: OSError) -> str:
    if message := getattr(error, "verify_message", None):
        return f"certificate not accepted: {message.rstrip('.')}"
    text = light.reason(error)
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
    line = repr(answer.split(b"\n", 1)[0].rstrip(b"\r")[:60])[1:]
    if answer.startswith(b"\x15\x03"):  # an alert
        return f"{line} (is it a TLS server?)"
    return f"{line} (is it a server of HTTP/2 alone?)" if answer[3:5] == b"\4\0" else line  # a SETTINGS frame


def _in_brackets(host: str) -> str:
    """The host as URLs and Host headers have it. One colon alone comes from a server's name, not from IPv6."""
    return f"[{host}]" if host.count(":") > 1 else host
