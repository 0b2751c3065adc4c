"""The probe against real servers that behave badly: the verdict, the message and the phases of each."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
import signal
import socket
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import trustme
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from multicloud import probe, settings
from tests import servers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

EU = "eu.example.com"

CONNECT = ["connect"]
CONNECT_TLS = ["connect", "tls"]
ANSWERED = ["connect", "first_byte"]
ANSWERED_TLS = ["connect", "tls", "first_byte"]

HANG = 5.0
"""Seconds beyond the timeout that a busy machine may take. The promise is half a second."""


def probed(
    scheme: str,
    at: tuple[str, int | None],
    *,
    host: str = EU,
    timeout: float = 10,
    clock: str = "request",
    **given: Any,
) -> probe.Probe:
    start = time.monotonic()
    result = probe.probe(probe.Target(scheme, *at, host, **given), timeout, clock)
    result.close()
    took = time.monotonic() - start
    assert took < timeout + HANG
    assert sum(result.phases.values()) <= took
    assert (result.seconds is None) != (result.error is None)
    assert result.seconds is None or result.seconds >= result.phases["connect"] > 0
    assert result.error is None or result.error.isprintable()
    return result


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_clock_starts_with_the_request_or_with_the_connection(scheme: str, ca_file: str) -> None:
    tls = servers.good() if scheme == "https" else None
    with servers.Server(servers.answers(servers.OK), tls=tls) as server:
        request = probed(scheme, server.at, ca_file=ca_file)
        connection = probed(scheme, server.at, ca_file=ca_file, clock="connection")
    assert request.seconds == max(request.phases["first_byte"], request.phases["connect"])
    assert connection.seconds == sum(connection.phases.values()) > connection.phases["first_byte"]


def test_a_probe_that_is_stopped_says_where_it_was() -> None:
    def stop(*_: object) -> None:
        raise probe.StoppedError

    before = signal.signal(signal.SIGALRM, stop)
    try:
        with servers.Server(servers.silent) as server:
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            result = probed("http", server.at)
    finally:
        signal.signal(signal.SIGALRM, before)
    assert result.stopped
    assert re.fullmatch(r"stopped after \d\.\d s, waiting for the answer", result.error or "")


def test_no_sample_is_below_the_time_that_the_connection_took(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with servers.frozen(path) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(probed, "http", (path, None))
        time.sleep(0.1)
        listener.accept()[0].close()
        with listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(servers.OK)
    result = waiting.result()
    assert result.seconds == result.phases["connect"] > 0.05 > result.phases["first_byte"]


@pytest.mark.parametrize(("scheme", "spoken"), [("https", "http/1.1"), ("tls", None)])
def test_over_https_http_1_1_is_asked_for_and_over_tls_nothing(scheme: str, spoken: str | None, ca_file: str) -> None:
    context = servers.good()
    context.set_alpn_protocols(["h2", "http/1.1"])
    ours = probe.tls_context(probe.Target(scheme, "", 1, EU, ca_file=ca_file))
    client, server = ssl.MemoryBIO(), ssl.MemoryBIO()
    asking, asked = ours.wrap_bio(server, client, server_hostname=EU), context.wrap_bio(client, server, True)
    for side in (asking, asked) * 3:
        with contextlib.suppress(ssl.SSLWantReadError):
            side.do_handshake()
    assert (asking.version(), asked.selected_alpn_protocol()) == ("TLSv1.3", spoken)


@pytest.mark.parametrize("cipher", ["AES256-GCM-SHA384", "ECDHE-RSA-AES128-SHA"])
def test_a_cipher_that_haproxy_takes_is_taken_whatever_list_python_was_built_with(cipher: str, ca_file: str) -> None:
    tls = servers.good(key_type=trustme.KeyType.RSA)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls.set_ciphers(cipher)
    result, _ = probed_server("https", servers.answers(servers.OK), tls=tls, ca_file=ca_file)
    assert result.error is None


def test_a_common_name_counts_where_a_certificate_has_no_other_host_name(ca_file: str) -> None:
    tls = servers.good("192.0.2.1", common_name=EU)
    result, _ = probed_server("https", servers.answers(servers.OK), tls=tls, ca_file=ca_file)
    assert result.error is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[ssl: x] tlsv1 alert protocol version (_ssl.c:1006)", "TLS: alert protocol version"),
        ("[ssl: x] sslv3 alert handshake failure (_ssl.c:1006)", "TLS: alert handshake failure"),
        ("[ssl: x] ssl/tls alert handshake failure (_ssl.c:1006)", "TLS: alert handshake failure"),
        ("[ssl: x] tlsv13 alert certificate required (_ssl.c:2580)", "TLS: alert certificate required"),
        ("[ssl: x] wrong version number (_ssl.c:1006)", "TLS: wrong version number (is it a server without TLS?)"),
        ("[ssl: x] record layer failure (_ssl.c:1006)", "TLS: record layer failure (is it a server without TLS?)"),
        ("unknown error", "TLS: unknown error"),
    ],
)
def test_what_matters_of_openssl_s_words_is_said_whatever_its_version(text: str, said: str) -> None:
    assert probe._tls_reason(text) == said


def test_a_directory_is_the_system_s_store_if_it_has_many_certificates_by_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    for number in range(49):
        (tmp_path / f"{number:08x}.0").touch()
    for number in range(60):
        (tmp_path / f"{number:06x}.pem").touch()
        (tmp_path / f"{number}.0").touch()
    assert not probe._is_whole_store(str(tmp_path))
    (tmp_path / f"{50:08x}.0").touch()
    assert probe._is_whole_store(str(tmp_path))
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/ssl/other.pem")
    assert not probe._is_whole_store(str(tmp_path))
    monkeypatch.delenv("SSL_CERT_FILE")
    assert not probe._is_whole_store(str(tmp_path / "none"))
    assert not probe._is_whole_store(None)


def probed_server(
    scheme: str, behaviour: servers.Behaviour, *, tls: ssl.SSLContext | None = None, **given: Any
) -> tuple[probe.Probe, servers.Server]:
    with servers.Server(behaviour, tls=tls) as server:
        result = probed(scheme, server.at, **given)
    return result, server


def answer(status: str, rest: bytes = b"Content-Length: 2\r\n\r\nok") -> servers.Behaviour:
    return servers.answers(f"HTTP/1.1 {status}\r\n".encode() + rest)


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\n"
EARLY_HINTS = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n"
SETTINGS_FRAME = b"\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00\x64"
ONLY_HTTP2 = r"'\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00\x00\x00d' (is it a server of HTTP/2 alone?)"
TLS_ALERT = b"\x15\x03\x01\x00\x02\x02\x46"
HEAD = b"HTTP/1.1 200 OK\r\n"

UP = {
    "200": answer("200 OK"),
    "200 without a reason": answer("200"),
    "200 of HTTP/1.0": servers.answers(b"HTTP/1.0 200 OK\r\n\r\nok"),
    "200 with bare newlines": servers.answers(b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok"),
    "200 in two segments": servers.answers(servers.OK[:7], servers.OK[7:]),
    "1xx and 200 in one segment": servers.answers(INTERIM + EARLY_HINTS + servers.OK),
    "1xx and 200 in two segments": servers.answers(INTERIM, servers.OK),
    "1xx and 200 cut anywhere": servers.answers((INTERIM + servers.OK)[:30], (INTERIM + servers.OK)[30:]),
    "chunked": answer("200 OK", b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"),
    "a length of 5000 digits": answer("200 OK", b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    "a length that is no number": answer("200 OK", b"Content-Length: -1\r\n\r\n"),
    "RST in the body": servers.resets_after(servers.OK[:-1]),
    "endless body": servers.endless(HEAD + b"\r\n", b"x" * 65536),
    "endless slow body": servers.endless(HEAD + b"\r\n", b"x", pause=0.05),
}

NO_HTTP = {
    b"<html>It works</html>\r\n\r\n": "'<html>It works</html>'",  # HTTP/0.9
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n": "'SSH-2.0-OpenSSH_9.2p1 Debian-2'",
    TLS_ALERT: r"'\x15\x03\x01\x00\x02\x02F' (is it a TLS server?)",
    SETTINGS_FRAME: ONLY_HTTP2,
    b"\r\nHTTP/1.1 200 OK\r\n\r\n": "''",
    b"HTTP/3 200 OK\r\n\r\n": "'HTTP/3 200 OK'",
    b"HTTP/1.1\r\n\r\n": "'HTTP/1.1'",
    b"HTTP/1.1 OK 200\r\n\r\n": "'HTTP/1.1 OK 200'",
    b"HTTP/1.1 20 OK\r\n\r\n": "'HTTP/1.1 20 OK'",
    b"HTTP/1.1 2000 OK\r\n\r\n": "'HTTP/1.1 2000 OK'",
    b"HTTP/1.1 000 OK\r\n\r\n": "'HTTP/1.1 000 OK'",
    b"HTTP/1.1 \xff\x00\x1b[2J\r\n\r\n": r"'HTTP/1.1 \xff\x00\x1b[2J'",
    b"x" * 10_000 + b"\r\n\r\n": f"'{'x' * 60}'",
}

CLOSED = "closed the connection without an answer"
TIMED_OUT = "timed out after 1 s, "
TOO_MUCH = "headers of more than 64 KiB"

HTTP = {
    **{name: (behaviour, None, ANSWERED) for name, behaviour in UP.items()},
    # What never says anything, or not enough
    "silent": (servers.silent, TIMED_OUT + "waiting for the answer", CONNECT),
    "RST": (servers.resets, "connection reset by peer, waiting for the answer", CONNECT),
    "RST in the headers": (
        servers.resets_after(HEAD + b"Serv"),
        "connection reset by peer, reading the headers",
        ANSWERED,
    ),
    "closes at once": (servers.closes_at_once, CLOSED, CONNECT),
    "closes after the request": (servers.answers(), CLOSED, CONNECT),
    "closes after 1xx": (servers.answers(INTERIM), CLOSED, CONNECT),
    "closes in the headers": (servers.answers(HEAD + b"Server"), "closed the connection in the headers", ANSWERED),
    # What never ends
    "drips the status line": (servers.drips(HEAD, every=0.1), TIMED_OUT + "reading the headers", ANSWERED),
    "drips 1xx": (servers.endless(b"", INTERIM, pause=0.1), TIMED_OUT + "waiting for the answer", CONNECT),
    "endless headers": (servers.endless(HEAD, b"X-Header: x\r\n" * 100), TOO_MUCH, ANSWERED),
    "endless header": (servers.endless(HEAD + b"X: ", b"x" * 1000), TOO_MUCH, ANSWERED),
    "endless status line": (servers.endless(b"HTTP/", b"1" * 1000), TOO_MUCH, ANSWERED),
    # What is not what was asked for
    **{
        repr(said[:20]): (servers.answers(said), f"not an HTTP answer: {excerpt}", ANSWERED)
        for said, excerpt in NO_HTTP.items()
    },
    "101": (servers.answers(b"HTTP/1.1 101 Switching Protocols\r\n\r\n"), "status 101, expected 200", ANSWERED),
    "404": (answer("404 Not Found"), "status 404, expected 200", ANSWERED),
}


@pytest.mark.parametrize(("behaviour", "error", "phases"), HTTP.values(), ids=HTTP)
def test_http(behaviour: servers.Behaviour, error: str | None, phases: list[str]) -> None:
    timeout = 1 if error and "timed out" in error else 10
    result, _ = probed_server("http", behaviour, timeout=timeout)
    assert (result.error, list(result.phases)) == (error, phases)


@pytest.mark.parametrize(
    "name", ["200", "404", "closes in the headers", "drips the status line", "1xx and 200 in two segments"]
)
def test_https_is_http_over_tls(name: str, ca_file: str) -> None:
    behaviour, error, phases = HTTP[name]
    timeout = 1 if error and "timed out" in error else 10
    result, _ = probed_server("https", behaviour, tls=servers.good(), ca_file=ca_file, timeout=timeout)
    assert (result.error, list(result.phases)) == (error, ["connect", "tls", *phases[1:]])


@pytest.mark.parametrize(
    ("early", "excerpt"), [(servers.OK, "'HTTP/1.1 200 OK'"), (SETTINGS_FRAME, ONLY_HTTP2)], ids=["an answer", "HTTP/2"]
)
def test_what_is_there_before_the_request_is_a_failure(early: bytes, excerpt: str) -> None:
    target = probe.Target("http", "/there", None, EU)
    connection = probe._Connection(target, time.monotonic() + 10)
    connection.close()
    connection.socket, theirs = socket.socketpair()
    theirs.sendall(early)
    with theirs, pytest.raises(probe.ProbeError, match=re.escape(f"answered before it was asked: {excerpt}")):
        probe._ask(connection, target, probe.Probe())
    connection.close()


@pytest.mark.parametrize(
    ("kind", "said", "error"),
    [(b"\x17", servers.OK, "answered before it was asked: 'HTTP/1.1 200 OK'"), (b"\x16", servers.TICKET, None)],
    ids=["an answer", "a session ticket"],
)
def test_behind_the_handshake_a_session_ticket_may_come_and_an_answer_may_not(
    kind: bytes, said: bytes, error: str | None, ca_file: str, tmp_path: Path
) -> None:
    tls, keys = servers.good(), tmp_path / "keys"
    tls.num_tickets, tls.keylog_filename = 0, str(keys)
    behaviour = servers.speaks_with_finished(tls, keys, kind, said)
    result, server = probed_server("https", behaviour, ca_file=ca_file)
    assert (result.error, list(result.phases)) == (error, CONNECT_TLS if error else ANSWERED_TLS)
    assert len(server.requests) == (not error)


def test_endless_key_updates_do_not_hold_a_probe(ca_file: str, tmp_path: Path) -> None:
    tls, keys = servers.good(), tmp_path / "keys"
    tls.num_tickets, tls.keylog_filename = 0, str(keys)
    result, _ = probed_server("https", servers.key_updates(keys), tls=tls, ca_file=ca_file)
    assert (result.error, list(result.phases)) == ("sent more than 1024 KiB", CONNECT_TLS)


def test_a_certificate_with_a_name_that_is_no_text_is_accepted_like_another(ca_file: str) -> None:
    behaviour = servers.answers(servers.OK)
    result, _ = probed_server("https", behaviour, tls=servers.unreadable(), ca_file=ca_file)
    assert (result.error, result.certificate) == (None, None)


def test_no_server_chooses_the_numbers_of_a_key_exchange() -> None:
    """Large ones take a second of processor time."""
    names = [cipher["name"] for cipher in probe.tls_context(probe.Target("tls", "127.0.0.1", 1, EU)).get_ciphers()]
    assert "ECDHE-RSA-AES128-GCM-SHA256" in names
    assert [name for name in names if name.startswith("DHE-") and "PSK" not in name] == []


def test_an_answer_of_one_byte_a_piece_costs_no_more_than_another(ca_file: str) -> None:
    def behave(connection: servers.Connection) -> None:
        connection.request()
        for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 80_000:
            connection.send(bytes([byte]))  # in a record of TLS by itself

    before = time.process_time()  # with the server's, which is in this process
    result, _ = probed_server("https", behave, tls=servers.good(), ca_file=ca_file)
    assert result.error == "headers in more than 4096 pieces"
    assert time.process_time() - before < 0.5


def test_endless_1xx_is_an_endless_head() -> None:
    result, _ = probed_server("http", servers.endless(b"", INTERIM * 50))
    assert result.error in ("headers of more than 64 KiB", "headers in more than 4096 pieces")


@pytest.mark.parametrize(
    ("expect", "status", "error"),
    [
        ("200,204", 204, None),
        ("200-399", 301, None),
        ("200-299,404", 404, None),
        ("200-299,404", 500, "status 500, expected 200-299,404"),
        ("200-399", 400, "status 400, expected 200-399"),
        ("101", 101, None),
    ],
)
def test_expected_statuses(expect: str, status: int, error: str | None) -> None:
    values = settings.Sources({"MULTICLOUD_EXPECT": expect}).read(settings.CHECK_SETTINGS)
    result, _ = probed_server("http", answer(f"{status} Reason", b"\r\n"), expect=values.expect)
    assert (result.error, result.status) == (error, status)


NO_TLS = "TLS: wrong version number (is it a server without TLS?), in the TLS handshake"
BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"

NOT_TLS = {
    "silent": (servers.silent, "timed out after 1 s, in the TLS handshake"),
    "RST": (servers.resets, "connection reset by peer, in the TLS handshake"),
    "closes": (servers.closes_at_once, "closed the connection, in the TLS handshake"),
    "says goodbye": (servers.says(b"\x15\x03\x03\x00\x02\x01\x00"), "closed the connection, in the TLS handshake"),
    "HTTP": (servers.says(BAD_REQUEST), NO_TLS),
    "SSH": (servers.says(b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), NO_TLS),
}


@pytest.mark.parametrize("scheme", ["tls", "https"])
@pytest.mark.parametrize(("behaviour", "error"), NOT_TLS.values(), ids=NOT_TLS)
def test_not_tls(scheme: str, behaviour: servers.Behaviour, error: str, ca_file: str) -> None:
    timeout = 1 if "timed out" in error else 10
    result, _ = probed_server(scheme, behaviour, ca_file=ca_file, timeout=timeout)
    said = (result.error or "").replace("record layer failure", "wrong version number")  # from OpenSSL 3.2 on
    assert (said, list(result.phases)) == (error, CONNECT)


def test_http_to_a_server_of_tls() -> None:
    result, _ = probed_server("http", servers.answers(servers.OK), tls=servers.good())
    assert (result.error, list(result.phases)) == ("closed the connection without an answer", CONNECT)


MISMATCH = f"Hostname mismatch, certificate is not valid for '{EU}'"
CERTIFICATES = {
    "good": (servers.good, None),
    "expired": (servers.expired, "certificate has expired"),
    "self-signed": (servers.self_signed, "self-signed certificate"),
    "unknown CA": (servers.of_an_unknown_authority, "unable to get local issuer certificate"),
    "wrong name": (lambda: servers.good("us.example.com"), MISMATCH),
    "IP address alone": (lambda: servers.good("127.0.0.1"), MISMATCH),
}


@pytest.mark.parametrize("scheme", ["tls", "https"])
@pytest.mark.parametrize(("context", "error"), CERTIFICATES.values(), ids=CERTIFICATES)
def test_certificates(scheme: str, context: Callable[[], ssl.SSLContext], error: str | None, ca_file: str) -> None:
    done = CONNECT_TLS if scheme == "tls" else ANSWERED_TLS
    verified, server = probed_server(scheme, servers.answers(servers.OK), tls=context(), ca_file=ca_file)
    assert server.names == [EU]
    if error is None:
        assert (verified.error, list(verified.phases)) == (None, done)
        assert verified.tls_version == "TLSv1.3"
        assert verified.certificate
        assert verified.certificate["subjectAltName"] == (("DNS", EU),)
    else:
        expected = f"certificate not accepted: {error}, in the TLS handshake"
        assert (verified.error, list(verified.phases)) == (expected, CONNECT)
    insecure, server = probed_server(scheme, servers.answers(servers.OK), tls=context(), insecure=True)
    assert (insecure.error, list(insecure.phases)) == (None, done)
    assert (insecure.certificate, server.names) == ({}, [EU])


def test_a_certificate_for_an_ip_address_is_good_for_that_address(ca_file: str) -> None:
    tls = servers.good("127.0.0.1")
    result, server = probed_server("https", servers.answers(servers.OK), tls=tls, ca_file=ca_file, host="127.0.0.1")
    assert (result.error, server.names) == (None, [None])
    result, _ = probed_server("https", servers.answers(servers.OK), tls=tls, ca_file=ca_file, host="127.0.0.2")
    mismatch = "IP address mismatch, certificate is not valid for '127.0.0.2'"
    assert result.error == f"certificate not accepted: {mismatch}, in the TLS handshake"


@pytest.mark.skipif(not ssl.HAS_TLSv1, reason="this OpenSSL has no TLS 1.0")
@pytest.mark.parametrize("scheme", ["tls", "https"])
def test_tls_1_0_is_too_old(scheme: str, ca_file: str) -> None:
    result, _ = probed_server(scheme, servers.answers(servers.OK), tls=servers.old(), ca_file=ca_file)
    assert (result.error, list(result.phases)) == ("TLS: alert protocol version, in the TLS handshake", CONNECT)


def test_a_server_that_asks_for_the_client_certificate_says_so_after_the_handshake(ca_file: str) -> None:
    tls = servers.for_clients_with_a_certificate()
    result, _ = probed_server("https", servers.answers(servers.OK), tls=tls, ca_file=ca_file)
    assert result.error == "TLS: alert certificate required, waiting for the answer"
    assert list(result.phases) == CONNECT_TLS


def test_a_name_that_cannot_be_asked_for_in_tls(ca_file: str) -> None:
    result, _ = probed_server("https", servers.silent, ca_file=ca_file, host=".example.com")
    assert result.error == "'.example.com' cannot be a TLS server name; set MULTICLOUD_HOST"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file or directory"),
        ("", "TLS: no certificate or crl found"),
        ("not a certificate", "TLS: no certificate or crl found"),
    ],
)
def test_a_ca_file_that_cannot_be_loaded_is_a_wrong_setting(tmp_path: Path, content: str | None, reason: str) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(settings.SettingError) as caught:
        probe.probe(probe.Target("https", "127.0.0.1", 1, EU, ca_file=str(path)), 1)
    assert str(caught.value) == f"MULTICLOUD_CA_FILE: cannot load '{path}': {reason}"


@pytest.mark.parametrize("bundle", [True, False])
def test_a_few_certificates_in_the_system_s_directory_do_not_hide_its_bundle(
    bundle: bool, ca_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    for number in range(1 if bundle else 100):
        (tmp_path / f"{number:08x}.0").symlink_to(ca_file)
    if bundle and not Path(ssl.get_default_verify_paths().openssl_cafile).exists():
        pytest.skip("this system has no bundle")
    context = probe.tls_context(probe.Target("https", "127.0.0.1", 1, EU))
    assert (context.cert_store_stats()["x509_ca"] > 0) == bundle


@pytest.mark.parametrize("scheme", ["tcp", "https"])
def test_no_connection(scheme: str, tmp_path: Path) -> None:
    with servers.refusing() as port:
        result = probed(scheme, ("127.0.0.1", port))
    assert (result.error, result.phases) == ("connection refused, connecting", {})
    path = str(tmp_path / "frozen.sock")
    with servers.frozen() as listener, servers.frozen(path):
        for at in listener.getsockname(), (path, None):
            result = probed(scheme, at, timeout=0.5)
            assert (result.error, result.phases) == ("timed out after 0.5 s, connecting", {})
    path = str(tmp_path / "app.sock")
    result = probed(scheme, (path, None))
    assert (result.error, result.phases) == ("no such file or directory, connecting", {})
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(path)
    result = probed(scheme, (path, None))
    assert (result.error, result.phases) == ("connection refused, connecting", {})


def test_a_full_queue_of_a_unix_socket_is_waited_for(tmp_path: Path) -> None:
    path = str(tmp_path / "app.sock")
    with servers.frozen(path) as listener, concurrent.futures.ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(probed, "tcp", (path, None))
        time.sleep(0.1)
        assert not waiting.done()
        listener.accept()[0].close()
        assert waiting.result().error is None


@pytest.mark.parametrize(
    ("behaviour"), [servers.silent, servers.closes_at_once, servers.resets, servers.says(b"SSH-2.0-OpenSSH_9.2\r\n")]
)
def test_tcp_is_up_where_the_connection_stands(behaviour: servers.Behaviour) -> None:
    result, _ = probed_server("tcp", behaviour)
    assert (result.error, list(result.phases)) == (None, CONNECT)


@pytest.mark.parametrize(
    ("scheme", "error"),
    [
        ("tcp", None),
        ("tls", "connection reset by peer, in the TLS handshake"),
        ("http", "connection reset by peer, waiting for the answer"),
        ("https", "connection reset by peer, in the TLS handshake"),
    ],
)
def test_a_rst_at_once_is_a_rst_wherever_it_is_met(scheme: str, error: str | None, ca_file: str) -> None:
    with servers.Server(servers.resets_at_once) as server:
        errors = {probed(scheme, server.at, ca_file=ca_file).error for _ in range(20)}
    assert errors <= {error, "connection reset by peer, connecting"}


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "app.sock"])
def test_addresses(scheme: str, address: str, ca_file: str, tmp_path: Path) -> None:
    address = str(tmp_path / address) if address.endswith(".sock") else address
    tls = servers.good() if scheme == "https" else None
    with servers.Server(servers.answers(servers.OK), tls=tls, address=address) as server:
        result = probed(scheme, server.at, ca_file=ca_file)
    assert (result.error, result.status) == (None, 200)
    port = "" if server.port is None else f":{server.port}"
    assert str(probe.Target(scheme, *server.at, EU)) == f"{scheme}://{EU}{port} ({address})"


@pytest.mark.parametrize(
    ("host", "header", "name"),
    [
        (EU, EU, EU),
        ("eu.example.com.", EU, EU),
        ("eu_1.internal", "eu_1.internal", "eu_1.internal"),
        ("127.0.0.1", "127.0.0.1", None),
        ("::1", "[::1]", None),
        ("eu:8443", "eu:8443", "eu:8443"),
    ],
)
def test_what_the_server_is_asked(host: str, header: str, name: str | None) -> None:
    asked = {"host": host, "path": "/healthz?a=b", "user_agent": "Mozilla/5.0 (X11)"}
    result, server = probed_server("https", servers.answers(servers.OK), tls=servers.good(), insecure=True, **asked)
    assert (result.error, server.names) == (None, [name])
    assert server.requests == [
        f"GET /healthz?a=b HTTP/1.1\r\nHost: {header}\r\nUser-Agent: Mozilla/5.0 (X11)\r\n".encode()
        + b"Accept: */*\r\nConnection: close\r\n\r\n"
    ]


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("status", ["200 OK", "503 Service Unavailable"])
@pytest.mark.parametrize(
    ("head", "tail"),
    [("Content-Length: 61440\r\n\r\n", ""), ("Transfer-Encoding: chunked\r\n\r\nf000\r\n", "\r\n0\r\n\r\n")],
    ids=["length", "chunked"],
)
def test_a_short_answer_is_read_to_its_end(scheme: str, status: str, head: str, tail: str, ca_file: str) -> None:
    first = f"HTTP/1.1 {status}\r\n{head}".encode()
    behaviour = servers.answers(first, b"x" * 61440, tail.encode(), pause=0.02, closing=False)
    tls = servers.good() if scheme == "https" else None
    result, server = probed_server(scheme, behaviour, tls=tls, ca_file=ca_file)
    assert result.status == int(status[:3])
    assert server.endings == ["EOF"]


@pytest.fixture(scope="module")
def said() -> Iterator[tuple[servers.Server, list[bytes]]]:
    """A server, and what it says next."""
    words = [b""]

    def behave(connection: servers.Connection) -> None:
        connection.wait_for_bytes()
        connection.send(words[0])
        connection.finish()

    with servers.Server(behave) as server:
        yield server, words


WORDS = (b"HTTP/1.1 ", b"200", b"100", b" OK", b"Content-Length: ", b"99999", b":", b"\x00")
LINE_ENDS = (b"\r\n", b"\n", b"\r\n\r\n")


@given(
    st.sampled_from(["http", "tls", "https"]),
    st.binary() | st.lists(st.sampled_from(WORDS + LINE_ENDS), max_size=12).map(b"".join),
)
@example("http", b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 60_000 + b"\r\n\r\n")
@example("http", INTERIM * 5000)
@example("https", b"\x16\x03\x03\xff\xff" + b"\x02" * 70_000)
@hypothesis_settings(max_examples=200)
def test_whatever_a_server_says_there_is_a_verdict(
    said: tuple[servers.Server, list[bytes]], scheme: str, words: bytes
) -> None:
    server, next_words = said
    next_words[0] = words
    result = probed(scheme, server.at, insecure=True)
    if result.error is None:
        assert words.lstrip().startswith(b"HTTP/1.1 ")
        assert result.status == 200
