"""What usually goes wrong around the router, and how to mend it. It changes nothing.

It asks in groups: what is asked first explains what is asked later. So it stops after the first group that has a
problem, and says what it did not look at.
"""

import os
import time
from collections.abc import Iterator, Sequence

from multicloud import runtime, samplefile, settings
from multicloud.console import parser, problems
from multicloud.console.doctor import certificates, configuration, running, servers
from multicloud.console.doctor.finding import Finding, ok, problem, some, unknown
from multicloud.console.instance import Case, ask


def examine(sources: settings.Sources, files: Sequence[str]) -> list[Finding]:
    """All findings. `files` are HAProxy's configuration files, or none. Raises UsageError."""
    case = _case(sources, files)
    groups = AWAY if case.away else GROUPS
    findings: list[Finding] = []
    for number, (_, look) in enumerate(groups, 1):
        findings += look(case)
        left = ", ".join(what for what, _ in groups[number:])
        if left and any(finding.kind == "problem" for finding in findings):
            return [*findings, unknown(f"not looked at until that is mended: {left}")]
    return findings


def _case(sources: settings.Sources, files: Sequence[str]) -> Case:
    """What there is to look at. Raises SettingError."""
    # Every value is read, also what the environment overrides in the file.
    for each in (sources, settings.Sources({settings.CONF: sources.environ.get(settings.CONF, "")})):
        for section in each.sections:
            backend, _, server = section.partition("/")
            each.read(settings.CHECK_SETTINGS if server else settings.ALL_SETTINGS, backend, server)
    case, environ = Case(sources), dict(os.environ)
    try:
        with runtime.RuntimeAPI(case.values.socket) as api:
            case = ask(api, sources)
            if case.level != "user":
                environ = dict(line.split("=", 1) for line in api.ask("show env").splitlines() if "=" in line)
    except runtime.RuntimeAPIError as error:
        case = case._replace(away=str(error))
    try:
        case = case._replace(samples=problems.read_samples(sources))
    except samplefile.SampleFileError as error:
        case = case._replace(unusable=error)
    read = parser.read(files, environ, case.version or None)
    ours = configuration.ours(read) if files else None
    return case._replace(now=time.time(), files=[*parser.files(files)], configuration=read, ours=ours)


def settings_shown(case: Case) -> Iterator[Finding]:
    """What the environment and each section of the file say, and the sections that are nobody's."""
    sources = case.sources
    shown = [
        f"{setting.name} = {sources.text(setting)} ({where.removesuffix(f': {setting.name}')})"
        for setting in settings.ALL_SETTINGS
        if (where := sources.where(setting)) != "default"
    ]
    yield ok(f"settings: {', '.join(shown)}" if shown else "settings: all have their defaults")
    backends = runtime.by_backend(case.servers)
    for section, written in sources.sections.items():
        backend, _, name = section.partition("/")
        if section and written:
            yield ok(f"settings of {section}: {', '.join(_written(sources, section, name) for name in written)}")
        lost, known = "", list(backends)
        if section and backends and backend not in backends:
            lost = "backend of HAProxy's, so what stands there holds for nothing; backends with servers"
        elif name and backends and name not in (known := [server.name for server in backends[backend]]):
            lost = f"server of {backend}, so what stands there holds for nothing; its servers"
        if lost:
            yield problem(f"{sources.path}: [{section}] names no {lost}: {some(known)}")


def _written(sources: settings.Sources, section: str, name: str) -> str:
    text, number = sources.sections[section][name]
    setting = next(each for each in settings.ALL_SETTINGS if each.name == name)
    overridden = f", but {setting.variable} wins here" if sources.environ.get(setting.variable) else ""
    return f"{name} = {text} ({sources.path}:{number}{overridden})"


SETTINGS = "the settings", settings_shown
GROUPS = (
    SETTINGS,
    ("the socket", running.answers),
    ("what HAProxy and its user may do", running.permissions),
    ("the configuration", configuration.look),
    ("host names", servers.names),
    ("checks", servers.checks),
    ("certificates", certificates.look),
    ("samples, weights", servers.measured),
    ("whom HAProxy runs as", running.exposure),
)
# What can be asked where HAProxy does not answer: its configuration, too, which may be why.
AWAY = SETTINGS, ("the socket", running.away), ("the running HAProxy", lambda _: ())
