"""HAProxy's configuration: what external checks and weights need in it."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

from multicloud.console import parser
from multicloud.console.doctor.finding import CHECKS, checks_of, ok, problem, some, unknown
from multicloud.console.doctor.running import REMOVE_CHROOT
from multicloud.console.instance import REWEIGH_SERVER, may, user_named
from multicloud.console.problems import REWEIGH

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance, User
    from multicloud.console.parser import Configuration, Section

DYNAMIC = ("roundrobin", "leastconn", "random")
"""The balance algorithms under which a weight counts and can be set while HAProxy runs."""

HASHED = ("source", "uri", "url_param", "hdr", "rdp-cookie", "hash", "log-hash")
"""Those under which it can be set with `hash-type consistent` only."""

REFUSAL = "Backend is using a static LB algorithm and only accepts weights '0%' and '100%'."

CLOSE = 0.8
"""The part of its time limit that a check may take before it is too slow."""


def algorithms(instance: Instance, beside: Sequence[str]) -> Iterator[Finding]:
    """The balance algorithms that HAProxy tells, which does not tell whether a hash is a consistent one."""
    if instance.level == "user":
        yield unknown("a socket of level user does not show the balance algorithms")
    for backend in dict.fromkeys(server.backend for server in instance.checked() + instance.own_checked(beside)):
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
        f"write `balance roundrobin`{also}",
        REWEIGH,
    )


def backends(
    found: Configuration, instance: Instance | None, user: User | None, beside: Sequence[str]
) -> Iterator[Finding]:
    """`global`, and each backend whose servers have external checks, or are measured by `multicloud run` (`beside`)."""
    process = found.process()
    checked = [section for section in found.proxies() if section.last("option", "external-check") is not None]
    if checked or not beside:
        yield from _forks(process)
    sockets = [line for line in process.lines if line[:2] == ["stats", "socket"]]
    admin = any(line[at : at + 2] == ["level", "admin"] for line in sockets for at in range(len(line)))
    if not admin and (instance is None or instance.level == "admin"):  # else the running one has been told
        yield problem("no `stats socket … level admin` in `global`: a reweigh cannot set weights", REWEIGH)
    user = user or _user(process)
    if not checked and not beside:
        yield problem("no backend has `option external-check`, so nothing is measured")
    for section in checked:
        yield from _command(section, user)
        yield from _slow(section, instance)
        yield from _hasty(section)
    for section in found.proxies():
        weighed = section in checked or (section.kind == "backend" and section.name in beside)
        if weighed and len([line for line in section.lines if line[0] == "server"]) > 1:
            balance = section.last("balance") or ["roundrobin"]
            consistent = (section.last("hash-type") or [""])[0] == "consistent"
            yield _algorithm(section.name, balance[0], consistent)
    if found.undecided:
        conditions = some([f"`{condition}`" for condition in dict.fromkeys(found.undecided)])
        yield unknown(f"it was not decided which branches of the configuration count, so all do here: {conditions}")


def _forks(process: Section) -> Iterator[Finding]:
    """Whether `global` lets HAProxy run programs."""
    for word in ("external-check", "insecure-fork-wanted"):
        if process.last(word) is None:
            yield problem(f"`{word}` is missing in `global`: without it HAProxy runs no check", CHECKS)
        else:
            yield ok(f"`global` has `{word}`")
    if (process.last("chroot") or ["/"])[0] != "/":
        yield problem(f"`chroot` hides the checks from HAProxy: {REMOVE_CHROOT}", CHECKS)


def _user(process: Section) -> User | None:
    """The user that `global` names, or the one who asks."""
    name = (process.last("user") or process.last("uid") or [str(os.geteuid())])[0]
    group = (process.last("group") or process.last("gid") or [""])[0]
    return user_named(name, group)


def _command(section: Section, user: User | None) -> Iterator[Finding]:
    command = (section.last("external-check", "command") or [""])[0]
    path = (section.last("external-check", "path") or [""])[0]
    program = shutil.which(command, mode=os.F_OK, path=path)
    if not command:
        yield problem(f"{section.name}: `external-check command` is missing", *_consequences(section))
    elif program is None:
        hint = "" if "/" in command else f" in the `external-check path` {path!r}: write its whole path, or set that"
        yield problem(f"{section.name}: there is no {command}{hint}", *_consequences(section))
    elif user is None:
        yield unknown(f"{section.name}: it is not known which user HAProxy runs {program} as")
    else:
        yield _executable(section, program, user)


def _slow(section: Section, instance: Instance | None) -> Iterator[Finding]:
    limits = parser.check_limits(section)
    for server in instance.checked() if instance else ():
        limit, seconds = limits.get(server.name), server.check_seconds
        if server.backend == section.name and limit and seconds and seconds > CLOSE * limit:
            yield problem(
                f"the last check of {server.backend}/{server.name} took {seconds:g} s of the {limit:g} s that it may: "
                "a longer `inter`"
            )


def _hasty(section: Section) -> Iterator[Finding]:
    """Whether HAProxy keeps to `fastinter`, as it does with external checks once `observe` has seen errors."""
    for name, words in parser.options(section).items():
        if {"check", "fastinter", "observe"} <= {*words}:
            yield problem(
                f"{section.name}/{name}: `fastinter` beside `observe`: after an outage HAProxy checks that often "
                "until it is restarted (2.6 crashes); take `fastinter` out"
            )


def _consequences(section: Section) -> list[str]:
    """What follows where a backend's command cannot be started."""
    reweighs = any(line[:2] == ["server", REWEIGH_SERVER] for line in section.lines)
    return [checks_of(section.name), *([REWEIGH] if reweighs else [])]


def _executable(section: Section, program: str, user: User) -> Finding:
    backend = section.name
    for needed in filter(None, (program, _interpreter(program))):
        allowed = may(user, "x", needed)
        if allowed is None:
            return unknown(f"{backend}: only root sees whether HAProxy's user {user.name} may execute {program}")
        if not allowed:
            return problem(
                f"{backend}: HAProxy's user {user.name} cannot execute {_really(needed)}: `chmod a+x` it and every "
                "directory on the way, or install it elsewhere, such as in /opt",
                *_consequences(section),
            )
    return ok(f"{backend}: HAProxy's user {user.name} can execute {program}")


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
