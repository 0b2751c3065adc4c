"""The servers, as HAProxy and the samples show them: their names, their checks, their samples and their weights."""

from __future__ import annotations

import itertools
import os
import shlex
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from multicloud import haproxy_checks, history, probe, reweigh, runtime, samplefile
from multicloud.console import problems
from multicloud.console.doctor import certificates
from multicloud.console.doctor.case import ok, problem, some, unknown
from multicloud.console.instance import EXIT_CODES, PASSED, REWEIGH_SERVER, TIMED_OUT, name_servers, where_reasons_are
from multicloud.light import UsageError
from multicloud.runtime import MAINT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from multicloud.console.doctor.case import Case, Finding
    from multicloud.console.instance import User
    from multicloud.runtime import Server

BETWEEN_LOOKS = 1.5
"""Seconds between two looks at the name servers' counters: HAProxy asks every second for what it does not know."""

PROBES, PROBE_TIME = 3, 2.0
"""How many failing servers are probed, and for how many seconds each."""

LOOKUPS = 8
"""How many names are looked up in the domains of `search`."""

ADDED = "4294967295"
"""The exit code of a check that HAProxy could not start, of a server that was added while it runs, or of a signal."""

PLACE = ("port", "addr")
WAY = ("source", "usesrc", "socks4", "namespace", "crt", "alpn", "send-proxy", "send-proxy-v2", "send-proxy-v2-ssl")
"""Words of a `server` line of which an external check knows nothing: where else HAProxy's own checks go, and what
way they and users go."""

REMEDIES = (
    ("mismatch", "`host`"),
    ("certificate not accepted", "`ca_file`"),
    *((part, "`scheme`") for part in ("without TLS?", "TLS server?", "HTTP")),
    ("status ", "`path` or `expect` or `host`"),
    ("timed out", "`timeout`"),
)
"""The settings that may mend what a probe says, by a part of it; the first one that fits counts."""

OWN_REMEDIES = (
    ("L4", "is it at the address and port of its line?"),
    ("L6", "does it speak TLS there, with a certificate that the `ca-file` of its line verifies, for its `check-sni`?"),
    ("L7STS", "are the path and the Host of `http-check send` right, and the status of `http-check expect`?"),
    ("L7", "does it speak what is asked of it, and in time (`inter`, `timeout check`)?"),
)
"""What to look at, by how the status of a failed check of HAProxy's own begins; the first one that fits counts."""


def names(case: Case) -> Iterator[Finding]:
    """Host names that give a server no address, or one that cannot be reached, or that may be lost."""
    lost = problems.without_address(case.instance.servers)
    yield from map(problem, lost)
    named = [server for server in case.instance.servers if server.host]
    yield from _ipv6(case, named)
    if named and case.instance.name_servers:
        hosts = list(dict.fromkeys(server.host for server in named))
        yield from _name_servers(case, hosts, some_lost=bool(lost))


def _ipv6(case: Case, named: Sequence[Server]) -> Iterator[Finding]:
    """Whether HAProxy has preferred IPv6 addresses, as it does before 3.3, on a machine without a way to them."""
    try:
        here = os.path.samestat(os.stat(f"/proc/{case.instance.pid}/ns/net"), os.stat("/proc/self/ns/net"))
    except OSError:
        here = False  # it may have another network than this process
    lost = [each for each in named if here and ":" in each.address and not _has_way(each.address)]
    if lost:
        names = ", ".join(dict.fromkeys(server.host for server in lost))
        yield problem(
            f"HAProxy has taken IPv6 addresses ({names}), and this machine has no way over IPv6 to {lost[0].address}: "
            "if these names have IPv4 addresses, too, write `resolve-prefer ipv4` on every `server` line (from HAProxy "
            "2.8 on, `default-server` will do)"
        )


def _has_way(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as connection:
            return connection.connect_ex((address, 443)) == 0  # sends nothing
    except OSError:
        return False


def _name_servers(case: Case, hosts: list[str], *, some_lost: bool) -> Iterator[Finding]:
    """What the counters say of HAProxy's name servers. It keeps the last address of a name that they do not give it.

    `some_lost`: a name that they do not know is one of those without any address. Counters begin with HAProxy, so only
    those that grow are of now.
    """
    before = case.instance.name_servers
    counts = ("nx", "refused", "truncated")
    if not any(each.unanswered or any(each.counters.get(kind) for kind in counts) for each in before):
        yield ok(f"HAProxy's name servers answer it, and none says that one of {len(hosts)} names is unknown")
        return
    time.sleep(BETWEEN_LOOKS)
    try:
        with runtime.RuntimeAPI(case.values.socket) as api:
            after = name_servers(api)
    except runtime.RuntimeAPIError:
        after = ()
    if [each.name for each in before] != [each.name for each in after]:
        yield unknown("HAProxy was reloaded meanwhile, so its name servers were not looked at")
        return
    unknown_to = []
    keeps = f"HAProxy keeps the last addresses of {', '.join(hosts)}, as far as it had one"
    for old, new in zip(before, after, strict=True):
        grown = {kind: count - old.counters.get(kind, 0) for kind, count in new.counters.items()}
        server = f"the name server {new.name}"
        if old.unanswered > 0 and 0 < grown["sent"] == new.unanswered - old.unanswered:
            yield problem(f"{server} does not answer HAProxy: {keeps}, until it does: let it answer")
        elif grown.get("truncated"):
            yield problem(
                f"{server} cuts its answers ({new.counters['truncated']} truncated), and HAProxy takes none of those: "
                "write `accepted_payload_size 8192` into `resolvers`"
            )
        elif grown.get("refused"):
            yield problem(f"{server} refuses to answer HAProxy: {keeps}: let it answer this machine")
        elif grown.get("nx"):
            unknown_to.append(new.name)
    if unknown_to and len(unknown_to) == len(after) and not some_lost:
        cure = "Of which one, HAProxy does not tell: is each of them in DNS, and not in /etc/hosts alone?"
        yield problem(
            f"a name does not resolve any more, say {' and '.join(unknown_to)}: {keeps}. {_whole_name(hosts) or cure}"
        )


def _whole_name(hosts: Iterable[str]) -> str:
    """What to do where the system finds one of the names by a `search` domain; "" where it finds none so."""
    try:
        lines = [line.split() for line in Path("/etc/resolv.conf").read_text(errors="replace").splitlines()]
    except OSError:
        return ""
    domains = [domain.strip(".") for line in lines if line[:1] in (["search"], ["domain"]) for domain in line[1:]]
    for host, domain in itertools.islice(itertools.product(hosts, domains), LOOKUPS):
        try:
            socket.getaddrinfo(f"{host}.{domain}.", None)
        except (OSError, UnicodeError):
            continue
        return (
            f"This machine finds {host} by `search {domain}` in /etc/resolv.conf, which HAProxy does not use: write "
            f"{host}.{domain} on its `server` line"
        )
    return ""


def checks(case: Case) -> Iterator[Finding]:
    """What HAProxy says of the checks, its own and external ones, and why they fail, as a check from here says."""
    checked = case.checked
    failing = [server for server in checked if server.check not in (PASSED, TIMED_OUT)]
    for server in checked:
        if server.check == TIMED_OUT:
            yield problem(
                f"the check of {'/'.join(server.key)} is slower than its interval, and was killed: a longer "
                "`inter`, or a MULTICLOUD_TIMEOUT below it, which also says what it waited for"
            )
    for server, text in _failures(failing, case):
        yield problem(f"the check of {'/'.join(server.key)} fails with exit code {server.code}: {text}")
    if checked and all(server.check == PASSED for server in checked):
        yield ok(f"the checks of all {len(checked)} servers pass")
    yield from _other_ways(checked, case)
    own = case.instance.own_checked(case.values.backends)
    for server in own:
        if server.check in haproxy_checks.FAILED_STATUSES and server.state != MAINT:
            code = f" {server.code}" if server.code not in ("", "0") else ""
            remedy = next(text for start, text in OWN_REMEDIES if server.check.startswith(start))
            terms = certificates.terms_of_line(server, case) if server.check == "L6RSP" else None
            if terms and (said := certificates.refusal(server, terms)):
                remedy = f"{said}: {certificates.cure_of_line(said, server, terms, case)}"
            yield problem(f"HAProxy's check of {'/'.join(server.key)} fails ({server.check}{code}): {remedy}")
    if own and all(server.check in haproxy_checks.PASSED_STATUSES for server in own):
        yield ok(f"HAProxy's own checks of all {len(own)} servers pass")
    if agents := ["/".join(server.key) for server in checked + own if server.agent]:
        yield unknown(
            f"{some(agents)}: if the agent of `agent-check` says a weight, it and the reweigh overwrite each other's; "
            "let it say `up`, `down`, `drain` and the like alone"
        )


def _other_ways(checked: Sequence[Server], case: Case) -> Iterator[Finding]:
    """Servers that users reach on another way than checks do, whose time need not be theirs."""
    ways: dict[str, list[str]] = {}
    for server in checked:
        if server.check == PASSED and (words := _words_unknown(server, case, WAY)):
            ways.setdefault(words, []).append("/".join(server.key))
    for words, servers in ways.items():
        yield unknown(
            f"{some(servers)}: a check knows nothing of {words}, so it is not known whether its time is that of users; "
            f"{_by_own_checks(servers[0].partition('/')[0])}"
        )


def _words_unknown(server: Server, case: Case, words: Sequence[str]) -> str:
    """Those of the words that are on a server's line, or in its section, as `source` may be."""
    line = case.configuration.lines.get(server.key, []) if case.configuration else []
    return " and ".join(f"`{word}`" for word in dict.fromkeys(line) if word in words)


def _by_own_checks(backend: str) -> str:
    return f"HAProxy's own checks go that way: for `multicloud run`, write `backends = {backend}`"


def _failures(failing: Sequence[Server], case: Case) -> Iterator[tuple[Server, str]]:
    """Why each of the external checks fails, as far as it can be seen, and what to do."""
    said = {server.key: _why(server, case, ask=number < PROBES) for number, server in enumerate(failing)}
    for server in failing:
        members = {each.key for each in case.checked if each.backend == server.backend}
        cures = {cure for key, (_, cure) in said.items() if cure and key in members}
        place = certificates.place_of(server, case.sources, alike=members <= said.keys() and len(cures) == 1)
        why, cure = said[server.key]
        yield server, why + cure.replace("{place}", f"{place} of {case.sources.path}")


def _why(server: Server, case: Case, *, ask: bool) -> tuple[str, str]:
    """Why an external check fails, and what to do, with {place} for a setting's section."""
    known = case.configuration is None or server.key in case.configuration.lines
    if server.code in EXIT_CODES and (server.code != ADDED or known):
        return EXIT_CODES[server.code], ""
    if server.code == ADDED:
        return "HAProxy starts no check of what was added while it runs: write it into the configuration", ""
    user = case.user if case.forks else None
    reason = f"{where_reasons_are(case.instance.pid, user)}; to see it: {_by_hand(server, user)}"
    if server.code == "2":
        return f"wrong settings, in its environment or a wrapper script, since those here can be read: {reason}", ""
    if server.address == "-":
        return f"HAProxy does not tell the path of its socket, so it was not asked; {reason}", ""
    other = ""
    if words := _words_unknown(server, case, (*PLACE, *WAY)):
        other = f"a check knows nothing of {words} on its line; {_by_own_checks(server.backend)}"
    if not ask:
        return other or reason, ""
    try:
        target, values = certificates.as_checked(server, case.sources)
        result = probe.probe(target, min(values.timeout, PROBE_TIME), values.clock)
        result.close()
    except UsageError as error:
        return str(error), ""
    if result.error is None:
        return f"{target} is up from here: its check may have other settings; {reason}", ""
    cure = other or certificates.cure_of_check(result.error, server, target, case)
    if not cure and (names := next((names for part, names in REMEDIES if part in result.error), "")):
        cure = f"if the server is well, set {names} in {{place}}"
    return f"{target}: {result.error}", f": {cure}" if cure else ""


def _by_hand(server: Server, user: User | None) -> str:
    """The command that does what HAProxy's own call does, as its user."""
    variables = " ".join(f"{name}={shlex.quote(text)}" for name, text in certificates.variables_of(server).items())
    return f"`runuser -u {user.name if user else 'haproxy'} -- env {variables} multicloud check`"


def measured(case: Case) -> Iterator[Finding]:
    """Whether the sample file has what it should; if so, whether somebody sets the weights, and the right ones."""
    newest = reweigh.longest_window(case.sources) + problems.LOOK_BACK
    try:
        samples = history.read(case.values.times, newest)
    except samplefile.SampleFileError as error:
        yours = "permission denied" in str(error) and os.geteuid() != 0
        yield problem(f"{error}: {'run this as root' if yours else 'remove it, or name another in MULTICLOUD_TIMES'}")
        return
    seen = problems.Seen(case.instance, samples, case.sources, time.time(), case.foreign)
    lines = [*problems.nobody_records(seen), *problems.samples_missing(seen), *problems.foreign_lines(seen)]
    passing = any(server.check == PASSED for server in case.checked)
    if passing and not lines and not seen.has_samples(case.instance.servers):
        lines = [
            f"{seen.times} has no samples of a server that HAProxy knows: do its servers have "
            "`option external-check` with multicloud-check, and does that write to the same file?"
        ]
    if not lines:
        stopped = problems.reweigh_stopped(seen)
        lines = stopped + problems.cannot_serve(seen) + ([] if stopped else problems.weights_not_set(seen))
        lines += problems.no_room(seen)
    yield from map(problem, lines)
    yield from map(unknown, problems.notes(seen))
    count = sum(server.key in samples.series for server in case.instance.servers)
    if count and not lines:
        yield ok(f"{count} servers are measured, and have the weights that they should have")
    if not case.values.backends and not any(server.name == REWEIGH_SERVER for server in case.instance.servers):
        yield unknown(
            f"no server is named {REWEIGH_SERVER}, so it is not known whether a reweigh runs: see the backend "
            "`reweigh` in haproxy.cfg"
        )
