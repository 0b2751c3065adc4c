"""Servers as they are met in the wild: real sockets on loopback, each with one kind of bad behaviour, in a thread.

A behaviour is a function of a connection that has been accepted. What the server saw is kept: the requests, the names
asked for in the TLS handshake, and how each connection ended.
"""

from __future__ import annotations

import contextlib
import datetime
import hmac
import itertools
import os
import socket
import ssl
import struct
import threading
import time
import warnings
from typing import TYPE_CHECKING, Any

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path
    from typing import Self

    Behaviour = Callable[["Connection"], None]

TIMEOUT = 30.0
"""Seconds after which a server gives up on a client: no test waits for it unless something hangs."""

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Connection:
    """One accepted connection: `socket` is what the client talks to, TLS or not, and `requests` what it said."""

    def __init__(self, accepted: socket.socket, requests: list[bytes]) -> None:
        self.socket = accepted
        self.requests = requests

    def request(self) -> None:
        """Wait for the head of a request, and keep it."""
        head = b""
        while b"\r\n\r\n" not in head:
            received = self.socket.recv(65536)
            if not received:
                raise ConnectionError("the client left in its request")
            head += received
        self.requests.append(head)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self.socket.sendall(data)

    def finish(self) -> None:
        """Say that no more comes. The client still can."""
        socket.socket.shutdown(self.socket, socket.SHUT_WR)

    def wait_for_bytes(self) -> None:
        """Return when something has come, and leave it there, so that closing the connection resets it."""
        socket.socket.recv(self.socket, 1, socket.MSG_PEEK)

    def reset(self) -> None:
        """End the connection with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(self.socket.detach())


class Server:
    """A context manager: a server at a loopback address or a UNIX socket's path.

    It serves one connection at a time, `at` its address and port. `requests` are the heads of the requests, `names`
    the names of the TLS handshakes (None without SNI) and `endings` how connections ended after the behaviour: "EOF"
    where the client closed its side in order, else the error's name. All are complete once the context is left.
    """

    def __init__(
        self, behaviour: Behaviour, *, tls: ssl.SSLContext | None = None, address: str = "127.0.0.1", backlog: int = 64
    ) -> None:
        self.requests: list[bytes] = []
        self.names: list[str | None] = []
        self.endings: list[str] = []
        self._behaviour = behaviour
        self._tls = tls
        if tls:
            tls.sni_callback = lambda _socket, name, _context: self.names.append(name)
        if address.startswith("/"):
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(address)
            self.address, self.port = address, None
        else:
            self._listener = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
            self._listener.bind((address, 0))
            self.address, self.port = self._listener.getsockname()[:2]
        self.at: tuple[str, int | None] = self.address, self.port
        self._listener.listen(backlog)
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                accepted, _ = self._listener.accept()
            except OSError:
                return
            with accepted:
                self.endings.append(self._serve(accepted))

    def _serve(self, accepted: socket.socket) -> str:
        accepted.settimeout(TIMEOUT)
        raw = accepted.dup()  # what is left of the connection where TLS fails
        raw.settimeout(TIMEOUT)
        try:
            if self._tls:
                accepted = self._tls.wrap_socket(accepted, server_side=True)
            self._behaviour(Connection(accepted, self.requests))
            if accepted.fileno() < 0:
                return "closed here"
            while raw.recv(65536):
                pass
        except ssl.SSLError as error:
            with contextlib.suppress(OSError):
                raw.shutdown(socket.SHUT_WR)
                while raw.recv(65536):
                    pass
            return error.reason or type(error).__name__
        except OSError as error:
            return type(error).__name__
        finally:
            accepted.close()
            raw.close()
        return "EOF"


def silent(connection: Connection) -> None:
    """Accepts, and never says a word."""
    while socket.socket.recv(connection.socket, 65536):
        pass


def closes_at_once(connection: Connection) -> None:
    """Says nothing and listens to nothing."""
    connection.finish()


def resets(connection: Connection) -> None:
    """Sends a RST as soon as anything comes."""
    connection.wait_for_bytes()
    connection.reset()


def resets_at_once(connection: Connection) -> None:
    """Sends a RST instead of anything else."""
    connection.reset()


def answers(*segments: bytes, pause: float = 0.05, closing: bool = True) -> Behaviour:
    """Sends the segments, each by itself, and closes, or waits for the client to do so."""

    def behave(connection: Connection) -> None:
        connection.request()
        for index, segment in enumerate(segments):
            if index:
                time.sleep(pause)
            connection.send(segment)
        if closing:
            connection.finish()

    return behave


def resets_after(segment: bytes) -> Behaviour:
    """Sends the beginning of an answer and then a RST, once the client had the time to read what was sent."""

    def behave(connection: Connection) -> None:
        connection.request()
        connection.send(segment)
        time.sleep(0.1)
        connection.reset()

    return behave


def says(banner: bytes) -> Behaviour:
    """Speaks first, as SSH and SMTP do, and hears nothing."""

    def behave(connection: Connection) -> None:
        connection.send(banner)
        silent(connection)

    return behave


def drips(answer: bytes, every: float) -> Behaviour:
    """Sends the answer byte by byte, in time for any limit that is on a single read."""
    return answers(*(bytes([byte]) for byte in answer), pause=every, closing=False)


def endless(head: bytes, block: bytes, *, pause: float = 0) -> Behaviour:
    """Sends the head, and then the block for as long as anybody reads it."""

    def behave(connection: Connection) -> None:
        connection.request()
        connection.send(head)
        while True:
            connection.send(block)
            time.sleep(pause)

    return behave


def key_updates(keys: Path) -> Behaviour:
    """Hears the request, and changes its TLS 1.3 key without end instead of an answer (RFC 8446, section 4.6.3).

    `keys` is where the server's context, which must send no session tickets, logs the secrets of its handshakes.
    """

    def behave(connection: Connection) -> None:
        connection.request()
        records = _key_updates(_first_secret(keys))
        for _ in range(2000):  # more than a client reads in many seconds
            socket.socket.sendall(connection.socket, b"".join(itertools.islice(records, 256)))

    return behave


TICKET = b"\x04\0\0\x15" + b"\0\0\x1c\x20" + b"\0" * 4 + b"\0" + b"\0\x08" + b"x" * 8 + b"\0\0"
"""A session ticket (RFC 8446, section 4.6.1)."""


def speaks_with_finished(tls: ssl.SSLContext, keys: Path, kind: bytes, said: bytes) -> Behaviour:
    """Sends a record of TLS 1.3 right behind its Finished, in one piece, and hears and answers the request then.

    `kind` is the record's: 0x16 for messages of the handshake, 0x17 for an answer. `tls` and `keys` are as for
    `key_updates`; the server itself speaks no TLS.
    """

    def behave(connection: Connection) -> None:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        ours = tls.wrap_bio(incoming, outgoing, server_side=True)
        incoming.write(connection.socket.recv(65536))
        with contextlib.suppress(ssl.SSLWantReadError):
            ours.do_handshake()
        secret = _first_secret(keys)
        connection.send(outgoing.read() + _record(secret, 0, kind, said))
        while received := connection.socket.recv(65536):
            incoming.write(received)
            with contextlib.suppress(ssl.SSLWantReadError):
                ours.do_handshake()
                if request := ours.read():  # else it is the client's goodbye
                    connection.requests.append(request)
                    connection.send(_record(secret, 1, b"\x17", OK))

    return behave


def _first_secret(keys: Path) -> bytes:
    logged = [line.split() for line in keys.read_text().splitlines()]
    return bytes.fromhex(next(line[2] for line in logged if line[0] == "SERVER_TRAFFIC_SECRET_0"))


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446, section 7.1)."""
    info = struct.pack("!HB", size, 6 + len(label)) + b"tls13 " + label + b"\0\1"
    return hmac.digest(secret, info, "sha256" if len(secret) == 32 else "sha384")[:size]


def _record(secret: bytes, number: int, kind: bytes, content: bytes) -> bytes:
    """The record with that number of those that are encrypted with the secret (RFC 8446, section 5)."""
    head = b"\x17\x03\x03" + struct.pack("!H", len(content) + 1 + 16)
    nonce = (int.from_bytes(_expand(secret, b"iv", 12)) ^ number).to_bytes(12)
    key = _expand(secret, b"key", 16 if len(secret) == 32 else 32)
    return head + AESGCM(key).encrypt(nonce, content + kind, head)


def _key_updates(secret: bytes) -> Iterator[bytes]:
    """Records of one KeyUpdate each, encrypted with one key after the other, from the server's first secret on."""
    while True:
        yield _record(secret, 0, b"\x16", b"\x18\0\0\1\0")
        secret = _expand(secret, b"traffic upd", len(secret))


@contextlib.contextmanager
def refusing() -> Iterator[int]:
    """A port that is taken, so that nobody else gets it, and that refuses connections."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@contextlib.contextmanager
def frozen(path: str = "") -> Iterator[socket.socket]:
    """The listening socket, at a port or a UNIX socket's path, of a program that accepts no more: its queue is full."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket(socket.AF_UNIX if path else socket.AF_INET))
        listener.bind(path or ("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(listener.family))
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener


AUTHORITY = trustme.CA()


def server_context(*pems: trustme.Blob) -> ssl.SSLContext:
    """Of a TLS server with that key and certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with trustme.Blob(b"".join(pem.bytes() for pem in pems)).tempfile() as path:
        context.load_cert_chain(path)
    return context


def good(*names: str, **how: Any) -> ssl.SSLContext:
    """TLS as it should be; `how` is what trustme's `issue_cert` takes."""
    certificate = AUTHORITY.issue_cert(*(names or ("eu.example.com",)), **how)
    return server_context(certificate.private_key_and_cert_chain_pem)


def expired() -> ssl.SSLContext:
    """A certificate that ended yesterday."""
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    return good(not_before=now - 2 * day, not_after=now - day)


def unreadable() -> ssl.SSLContext:
    """A certificate that is right, but for an alternative name beside the right one that is no text."""
    names = b"".join(bytes([tag, len(name)]) + name for tag, name in ((0x82, b"eu.example.com"), (0x86, b"x:\xff\xfe")))
    pem = AUTHORITY.issue_cert("eu.example.com").private_key_and_cert_chain_pem.bytes()
    like, key = x509.load_pem_x509_certificate(pem), serialization.load_pem_private_key(pem, None)
    builder = x509.CertificateBuilder(
        issuer_name=like.issuer,
        subject_name=like.subject,
        public_key=like.public_key(),
        serial_number=like.serial_number,
        not_valid_before=like.not_valid_before_utc,
        not_valid_after=like.not_valid_after_utc,
    )
    alternative = x509.UnrecognizedExtension(x509.OID_SUBJECT_ALTERNATIVE_NAME, bytes([0x30, len(names)]) + names)
    builder = builder.add_extension(alternative, critical=False)
    made = builder.sign(AUTHORITY._private_key, hashes.SHA256())
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    return server_context(trustme.Blob(secret), trustme.Blob(made.public_bytes(serialization.Encoding.PEM)))


def self_signed() -> ssl.SSLContext:
    """A certificate that nobody signed but itself."""
    itself = trustme.CA()
    return server_context(itself.private_key_pem, itself.cert_pem)


def of_an_unknown_authority() -> ssl.SSLContext:
    """A certificate of an authority that the client does not know."""
    return server_context(trustme.CA().issue_cert("eu.example.com").private_key_and_cert_chain_pem)


def old() -> ssl.SSLContext:
    """TLS 1.0 and nothing newer."""
    context = good()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1
    return context


def for_clients_with_a_certificate() -> ssl.SSLContext:
    """Mutual TLS."""
    context = good()
    AUTHORITY.configure_trust(context)
    context.verify_mode = ssl.CERT_REQUIRED
    return context
