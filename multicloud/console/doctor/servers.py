"""The servers, as HAProxy and the samples show them: their names, their checks, their samples and their weights."""

from __future__ import annotations

import os
import re
import shlex
import socket
import time
from typing import TYPE_CHECKING

from multicloud import haproxy_checks, history, probe, reweigh, runtime, samplefile, settings
from multicloud.console import parser, problems
from multicloud.console.doctor import certificates
from multicloud.console.doctor.case import ok, problem, unknown
from multicloud.console.doctor.certificates import renewal
from multicloud.console.instance import EXIT_CODES, PASSED, REWEIGH_SERVER, TIMED_OUT, name_servers, where_reasons_are
from multicloud.light import UsageError
from multicloud.runtime import MAINT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.doctor.case import Case, Finding
    from multicloud.console.doctor.certificates import Terms
    from multicloud.console.instance import User
    from multicloud.runtime import Server
    from multicloud.settings import Sources

BETWEEN_LOOKS = 1.5
"""Seconds between two looks at the name servers' counters: HAProxy asks every second for what it does not know."""

PROBES, PROBE_TIME = 3, 2.0
"""How many failing servers are probed, and for how many seconds each."""

AGENTS, AGENT_TIMEOUT = 4, 1.0
"""How many agents are asked, and for how many seconds each."""

CLOSE = 0.8
"""The part of its time limit that a check may take before it is too slow."""

TLS, HTTP = (settings.HOST, settings.CA_FILE, settings.INSECURE), (settings.PATH, settings.EXPECT, settings.HOST)

USED = {"tcp": (), "tls": TLS, "http": HTTP, "https": (*HTTP, *TLS[1:])}
"""The settings that a check uses of each scheme, beside the scheme itself and the timeout."""

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

WEIGHT = re.compile(r"(?:^|[\s,])(\d+%|weight:\d+%?)(?=[\s,]|$)")
"""A word of an agent that sets a weight, among those that HAProxy reads (its configuration manual, `agent-check`)."""


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
        if old.unanswered > 0 and 0 < grown["sent"] == new.unanswered - old.unanswered:
            yield problem(f"the name server {new.name} does not answer HAProxy: {keeps}, until it does: let it answer")
        elif grown.get("truncated"):
            yield problem(
                f"the name server {new.name} cuts its answers ({new.counters['truncated']} truncated), and HAProxy "
                "takes none of those: write `accepted_payload_size 8192` into `resolvers`"
            )
        elif grown.get("refused"):
            yield problem(f"the name server {new.name} refuses to answer HAProxy: {keeps}: let it answer this machine")
        elif grown.get("nx"):
            unknown_to.append(new.name)
    if unknown_to and len(unknown_to) == len(after) and not some_lost:
        yield problem(
            f"a name does not resolve any more, say {' and '.join(unknown_to)}: {keeps}. Of which one, HAProxy does "
            "not tell: is each of them in DNS? HAProxy does not read /etc/hosts"
        )


def checks(case: Case) -> Iterator[Finding]:
    """What HAProxy says of the checks, its own and external ones, and why they fail, as a check from here says."""
    checked = case.instance.checked()
    failing = [server for server in checked if server.check not in (PASSED, TIMED_OUT)]
    for server in checked:
        if server.check == TIMED_OUT:
            yield problem(
                f"the check of {'/'.join(server.key)} is slower than its interval, and was killed: a longer "
                "`inter`, or a MULTICLOUD_TIMEOUT below it, which also says what it waited for"
            )
    yield from _slow(case)
    for server, text in _failures(failing, case):
        yield problem(f"the check of {'/'.join(server.key)} fails with exit code {server.code}: {text}")
    if checked and all(server.check == PASSED for server in checked):
        yield ok(f"the checks of all {len(checked)} servers pass")
    own = case.instance.own_checked(case.values.backends)
    for server in own:
        if server.check in haproxy_checks.FAILED_STATUSES and server.state != MAINT:
            code = f" {server.code}" if server.code not in ("", "0") else ""
            remedy = next(text for start, text in OWN_REMEDIES if server.check.startswith(start))
            renew = renewal(server, "") if server.check == "L6RSP" else ""
            yield problem(f"HAProxy's check of {'/'.join(server.key)} fails ({server.check}{code}): {renew or remedy}")
    if own and all(server.check in haproxy_checks.PASSED_STATUSES for server in own):
        yield ok(f"HAProxy's own checks of all {len(own)} servers pass")
    yield from _agents(checked + own)


def _slow(case: Case) -> Iterator[Finding]:
    """External checks that take nearly as long as they may."""
    sections = case.configuration.proxies() if case.configuration else []
    limits = {(each.name, name): limit for each in sections for name, limit in parser.check_limits(each).items()}
    for server in case.instance.checked():
        limit, seconds = limits.get(server.key), server.check_seconds
        if server.check != TIMED_OUT and limit and seconds and seconds > CLOSE * limit:
            yield problem(
                f"the last check of {'/'.join(server.key)} took {seconds:g} s of the {limit:g} s that it may: "
                "a longer `inter`"
            )


def _failures(failing: Sequence[Server], case: Case) -> Iterator[tuple[Server, str]]:
    """Why each of the external checks fails, as far as it can be seen, and what to do."""
    lines = certificates.terms_of_lines(case)
    said = {
        server.key: _why(server, case, lines.get(server.key, (server, None))[1], ask=number < PROBES)
        for number, server in enumerate(failing)
    }
    for server in failing:
        members = {each.key for each in case.instance.checked() if each.backend == server.backend}
        cures = {cure for key, (_, cure, _) in said.items() if cure and key in members}
        place = certificates.place_of(server, case.sources, alike=members <= said.keys() and len(cures) == 1)
        why, cure, used = said[server.key]
        yield server, why + cure.replace("{place}", f"{place} of {case.sources.path}") + used


def _why(server: Server, case: Case, line: Terms | None, *, ask: bool) -> tuple[str, str, str]:
    """Why an external check fails, what to do, with {place} for a setting's section, and what was used to see it."""
    if server.code in EXIT_CODES:
        return EXIT_CODES[server.code], "", ""
    user = case.user if case.forks else None
    reason = f"{where_reasons_are(case.instance.pid, user)}; to see it: {_by_hand(server, user)}"
    if server.code == "2":
        return f"wrong settings, in its environment or a wrapper script, since those here can be read: {reason}", "", ""
    if not ask:
        return reason, "", ""
    try:
        target, values = certificates.as_checked(server, case.sources)
        result = probe.probe(target, min(values.timeout, PROBE_TIME), values.clock)
        result.close()
    except UsageError as error:
        return str(error), "", ""
    used = _used(target.scheme, server, case.sources)
    if result.error is None:
        return f"{target} is up from here with {used}: its check may have other settings; {reason}", "", ""
    cure = certificates.cure_of_check(result.error, server, target, line)
    if not cure and (names := next((names for part, names in REMEDIES if part in result.error), "")):
        cure = f"if the server is well, set {names} in {{place}}"
    return f"{target}: {result.error}", f": {cure}" if cure else "", f"; asked with {used}"


def _by_hand(server: Server, user: User | None) -> str:
    """The command that does what HAProxy's own call does, as its user."""
    variables = " ".join(f"{name}={shlex.quote(text)}" for name, text in certificates.variables_of(server).items())
    return f"`runuser -u {user.name if user else 'haproxy'} -- env {variables} multicloud check`"


def _used(scheme: str, server: Server, sources: Sources) -> str:
    """The settings that were used: the path and the statuses, and all others that are not the defaults."""
    shown = []
    for setting in (settings.SCHEME, settings.TIMEOUT, *USED[scheme]):
        where = sources.where(setting, server.backend, server.name)
        if where != "default" or setting in (settings.PATH, settings.EXPECT):
            text = sources.text(setting, server.backend, server.name)
            shown.append(f"{setting.name} = {text} ({where.removesuffix(f': {setting.name}')})")
    return ", ".join(shown) or "all defaults"


def _agents(members: Sequence[Server]) -> Iterator[Finding]:
    """Agents of servers (`agent-check`): one that says a weight and the reweigh overwrite each other's."""
    asked = [server for server in members if server.agent and server.agent_port.isdigit()]
    for number, server in enumerate(asked):
        name = "/".join(server.key)
        said = _ask_agent(server) if number < AGENTS else None
        if said is None:
            yield unknown(
                f"{name} has an `agent-check`, whose agent was not heard from here: if it says a weight, it and the "
                "reweigh overwrite each other's"
            )
        elif weight := WEIGHT.search(said):
            yield problem(
                f"the agent of {name} says the weight {weight[1]}, so it and the reweigh overwrite each other's: "
                "let it say `up`, `down`, `drain` and the like alone, or remove `agent-check`"
            )
        else:
            yield ok(f"the agent of {name} says no weight")


def _ask_agent(server: Server) -> str | None:
    """The line that an agent says, as far as it comes at once; None where none does."""
    try:
        place = server.agent_address or server.address, int(server.agent_port)
        with socket.create_connection(place, AGENT_TIMEOUT) as connection:
            connection.settimeout(AGENT_TIMEOUT)
            said = connection.recv(1 << 12)
    except OSError:
        return None
    return re.split(r"[\r\n]", said.decode(errors="replace"))[0] or None


def _seen(case: Case) -> problems.Seen:
    """Raises SampleFileError."""
    newest = reweigh.longest_window(case.sources) + problems.LOOK_BACK
    return problems.Seen(case.instance, history.read(case.values.times, newest), case.sources, time.time())


def samples(case: Case) -> Iterator[Finding]:
    """Whether the sample file can be read, and has what it should."""
    try:
        seen = _seen(case)
    except samplefile.SampleFileError as error:
        yours = "permission denied" in str(error) and os.geteuid() != 0
        yield problem(f"{error}: {'run this as root' if yours else 'remove it, or name another in MULTICLOUD_TIMES'}")
        return
    lines = [*problems.nobody_records(seen), *problems.samples_missing(seen), *problems.foreign_lines(seen)]
    passing = any(server.check == PASSED for server in case.instance.checked())
    if passing and not lines and not seen.has_samples(case.instance.servers):
        yield problem(
            f"{seen.times} has no samples of a server that HAProxy knows: do its servers have "
            "`option external-check` with multicloud-check, and does that write to the same file?"
        )
    yield from map(problem, lines)


def weights(case: Case) -> Iterator[Finding]:
    """Whether somebody sets the weights, and whether they are what they should be."""
    try:
        seen = _seen(case)
    except samplefile.SampleFileError as error:  # since a moment ago
        yield problem(str(error))
        return
    stopped = problems.reweigh_stopped(seen)
    lines = stopped + problems.cannot_serve(seen) + ([] if stopped else problems.weights_not_set(seen))
    yield from map(problem, lines)
    measured = sum(server.key in seen.samples.series for server in case.instance.servers)
    if measured and not lines:
        yield ok(f"{measured} servers are measured, and have the weights that they should have")
    if not case.values.backends and not any(server.name == REWEIGH_SERVER for server in case.instance.servers):
        yield unknown(
            f"no server is named {REWEIGH_SERVER}, so it is not known whether a reweigh runs: see the backend "
            "`reweigh` in haproxy.cfg"
        )
