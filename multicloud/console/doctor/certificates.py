"""Whether HAProxy accepts the certificates of its servers, by what their lines say, and whether the checks do.

A check has settings of its own, and knows nothing of a `server` line but `ssl`. So one of the two may accept a server
that the other one does not: it is UP and each request is a 503, or it serves well and is DOWN.
"""

from __future__ import annotations

import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from multicloud import probe
from multicloud.console import parser
from multicloud.console.doctor.checks import as_checked
from multicloud.console.doctor.finding import checks_of, ok, problem, some, unknown
from multicloud.console.instance import PASSED
from multicloud.console.problems import samples_of
from multicloud.light import UsageError
from multicloud.runtime import MAINT
from multicloud.settings import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance
    from multicloud.console.parser import Configuration, Section
    from multicloud.runtime import Server
    from multicloud.settings import Sources

PATIENCE, SECONDS = 1.0, 6.0
"""How long one handshake may take, and all of them."""

SYSTEM = "@system-ca"
"""The system's authorities, as HAProxy calls them."""

REFUSED = "certificate not accepted: "
MISMATCH = ("Hostname mismatch", "IP address mismatch")


class Terms(NamedTuple):
    """What is asked of a certificate: an authority in `ca_file` ("" for the system's), and a name, None for any.

    Where it is not verified, nothing is.
    """

    verify: bool
    ca_file: str
    name: str | None


class Handshakes:
    """Handshakes with servers, each done once, and none begun when the time for all of them is over."""

    def __init__(self) -> None:
        self._deadline = time.monotonic() + SECONDS
        self._done: dict[tuple[str, str, str, str], str | None] = {}

    def refusal(self, server: Server, terms: Terms) -> str | None:
        """Why the certificate of the server is not accepted on these terms: "" where it is, None if not known."""
        if not terms.verify:
            return ""
        host = terms.name or server.name
        key = server.address, server.port, host, terms.ca_file
        if key not in self._done:
            self._done[key] = self._shake_hands(server, host, terms.ca_file)
        said = self._done[key]
        return "" if said and terms.name is None and said.startswith(MISMATCH) else said

    def _shake_hands(self, server: Server, host: str, ca_file: str) -> str | None:
        left = self._deadline - time.monotonic()
        if left <= 0 or not server.port.isdigit():
            return None
        target = probe.Target("tls", server.address, int(server.port), host, ca_file=ca_file)
        try:
            result = probe.probe(target, min(PATIENCE, left))
            result.close()
        except SettingError as error:
            return str(error).partition(": ")[2]
        if result.error is None:
            return ""
        said = result.error.removesuffix(", in the TLS handshake")
        return said.removeprefix(REFUSED) if said.startswith(REFUSED) else None


def certificates(instance: Instance, found: Configuration, sources: Sources) -> Iterator[Finding]:
    """A line for each thing that is wrong with certificates, with all the servers that have it."""
    checked = instance.checked()
    by_key = {server.key: server for server in checked}
    by_place = {(server.address, server.port): server for server in checked}
    handshakes = Handshakes()
    wrong: dict[tuple[str, str], list[Server]] = {}
    accepted, unseen = [], []
    for server, line in _verified(instance, found):
        measured = by_key.get(server.source) or by_place.get((server.address, server.port))
        own = _terms_of_check(measured, sources) if measured else None
        refusal = handshakes.refusal(server, line)
        refused_to_check = handshakes.refusal(server, own) if own else None
        name = f"{server.backend}/{server.name}"
        if refusal:
            passes = measured is not None and measured.check == PASSED
            text = _write_on_line(refusal, line, own if refused_to_check == "" else None, passes=passes)
            wrong.setdefault(("HAProxy does not accept the certificate of", text), []).append(server)
        elif refusal == "" and refused_to_check and server is measured and server.check != PASSED:
            text = _set_for_check(refused_to_check, line, server, sources)
            wrong.setdefault(("the check does not accept the certificate of", text), []).append(server)
        elif refusal is None:
            unseen.append(name)
        else:
            accepted.append(name)
    for (who, text), servers in wrong.items():
        names = some([f"{server.backend}/{server.name}" for server in servers])
        explained = [] if who.startswith("HAProxy") else servers
        consequences = [word for each in explained for word in (checks_of(each.backend, each.name), samples_of(each))]
        yield problem(f"{who} {names} {text}", *consequences)
    if unseen:
        yield unknown(f"certificates that could not be had in time from here were not verified: {some(unseen)}")
    if accepted and not wrong:
        yield ok(f"HAProxy accepts the certificates of {len(accepted)} servers by what their lines say")


def _verified(instance: Instance, found: Configuration) -> Iterator[tuple[Server, Terms]]:
    """The servers that HAProxy speaks TLS to, and what their lines ask of their certificates."""
    process = found.process()
    for section in found.proxies():
        options = parser.servers(section)
        for server in instance.servers:
            on_line = options.get(server.name, {})
            if server.backend == section.name and "ssl" in on_line and server.state != MAINT:
                yield server, _terms_of_line(server, on_line, process)


def _terms_of_line(server: Server, options: dict[str, str], process: Section) -> Terms:
    """As HAProxy asks them: the name is the SNI that was sent, or else `verifyhost`."""
    usual = (process.last("ssl-server-verify") or ["required"])[0]
    ca_file = options.get("ca-file", "")
    if ca_file == SYSTEM:
        ca_file = ""
    elif ca_file:
        ca_file = os.path.join((process.last("ca-base") or [""])[0], ca_file)
    sni = options.get("sni", "")
    literal = re.fullmatch(r"str\((.+)\)", sni)
    name = server.name if sni == "srv_name" else literal[1] if literal else None  # else it depends on the request
    return Terms(options.get("verify", usual) != "none", ca_file, name if sni else options.get("verifyhost"))


def _terms_of_check(server: Server, sources: Sources) -> Terms | None:
    """What a check of the server asks; None where it asks no certificate."""
    try:
        target, _ = as_checked(server, sources)
    except UsageError:
        return None
    return Terms(not target.insecure, target.ca_file, target.host) if target.scheme in ("tls", "https") else None


def _write_on_line(refusal: str, line: Terms, accepting: Terms | None, *, passes: bool) -> str:
    """What to write on the `server` line; `accepting` are a check's terms on which the certificate is accepted."""
    is_now = f"`ca-file {line.ca_file or SYSTEM}`"
    although = ", although its check passes" if passes else ""
    if refusal.startswith(MISMATCH):
        write = f"`sni str({accepting.name})`" if accepting and accepting.verify else "`sni` with a name that it is for"
    elif accepting and accepting.verify:
        write = f"`ca-file {accepting.ca_file or SYSTEM}` in place of {is_now}"
    else:
        write = f"a `ca-file` that has its authority in place of {is_now}"
    return f"({refusal}), so each request to it is a 503{although}: write {write} on its `server` line"


def _set_for_check(refusal: str, line: Terms, server: Server, sources: Sources) -> str:
    """What to set for the check, which does not accept what HAProxy accepts."""
    if not line.verify:
        by, value = "by `verify none`", "insecure = 1"
    elif refusal.startswith(MISMATCH) and line.name:
        by, value = f"as {line.name}'s", f"host = {line.name}"
    else:
        by, value = f"by `ca-file {line.ca_file or SYSTEM}`", f"ca_file = {line.ca_file}"
    return (
        f"({refusal}), which HAProxy accepts {by}: a check does not use the `server` line; "
        f"set `{value}` in [{server.backend}] of {sources.path}"
    )
