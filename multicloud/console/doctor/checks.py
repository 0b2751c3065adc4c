"""The checks that HAProxy starts: whether there are any, and why they fail, as a check from here says."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from multicloud import check, probe, settings
from multicloud.console.doctor.finding import ok, problem, unexplained
from multicloud.console.instance import EXIT_CODES, PASSED, TIMED_OUT, where_reasons_are
from multicloud.console.problems import SAMPLES, samples_of
from multicloud.light import UsageError
from multicloud.runtime import MAINT

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance, User
    from multicloud.runtime import Server
    from multicloud.settings import Setting, Settings, Sources

PROBES, PROBE_TIME = 3, 2.0
"""How many failing servers are probed, and for how many seconds each."""

TLS, HTTP = (settings.HOST, settings.CA_FILE, settings.INSECURE), (settings.PATH, settings.EXPECT, settings.HOST)

USED = {"tcp": (), "tls": TLS, "http": HTTP, "https": (*HTTP, *TLS[1:])}
"""The settings that a check uses of each scheme, beside the scheme itself and the timeout."""

REMEDIES: tuple[tuple[str, tuple[Setting, ...]], ...] = (
    ("Hostname mismatch", (settings.HOST,)),
    ("IP address mismatch", (settings.HOST,)),
    ("certificate not accepted", (settings.CA_FILE,)),
    ("without TLS?", (settings.SCHEME,)),
    ("TLS server?", (settings.SCHEME,)),
    ("HTTP", (settings.SCHEME,)),
    ("status ", (settings.PATH, settings.EXPECT, settings.HOST)),
    ("timed out", (settings.TIMEOUT,)),
)
"""The settings that may mend what a probe says, by a part of it; the first one that fits counts."""


def checks(instance: Instance, sources: Sources, user: User | None, told: frozenset[str]) -> Iterator[Finding]:
    """What HAProxy says of its checks. Whose failure has been explained, by `told`, is left out."""
    checked = instance.checked()
    failing = []
    for server in checked:
        if server.check == TIMED_OUT:
            yield problem(
                f"the check of {server.backend}/{server.name} is slower than its interval, and was killed: a longer "
                "`inter`, or a MULTICLOUD_TIMEOUT below it, which also says what it waited for",
                samples_of(server),
            )
        elif server.check != PASSED and unexplained(server, told):
            failing.append(server)
    for number, server in enumerate(failing):
        consequences = [samples_of(server)] + ([SAMPLES] if len(failing) == len(checked) else [])
        text = _failure(server, instance.pid, sources, user, ask=number < PROBES)
        yield problem(
            f"the check of {server.backend}/{server.name} fails with exit code {server.code}: {text}", *consequences
        )
    in_maintenance = any(server.state == MAINT for server in instance.servers)  # those are not checked
    if not checked and not in_maintenance and SAMPLES not in told and not sources.read((settings.BACKENDS,)).backends:
        yield problem(
            "no server has an external check: write `option external-check` and `external-check command "
            "multicloud-check` into its backend, and `check` on its line",
            SAMPLES,
        )
    elif checked and all(server.check == PASSED for server in checked):
        yield ok(f"the checks of all {len(checked)} servers pass")


def _failure(server: Server, pid: int, sources: Sources, user: User | None, *, ask: bool) -> str:
    """Why the check fails, as far as it can be seen, and what to do."""
    by_code = EXIT_CODES.get(server.code)
    if by_code:
        return by_code
    reason = f"{where_reasons_are(pid, user)}; to see it: {by_hand(server, user)}"
    if server.code == "2":
        return f"wrong settings, in its environment or a wrapper script, since those here can be read: {reason}"
    if not ask:
        return reason
    try:
        target, values = as_checked(server, sources)
        result = probe.probe(target, min(values.timeout, PROBE_TIME), values.clock)
        result.close()
    except UsageError as error:
        return str(error)
    used = _used(target.scheme, server, sources)
    if result.seconds is not None:
        return f"{target} is up from here with {used}: its check may have other settings; {reason}"
    return f"{target}: {result.error}{_remedy(str(result.error), server, sources)}; asked with {used}"


def as_checked(server: Server, sources: Sources) -> tuple[probe.Target, Settings]:
    """What a check of the server probes, and its settings. Raises UsageError."""
    environ = told_of(server)
    values = sources.read(settings.CHECK, server.backend, server.name)
    return check.haproxy_target((), environ, values), values


def told_of(server: Server) -> dict[str, str]:
    """What HAProxy tells a check of the server."""
    return {
        "HAPROXY_PROXY_NAME": server.backend,
        "HAPROXY_SERVER_NAME": server.name,
        "HAPROXY_SERVER_ADDR": server.address,
        "HAPROXY_SERVER_PORT": server.port,
        "HAPROXY_SERVER_SSL": server.tls or "1",
        "HAPROXY_SERVER_PROTO": server.mode,
    }


def by_hand(server: Server, user: User | None) -> str:
    """The command that does what HAProxy's own call does, as its user."""
    variables = " ".join(f"{name}={shlex.quote(text)}" for name, text in told_of(server).items())
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


def _remedy(error: str, server: Server, sources: Sources) -> str:
    """The settings that may mend it, where some may, and the section for them."""
    group = next((group for part, group in REMEDIES if part in error), ())
    names = " or ".join(f"`{setting.name}`" for setting in group)
    own = f"{server.backend}/{server.name}"
    section = own if own in sources.sections else server.backend
    return f": if the server is well, set {names} in [{section}] of {sources.path}" if names else ""
