"""What usually goes wrong around the router, and how to mend it. It changes nothing.

Each module looks at one thing and says what it found. Causes are looked for first: what follows from one that was found
is left out, since it would lead astray.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from multicloud import runtime, settings
from multicloud.console import parser
from multicloud.console.doctor.agents import agents
from multicloud.console.doctor.backends import algorithms, backends
from multicloud.console.doctor.beside import own_checks
from multicloud.console.doctor.certificates import certificates
from multicloud.console.doctor.checks import checks
from multicloud.console.doctor.file import read_all, settings_file
from multicloud.console.doctor.finding import Finding, unknown
from multicloud.console.doctor.hosts import hosts
from multicloud.console.doctor.running import process, unreachable
from multicloud.console.doctor.weights import weights
from multicloud.console.instance import ask, user_of
from multicloud.console.parser import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multicloud.console.instance import Instance
    from multicloud.settings import Sources

__all__ = ["ConfigurationError", "Finding", "examine"]


def examine(sources: Sources, files: Sequence[str]) -> list[Finding]:
    """All findings. `files` are HAProxy's configuration files, or none. Raises SettingError and ConfigurationError."""
    read_all(sources)
    values = sources.read(settings.RUN)
    findings: list[Finding] = []
    instance: Instance | None = None
    environ = dict(os.environ)
    try:
        with runtime.RuntimeAPI(values.socket) as api:
            instance = ask(api)
            if instance.level != "user":
                environ = dict(line.split("=", 1) for line in api.ask("show env").splitlines() if "=" in line)
    except runtime.RuntimeAPIError as error:
        findings.append(unreachable(values.socket, error))
    found = parser.read(files, environ, instance.version if instance else None) if files else None
    user = user_of(instance.pid) if instance else None
    if instance is not None:
        findings += process(instance, values, user)
        if not instance.forks(values.backends):
            user = None  # who runs none of the commands
    findings += settings_file(sources, instance, user)
    if found is not None:
        findings += backends(found, instance, user, values.backends)
    if instance is not None:
        if found is not None:
            findings += certificates(instance, found, sources)
        else:
            findings += algorithms(instance, values.backends)
        findings += own_checks(instance, values.backends, sources.path)
        findings += checks(instance, sources, user, _explained(findings))
        findings += hosts(instance, found)
        findings += agents(instance.checked() + instance.own_checked(values.backends))
    findings += weights(instance, sources, user, _explained(findings))
    if found is None:
        findings.append(unknown("the configuration was not looked at: name it with -f haproxy.cfg"))
    return findings


def _explained(findings: Sequence[Finding]) -> frozenset[str]:
    """The consequences of all that was found."""
    return frozenset(what for finding in findings for what in finding.explains)
