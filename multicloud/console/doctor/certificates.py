"""Whether HAProxy accepts the certificates of its servers, by what their lines say, and whether the checks do.

A check has settings of its own, and knows nothing of a `server` line but `ssl`. So one of the two may accept a server
that the other one does not: it is UP and each request is a 503, or it serves well and is DOWN.
"""

import contextlib
import os
import re
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

from multicloud import check, probe, settings
from multicloud.console import parser
from multicloud.console.check import describe
from multicloud.console.doctor.finding import Finding, ok, problem, some, unknown
from multicloud.console.instance import Case
from multicloud.light import UsageError
from multicloud.runtime import MAINT, Server

TIMEOUT, TIME_FOR_ALL = 1.0, 6.0  # seconds that one handshake may take, and all of them
SYSTEM = "@system-ca"  # the system's authorities, as HAProxy calls them
REFUSED, EXPIRED = "certificate not accepted: ", "certificate has expired"
MISMATCH = ("Hostname mismatch", "IP address mismatch")
SNI_AUTO = parser.order("3.3-dev0")  # the version from which on HAProxy sends the Host of a request as SNI
NO_CHECK_TIME = 0x200000  # OpenSSL's X509_V_FLAG_NO_CHECK_TIME: a certificate may have expired
UNSEEN = unknown("certificates that were not had in time from here, or their `ca-file`, are not verified: {names}")
MOVING = unknown(
    "the certificate of {names} must be for a name that depends on the request, which is its Host where the line has "
    "no `sni` (from HAProxy 3.3 on): write `sni str(…)`, or `no-sni-auto`"
)
ACCEPTED = ok("HAProxy accepts the certificates of {names} by what their lines say")


class Terms(NamedTuple):
    """What is asked of a certificate: an authority and a name, if `verify` says that anything is."""

    verify: bool
    ca_file: str  # "": the system's
    name: str | None  # None where none is asked for, "" where it depends on the request


def look(case: Case) -> Iterator[Finding]:
    """A line for each thing that HAProxy may find in certificates, with all servers that have it."""
    alike: dict[tuple[str, str, Terms], list[Server]] = {}  # one handshake does for all backends
    for server in case.servers:
        if server.state != MAINT and (asked := terms_of_line(server, case)):
            alike.setdefault((server.address, server.port, asked), []).append(server)
    deadline = time.monotonic() + TIME_FOR_ALL
    findings: dict[Finding, list[str]] = {}
    for (*_, terms), servers in alike.items():
        said = refusal(servers[0], terms, deadline - time.monotonic())
        finding = UNSEEN if said is None else MOVING if terms.verify and terms.name == "" else ACCEPTED
        if said:
            finding = problem(
                f"HAProxy does not accept the certificate of {{names}} ({said}), so each request to it is a 503, "
                f"although its check passes: {cure_of_line(said, servers[0], terms, case)}"
            )
        findings.setdefault(finding, []).extend("/".join(server.key) for server in servers)
    for finding, names in findings.items():
        yield finding._replace(text=finding.text.replace("{names}", some(names)))


def cure_of_line(said: str, server: Server, terms: Terms, case: Case) -> str:
    """What to write on a line that refuses a certificate: what the check of that place accepts, as far as it does."""
    if said.startswith(EXPIRED):
        return _seen(server, terms.ca_file)[1]
    knows = _terms_of_check(server, case)
    if not said.startswith(MISMATCH):
        authority = f"`ca-file {knows.ca_file or SYSTEM}`" if knows else "a `ca-file` that has its authority"
        return f"write {authority} in place of `ca-file {terms.ca_file or SYSTEM}` on its `server` line"
    name = (knows and knows.name) or _seen(server, terms.ca_file)[0]
    return f"write {f'`sni str({name})`' if name else '`sni` with a name that it is for'} on its `server` line"


def refusal(server: Server, terms: Terms, seconds: float = TIMEOUT) -> str | None:
    """Why the server's certificate is not accepted on these terms: "" where it is, None if not known."""
    if not terms.verify:
        return ""
    if seconds <= 0 or not server.port.isdigit():
        return None
    target = probe.Target("tls", server.address, int(server.port), terms.name or server.name, ca_file=terms.ca_file)
    try:
        result = probe.probe(target, min(TIMEOUT, seconds))
        result.close()
    except UsageError:  # of a file that this command cannot read, whatever HAProxy does with it
        return None
    said = (result.error or "").removesuffix(", in the TLS handshake")
    if not said or (not terms.name and said.startswith(tuple(f"{REFUSED}{text}" for text in MISMATCH))):
        return ""
    return said.removeprefix(REFUSED) if said.startswith(REFUSED) else None


def _seen(server: Server, ca_file: str) -> tuple[str, str]:
    """A host name that the server's certificate is for, "" where none is seen, and how to renew it.

    Its names and its dates may be wrong, but an authority in the file must have signed it.
    """
    seen: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, UsageError):
        context = probe.tls_context(probe.Target("tls", server.address, None, server.name, ca_file=ca_file))
        context.check_hostname = False
        context.verify_flags |= NO_CHECK_TIME
        with (
            socket.create_connection((server.address, int(server.port)), TIMEOUT) as plain,
            context.wrap_socket(plain, server_hostname=server.name) as tls,
        ):
            seen = describe(tls.getpeercert()) or {}
    name = next((name for name in seen.get("names", ()) if "*" not in name), "")
    return name, f"renew it: it expired on {seen['not_after'][:10]}" if seen.get("days_left", 0) < 0 else "renew it"


def terms_of_line(server: Server, case: Case) -> Terms | None:
    """What a server's line asks of its certificate, as HAProxy asks it; None without TLS, or where no file is seen.

    The name is the SNI that was sent, or else `verifyhost`.
    """
    words = case.configuration.lines.get(server.key, [])
    if parser.last_of(words, "ssl", "no-ssl") != "ssl":
        return None
    section = case.configuration.global_section()
    verify = parser.value(words, "verify") or section.first_word("ssl-server-verify")
    ca_file, sni = parser.value(words, "ca-file"), parser.value(words, "sni")
    ca_file = "" if ca_file in ("", SYSTEM) else os.path.join(section.first_word("ca-base"), ca_file)
    name: str | None = parser.value(words, "verifyhost") or None
    if sni:
        literal = re.fullmatch(r"str\((.+)\)", sni)
        name = server.name if sni == "srv_name" else literal[1] if literal else ""
    elif server.mode == "http" and "no-sni-auto" not in words and parser.order(case.version) >= SNI_AUTO:
        name = ""
    return Terms(verify != "none", ca_file, name)


def _terms_of_check(server: Server, case: Case) -> Terms | None:
    """What a check of that place asks of the certificate, if it accepts it."""
    for each in case.checked:
        if (each.address, each.port) == (server.address, server.port):
            with contextlib.suppress(UsageError):
                target, _ = as_checked(each, case.sources)
                asked = Terms(not target.insecure, target.ca_file, target.host)
                if target.scheme in ("tls", "https") and asked.verify and refusal(server, asked) == "":
                    return asked
    return None


def as_checked(server: Server, sources: settings.Sources) -> tuple[probe.Target, settings.Settings]:
    """What a check of the server probes, and its settings. Raises UsageError."""
    values = sources.read(settings.CHECK_SETTINGS, server.backend, server.name)
    return check.haproxy_target((), variables_of(server), values), values


def variables_of(server: Server) -> dict[str, str]:
    """What HAProxy tells a check of the server."""
    return {
        "HAPROXY_PROXY_NAME": server.backend,
        "HAPROXY_SERVER_NAME": server.name,
        "HAPROXY_SERVER_ADDR": server.address if server.address != "-" else "PATH",
        "HAPROXY_SERVER_PORT": server.port,
        "HAPROXY_SERVER_SSL": server.tls or "1",
        "HAPROXY_SERVER_PROTO": server.mode,
    }


def cure_of_check(said: str, server: Server, target: probe.Target, case: Case) -> str:
    """What to do about a certificate that a check refuses, with {place} for the section; "" if it is about none."""
    if not said.startswith(REFUSED):
        return ""
    said = said.removeprefix(REFUSED)
    mismatch = said.startswith(MISMATCH)
    if said.startswith(EXPIRED):
        return _seen(server, target.ca_file)[1]
    line = terms_of_line(server, case)
    if line and refusal(server, line) == "":
        by, value = f"by `ca-file {line.ca_file or SYSTEM}`", f"ca_file = {line.ca_file}"
        if not line.verify:
            by, value = "by `verify none`", "insecure = 1"
        elif mismatch and line.name:
            by, value = f"as {line.name}'s", f"host = {line.name}"
        return f"HAProxy accepts it {by}, but a check does not use the `server` line; set `{value}` in {{place}}"
    if mismatch and (name := _seen(server, target.ca_file)[0]):
        return f"if the server is well, set `host = {name}` in {{place}}, and write `sni str({name})` on its line"
    return ""
