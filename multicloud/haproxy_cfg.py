"""Writes HAProxy's configuration for servers in several clouds: a function a section.

A version decides by plain conditions. Where none is known, both branches are written, in HAProxy's own `.if`: that is
the project's haproxy.cfg. Text is put together here, never cut, and `multicloud config` checks what is wanted.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    Version = tuple[int, ...]

RELAYED = (3, 3)
"""From this version on HAProxy refuses `http-send-name-header Host`, and a relay does the same."""

TAKEN = ("default", "common", "tcp-common", "choices", "relay", "reweigh", "stats")
"""The names of the sections that stand there once, for all applications."""


class Server(NamedTuple):
    """A server; an IPv6 address is in brackets, and `tls` is whether HAProxy speaks TLS to it."""

    name: str
    address: str
    port: int
    tls: bool = True


EXAMPLES = tuple(Server(host, host, 443) for host in ("helloworld-xyz-uc.a.run.app", "helloworld-eu.herokuapp.com"))
"""They stand in comments where no servers are named."""


class Plan(NamedTuple):
    """What is to be written: for which servers of which backend, and for which HAProxy (None: not known).

    Without `http` it is TCP, and `blocks` are what a configuration lacks that is there. With `beside` HAProxy checks
    the servers itself, for multicloud-run, and asks for `path`. The commands are in `directory`, such as "/opt/bin/".
    """

    servers: Sequence[Server] = ()
    version: Version | None = None
    backend: str = "upstream"
    http: bool = True
    path: str = "/"
    blocks: bool = False
    beside: bool = False
    directory: str = ""

    @property
    def common(self) -> str:
        """The name of the defaults of all sections. TCP has its own in blocks, which may stand beside HTTP."""
        return "tcp-common" if self.blocks and not self.http else "common"

    @property
    def tls(self) -> bool:
        """Whether HAProxy speaks TLS to all servers."""
        return all(server.tls for server in self.servers)

    def name(self, section: str) -> str:
        """The name of a section of this application."""
        return section if self.backend == "upstream" else f"{self.backend}-{section}"

    def variable(self, name: str, default: str, *, before: str = "") -> str:
        """A word that ends with a value, which an environment variable overrides, but in blocks."""
        return escaped(before + default) if self.blocks else f'"{before}${{{name}-{default}}}"'

    def since(self, version: Version, new: str, old: str = "") -> str:
        """`new` for HAProxy `version` and newer, `old` for those before; both where it is not known which it is."""
        if self.version:
            return new if self.version >= version else old
        condition, number = "version_atleast" if new else "version_before", ".".join(map(str, version))
        return f".if {condition}({number})\n" + "\n.else\n".join(filter(None, (new, old))) + "\n.endif"

    def relayed(self, new: str, old: str = "") -> str:
        """`new` where requests go through `relay`, `old` where they need not."""
        return self.since(RELAYED, new, old) if self.http else old


def escaped(word: str) -> str:
    """A word as it stands in a configuration without quotes around it."""
    return re.sub(r"([\\\"'# ])", r"\\\1", word)


def configuration(plan: Plan) -> str:
    """The text: the sections that stand there once for all applications, then those of the application."""
    sections = (
        _global(plan),
        RESOLVERS,
        _common(plan),
        _reweigh(plan) * (not plan.beside),
        plan.relayed(_relay(plan)),
        _router(plan),
        _regions(plan),
        _upstream(plan),
        _once(plan) * plan.http,
        plan.relayed(_choice(plan)),
        _last_resort(plan),
        f"# End of what multicloud config wrote for {plan.backend}." if plan.blocks else STATS,
    )
    return "\n\n".join(filter(None, sections)) + "\n"


def _text(lines: str) -> str:
    """The lines of a section, less those that are empty: where a condition does not hold."""
    return "\n".join(filter(str.strip, lines.splitlines()))


def _global(plan: Plan) -> str:
    socket = plan.variable("MULTICLOUD_SOCKET", "/var/run/haproxy.sock")
    alone = f"""\
    log {plan.variable("LOG_ADDRESS", "stdout")} format raw local0
    # The weights are set here, which takes the level admin. A reload hands the ports on, losing nobody.
    stats socket {socket} mode 600 level admin expose-fd listeners"""
    once = """\
# ---- Once for all applications: leave out each section that your file has already, by its name ----
# Into `global`: here, at the end of the file, it adds to what is there. A `stats socket` of `level admin` must be there
# already: Debian's own is one. If it has a `maxconn`, leave out this one."""
    forks = """\
    # Checks are programs, and HAProxy must fork to run them. A chroot would hide those.
    insecure-fork-wanted"""
    preserve = """\
    # Checks see HAProxy's own environment, so that MULTICLOUD_PATH and the like can be set for all of them at once.
    external-check preserve-env"""
    return _text(f"""\
{once * plan.blocks}
global
{alone * (not plan.blocks)}
    # Two file descriptors for each user, and no more: HAProxy would raise its limit as far as the system lets it, and
    # before each external check it closes every number up to that. Where even this is not allowed, it starts with less.
    maxconn {plan.variable("MAXCONN", "8000")}
    no strict-limits
{plan.since((3, 2), "    dns-accept-family auto # IPv6 where this machine has it")}
{forks * (not plan.beside)}
{plan.since((2, 8, 25), preserve, "    external-check") * (not plan.beside)}
""")


RESOLVERS = """\
# The name servers are those of /etc/resolv.conf; /etc/hosts is read at the start only. When they go away, or no longer
# know a name, its last address stays for 24 days, about the longest that HAProxy can wait: the checks say whether a
# server serves, and its certificate whether it is the right one.
resolvers default
    parse-resolv-conf
    # An answer with many addresses is more than the usual 512 bytes, and would be of no use.
    accepted_payload_size 8192
    hold timeout 24d
    hold nx 24d
    hold refused 24d
    hold other 24d"""


def _common(plan: Plan) -> str:
    mode = "http" if plan.http else "tcp"
    return _text(f"""\
defaults {plan.common}
    mode {mode}
    log global
    option {mode}log
    option dontlognull
    # Between two bytes; a WebSocket, and what is not HTTP, may be silent for longer.
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    timeout client-fin 30s
    {"timeout http-request 10s" * plan.http}
    {"timeout http-keep-alive 30s" * plan.http}
    timeout queue 5s
    # For a connection and its TLS handshake: so soon another server is tried when one accepts but does not answer.
    timeout connect 2s
""")


def _reweigh(plan: Plan) -> str:
    return f"""\
# No traffic ever comes here: its check is what sets the weights. If it is DOWN, so is the latency routing, and traffic
# goes on with the last weights. It stands before the other backends since HAProxy starts checks in that order: after a
# reload or a restart the weights are back at once.
backend reweigh from {plan.common}
    option external-check
    external-check path "${{PATH}}"
    external-check command {plan.variable("MULTICLOUD_REWEIGH", f"{plan.directory}multicloud-reweigh")}
    server multicloud-reweigh 127.0.0.1:1 check inter {plan.variable("MULTICLOUD_REWEIGH_INTER", "3s")} fall 2 rise 1"""


def _relay(plan: Plan) -> str:
    small = "{ req.hdr_val(content-length) gt 0 } { req.hdr_val(content-length) lt 8192 }"
    return f"""\
# HAProxy no longer gives each server its own Host header by itself, so a region is chosen here, and its name handed to
# `relay`, which puts it in place. Each line is the region's name with the address of `relay`, and tracks the region.
defaults choices from {plan.common}
    balance random(2)
    # A connection to `relay` costs nothing, and each request is the first one on its own: so it answers every failure.
    option http-server-close
    # Another region is tried where `relay` says that it may be: with status 425, or by closing without an answer, which
    # it does only after a kept connection has failed. For that a request must be here as a whole.
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 425
    http-request wait-for-body time 29s if {small}
    http-response return status 503 default-errorfiles if {{ status 425 }}
    http-send-name-header X-Upstream
    default-server weight 1

frontend relay from {plan.common}
    bind {plan.variable("RELAY_PORT", "8082", before="127.0.0.1:")}
    option dontlog-normal
    http-request set-var(txn.backend) req.hdr(X-Backend)
    http-request set-var(txn.region) req.hdr(X-Upstream)
    http-request set-header Host %[var(txn.region)]
    http-request del-header X-Backend
    http-request del-header X-Upstream
    use_backend %[var(txn.backend)]-once unless {{ method GET HEAD OPTIONS }}
    use_backend %[var(txn.backend)]"""


def _router(plan: Plan) -> str:
    application = f"""\
# ---- For the application `{plan.backend}` ----
# Where users come in. If you have a frontend, leave this one out and write its lines below `bind` into yours, above any
# other `use_backend`."""
    alone = """\
    bind "${ADDRESS-}:${PORT-8080}"
    # The same behind a load balancer that speaks the PROXY protocol, such as Fly.io's. Let only that one reach it.
    bind "${ADDRESS-}:${PROXY_PORT-8081}" accept-proxy"""
    extra = 'http-request set-header Fly_Extra "region=%[env(FLY_REGION)] client=%[src]"'
    once = f"    use_backend {plan.backend}-once unless {{ method GET HEAD OPTIONS }}\n" * plan.http
    choice = plan.relayed(f"    default_backend {plan.name('choice')}", f"{once}    default_backend {plan.backend}")
    return _text(f"""\
{application * plan.blocks}
frontend {plan.name("router")} from {plan.common}
{"    bind :8080" if plan.blocks else alone}
    {"option forwardfor" * plan.http}
    {extra * (plan.http and not plan.blocks)}
    # Fail open: when no server is left that is UP and has a weight, try them all. Goes with the backend of that name.
    use_backend {plan.name("last-resort")} if {{ nbsrv({plan.backend}) lt 1 }}
{choice}
""")


def _regions(plan: Plan) -> str:
    relayed = """\
    # The backend before `relay` has chosen the region, by its name, and tries another one where this one fails. It is
    # told of that with status 425, which nothing but this makes: the request was not sent, or may be sent again.
    option persist
    retries 1
    retry-on empty-response
    http-response set-var(txn.answered) bool(true)
    http-response set-status 503 if { status 425 }
    http-after-response set-status 425 if { status 503 } !{ var(txn.answered) -m found }
    http-after-response set-status 425 if { status 502 } !{ var(txn.answered) -m found } { method GET HEAD OPTIONS }"""
    direct = """\
    # Another server is tried where one cannot be reached.
    retries 3
    option redispatch 1"""
    named = """
    # So is it for a request whose connection was cut before any answer.
    retry-on conn-failure empty-response
    # Cloud platforms find the application by its Host header, so each server gets its own name there, on retries too.
    http-send-name-header Host"""
    http = """\
    # A request that is not idempotent is tried again only where it cannot have been received.
    http-request disable-l7-retry unless { method GET HEAD OPTIONS }
    # A host that the client writes in place of a path (RFC 9112, section 3.2.2) would count more than the Host header.
    http-request set-uri %[pathq] if { url -m beg -i http:// https:// }
    http-request deny deny_status 405 if METH_CONNECT
    http-response set-header Upstream %s"""
    family = f"""\
    # It would prefer IPv6 even where this machine has none; where it has nothing else, write `ipv6`. HAProxy 2.6 heeds
    # this, and the words above, on the lines of the servers only.
    default-server {IPV4}"""
    authorities = plan.variable("UPSTREAM_CA", "/etc/ssl/certs/ca-certificates.crt")
    return _text(f"""\
# What the backends have in common whose servers are the regions. Every other section says `from {plan.common}`.
defaults {plan.name("regions")} from {plan.common}
    # Of two servers, drawn by their weights, the one with fewer requests in flight: it evens out between two reweighs.
    balance random(2)
{plan.relayed(relayed, direct + named * plan.http)}
{http * plan.http}
    # TLS to each server, whose certificate must be for its name; addresses are looked up again as DNS changes.
    default-server {"ssl " * plan.tls}verify required ca-file {authorities} sni srv_name
    default-server resolvers default init-addr last,libc,none weight 1
    # Servers may share a host name.
    default-server {SHARED}
{plan.since((3, 2), "", family)}
""")


SHARED, IPV4 = "resolve-opts allow-dup-ip", "resolve-prefer ipv4"
CHOSEN = "    use-server %[var(txn.region)] if { always_true }"
CLOSING = "    option http-server-close\n    http-reuse never"


def _upstream(plan: Plan) -> str:
    kept = """\
    # A connection to a server is kept, and serves all clients: a request then takes one round trip instead of three.
    http-reuse always
    default-server pool-purge-delay 1m"""
    yours = """\
    # Your servers, one line each, in the lists below, too. The name is the host name: it is the Host header, the SNI,
    # the name in the certificate and the one in the sample file. Any platform that routes by host name will do: Google
    # Cloud Run, Heroku, AWS Lambda function URLs, Azure Functions, ..."""
    return _text(f"""\
backend {plan.backend} from {plan.name("regions")}
{kept * plan.http}
    # What drops idle connections on the way, such as NAT, sees that they are in use, and one that is dead is noticed.
    option srvtcpka
    srvtcpka-idle 20s
    srvtcpka-intvl 5s
    srvtcpka-cnt 3
{_checks(plan) * (plan.http or not plan.beside)}
    # A check may take as long as the interval. Real requests are watched too: when five connections in a row fail, a
    # server is DOWN without waiting for its check. Weight 1 serves until there are samples.
    default-server check inter {plan.variable("MULTICLOUD_INTER", "2s")} fall 2 rise 2
    default-server observe layer4 error-limit 5 on-error mark-down
{plan.relayed(CHOSEN)}
{yours * (not plan.servers)}
{_servers(plan, checked=True)}
""")


def _checks(plan: Plan) -> str:
    """External checks, or HAProxy's own: those ask each server by its name, over a kept connection where they can."""
    if not plan.beside:
        return f"""\
    # Write no `fastinter` beside external checks and `observe`: once one has come sooner, HAProxy 2.8 and newer keep to
    # it for good, and 2.6.12 crashes.
    option external-check
    external-check path "${{PATH}}"
    external-check command {plan.variable("MULTICLOUD_CHECK", f"{plan.directory}multicloud-check")}"""
    reuse = plan.since((3, 2), "    default-server check-reuse-pool")
    keep_alive = " hdr Connection keep-alive" * bool(reuse)  # HAProxy would say `close`
    return f"""\
    # For `multicloud run`: the time from the request to its answer, and a number that no other check has. After a check
    # that failed, the next comes sooner.
    option httpchk
    http-check set-var(check.begun) date(0,us)
    http-check send meth GET uri {escaped(plan.path)} ver HTTP/1.1 hdr Host %[srv_name]{keep_alive}
    http-check expect status 200 on-success "%[date(0,us),sub(check.begun)]us@%[date(0,ms)]"
    default-server fastinter 500ms
{reuse}"""


def _servers(plan: Plan, *, checked: bool = False, tracking: bool = False, relayed: bool = False) -> str:
    """A list of the servers: with checks, tracking those that have them, or at the address of `relay`."""
    relay = plan.variable("RELAY_PORT", "8082", before="127.0.0.1:")
    lines = []
    for server in plan.servers or EXAMPLES:
        address = relay if relayed else f"{server.address}:{server.port}"
        # Not `no-ssl`: of a server with that, HAProxy tells an external check that it speaks TLS.
        ssl = " ssl" * (server.tls and not plan.tls and not relayed)
        sni = f" check-sni {server.name}" * (checked and plan.beside and plan.http and server.tls)
        names = f" {SHARED} {IPV4}" * (plan.version is not None and plan.version < (2, 8) and not relayed)
        track = f" track {plan.backend}/{server.name}" * tracking
        lines.append(f"    {'# ' * (not plan.servers)}server {server.name} {address}{ssl}{names}{track}{sni}")
    return "\n".join(lines)


def _once(plan: Plan) -> str:
    return _text(f"""\
# For requests that are not idempotent, such as POST. A server may close a kept connection just as a request is sent,
# and such a request must not be sent twice; so each gets a connection of its own. These servers are not checked: they
# track those of `{plan.backend}`, share their state and are scored by their samples.
backend {plan.backend}-once from {plan.name("regions")}
{CLOSING}
{plan.relayed(CHOSEN)}
{_servers(plan, tracking=True)}
""")


def _choice(plan: Plan) -> str:
    return f"""\
backend {plan.name("choice")} from choices
    http-request set-header X-Backend {plan.backend}
{_servers(plan, tracking=True, relayed=True)}"""


def _last_resort(plan: Plan) -> str:
    first = f"backend {plan.name('last-resort')} from"
    relayed = f"{first} choices\n    http-request set-header X-Backend {plan.backend}\n{_servers(plan, relayed=True)}"
    direct = f"{first} {plan.name('regions')}\n{CLOSING * plan.http}\n{_servers(plan)}"
    return _text(f"""\
# The same servers without checks and weights: they are asked when all checks fail but the servers may well serve (a
# mistyped health path, say), and until the next reweigh when favourite and backup die together. To do without, delete
# this backend and the use_backend line above.
{plan.relayed(relayed, direct)}
""")


STATS = """\
frontend stats from common
    mode http
    bind "${ADDRESS-}:${STATS_PORT-9000}"
    bind "${ADDRESS-}:${STATS_PROXY_PORT-9001}" accept-proxy
    option dontlog-normal
    stats enable
    stats uri /
    stats refresh 2s"""
