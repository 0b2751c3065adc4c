"""The settings: where each comes from, whose the sections of the file are, and whether HAProxy's user can read it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from multicloud import settings
from multicloud.console.doctor.finding import CHECKS, checks_of, ok, problem, some, unknown
from multicloud.console.instance import may
from multicloud.console.problems import REWEIGH, SAMPLES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance, User
    from multicloud.settings import Sources


def read_all(sources: Sources) -> None:
    """Read every value, also what the environment overrides in the file. Raises SettingError."""
    alone = settings.Sources({settings.CONF: sources.environ.get(settings.CONF, "")})
    for each in (sources, alone):
        for section in each.sections:
            backend, _, server = section.partition("/")
            each.read(settings.CHECK if server else settings.ALL, section, backend)


def settings_file(sources: Sources, instance: Instance | None, user: User | None) -> Iterator[Finding]:
    """All about the settings."""
    yield from _values(sources)
    if instance is not None:
        yield from _nobodys(sources, instance)
    if user is not None and sources.path != os.devnull and os.path.exists(sources.path):
        yield from _readable(sources.path, user)
        yield from _authorities(sources, user)


def _authorities(sources: Sources, user: User) -> Iterator[Finding]:
    """CA bundles that the file names. HAProxy itself reads its own as root, but the checks are its user's."""
    for section, written in sources.sections.items():
        backend, _, server = section.partition("/")
        path = written.get(settings.CA_FILE.name, ("", 0))[0]
        if path and may(user, "r", path) is False:
            yield problem(
                f"HAProxy's user {user.name} cannot read {path} ({sources.path}:{written[settings.CA_FILE.name][1]}: "
                "ca_file), so checks that verify a certificate end with exit code 2: is it there, and of mode 644?",
                checks_of(backend, server) if section else CHECKS,
            )


def _values(sources: Sources) -> Iterator[Finding]:
    """A line for each section: what is written there, and what the environment says for all."""
    shown = []
    for setting in settings.ALL:
        where = sources.where(setting)
        if where != "default":
            shown.append(f"{setting.name} = {sources.text(setting)} ({where.removesuffix(f': {setting.name}')})")
    yield ok(f"settings: {', '.join(shown)}" if shown else "settings: all have their defaults")
    for section, written in sources.sections.items():
        if section and written:
            yield ok(f"settings of {section}: {', '.join(_written(sources, section, name) for name in written)}")


def _written(sources: Sources, section: str, name: str) -> str:
    text, number = sources.sections[section][name]
    setting = next(each for each in settings.ALL if each.name == name)
    where = sources.where(setting, section)
    overridden = f", but {where} wins here" if where == setting.variable else ""
    return f"{name} = {text} ({sources.path}:{number}{overridden})"


def _nobodys(sources: Sources, instance: Instance) -> Iterator[Finding]:
    backends: dict[str, list[str]] = {}
    for server in instance.servers:
        backends.setdefault(server.backend, []).append(server.name)
    for section in sources.sections:
        backend, _, name = section.partition("/")
        if section and backend not in backends:
            yield problem(
                f"{sources.path}: [{section}] names no backend of HAProxy's, so what stands there holds for nothing; "
                f"backends with servers: {some(list(backends))}"
            )
        elif name and name not in backends[backend]:
            yield problem(
                f"{sources.path}: [{section}] names no server of {backend}, so what stands there holds for nothing; "
                f"its servers: {some(backends[backend])}"
            )


def _readable(path: str, user: User) -> Iterator[Finding]:
    allowed = may(user, "r", path)
    if allowed is None:
        yield unknown(f"only root sees whether HAProxy's user {user.name} can read the settings file {path}")
    elif allowed:
        yield ok(f"HAProxy's user {user.name} can read the settings file")
    else:
        yield problem(
            f"HAProxy's user {user.name} cannot read the settings file {path}, so each check and reweigh ends with "
            f"exit code 2: `chmod a+r {path}`, and `chmod a+x` each directory of the way",
            *(CHECKS, REWEIGH, SAMPLES),
        )
