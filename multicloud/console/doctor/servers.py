"""The servers, as HAProxy and the samples show them: their names, their checks, their samples and their weights."""

import shlex
import time
from collections import Counter
from collections.abc import Iterator, Sequence

from multicloud import haproxy_checks, probe
from multicloud.console import problems
from multicloud.console.doctor import certificates
from multicloud.console.doctor.finding import Finding, ok, problem, unknown
from multicloud.console.instance import PASSED, REWEIGH_SERVER, TIMED_OUT, Case, needs_root
from multicloud.light import UsageError
from multicloud.runtime import MAINT, RuntimeAPI, Server

BETWEEN_LOOKS = 1.5  # seconds between two looks at name servers' counters: HAProxy asks every second for unknown names
PROBES, PROBE_TIME = 3, 2.0  # how many failing servers are probed, and for how many seconds each
# The counters of answers in `show resolvers`. That a name has no address of the family asked for is an `any_err`.
ANSWERS = ("valid", "any_err", "cname_error", "nx", "refused", "other", "invalid", "too_big", "truncated", "outdated")
ANSWERED_BADLY = {  # what name servers do, by HAProxy's counters
    "truncated": "cuts its answers ({truncated} truncated), and HAProxy takes none of those: write "
    "`accepted_payload_size 8192` into `resolvers`",
    "refused": "refuses to answer HAProxy: {keeps}: let it answer this machine",
}
UNKNOWN = (  # words of a `server` line of which an external check knows nothing, but HAProxy's own checks do
    *("port", "addr", "source", "usesrc", "socks4", "namespace", "crt", "alpn"),
    *("send-proxy", "send-proxy-v2", "send-proxy-v2-ssl"),
)
REMEDIES = (  # the settings that may mend what a probe says, by a part of it; the first one that fits counts
    ("mismatch", "`host`"),
    ("certificate not accepted", "`ca_file`"),
    *((part, "`scheme`") for part in ("without TLS?", "TLS server?", "HTTP")),
    ("status ", "`path` or `expect` or `host`"),
    ("timed out", "`timeout`"),
)
IPV6 = (
    "HAProxy has taken an IPv6 address: if this machine has no way over IPv6, and the name has an IPv4 address, too, "
    f"write `resolve-prefer ipv4` {problems.EVERY_LINE}"
)
OWN_REMEDIES = (  # what to look at, by how the status of a failed check of HAProxy's begins; the first that fits counts
    ("L4", "is it at the address and port of its line?"),
    ("L6", "does it speak TLS there, with a certificate that the `ca-file` of its line verifies, for its `check-sni`?"),
    ("L7STS", "are the path and the Host of `http-check send` right, and the status of `http-check expect`?"),
    ("L7", "does it speak what is asked of it, and in time (`inter`, `timeout check`)?"),
)


def names(case: Case) -> Iterator[Finding]:
    """Host names that give a server no address, or that may be lost, as the counters of HAProxy's name servers say.

    HAProxy keeps the last address of a name that they do not give it. Counters begin with HAProxy, so only those that
    grow are of now. Raises RuntimeAPIError.
    """
    lost = problems.without_address(case.servers)
    yield from map(problem, lost)
    hosts = list(dict.fromkeys(server.host for server in case.servers if server.host))
    if not hosts:
        return
    with RuntimeAPI(case.values.socket) as api:
        before = after = _counters(api)
        if any(each[kind] for _, each in before for kind in ("unanswered", "nx", *ANSWERED_BADLY)):
            with api.paused():
                time.sleep(BETWEEN_LOOKS)
            after = _counters(api)
        elif any(each["sent"] for _, each in before):
            yield ok(f"HAProxy's name servers answer it, and none says that one of {len(hosts)} names is unknown")
    asked = [(name, old, new) for (name, old), (_, new) in zip(before, after, strict=True) if old["sent"]]
    unknown_to = []
    keeps = f"HAProxy keeps the last addresses of {', '.join(hosts)}, as far as it had one"
    for name, old, new in asked:
        grown = new - old
        bad = next((text for kind, text in ANSWERED_BADLY.items() if grown[kind]), "")
        if old["unanswered"] > 0 and 0 < grown["sent"] == grown["unanswered"]:
            yield problem(f"the name server {name} does not answer HAProxy: {keeps}, until it does: let it answer")
        elif bad:
            yield problem(f"the name server {name} {bad.format(keeps=keeps, **new)}")
        elif grown["nx"]:
            unknown_to.append(name)
    if unknown_to and len(unknown_to) == len(asked) and not lost:  # else the name that they do not know is told above
        yield problem(
            f"a name does not resolve any more, say {' and '.join(unknown_to)}: {keeps}. Of which one, HAProxy does "
            f"not tell: is each in DNS, {problems.WHOLE_DOMAIN}, and not in /etc/hosts alone?"
        )


def _counters(api: RuntimeAPI) -> list[tuple[str, Counter[str]]]:
    """The name servers and what `show resolvers` counts of each, with how many queries are `unanswered`."""
    counters: list[tuple[str, Counter[str]]] = []
    for line in api.lines("show resolvers"):
        name, _, count = line.rpartition(":")
        if name.startswith(" nameserver "):
            counters.append((name.split()[1], Counter()))
        elif counters and count.strip().isdigit():
            counters[-1][1][name.strip()] = int(count)
    for _, each in counters:
        each["unanswered"] = each["sent"] - sum(each[kind] for kind in ANSWERS)
    return counters


def checks(case: Case) -> Iterator[Finding]:
    """What HAProxy says of the checks, its own and external ones, and why they fail, as a check from here says."""
    checked = case.checked
    for server in [each for each in checked if each.check == TIMED_OUT]:
        yield problem(
            f"the check of {'/'.join(server.key)} is slower than its interval, and was killed: a longer `inter`, or a "
            "MULTICLOUD_TIMEOUT below it, which also says what it waited for"
        )
    yield from _failures([each for each in checked if each.check not in (PASSED, TIMED_OUT)], case)
    if checked and all(server.check == PASSED for server in checked):
        yield ok(f"the checks of all {len(checked)} servers pass")
    own = case.own_checked
    for server in own:
        if server.check in haproxy_checks.FAILED_STATUSES and server.state != MAINT:
            code = f" {server.code}" if server.code not in ("", "0") else ""
            remedy = next(text for start, text in OWN_REMEDIES if server.check.startswith(start))
            if server.check.startswith("L4") and server.host and ":" in server.address:
                remedy = IPV6
            terms = certificates.terms_of_line(server, case) if server.check == "L6RSP" else None
            if terms and (said := certificates.refusal(server, terms)):
                remedy = f"{said}: {certificates.cure_of_line(said, server, terms, case)}"
            yield problem(f"HAProxy's check of {'/'.join(server.key)} fails ({server.check}{code}): {remedy}")
    if own and all(server.check in haproxy_checks.PASSED_STATUSES for server in own):
        yield ok(f"HAProxy's own checks of all {len(own)} servers pass")


def _failures(failing: Sequence[Server], case: Case) -> Iterator[Finding]:
    """Why each of the external checks fails, as far as it can be seen, and what to do."""
    said = {server.key: _why(server, case, ask=number < PROBES) for number, server in enumerate(failing)}
    checked = case.checked
    for server in failing:
        why, cure = said[server.key]
        members = {each.key for each in checked if each.backend == server.backend}
        cures = {said[key][1] for key in members & said.keys()} - {""}
        section = "/".join(server.key)
        if members <= said.keys() and len(cures) == 1 and section not in case.sources.sections:  # all there fail alike
            section = server.backend
        cure = cure.replace("{place}", f"[{section}] of {case.sources.path}")
        yield problem(f"the check of {'/'.join(server.key)} fails with exit code {server.code}: {why}{cure}")


def _why(server: Server, case: Case, *, ask: bool) -> tuple[str, str]:
    """Why an external check fails, and what to do, with {place} for a setting's section."""
    if server.code == problems.SIGNAL and case.files:
        lost = server.key not in case.configuration.lines
        return f"it is not in these files: {problems.ADDED}" if lost else problems.ENDED, ""
    if server.code in problems.EXIT_CODES:
        return problems.EXIT_CODES[server.code], ""
    user = case.user.name if case.user and case.forks else "haproxy"
    variables = " ".join(f"{name}={shlex.quote(text)}" for name, text in certificates.variables_of(server).items())
    reason = f"{problems.REASON}; to see it: `runuser -u {user} -- env {variables} multicloud check`"
    if server.code == "2":
        return f"wrong settings, in its environment or a wrapper script, since those here can be read: {reason}", ""
    if server.address == "-":
        return f"HAProxy does not tell the path of its socket, so it was not asked; {reason}", ""
    line = case.configuration.lines.get(server.key, [])
    if other := " and ".join(f"`{word}`" for word in dict.fromkeys(line) if word in UNKNOWN):
        own = f"HAProxy's own checks go that way: for `multicloud run`, write `backends = {server.backend}`"
        other = f"a check knows nothing of {other} on its line; {own}"
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
    no_way = any(text in result.error for text in ("unreachable", "cannot assign"))
    if no_way and server.host and ":" in server.address:
        other = IPV6
    cure = other or certificates.cure_of_check(result.error, server, target, case)
    if not cure and (names := next((names for part, names in REMEDIES if part in result.error), "")):
        cure = f"if the server is well, set {names} in {{place}}"
    return f"{target}: {result.error}", f": {cure}" if cure else ""


def measured(case: Case) -> Iterator[Finding]:
    """Whether the sample file has what it should; if so, whether somebody sets the weights, and the right ones."""
    if case.unusable:
        cure = "run this as root" if needs_root(case.unusable) else "remove it, or name another in MULTICLOUD_TIMES"
        yield problem(f"{case.unusable}: {cure}")
        return
    lines = problems.problems(case)
    yield from map(problem, lines)
    yield from map(unknown, problems.notes(case))
    if not lines and (count := sum(server.key in case.samples.series for server in case.servers)):
        yield ok(f"{count} servers are measured, and have the weights that they should have")
    if not case.values.backends and not any(server.name == REWEIGH_SERVER for server in case.servers):
        yield unknown(
            f"no server is named {REWEIGH_SERVER}, so it is not known whether a reweigh runs: see the backend "
            "`reweigh` in haproxy.cfg"
        )
