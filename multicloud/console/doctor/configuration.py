"""The configuration: who measures the servers, and what external checks, weights and users need in it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from multicloud import run
from multicloud.console import parser
from multicloud.console.doctor.case import can, ok, problem, some, unknown
from multicloud.console.instance import REWEIGH_SERVER, user_named
from multicloud.runtime import MAINT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.doctor.case import Case, Finding
    from multicloud.console.instance import User
    from multicloud.console.parser import Configuration, Section

REMOVE_CHROOT = "remove `chroot` from `global` (from HAProxy 3.4 on, write `chroot /`, without which it warns)"

DYNAMIC = ("roundrobin", "leastconn", "random")
"""The balance algorithms under which a weight counts and can be set while HAProxy runs."""

HASHED = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash", "log-hash")
"""Those under which it can be set with `hash-type consistent` only."""

REFUSAL = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."

TUNNEL = "1h"
"""How long a WebSocket may be silent, as `multicloud config` writes it."""


def look(case: Case) -> Iterator[Finding]:
    """Who measures the servers, and what the files say or, without them, what HAProxy tells of its algorithms."""
    yield from _measured(case)
    if case.configuration is None:
        yield from _running_algorithms(case)
        yield unknown("the configuration was not looked at: name it with -f haproxy.cfg")
        return
    section, proxies = case.configuration.global_section(), case.configuration.proxies()
    checked = checked_sections(case.configuration)
    beside = [each for each in proxies if each.kind == "backend" and each.name in case.values.backends]
    if checked:
        yield from _forks(section)
    sockets = [line for line in section.lines if line[:2] == ["stats", "socket"]]
    if not any(line[at : at + 2] == ["level", "admin"] for line in sockets for at in range(len(line))):
        yield problem("no `stats socket … level admin` in `global`: a reweigh cannot set weights")
    if case.away and not checked and not case.values.backends:
        yield problem("no backend has `option external-check`, so nothing is measured")
    for each in checked:
        yield from _hasty(each)
    routed = [each for each in proxies if each in beside or (each in checked and not _is_reweigh(each))]
    for each in routed:
        if len(parser.options(each)) > 1:
            balance = each.last("balance") or ["roundrobin"]
            yield _algorithm(each.name, balance[0], each.first_word("hash-type") == "consistent")
    yield from _tunnels(routed)
    yield from _targets(case.configuration)
    if case.configuration.undecided:
        conditions = some([f"`{condition}`" for condition in dict.fromkeys(case.configuration.undecided)])
        yield unknown(f"it was not decided which branches of the configuration count, so all do here: {conditions}")


def _measured(case: Case) -> Iterator[Finding]:
    """Whether anybody takes the checks of the running HAProxy as samples: external ones do it themselves."""
    instance, backends = case.instance, case.values.backends
    for text in run.unmeasured(instance.servers, backends).values() if instance.servers else ():
        yield problem(text)
    if backends or instance.checked():
        return
    own = list(dict.fromkeys(server.backend for server in instance.own_checked()))
    if own:
        yield problem(
            f"HAProxy checks the servers of {some(own)} by itself, and nobody takes that as samples: write "
            f"`backends = {','.join(own)}` into {case.sources.path} and start multicloud-run, or give them external "
            "checks"
        )
    elif instance.servers and not any(server.check or server.state == MAINT for server in instance.servers):
        yield problem(
            "no server has an external check: write `option external-check` and `external-check command "
            "multicloud-check` into its backend, and `check` on its line"
        )


def _running_algorithms(case: Case) -> Iterator[Finding]:
    """The balance algorithms that HAProxy tells, which does not tell whether a hash is a consistent one."""
    instance = case.instance
    if instance.level == "user":
        yield unknown("a socket of level user does not show the balance algorithms")
    for backend in dict.fromkeys(
        each.backend for each in instance.checked() + instance.own_checked(case.values.backends)
    ):
        algorithm = instance.algorithms.get(backend)
        if algorithm == "unknown":  # so HAProxy 3.3 calls its default
            yield unknown(f"{backend}: HAProxy does not name its balance algorithm; -f shows it")
        elif algorithm:
            yield _algorithm(backend, algorithm, None)


def _algorithm(backend: str, algorithm: str, consistent: bool | None) -> Finding:
    name = algorithm.partition("(")[0].partition(" ")[0]
    if name in DYNAMIC or (name in HASHED and consistent):
        return ok(f"{backend}: `balance {algorithm}` takes weights while HAProxy runs")
    if name in HASHED and consistent is None:
        return unknown(f"{backend}: `balance {algorithm}` takes weights with `hash-type consistent` only; -f shows it")
    if name == "first":
        return problem(f"{backend}: `balance first` heeds no weights: write `balance roundrobin`")
    also = ", or `hash-type consistent` beside it" if name in HASHED else ""
    return problem(
        f"{backend}: `balance {algorithm}` is static, and HAProxy refuses weights ({REFUSAL}): "
        f"write `balance roundrobin`{also}"
    )


def checked_sections(configuration: Configuration) -> list[Section]:
    """The proxies whose servers have external checks."""
    return [each for each in configuration.proxies() if each.last("option", "external-check") is not None]


def _is_reweigh(section: Section) -> bool:
    return list(parser.options(section)) == [REWEIGH_SERVER]


def _forks(section: Section) -> Iterator[Finding]:
    """Whether `global` lets HAProxy run programs."""
    for word in ("external-check", "insecure-fork-wanted"):
        if section.last(word) is None:
            yield problem(f"`{word}` is missing in `global`, without which HAProxy runs no check: write it there")
        else:
            yield ok(f"`global` has `{word}`")
    if section.first_word("chroot") not in ("", "/"):
        yield problem(f"`chroot` hides the checks from HAProxy: {REMOVE_CHROOT}")


def _hasty(section: Section) -> Iterator[Finding]:
    """Whether HAProxy keeps to `fastinter`, as it does with external checks once `observe` has seen errors."""
    for name, words in parser.options(section).items():
        if {"check", "fastinter", "observe"} <= {*words}:
            yield problem(
                f"{section.name}/{name}: `fastinter` beside `observe`: after an outage HAProxy checks that often "
                "until it is restarted (2.6 crashes); take `fastinter` out"
            )


def _tunnels(sections: Sequence[Section]) -> Iterator[Finding]:
    """Whether connections that stay are cut like requests that get no answer."""
    cut: dict[str, list[str]] = {}
    for section in sections:
        patience = section.first_word("timeout", "server")
        if patience and section.last("timeout", "tunnel") is None:
            cut.setdefault(patience, []).append(section.name)
    for patience, names in cut.items():
        yield problem(
            f"{some(names)}: a WebSocket, or a connection in mode tcp, is cut when it is silent for {patience}, as "
            f"`timeout server` says: write `timeout tunnel {TUNNEL}` beside it"
        )


def _targets(configuration: Configuration) -> Iterator[Finding]:
    """Whether a request can name another host than the one that `http-send-name-header` writes (RFC 9112, 3.2)."""
    frontends = [each for each in configuration.sections if each.kind == "frontend"]
    whole: list[str] = []
    connect: list[str] = []
    for section in configuration.proxies():
        if section.first_word("http-send-name-header") == "Host":
            leads = ["use_backend", section.name], ["default_backend", section.name]
            places = [section], [each for each in frontends if any(line[:2] in leads for line in each.lines)]
            if not any(each and all(map(_drops_hosts, each)) for each in places):
                whole.append(section.name)
            if not any(each and all(map(_denies_connect, each)) for each in places):
                connect.append(section.name)
    if whole:
        yield problem(
            f"{some(whole)}: `GET http://other.example.com/` reaches that host at a region, past "
            "`http-send-name-header Host`: write `http-request set-uri %[pathq] if { url -m beg -i http:// https:// }` "
            "into the backend or its frontend"
        )
    if connect:
        yield problem(
            f"{some(connect)}: CONNECT is handed on to the regions: write `http-request deny deny_status 405 if "
            "METH_CONNECT` into the backend or its frontend"
        )


def _drops_hosts(section: Section) -> bool:
    return any(line[:2] == ["http-request", "set-uri"] for line in section.lines)


def _denies_connect(section: Section) -> bool:
    rules = [line for line in section.lines if line[:2] == ["http-request", "deny"] or line[0] == "acl"]
    return any("CONNECT" in word or word == "method" for line in rules for word in line)


def user_in(configuration: Configuration) -> User | None:
    """The user that `global` names, or the one who asks."""
    section = configuration.global_section()
    name = section.first_word("user") or section.first_word("uid") or str(os.geteuid())
    return user_named(name, section.first_word("group") or section.first_word("gid"))


def programs(case: Case, user: User | None) -> Iterator[Finding]:
    """Whether the user can execute the commands of the external checks."""
    for section in checked_sections(case.configuration) if case.configuration else ():
        command, path = (section.first_word("external-check", word) for word in ("command", "path"))
        program = shutil.which(command, mode=os.F_OK, path=path)
        if not command:
            yield problem(f"{section.name}: `external-check command` is missing")
        elif program is None:
            hint = (
                "" if "/" in command else f" in the `external-check path` {path!r}: write its whole path, or set that"
            )
            yield problem(f"{section.name}: there is no {command}{hint}")
        elif user is None:
            yield unknown(f"{section.name}: it is not known which user HAProxy runs {program} as")
        else:
            yield _executable(section.name, program, user)


def _executable(backend: str, program: str, user: User) -> Finding:
    """Whether the user can execute a command, and what that begins with where it is a script."""
    cure = "so no check runs: `chmod a+x` it and every directory on the way, or install it elsewhere, such as in /opt"
    for needed in filter(None, (_interpreter(program), program)):
        target = os.path.realpath(needed)  # where it is a symbolic link, as a virtual environment's Python is
        finding = can(user, "x", needed, "execute", f"which is {target}, {cure}" if target != needed else cure)
        if finding.kind != "ok":
            break
    return finding._replace(text=f"{backend}: {finding.text}")


def _interpreter(program: str) -> str | None:
    """The program that a script begins with, or None."""
    try:
        with open(program, "rb") as file:
            first = file.readline(256).decode(errors="replace")
    except OSError:
        return None
    words = first.removeprefix("#!").split() if first.startswith("#!") else []
    return words[0] if words else None
