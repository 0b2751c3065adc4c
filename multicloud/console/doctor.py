"""What usually goes wrong around the router, and how to mend it. It changes nothing.

Each part looks at one thing and says what it found: at the running HAProxy, at what its user may do with the sample
file, at its checks, and at the configuration.
"""

from __future__ import annotations

import os
import shutil
import time
from typing import TYPE_CHECKING, NamedTuple

from multicloud import check, probe, reweigh, runtime, samples, settings
from multicloud.console import configuration, names, observe, problems
from multicloud.console.configuration import ConfigurationError, Section
from multicloud.settings import SettingError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.observe import Instance, User
    from multicloud.settings import Settings, Sources

__all__ = ["ConfigurationError", "Finding", "examine"]

DYNAMIC = ("roundrobin", "leastconn", "random")
"""The balance algorithms under which a weight counts and can be set while HAProxy runs."""

HASHED = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash", "log-hash")
"""Those under which it can be set with `hash-type consistent` only."""

REFUSAL = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."

CLOSE = 0.8
"""The part of its time limit that a check may take before it is too slow."""

PROBES, PROBE_TIME = 3, 2.0
"""How many failing servers are probed, and for how many seconds each."""

REMOVE_CHROOT = "remove `chroot` from `global`"


class Finding(NamedTuple):
    """`kind` is ok, problem or unknown: what could not be looked at."""

    kind: str
    text: str


def examine(sources: Sources, files: Sequence[str]) -> list[Finding]:
    """All findings. `files` are HAProxy's configuration files, or none. Raises SettingError and ConfigurationError."""
    values = sources.read(settings.REWEIGH)
    findings = []
    sections: list[Section] = []
    instance, environ, user = None, dict(os.environ), None
    try:
        with runtime.RuntimeAPI(values.socket) as api:
            instance = observe.instance(api)
            if instance.level != "user":
                environ = dict(line.split("=", 1) for line in api.ask("show env").splitlines() if "=" in line)
    except runtime.RuntimeAPIError as error:
        findings.append(_unreachable(values.socket, error))
    if files:
        sections = configuration.read(files, environ, instance.version if instance else None).sections
    if instance is not None:
        user = observe.user_of(instance.pid)
        findings += _process(instance, values, user)
        findings += _checks(instance, sources)
        findings += _names(instance, sections)
        if not files:  # the configuration tells whether the algorithm is a consistent hash, HAProxy does not
            findings += _algorithms(instance)
    findings += _samples(instance, sources, user)
    if files:
        findings += _configuration(sections, instance, user)
    else:
        findings.append(Finding("unknown", "the configuration was not looked at: name it with -f haproxy.cfg"))
    return findings


def _unreachable(address: str, error: Exception) -> Finding:
    hint = "as root, or as a user that the socket lets in" if "permission" in str(error) else "start HAProxy"
    return Finding(
        "problem",
        f"{error} Put `stats socket {address} mode 600 level admin` into `global`, {hint}, "
        "or name its socket in MULTICLOUD_SOCKET",
    )


def _process(instance: Instance, values: Settings, user: User | None) -> Iterator[Finding]:
    address = values.socket
    if instance.version.split("-")[0] == "3.4.0":
        yield Finding("problem", "HAProxy 3.4.0 crashes on external checks: upgrade to 3.4.1")
    else:
        yield Finding("ok", f"HAProxy {instance.version} answers at {address}")
    if instance.level == "admin":
        yield Finding("ok", "its socket has the level admin")
    else:
        yield Finding(
            "problem",
            f"the socket {address} has the level {instance.level}, so that HAProxy refuses `set server`: "
            "write `level admin` at the end of its `stats socket` line",
        )
    if user is None:
        yield Finding("unknown", f"HAProxy's process {instance.pid} cannot be seen from here: nor what its user may do")
        return
    yield from _surroundings(instance.pid, os.path.dirname(os.path.abspath(values.times)))


def _surroundings(pid: int, directory: str) -> Iterator[Finding]:
    """Whether HAProxy sees the same files as we do: no chroot, and the same directory of the sample file."""
    try:
        root = os.readlink(f"/proc/{pid}/root")
    except OSError:
        yield Finding("unknown", "only root sees whether HAProxy runs in a chroot")
        return
    if root != "/":
        yield Finding("problem", f"HAProxy runs in the chroot {root}, where it finds no checks: {REMOVE_CHROOT}")
        return
    try:
        same = os.path.samestat(os.stat(directory), os.stat(f"/proc/{pid}/root{directory}"))
    except OSError as error:
        yield Finding("problem", f"the sample file's directory {directory}: {(error.strerror or str(error)).lower()}")
        return
    if same:
        yield Finding("ok", "HAProxy sees the same files as this command, without a chroot")
    else:
        yield Finding(
            "problem",
            f"HAProxy has a {directory} of its own (a container, or systemd's PrivateTmp), so its sample file is not "
            "the one here: run this inside of it, or name a file elsewhere in MULTICLOUD_TIMES",
        )


def _samples(instance: Instance | None, sources: Sources, user: User | None) -> Iterator[Finding]:
    values = sources.read(settings.REWEIGH)
    try:
        found = samples.read(values.times, reweigh.longest_window(sources) + problems.LOOK_BACK)
    except samples.SampleFileError as error:
        yield Finding("problem", f"{error}: remove it, or name another in MULTICLOUD_TIMES")
        return
    if user is not None and observe.may(user, "r", "/") is None:
        yield Finding("unknown", f"only root sees whether HAProxy's user {user.name} can write {values.times}")
    elif user is not None and observe.unwritable(user, values.times) is None:
        yield Finding("ok", f"HAProxy's user {user.name} can write the sample file {values.times}")
    if instance is None:
        return
    wrong = problems.problems(instance, found, sources, time.time())
    for problem in wrong:
        yield Finding("problem", problem)
    measured = sum(server.key in found.series for server in instance.servers)
    if not measured and not any(server.unresolved for server in instance.servers):
        yield Finding(
            "problem",
            f"{values.times} has no samples of a server that HAProxy knows: do its servers have "
            "`option external-check` with multicloud-check, and does that write to the same file?",
        )
    elif not wrong:
        yield Finding("ok", f"{measured} servers are measured, and have the weights that they should have")
    if not any(server.name == observe.REWEIGH for server in instance.servers):
        yield Finding(
            "unknown",
            f"no server is named {observe.REWEIGH}, so it is not known whether a reweigh runs: see the backend "
            "`reweigh` in haproxy.cfg",
        )


def _checks(instance: Instance, sources: Sources) -> Iterator[Finding]:
    checked = instance.checked()
    failing = []
    for server in checked:
        name = f"{server.backend}/{server.name}"
        if server.check == observe.TIMED_OUT:
            yield Finding(
                "problem",
                f"the check of {name} is slower than its interval, and was killed: a longer `inter`, or a "
                "MULTICLOUD_TIMEOUT below it, which also says in the log what it waited for",
            )
        elif server.check != observe.PASSED:
            failing.append(server)
    for number, server in enumerate(failing):
        said = _probe(server, sources) if number < PROBES else ""
        yield Finding(
            "problem",
            f"the check of {server.backend}/{server.name} fails with exit code {server.code}: "
            + (observe.EXIT_CODES.get(server.code) or said or "HAProxy's log has its reason"),
        )
    if not checked and not any(server.unresolved for server in instance.servers):  # which is not checked
        yield Finding(
            "problem",
            "no server has an external check: write `option external-check` and `external-check command "
            "multicloud-check` into its backend, and `check` on its line",
        )
    elif checked and not failing and all(server.check == observe.PASSED for server in checked):
        yield Finding("ok", f"the checks of all {len(checked)} servers pass")


def _probe(server: runtime.Server, sources: Sources) -> str:
    """What a check of the server says now, told of it as by HAProxy, with the settings that it finds here."""
    environ = {
        "HAPROXY_PROXY_NAME": server.backend,
        "HAPROXY_SERVER_NAME": server.name,
        "HAPROXY_SERVER_ADDR": server.address,
        "HAPROXY_SERVER_PORT": server.port,
        "HAPROXY_SERVER_SSL": server.tls or "1",
        "HAPROXY_SERVER_PROTO": server.mode,
    }
    try:
        values = sources.read(settings.CHECK, *check.sections(environ))
        target = check.haproxy_target((), environ, values)
        result = probe.probe(target, min(values.timeout, PROBE_TIME), values.clock)
    except (SettingError, check.UsageError) as error:
        return str(error)
    if result.rtt is not None:
        return f"{target} is up from here; HAProxy's log has the reason, and its checks may have other settings"
    return f"{target}: {result.error}"


def _names(instance: Instance, sections: list[Section]) -> Iterator[Finding]:
    """Names of servers for which HAProxy may have a last address only. Of those in maintenance `problems` tells."""
    lines = [line for section in sections if section.kind == "resolvers" for line in section.lines]
    configured = {line[1]: line[2] for line in lines if line[0] == "nameserver" and len(line) > 2}
    hosts = {server.host: server.address for server in instance.servers if server.host}
    lost = {server.host for server in instance.servers if server.unresolved}
    resolving: set[str] = set()
    answering = []
    for name in instance.nameservers if hosts else ():
        address = names.address(configured.get(name, name))
        if address is None:
            yield Finding("unknown", f"the address of the name server {name} was not found: -f haproxy.cfg may have it")
            return
        known = names.known(list(hosts), address)
        if known is None:
            yield Finding(
                "problem",
                f"the name server {name} does not answer from here: a name that no other one knows keeps its last "
                f"address in HAProxy, if it had one ({', '.join(hosts)})",
            )
        else:
            resolving |= known
            answering.append(name)
    for host in hosts if answering else ():
        if host not in resolving | lost:
            yield Finding(
                "problem",
                f"the name {host} does not resolve any more, says {' and '.join(answering)}: HAProxy keeps its last "
                f"address {hosts[host]}, and does not read /etc/hosts",
            )
    if answering and resolving == set(hosts):
        yield Finding("ok", f"the name servers know the names of all {len(hosts)} hosts")


def _algorithms(instance: Instance) -> Iterator[Finding]:
    if instance.level == "user":
        yield Finding("unknown", "a socket of level user does not show the balance algorithms")
    for backend in dict.fromkeys(server.backend for server in instance.checked()):
        algorithm = instance.algorithms.get(backend)
        if algorithm:
            yield _algorithm(backend, algorithm, None)


def _algorithm(backend: str, algorithm: str, consistent: bool | None) -> Finding:
    name = algorithm.partition("(")[0].partition(" ")[0]
    if name in DYNAMIC or (name in HASHED and consistent):
        return Finding("ok", f"{backend}: `balance {algorithm}` takes weights while HAProxy runs")
    if name in HASHED and consistent is None:
        return Finding(
            "unknown", f"{backend}: `balance {algorithm}` takes weights with `hash-type consistent` only; -f shows it"
        )
    if name == "first":
        return Finding("problem", f"{backend}: `balance first` heeds no weights: write `balance roundrobin`")
    also = ", or `hash-type consistent` beside it" if name in HASHED else ""
    return Finding(
        "problem",
        f"{backend}: `balance {algorithm}` is static, and HAProxy refuses weights ({REFUSAL}): "
        f"write `balance roundrobin`{also}",
    )


def _configuration(sections: list[Section], instance: Instance | None, user: User | None) -> Iterator[Finding]:
    process = Section(
        "global", "", [line for section in sections if section.kind == "global" for line in section.lines]
    )
    for word in ("external-check", "insecure-fork-wanted"):
        if process.last(word) is None:
            yield Finding("problem", f"`{word}` is missing in `global`: without it HAProxy runs no check")
        else:
            yield Finding("ok", f"`global` has `{word}`")
    if process.last("chroot"):
        yield Finding("problem", f"`chroot` hides the checks from HAProxy: {REMOVE_CHROOT}")
    sockets = [line for line in process.lines if line[:2] == ["stats", "socket"]]
    if not any(line[at : at + 2] == ["level", "admin"] for line in sockets for at in range(len(line))):
        yield Finding("problem", "no `stats socket … level admin` in `global`: a reweigh cannot set weights")
    user = user or _user(process)
    checked = [
        section
        for section in sections
        if section.kind in ("backend", "listen") and section.last("option", "external-check") is not None
    ]
    if not checked:
        yield Finding("problem", "no backend has `option external-check`, so nothing is measured")
    for section in checked:
        yield from _command(section, user)
        yield from _slow(section, instance)
        if len([line for line in section.lines if line[0] == "server"]) > 1:
            balance = section.last("balance") or ["roundrobin"]
            consistent = (section.last("hash-type") or [""])[0] == "consistent"
            yield _algorithm(section.name, balance[0], consistent)
    yield Finding(
        "unknown",
        "in the configuration, `.if` was not decided (all branches count), and SELinux or AppArmor were not looked at",
    )


def _user(process: Section) -> User | None:
    """The user that `global` names, or the one who asks."""
    name = (process.last("user") or process.last("uid") or [str(os.geteuid())])[0]
    group = (process.last("group") or process.last("gid") or [""])[0]
    return observe.user_named(name, group)


def _command(section: Section, user: User | None) -> Iterator[Finding]:
    command = (section.last("external-check", "command") or [""])[0]
    path = (section.last("external-check", "path") or [""])[0]
    program = shutil.which(command, mode=os.F_OK, path=path)
    if not command:
        yield Finding("problem", f"{section.name}: `external-check command` is missing")
    elif program is None:
        hint = "" if "/" in command else f" in the `external-check path` {path!r}: write its whole path, or set that"
        yield Finding("problem", f"{section.name}: there is no {command}{hint}")
    elif user is None:
        yield Finding("unknown", f"{section.name}: it is not known which user HAProxy runs {program} as")
    else:
        yield _executable(section.name, program, user)


def _slow(section: Section, instance: Instance | None) -> Iterator[Finding]:
    limit = configuration.check_limit(section)
    for server in instance.checked() if instance else ():
        seconds = server.check_seconds
        if server.backend == section.name and seconds and seconds > CLOSE * limit:
            yield Finding(
                "problem",
                f"the last check of {server.backend}/{server.name} took {seconds:g} s of the {limit:g} s that it may: "
                "a longer `inter`",
            )


def _executable(backend: str, program: str, user: User) -> Finding:
    for needed in filter(None, (program, _interpreter(program))):
        allowed = observe.may(user, "x", needed)
        if allowed is None:
            return Finding(
                "unknown", f"{backend}: only root sees whether HAProxy's user {user.name} may execute {program}"
            )
        if not allowed:
            return Finding(
                "problem",
                f"{backend}: HAProxy's user {user.name} cannot execute {_really(needed)}: `chmod a+x` it and every "
                "directory on the way, or install it elsewhere, such as in /opt",
            )
    return Finding("ok", f"{backend}: HAProxy's user {user.name} can execute {program}")


def _really(path: str) -> str:
    """The path, and what it leads to where it is a symbolic link, as a virtual environment's Python is."""
    target = os.path.realpath(path)
    return path if target == path else f"{path} ({target})"


def _interpreter(program: str) -> str | None:
    """The program that a script begins with, or None."""
    try:
        with open(program, "rb") as file:
            first = file.readline(256).decode(errors="replace")
    except OSError:
        return None
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    return words[0] if words else None
