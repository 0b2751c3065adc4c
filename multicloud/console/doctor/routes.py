"""The configuration: which way users' requests go to a server, and what on it lets weights count for nothing."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from multicloud.console import parser
from multicloud.console.doctor.case import problem, some, unknown
from multicloud.console.problems import LAST_RESORT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from multicloud.console.doctor.case import Case, Finding
    from multicloud.console.parser import Configuration, Section

TUNNEL = "1h"
"""How long a WebSocket may be silent, as `multicloud config` writes it."""

FIRST = "upstream"
"""The backend whose `choice` and `last-resort` bear no name; those of another one begin with its name."""

STICKY = {"cookie": "`maxidle 10m maxlife 1h`", "stick": "`expire 10m` of its table"}
"""What keeps users with a server whatever its weight is, and what lets them go in time."""

ALONE = re.compile(r"(if|unless) \{ (method|nbsrv\(\S*\)) [^{}]*\}")
"""The conditions of an application that has a frontend to itself: by the method, or by how many servers it has left."""

ONCE_ONLY = ("frontend", "backend", "listen", "defaults", "resolvers")
"""The sections of which each name stands once."""


def look(case: Case, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """What is wrong on the way to the backends `routed`, by the files and by what the running HAProxy tells."""
    yield from _lists(case, routed)
    yield from _sticky(case, routed)
    if case.configuration is None:
        return
    yield from _targets(case.configuration)
    yield from _first_rules(case.configuration, routed)
    kind = unknown if case.configuration.undecided else problem  # of two branches one may not count
    yield from map(kind, _twice(case.configuration))


def _companions(backend: str) -> list[str]:
    """The names of the backends that have the same servers for other requests."""
    own = "" if backend == FIRST else f"{backend}-"
    return [f"{backend}-once", f"{own}choice", f"{own}{LAST_RESORT}"]


def _lists(case: Case, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether the lists of servers differ that `multicloud config` writes alike."""
    keys = [server.key for server in case.instance.servers] or (case.configuration.lines if case.configuration else ())
    lists: dict[str, set[str]] = {}
    for name, server in keys:
        lists.setdefault(name, set()).add(server)
    for backend in routed:
        for companion in _companions(backend):
            here, there = lists.get(backend, set()), lists.get(companion, set())
            if here & there and (differing := here ^ there):  # with none in common it is for something else
                yield problem(
                    f"{backend} and {companion} have not the same servers: {some(sorted(differing))} stands in one of "
                    "them only: write the same names into both"
                )


def _sticky(case: Case, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether users stay with a server whatever its weight is."""
    for backend, section in routed.items():
        stick = section is not None and any(line[0] == "stick" for line in section.lines)
        for word in ["cookie"] * (backend in case.instance.sticky) + ["stick"] * stick:
            yield unknown(
                f"{backend}: `{word}` keeps users with their server, also one of weight 0, so it is not known how many "
                f"go where the weights say; to have them follow the weights, remove it, or let it end: {STICKY[word]}"
            )


def tunnels(routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether connections that stay are cut like requests that get no answer."""
    cut: dict[str, list[str]] = {}
    for section in filter(None, routed.values()):
        patience = section.first_word("timeout", "server")
        if patience and section.last("timeout", "tunnel") is None:
            cut.setdefault(patience, []).append(section.name)
    for patience, names in cut.items():
        yield problem(
            f"{some(names)}: a WebSocket, or a connection in mode tcp, is cut when it is silent for {patience}, as "
            f"`timeout server` says: write `timeout tunnel {TUNNEL}` beside it"
        )


def _drops_hosts(section: Section) -> bool:
    return any(line[:2] == ["http-request", "set-uri"] for line in section.lines)


def _denies_connect(section: Section) -> bool:
    rules = [line for line in section.lines if line[:2] == ["http-request", "deny"] or line[0] == "acl"]
    return any("CONNECT" in word or word == "method" for line in rules for word in line)


GUARDS = (
    (
        _drops_hosts,
        "`GET http://other.example.com/` reaches that host at a region, past `http-send-name-header Host`: write "
        "`http-request set-uri %[pathq] if { url -m beg -i http:// https:// }`",
    ),
    (
        _denies_connect,
        "CONNECT is handed on to the regions: write `http-request deny deny_status 405 if METH_CONNECT`",
    ),
)


def _targets(configuration: Configuration) -> Iterator[Finding]:
    """Whether a request can name another host than the one that `http-send-name-header` writes (RFC 9112, 3.2)."""
    frontends = [each for each in configuration.sections if each.kind == "frontend"]
    named = [each for each in configuration.proxies() if each.first_word("http-send-name-header") == "Host"]
    for is_guarded, text in GUARDS:
        bare = []
        for section in named:
            leads = ["use_backend", section.name], ["default_backend", section.name]
            before = [each for each in frontends if any(line[:2] in leads for line in each.lines)]
            if not is_guarded(section) and not (before and all(map(is_guarded, before))):
                bare.append(section.name)
        if bare:
            yield problem(f"{some(bare)}: {text} into the backend or its frontend")


def _first_rules(configuration: Configuration, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether a rule for an application takes the requests that a later rule is for."""
    application = {each: name for name in routed for each in (name, *_companions(name))}
    for section in configuration.sections:
        rules = [line for line in section.lines if line[0] == "use_backend" and len(line) > 1]
        for number, (_, name, *condition) in enumerate(rules):
            general = not condition or ALONE.fullmatch(" ".join(condition))
            ours = application.get(name, "")
            later = next((line[1] for line in rules[number:] if application.get(line[1]) != ours), "")
            if ours and general and later:
                yield problem(
                    f"{section.name}: `{' '.join(rules[number])}` stands above `use_backend {later} …` and takes its "
                    f"requests: write it below, with the condition that a request is for {ours}"
                )
                break


def _twice(configuration: Configuration) -> Iterator[str]:
    """Whether two sections listen at one address, which share its connections, or have one name."""
    places: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for section in configuration.sections:
        name = f"{section.kind} {section.name}"
        if section.kind in ONCE_ONLY and section.name:
            counts[name] = counts.get(name, 0) + 1
        for _, addresses, *words in [line for line in section.lines if line[0] == "bind" and len(line) > 1]:
            only = "".join(parser.value(words, word) for word in ("interface", "namespace"))
            for address in addresses.split(","):
                place = re.sub(r"^(ipv4@)?(\*|0\.0\.0\.0)?:", "port ", address) + only
                places.setdefault(place, []).append(name)
    for place, names in places.items():
        if len(set(names)) > 1:
            yield (
                f"{' and '.join(dict.fromkeys(names))} listen at {place}, and each gets a part of its connections: "
                "give one of them another port"
            )
    for name in [name for name, count in counts.items() if count > 1]:
        yield (f"`{name}` stands {counts[name]} times in the configuration: leave out all but one")
