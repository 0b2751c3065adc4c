"""The configuration: who measures each backend, what checks and weights need in it, and which way requests go."""

import contextlib
import grp
import os
import pwd
import shutil
from collections.abc import Iterator, Sequence

from multicloud import run, runtime, settings
from multicloud.console import config, parser
from multicloud.console.doctor import routes
from multicloud.console.doctor.finding import Finding, can, ok, problem, some, unknown
from multicloud.console.instance import EXTERNAL, PASSED, REWEIGH_SERVER, Case, User
from multicloud.console.parser import Configuration, Section
from multicloud.light import UsageError
from multicloud.runtime import MAINT, Server

REMOVE_CHROOT = "remove `chroot` from `global` (from HAProxy 3.4 on, write `chroot /`, without which it warns)"
DYNAMIC = ("roundrobin", "leastconn", "random")  # under these a weight counts, and can be set while HAProxy runs
HASHED = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash", "log-hash")  # with `hash-type consistent` only
REFUSAL = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."


def look(case: Case) -> Iterator[Finding]:
    """Who measures the servers, and whether the files, or what HAProxy tells of them, have what that needs."""
    for path in case.files:
        try:
            if command := config.outdated(path, case.files, case.sources, case.version):
                cure = f"run `{command}`, and reload HAProxy"
                yield problem(f"{path} is not what would be written for these settings now: {cure}")
        except UsageError as error:
            yield unknown(f"{path} was not held against its settings: {error}")
    yield from _measured(case)
    sections = routed(case)
    for name, section in sections.items():
        yield from _algorithm(name, section, case.algorithms.get(name, ""))
    if not case.files:
        yield unknown("the configuration was not looked at: name it with -f haproxy.cfg")
        return
    yield from routes.look(case, sections)
    if checked_sections(case):
        yield from _forks(case)
    if case.configuration.undecided:
        conditions = some([f"`{condition}`" for condition in dict.fromkeys(case.configuration.undecided)])
        yield unknown(f"it was not decided which branches of the configuration count, so all do here: {conditions}")


def _measured(case: Case) -> Iterator[Finding]:
    """Who takes the checks of each backend as samples: external checks do it themselves."""
    backends = case.values.backends
    stopped = run.unmeasured(case.servers, backends) if case.servers else {}
    yield from map(problem, stopped.values())
    said = {name for (name, _), words in case.configuration.lines.items() if {"check", "no-check"} & {*words}}
    idle = [each.name for each in checked_sections(case) if each.name not in said]
    for name in idle:
        yield problem(f"{name} has `option external-check`, but no server of it has `check`: write that on its line")
    if not (backends or idle or case.checked or (case.away and checked_sections(case))):
        yield from _by_nobody(case)
        return
    for name, members in runtime.by_backend(case.servers).items():
        if name not in idle and run.BACKEND + name not in stopped:
            yield _how_measured(name, members, case)


def _by_nobody(case: Case) -> Iterator[Finding]:
    own = list(dict.fromkeys(server.backend for server in case.own))
    others = [server for server in case.servers if server.name != REWEIGH_SERVER]
    if case.away and case.files:
        yield problem("no backend has `option external-check`, so nothing is measured")
    elif own:
        yield problem(
            f"HAProxy checks the servers of {some(own)} by itself, and nobody takes that as samples: write "
            f"`backends = {','.join(own)}` into {case.sources.path} and start multicloud-run, or give them external "
            "checks"
        )
    elif others and not any(each.check or each.state == MAINT for each in others):
        yield problem(
            "no server has an external check: write `option external-check` and `external-check command "
            "multicloud-check` into its backend, and `check` on its line"
        )


def _how_measured(name: str, members: Sequence[Server], case: Case) -> Finding:
    if name in case.foreign:
        return unknown(
            f"{name}: its external checks have never left a sample in {case.values.times}, so nothing else of it was "
            "looked at: they are another program's, or have another `times`"
        )
    tracked = members[0].source[0]
    ways = (
        (any(server.name == REWEIGH_SERVER for server in members), "its check sets the weights"),
        (tracked != name, f"measured with {tracked}, whose servers its own track"),
        (any(server.check.startswith(EXTERNAL) for server in members), "measured by external checks"),
        (name in case.values.backends, "measured by HAProxy's own checks, for `multicloud run`"),
    )
    if way := next((text for holds, text in ways if holds), ""):
        return ok(f"{name}: {way}")
    way = "not measured, since HAProxy does not check it"
    if any(server.check for server in members):
        way = "not measured, since HAProxy checks it by itself and `backends` does not name it"
    if settings.SERVERS.name not in case.sources.sections.get(name, ()):
        return ok(f"{name}: {way}")
    path = case.sources.path
    return problem(
        f"{name}: {way}, although {path} has its servers: write it into `backends`, or run `multicloud config`"
    )


def ours(configuration: Configuration) -> set[str]:
    """The proxies whose external checks are multicloud-check, by their commands, as far as these are seen.

    The command is it, or a script that names it; one that cannot be read may be.
    """
    programs = {each.name: _program(each) or "" for each in configuration.proxies()}
    mark = b"multicloud"
    return {name for name, path in programs.items() if mark in path.encode() + (_begin(path, 1 << 16) or mark)}


def _program(section: Section) -> str | None:
    command, path = (section.first_word("external-check", word) for word in ("command", "path"))
    return shutil.which(command, mode=os.F_OK, path=path)


def routed(case: Case) -> dict[str, Section | None]:
    """The backends that are measured, and their sections in the configuration, as far as it is known."""
    sections: dict[str, Section | None] = dict.fromkeys(each.backend for each in case.checked + case.own_checked)
    names = {*sections, *case.values.backends}
    names |= {each.name for each in checked_sections(case) if list(parser.options(each)) != [REWEIGH_SERVER]}
    return sections | {each.name: each for each in case.configuration.proxies() if each.name in names}


def _algorithm(name: str, section: Section | None, told: str) -> Iterator[Finding]:
    """Whether weights count under the balance algorithm that HAProxy has told, but not whether a hash is consistent."""
    if section:
        told = told.replace("unknown", "") or (section.last("balance") or ["roundrobin"])[0]
        if len(parser.options(section)) < 2:
            return
    algorithm = told.partition("(")[0].partition(" ")[0]
    consistent = section is not None and section.first_word("hash-type") == "consistent"
    if told == "unknown":  # so HAProxy 3.3 calls its default
        yield unknown(f"{name}: HAProxy does not name its balance algorithm; -f shows it")
    elif algorithm in DYNAMIC or (algorithm in HASHED and consistent):
        better = "" if algorithm == "random" else "; where servers share, `balance random(2)` spreads requests better"
        yield ok(f"{name}: `balance {told}` takes weights while HAProxy runs{better}")
    elif algorithm in HASHED and section is None:
        yield unknown(f"{name}: `balance {told}` takes weights with `hash-type consistent` only; -f shows it")
    elif algorithm == "first":
        yield problem(f"{name}: `balance first` heeds no weights: write `balance random(2)`")
    else:
        also = ", or `hash-type consistent` beside it" if algorithm in HASHED else ""
        yield problem(
            f"{name}: `balance {told}` is static, and HAProxy refuses weights ({REFUSAL}): "
            f"write `balance random(2)`{also}"
        )


def checked_sections(case: Case) -> list[Section]:
    """The proxies whose servers have external checks that are ours."""
    ours = [each for each in case.configuration.proxies() if each.last("option", "external-check") is not None]
    foreign = case.foreign
    return [each for each in ours if each.name not in foreign]


def _forks(case: Case) -> Iterator[Finding]:
    """Whether `global` lets HAProxy run programs, unless it is seen to do so: as root it needs no leave."""
    section = case.configuration.global_section()
    if any(server.check == PASSED for server in case.servers):
        yield ok("HAProxy runs the checks")
        return
    for word in ("external-check", "insecure-fork-wanted"):
        if section.last(word) is None:
            yield problem(f"`{word}` is missing in `global`, without which HAProxy runs no check: write it there")
    if section.first_word("chroot") not in ("", "/"):
        yield problem(f"`chroot` hides the checks from HAProxy: {REMOVE_CHROOT}")


def user_in(configuration: Configuration, otherwise: str) -> User | None:
    """The user that `global` names, by name or number, or else another one; None where there is no such user."""
    section = configuration.global_section()
    user = section.first_word("user") or section.first_word("uid") or otherwise
    group = section.first_word("group") or section.first_word("gid")
    try:
        entry = pwd.getpwuid(int(user)) if user.isdecimal() else pwd.getpwnam(user)
        gid = int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid if group else entry.pw_gid
    except (KeyError, ValueError):
        return None
    return User(entry.pw_name, entry.pw_uid, gid, ())


def programs(case: Case) -> Iterator[Finding]:
    """Whether HAProxy's user can execute the commands of the external checks."""
    user = case.user or user_in(case.configuration, str(os.geteuid()))
    for section in checked_sections(case):
        command, path = (section.first_word("external-check", word) for word in ("command", "path"))
        program = _program(section)
        if not command:
            yield problem(f"{section.name}: `external-check command` is missing")
        elif program is None:
            where = f" in the `external-check path` {path!r}: write its whole path, or set that" * ("/" not in command)
            yield problem(f"{section.name}: there is no {command}{where}")
        elif user is None:
            yield unknown(f"{section.name}: it is not known which user HAProxy runs {program} as")
        else:
            yield _executable(section.name, program, user)


def _executable(backend: str, program: str, user: User) -> Finding:
    """Whether the user can execute a command, and what that begins with where it is a script."""
    cure = "so no check runs: `chmod a+x` it and every directory on the way, or install it elsewhere, such as in /opt"
    first = _begin(program, 256).partition(b"\n")[0].decode(errors="replace")
    interpreter = first.removeprefix("#!").split()[:1] if first.startswith("#!") else []
    for needed in (*interpreter, program):
        target = os.path.realpath(needed)  # where it is a symbolic link, as a virtual environment's Python is
        finding = can(user, "x", needed, "execute", f"which is {target}, {cure}" if target != needed else cure)
        if finding.kind != "ok":
            break
    return finding._replace(text=f"{backend}: {finding.text}")


def _begin(program: str, size: int) -> bytes:
    """The first bytes of a file; none where it cannot be read."""
    with contextlib.suppress(OSError), open(program, "rb") as file:
        return file.read(size)
    return b""
