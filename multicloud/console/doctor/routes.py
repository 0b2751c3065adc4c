"""The configuration: which way users' requests go, and what on it lets weights count for nothing."""

import re
from collections.abc import Iterator, Mapping

from multicloud.console.doctor.finding import Finding, problem, some, unknown
from multicloud.console.instance import Case
from multicloud.console.parser import Configuration, Section

FIRST = "upstream"  # the backend whose `choice` and `last-resort` bear no name; those of others begin with theirs
# What keeps users with a server whatever its weight is; the word that lets them go in time, and how it is written.
STICKY = {"cookie": ("maxidle", "`maxidle 10m maxlife 1h`"), "stick": ("expire", "`expire 10m` of its table")}
# The conditions of an application that has a frontend to itself: by the method, or by how many servers it has left.
ALONE = re.compile(r"(if|unless) \{ (method|nbsrv\(\S*\)) [^{}]*\}")


def look(case: Case, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """What is wrong on the way to the backends `routed`, by the files."""
    yield from _lists(case, routed)
    yield from _sticky(routed)
    yield from _first_rules(case.configuration, routed)
    yield from _unused(case.configuration, routed)
    kind = unknown if case.configuration.undecided else problem  # of two branches one may not count
    yield from map(kind, case.configuration.twice())


def _companions(backend: str) -> list[str]:
    """The names of the backends that have the same servers for other requests."""
    own = "" if backend == FIRST else f"{backend}-"
    return [f"{backend}-once", f"{own}choice", f"{own}last-resort"]


def _lists(case: Case, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether the lists of servers differ that `multicloud config` writes alike."""
    lists: dict[str, set[str]] = {}
    for name, server in [server.key for server in case.servers] or case.configuration.lines:
        lists.setdefault(name, set()).add(server)
    for backend in routed:
        for companion in _companions(backend):
            here, there = lists.get(backend, set()), lists.get(companion, set())
            if here & there and (differing := here ^ there):  # with none in common it is for something else
                yield problem(
                    f"{backend} and {companion} have not the same servers: {some(sorted(differing))} stands in one of "
                    "them only: write the same names into both"
                )


def _sticky(routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    for backend, section in routed.items():
        lines = section.lines if section else []
        for word, (ends, end) in STICKY.items():
            if any(line[0] == word for line in lines) and not any(ends in line for line in lines):
                yield unknown(
                    f"{backend}: `{word}` keeps users with their server, also one of weight 0, so it is not known how "
                    f"many go where the weights say; to have them follow, remove it, or let it end: {end}"
                )


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


def _unused(configuration: Configuration, routed: Mapping[str, Section | None]) -> Iterator[Finding]:
    """Whether no frontend leads to a backend, or to those of its servers for other requests, by a name that is seen."""
    sections = configuration.sections
    leads = {line[1] for each in sections for line in each.lines if line[0].endswith("_backend") and len(line) > 1}
    backends = {section.name for section in sections if section.kind == "backend"}
    if any("%" in name for name in leads):  # a name that the request decides
        return
    for backend in [name for name in routed if name in backends]:
        own = [name for name in (backend, *_companions(backend)) if name in backends]
        if missing := [name for name in own if name not in leads]:
            yield unknown(
                f"no frontend of these files leads to {' and '.join(missing)}: yours needs the `use_backend` lines "
                "that `multicloud config` writes, for `bind = none` in a comment"
            )
