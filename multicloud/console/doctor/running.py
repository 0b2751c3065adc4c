"""HAProxy's process: its socket, and what it and its user see of this machine and may do."""

import contextlib
import grp
import os
import re
from collections.abc import Iterator

from multicloud import settings
from multicloud.console.doctor import configuration
from multicloud.console.doctor.finding import Finding, can, ok, problem, unknown
from multicloud.console.instance import Case, User, cannot_append, let_in, may, proc
from multicloud.light import reason

UNCONFINED = ("", "unconfined", "kernel")  # what the kernel says of a process without SELinux's or AppArmor's profile
WAY = "`chmod a+x` each directory of the way"
MANY_FILES = 1_000_000  # with this soft limit a check costs 10 ms more than it should; with a billion none ends in time


def away(case: Case) -> Iterator[Finding]:
    """That no HAProxy answers, and what its configuration shows, which may be why."""
    address, section = case.values.socket, case.configuration.global_section()
    sockets = [line for line in section.lines if line[:2] == ["stats", "socket"] and len(line) > 2]
    there = [line[2].removeprefix("unix@") for line in sorted(sockets, key=lambda line: "admin" not in line)]
    if who := let_in(address):
        cure = f"Run this {who}"
    elif there and address not in there:
        name = f"write `socket = {there[0]}` into {case.sources.path}"
        if case.sources.where(settings.SOCKET) == settings.SOCKET.variable:
            name = f"set MULTICLOUD_SOCKET={there[0]}"
        start = "" if os.path.lexists(there[0]) else ", and start HAProxy"
        cure = f"HAProxy's configuration has its socket elsewhere: {name}{start}"
    elif there:
        cure = "HAProxy's configuration has it: start HAProxy"
    else:
        user = configuration.user_in(case.configuration, "haproxy")
        owner = "" if "/" not in address else f" {_let(user)}" if user else " mode 600"
        words = f"`stats socket {address}{owner} level admin`"
        cure = f"Put {words} into `global`, start HAProxy, or name its socket in MULTICLOUD_SOCKET"
    yield problem(f"{case.away} {cure}")
    if case.files:
        yield from configuration.programs(case)
        if not any("level admin" in " ".join(line) for line in sockets):
            yield problem("no `stats socket … level admin` in `global`: a reweigh cannot set weights")
    yield from configuration.look(case)


def _let(user: User) -> str:
    """Words of a `stats socket` line with which the user, who runs the reweigh, can open the socket."""
    with contextlib.suppress(KeyError):
        return f"user {user.name} group {grp.getgrgid(user.gid).gr_name} mode 660"
    return f"user {user.name} mode 660"


def answers(case: Case) -> Iterator[Finding]:
    """What answers at the socket, and whether it lets weights be set."""
    address, version, level = case.values.socket, case.version, case.level
    if version.partition("-")[0] == "3.4.0" and not case.values.backends:
        yield problem("HAProxy 3.4.0 crashes on external checks: upgrade to 3.4.1")
    else:
        yield ok(f"HAProxy {version} answers at {address}")
    if level == "admin":
        yield ok("its socket has the level admin")
    else:
        yield problem(
            f"the socket {address} has the level {level}, so that HAProxy refuses `set server`: "
            "write `level admin` at the end of its `stats socket` line"
        )


def permissions(case: Case) -> Iterator[Finding]:
    """Whether HAProxy's process and its user may do what external checks need; who runs none needs nothing."""
    user, times = case.user, case.values.times
    if user is None:
        yield unknown(f"HAProxy's process {case.pid} cannot be seen from here: nor what its user may do")
    elif case.forks:
        if case.external and "/" in case.values.socket:
            cure = f"so no reweigh can set weights: write `{_let(user)}` into its `stats socket` line, and {WAY}"
            yield can(user, "w", case.values.socket, "connect to the socket", cure)  # for which one must write
        yield from _surroundings(case.pid, os.path.dirname(os.path.abspath(times)))
        yield from _open_files(case.pid)
        if case.sources.path != os.devnull and os.path.exists(case.sources.path):
            yield from _settings_file(case.sources, user)
        yield _sample_file(times, user)
    yield from configuration.programs(case)


def _surroundings(pid: int, directory: str) -> Iterator[Finding]:
    """Whether HAProxy sees the same files as we do: no chroot, and the same directory of the sample file."""
    try:
        root = os.readlink(f"/proc/{pid}/root")
    except OSError:
        yield unknown("only root sees whether HAProxy runs in a chroot")
        return
    if root != "/":
        yield problem(f"HAProxy runs in the chroot {root}, where it finds no checks: {configuration.REMOVE_CHROOT}")
        return
    try:
        same = os.path.samestat(os.stat(directory), os.stat(f"/proc/{pid}/root{directory}"))
    except OSError as error:
        yield problem(f"the sample file's directory {directory}: {reason(error)}")
        return
    if same:
        yield ok("HAProxy sees the same files as this command, without a chroot")
    else:
        yield problem(
            f"HAProxy has a {directory} of its own (a container, or systemd's PrivateTmp), so its sample file is not "
            "the one here: run this inside of it, or name a file elsewhere in MULTICLOUD_TIMES"
        )
    profile = proc(pid, "attr/current").rstrip("\0\n").partition(" (")[0]
    if profile not in UNCONFINED:
        yield unknown(f"what SELinux or AppArmor let HAProxy do was not looked at: it runs under {profile}")


def _open_files(pid: int) -> Iterator[Finding]:
    """Before it starts a check, HAProxy closes every descriptor that it may have, one after the other."""
    match = re.search(r"^Max open files +(\d+)", proc(pid, "limits"), re.MULTILINE)
    if match and (limit := int(match[1])) >= MANY_FILES:
        yield problem(
            f"HAProxy's process may have {limit:,} files open, and before a check it closes each of these numbers: a "
            "million cost 10 ms. Write `maxconn 8000` into `global`, and start HAProxy with a soft limit of 1024: "
            "`LimitNOFILE=1024:524288` in its unit, or `ulimit -Sn 1024` before it"
        )


def _settings_file(sources: settings.Sources, user: User) -> Iterator[Finding]:
    """Whether HAProxy's user can read it, and the CA bundles that it names. HAProxy reads its own as root."""
    cure = f"so each check and reweigh ends with exit code 2: `chmod a+r {sources.path}`, and {WAY}"
    yield can(user, "r", sources.path, "read the settings file", cure)
    for written in sources.sections.values():
        path, number = written.get(settings.CA_FILE.name, ("", 0))
        if path and may(user, "r", path) is False:
            yield problem(
                f"HAProxy's user {user.name} cannot read {path} ({sources.path}:{number}: ca_file), so checks that "
                "verify a certificate end with exit code 2: is it there, and of mode 644?"
            )


def _sample_file(path: str, user: User) -> Finding:
    """Whether the user can write the file and, when it grows too long, shorten it."""
    if refused := cannot_append(user, path):
        return problem(refused)
    if may(user, "r", "/") is None:
        return unknown(f"only root sees whether HAProxy's user {user.name} can write {path}")
    if os.path.exists(path) and user.uid not in (0, os.stat(path).st_uid):
        return problem(
            f"HAProxy's user {user.name} can write the sample file {path}, but not shorten it, since it is somebody "
            f"else's: chown {user.name} {path}"
        )
    return ok(f"HAProxy's user {user.name} can write the sample file {path}")


def exposure(case: Case) -> Iterator[Finding]:
    """What explains nothing else: whether HAProxy runs as root."""
    if case.user and case.user.uid == 0:
        also = ", and each check with it" * case.forks
        fork = ", with `insecure-fork-wanted`" * case.forks
        lines = "`user haproxy` and `group haproxy` into `global`, and `user haproxy` on its `stats socket` line"
        yield problem(f"HAProxy runs as root{also}: write {lines}{fork}, and `chown haproxy {case.values.times}`")
