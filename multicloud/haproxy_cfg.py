"""Writes HAProxy's configuration for servers in several clouds: a function a section.

A version decides by plain conditions. Where none is known, both branches are written, in HAProxy's own `.if`: that is
the project's haproxy.cfg. Text is put together here, never cut, and `multicloud config` checks what is wanted.
"""

import re

from multicloud.plan import AUTHORITIES, EXAMPLES, NONE, USUAL, Plan, escaped

# Conditions and lines that several sections have.
SAFE = "{ method GET HEAD OPTIONS }"
SMALL = "{ req.hdr_val(content-length) gt 0 } { req.hdr_val(content-length) lt 8192 }"
WHOLE = f"    http-request wait-for-body time 29s if {SMALL}"
SHARED, IPV4 = "resolve-opts allow-dup-ip", "resolve-prefer ipv4"
CHOSEN = "    use-server %[var(txn.region)] if { always_true }"  # the region that `relay` was told
CLOSING = "    option http-server-close\n    http-reuse never"
FORWARDED = """\
    # A region is told the client's address, Host and scheme. `Forwarded`, and what CGI takes for these, stays out.
    option forwardfor
    http-request del-header ^(forwarded|x([^a-z0-9-]forwarded[^a-z0-9]|-forwarded[^a-z0-9-])(for|host|proto))$ -m reg
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Proto http unless { var(txn.region) -m found }
    # The last condition is for a frontend that trusts a proxy before it, which took TLS away.
    http-request set-header X-Forwarded-Proto https if { ssl_fc } || { dst_port 443 } || { var(txn.https) -m found }"""


def configuration(*plans: Plan) -> str:
    """The text: the sections that stand there once for all applications, then those of each application."""
    first = plans[0]
    sections = [_global(first), RESOLVERS.format(first.shared("default")), *dict.fromkeys(map(_common, plans))]
    sections += [_reweigh(first) * (not first.beside), *dict.fromkeys(map(_choices, plans))]
    parts = _router, _relay, _regions, _upstream, _once, _choice, _last_resort
    sections += [part(plan) for plan in plans for part in parts]
    sections.append(STATS.replace("common", first.common) * (not first.blocks))
    # A line is empty where its condition does not hold.
    written = ("\n".join(filter(str.strip, section.splitlines())) for section in sections)
    return "\n\n".join(filter(None, written)) + "\n"


def _global(plan: Plan) -> str:
    alone = f"""\
    log {plan.variable("LOG_ADDRESS", "stdout")} format raw local0
    # The weights are set here, which takes the level admin. A reload hands the ports on, losing nobody.
    stats socket {plan.variable("MULTICLOUD_SOCKET", plan.socket)} mode 600 level admin expose-fd listeners
    # Where root starts it, HAProxy and all checks stay root but for these lines, and `user haproxy` in the one above.
    # user haproxy
    # group haproxy"""
    once = """\
# ---- Once for all applications. `global` adds to yours, which must have a `stats socket` of `level admin` ----"""
    limit = f"""\
    # Two file descriptors for each user, and no more: HAProxy would raise its limit as far as the system lets it, and
    # before each external check it closes every number up to that. Where even this is not allowed, it starts with less.
    maxconn {plan.variable("MAXCONN", "8000")}
    no strict-limits"""
    preserve = """\
    # Checks see HAProxy's own environment, so that MULTICLOUD_PATH and the like can be set for all of them at once.
    external-check preserve-env"""
    forks = f"""\
    # Checks are programs, and HAProxy must fork to run them. A chroot would hide those.
    insecure-fork-wanted
{plan.since((2, 8, 25), preserve, "    external-check")}"""
    return f"""\
{once * plan.blocks}
global
{alone * (not plan.blocks)}
{limit * plan.maxconn}
{plan.since((3, 2), "    dns-accept-family auto # IPv6 where this machine has it")}
{forks * (not plan.beside)}"""


RESOLVERS = """\
# The name servers are those of /etc/resolv.conf; /etc/hosts is read at the start only. When they go away, or no longer
# know a name, its last address stays for 24 days, about the longest that HAProxy can wait: the checks say whether a
# server serves, and its certificate whether it is the right one.
resolvers {}
    parse-resolv-conf
    # An answer with many addresses is more than the usual 512 bytes, and would be of no use.
    accepted_payload_size 8192
    hold timeout 24d
    hold nx 24d
    hold refused 24d
    hold other 24d"""


def _common(plan: Plan) -> str:
    mode = "http" if plan.http else "tcp"
    logs = f"""\
    log global
    option {mode}log
    option dontlognull"""
    return f"""\
defaults {plan.common}
    mode {mode}
{logs * plan.logs}
    # Between two bytes; a WebSocket, and what is not HTTP, may be silent for longer.
    timeout client 30s
    timeout server 30s
    timeout tunnel 1h
    timeout client-fin 30s
    {"timeout http-request 10s" * plan.http}
    {"timeout http-keep-alive 30s" * plan.http}
    timeout queue 5s
{plan.since((3, 3), "    no option abortonclose # some clients end their side with the request" * plan.http)}
    # For a connection and its TLS handshake: so soon another server is tried when one accepts but does not answer.
    timeout connect 2s"""


def _reweigh(plan: Plan) -> str:
    return f"""\
# No traffic ever comes here: its check sets the weights. While it is DOWN, traffic goes on with the last ones. It is
# the first backend since HAProxy starts checks in that order: after a reload or a restart weights are back at once.
backend reweigh from {plan.common}
    option external-check
    external-check path "${{PATH}}"
    external-check command {plan.variable("MULTICLOUD_REWEIGH", f"{plan.directory}multicloud-reweigh")}
    server multicloud-reweigh 127.0.0.1:1 check inter {plan.variable("MULTICLOUD_REWEIGH_INTER", "2s")} fall 2 rise 1"""


def _choices(plan: Plan) -> str:
    return plan.relayed(f"""\
# HAProxy no longer gives each server its own Host header by itself, so a region is chosen here, and its name handed to
# `relay`, which puts it in place. Each line is the region's name with the address of `relay`, and tracks the region.
defaults {plan.shared("choices")} from {plan.common}
    balance random(2)
    # A connection to `relay` costs nothing, and each request is the first one on its own: so it answers every failure.
    option http-server-close
    # Another region is tried where `relay` says that it may be: with status 425, or by closing without an answer, which
    # it does only after a kept connection has failed. For that a request must be here as a whole.
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response 425
{FORWARDED}
{WHOLE}
    http-response return status 503 default-errorfiles if {{ status 425 }}
    http-send-name-header X-Upstream
    default-server weight 1""")


def _relay(plan: Plan) -> str:
    return plan.relayed(f"""\
frontend {plan.name("relay")} from {plan.common}
    # An abstract socket, which a chroot does not hide: no port, and it leads to this application alone.
    bind {plan.relay}
    option dontlog-normal
    http-request set-var(txn.region) req.hdr(X-Upstream)
    http-request del-header X-Upstream
    http-response set-var({plan.answered}) var(txn.region)
    use_backend {plan.backend}-once unless {SAFE}
    default_backend {plan.backend}""")


def _routes(plan: Plan, acl: str = "") -> str:
    """The lines of a frontend that choose the backend, for the requests of that condition or for all."""
    rest = f"    use_backend {{}} if {acl.rstrip()}" if acl else "    default_backend {}"
    unsafe = f"if {acl}!{SAFE}" if acl else f"unless {SAFE}"
    once = f"    use_backend {plan.backend}-once {unsafe}\n" * plan.http
    relayed = f"""\
    # While HAProxy stops, `relay` listens no more: what is still to come goes to the region that answered last.
    use_backend {plan.backend}-once if {acl}{{ stopping }} {{ var({plan.answered}) -m found }}
{rest.format(plan.name("choice"))}"""
    return f"""\
    # Fail open: when no server is left that is UP and has a weight, try them all. Goes with the backend of that name.
    use_backend {plan.name("last-resort")} if {acl}{{ nbsrv({plan.backend}) lt 1 }}
{plan.relayed(relayed, once + rest.format(plan.backend))}"""


def _router(plan: Plan) -> str:
    head = f"# ---- For the application `{plan.backend}` ----\n" * plan.blocks
    if plan.bind == NONE:
        acl = f"is_{plan.backend}"
        example = f"hdr(host) -i {plan.backend}.example.com" if plan.http else "dst_port 443"
        lines = f"    acl {acl} {example}\n{_routes(plan, f'{acl} ')}"
        return f"""\
{head}# These lines go into your frontend, below the `use_backend` lines that it has: the first one that holds counts.
# Let the `acl` say which requests are for this application.
{re.sub("^", "# ", lines, flags=re.MULTILINE)}"""
    usual = """\
    bind "${ADDRESS-}:${PORT-8080}"
    # The same behind a load balancer that speaks the PROXY protocol, such as Fly.io's. Let only that one reach it.
    bind "${ADDRESS-}:${PROXY_PORT-8081}" accept-proxy"""
    fly = """\
    http-request del-header ^fly[^a-z0-9]extra$ -m reg
    http-request set-header Fly_Extra "region=%[env(FLY_REGION)] client=%[src]\""""
    return f"""\
{head}frontend {plan.name("router")} from {plan.common}
{f"    bind {plan.bind or USUAL}" if plan.bind or plan.blocks else usual}
{fly * (plan.http and not plan.blocks)}
{plan.relayed(WHOLE)}
{_routes(plan)}"""


def _regions(plan: Plan) -> str:
    relayed = f"""\
    # The backend before `relay` has chosen the region, by its name, and tries another one where this one fails. It is
    # told of that with status 425, which nothing but this makes: the request was not sent, or may be sent again.
    option persist
    retries 1
    retry-on empty-response
    http-response set-var(txn.answered) bool(true)
    http-response set-status 503 if {{ status 425 }}
    http-after-response set-status 425 if {{ status 503 }} !{{ var(txn.answered) -m found }}
    http-after-response set-status 425 if {{ status 502 }} !{{ var(txn.answered) -m found }} {SAFE}
    http-request set-var(txn.region) var({plan.answered}) unless {{ var(txn.region) -m found }}
    http-request deny deny_status 400 unless {{ var(txn.region),srv_queue -m found }}
    http-request set-header Host %[var(txn.region)]"""
    direct = """\
    # Another server is tried where one cannot be reached.
    retries 3
    option redispatch 1"""
    host = f"http-request set-header Host {plan.host}" if plan.host else "http-send-name-header Host"
    direct_http = f"""
    # So is it for a request whose connection was cut before any answer.
    retry-on conn-failure empty-response
    # Cloud platforms find the application by its Host header; each server gets its own name there, on retries too.
    {host}"""
    http = f"""\
    # A request that is not idempotent is tried again only where it cannot have been received.
    http-request disable-l7-retry unless {SAFE}
    # A host that the client writes in place of a path (RFC 9112, section 3.2.2) would count more than the Host header.
    http-request deny deny_status 405 if METH_CONNECT
    http-request deny deny_status 400 unless {{ url -m beg -i / http:// https:// }} || {{ url -m str * }}
    http-request set-uri %[pathq] if {{ url -m beg -i http:// https:// }}
    http-request set-uri / if {{ url -m len 0 }}
    # Nor does a client open a way past all this, or have what is set here taken away on the way (sections 7.6.1, 7.8).
    http-request del-header Upgrade if {{ req.hdr(upgrade) -m sub -i h2c }}
    http-request del-header Connection unless {{ req.hdr(upgrade) -m found }}
    http-request set-header Connection upgrade if {{ req.hdr(upgrade) -m found }}
    http-response set-header Upstream %s"""
    family = f"""\
    # It would prefer IPv6 even where this machine has none; where it has nothing else, write `ipv6`. HAProxy 2.6 heeds
    # this, and the words above, on the lines of the servers only.
    default-server {IPV4}"""
    required = f"required ca-file {plan.variable('UPSTREAM_CA', plan.ca_file or AUTHORITIES)}"
    return f"""\
# What the backends have in common whose servers are the regions. Every other section says `from {plan.common}`.
defaults {plan.name("regions")} from {plan.common}
    # Of two servers, drawn by their weights, the one with fewer requests in flight: it evens out between two reweighs.
    balance random(2)
{FORWARDED * plan.http}
{plan.relayed(relayed, direct + direct_http * plan.http)}
{http * plan.http}
    # TLS to each server, whose certificate must be for its name; addresses are looked up again as DNS changes.
    # Not DHE, whose numbers a server chooses: large ones would stop HAProxy for a second.
    default-server {"ssl " * plan.tls}ciphers DEFAULT:!DHE verify {"none" if plan.insecure else required} sni {plan.sni}
    default-server resolvers {plan.shared("default")} init-addr last,libc,none weight 1
    # Servers may share a host name.
    default-server {SHARED}
{plan.since((3, 2), "", family)}"""


def _upstream(plan: Plan) -> str:
    kept = """\
    # A connection to a server is kept, and serves all clients: a request then takes one round trip instead of three.
    http-reuse always
    default-server pool-purge-delay 1m"""
    yours = """\
    # Your servers, one line each, in the lists below, too. The name is the Host header, the name in the certificate and
    # the one in the sample file. Any platform that routes by host name will do."""
    return f"""\
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
{_servers(plan, checked=True)}"""


def _checks(plan: Plan) -> str:
    """External checks, or HAProxy's own: those ask each server by its name."""
    if not plan.beside:
        return f"""\
    # Write no `fastinter` beside external checks and `observe`: once one has come sooner, HAProxy 2.8 and newer keep to
    # it for good, and 2.6.12 crashes.
    option external-check
    external-check path "${{PATH}}"
    external-check command {plan.variable("MULTICLOUD_CHECK", f"{plan.directory}multicloud-check")}"""
    return f"""\
    # For `multicloud run`: the time from the request to its answer, and a number that no other check has. After a check
    # that failed, the next comes sooner.
    option httpchk
    http-check set-var(check.begun) date(0,us)
    http-check send meth GET uri {escaped(plan.path)} ver HTTP/1.1 hdr Host %[{plan.sni}]
    http-check expect status {plan.expect} on-success "%[date(0,us),sub(check.begun)]us@%[date(0,ms)]"
    default-server fastinter 500ms"""


def _servers(plan: Plan, *, checked: bool = False, tracking: bool = False, relayed: bool = False) -> str:
    """A list of the servers: with checks, tracking those that have them, or at the address of `relay`."""
    lines = []
    families = f"{SHARED} {IPV4}" * (plan.version is not None and plan.version < (2, 8))
    for server in plan.servers or EXAMPLES:
        # Not `no-ssl`: of a server with that, HAProxy tells an external check that it speaks TLS.
        own = [f"{server.address}:{server.port}", "ssl" * (server.tls and not plan.tls), server.words, families]
        words = ["   " if plan.servers else "    #", "server", server.name, *([plan.relay] if relayed else own)]
        words.append(f"track {plan.backend}/{server.name}" * tracking)
        words.append(f"check-sni {plan.host or server.name}" * (checked and plan.beside and server.tls))
        lines.append(" ".join(filter(None, words)))
    return "\n".join(lines)


def _once(plan: Plan) -> str:
    text = f"""\
# For requests that must not be sent twice, such as POST: a server may close a kept connection just as one is sent, so
# each gets a connection of its own. These servers track those of `{plan.backend}`, and are scored by their samples.
backend {plan.backend}-once from {plan.name("regions")}
{CLOSING}
{plan.relayed(CHOSEN)}
{_servers(plan, tracking=True)}"""
    return text * plan.http


def _choice(plan: Plan) -> str:
    head = f"backend {plan.name('choice')} from {plan.shared('choices')}"
    return plan.relayed(f"{head}\n{_servers(plan, tracking=True, relayed=True)}")


def _last_resort(plan: Plan) -> str:
    first = f"backend {plan.name('last-resort')} from"
    relayed = f"{first} {plan.shared('choices')}\n{_servers(plan, relayed=True)}"
    direct = f"{first} {plan.name('regions')}\n{CLOSING * plan.http}\n{_servers(plan)}"
    return f"""\
# The same servers without checks and weights, for when all checks fail but the servers may serve (a mistyped health
# path, say), and until the next reweigh when favourite and backup die together. Goes with the use_backend line above.
{plan.relayed(relayed, direct)}"""


STATS = """\
frontend stats from common
    mode http
    bind "${ADDRESS-}:${STATS_PORT-9000}"
    bind "${ADDRESS-}:${STATS_PROXY_PORT-9001}" accept-proxy
    option dontlog-normal
    stats enable
    stats uri /
    stats refresh 2s"""
