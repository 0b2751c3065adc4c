"""The command `multicloud`, for people: what HAProxy starts all day, by hand, and with every step shown."""

import contextlib
import functools
import io
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from typing import Any

import click

from multicloud import light, runtime, samplefile, settings
from multicloud.console import terminal
from multicloud.console.config import config
from multicloud.console.instance import needs_root

Command = Callable[..., None]
EXTRAS = {"matplotlib": "plot", "trustme": "demo"}  # optional dependencies, and the package's extras that have them
FLAG: dict[str, Any] = {"is_flag": True, "flag_value": "1", "default": None}  # of a setting that is 0 or 1


def with_settings(group: Sequence[settings.Setting]) -> Callable[[Command], Command]:
    """Give a command an option for each setting of the group, and the argument `sources` to read them from."""

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def with_sources(**arguments: Any) -> None:
            options = {setting.variable: arguments.pop(setting.name) for setting in group}
            given = {variable: text for variable, text in options.items() if text is not None}
            command(sources=settings.Sources(os.environ | given), **arguments)

        decorated: Command = with_sources
        for setting in reversed(group):
            kind = FLAG if setting.accepts == "0 or 1" else {"metavar": "VALUE"}
            meaning = f"{setting.meaning}  [{setting.variable}; default: {setting.default or 'none'}]"
            decorated = click.option(f"--{setting.name.replace('_', '-')}", help=meaning, **kind)(decorated)
        return decorated

    return decorate


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120, "show_default": True})
@click.version_option(package_name="multicloud")
def cli() -> None:
    """Latency routing for HAProxy: the fastest healthy server gets the traffic.

    HAProxy itself starts multicloud-check and multicloud-reweigh. These commands do the same by hand, and show it.

    \b
    Examples:
      multicloud demo                         see it at work on this machine
      multicloud status --watch               where traffic goes, and why
      multicloud check https://eu.example.com where the time of a check goes
      multicloud doctor -f haproxy.cfg        what is wrong, and how to mend it
      multicloud config --help                a configuration for your servers
    """


@cli.command()
@click.argument("url", required=False)
@click.option("--connect", metavar="ADDR[:PORT]", help="Go to this address, but ask for the URL's host. Needs a URL.")
@click.option("--count", type=click.IntRange(1), default=1, metavar="N", help="Probe N times and sum them up.")
@click.option("--record", is_flag=True, help="Append to the sample file, for the server that HAProxy's variables name.")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text")
@with_settings(settings.CHECK_SETTINGS)
def check(url: str | None, connect: str | None, count: int, record: bool, form: str, sources: settings.Sources) -> None:
    """Probe a server and show where the time goes.

    URL is https://host/path, http://…, tls://host:port, tcp://host:port, host or host:port. Without it, the server is
    the one that HAProxy's variables name; with --record too, this does what HAProxy's call does.

    \b
    Examples:
      multicloud check https://eu.example.com/healthz --count 20
      multicloud check eu.example.com --connect 203.0.113.7
      multicloud check tcp://db.example.com:5432 --timeout 1

    Exit code: 0 up, every time; 1 down, at least once; 2 wrong settings.
    """
    from multicloud.console import check as checks

    checks.check(url, connect, sources, count=count, record=record, form=form)


@cli.command()
@click.option("--dry-run", is_flag=True, help="Send nothing; print the commands, one a line, and nothing else.")
@click.option("-v", "--verbose", is_flag=True, help="With --dry-run: explain every decision on standard error.")
@with_settings(settings.REWEIGH_SETTINGS)
def reweigh(dry_run: bool, verbose: bool, sources: settings.Sources) -> None:
    """Set the weights once, as HAProxy's fake backend does, and explain every decision.

    \b
    Examples:
      multicloud reweigh --dry-run -v
      multicloud reweigh --dry-run | while read -r line; do echo "$line" | socat - /var/run/haproxy.sock; done

    Exit code: 0 done, or nothing to do; 1 HAProxy unreachable or refused a command; 2 wrong settings.
    """
    from multicloud import reweigh as reweighs
    from multicloud.console import explain

    outcome = reweighs.reweigh(sources, dry_run=dry_run)
    if verbose or not dry_run:
        for line in explain.explain(outcome, sources):
            click.echo(line, err=dry_run)
        if not outcome.changes and not outcome.refusals:
            click.echo("nothing to send: the weights are what they should be", err=dry_run)
        elif dry_run:
            click.echo("would send:", err=True)
    for change in outcome.changes:
        click.echo(("" if dry_run else "sent: ") + runtime.set_weight(change))
    if outcome.refusals:
        raise light.CommandError(reweighs.refused(outcome))


@cli.command()
@click.option(
    "--watch",
    type=click.FloatRange(0.1, 3600),
    is_flag=False,
    flag_value=2.0,  # as often as HAProxy checks
    metavar="[SECONDS]",
    help="Redraw every SECONDS, 2 where not given, until Ctrl-C.",
)
@click.option("--format", "form", type=click.Choice(["table", "json", "prometheus"]), default="table")
@with_settings(settings.REWEIGH_SETTINGS)
def status(watch: float | None, form: str, sources: settings.Sources) -> None:
    """Show where traffic goes, and what is wrong.

    A row a server, and under them the problems, in words. Give it the settings of multicloud-reweigh: with others it
    would expect other weights.

    \b
    Examples:
      multicloud status --watch
      multicloud status --format json | jq -r '.[] | select(.favorite) | .server'
      multicloud status --format prometheus > multicloud.prom

    Exit code: 0 shown, 1 HAProxy unreachable, 2 wrong settings.
    """
    if watch is None:
        click.echo(_status(sources, form), nl=False)
    elif form != "table":
        raise light.UsageError(f"--watch shows the table only; repeat `multicloud status --format {form}` instead")
    else:
        watch_status(sources, interval=watch)


def watch_status(
    sources: settings.Sources, *, interval: float, duration: float | None = None, heading: Callable[[], str] = str
) -> None:
    """Show the table again and again, under what `heading` returns, until Ctrl-C. It goes on while HAProxy is away."""

    def draw() -> str:
        try:
            return heading() + _status(sources, "table")
        except (samplefile.SampleFileError, runtime.RuntimeAPIError) as error:
            return f"{heading()}error: {light.printable(str(error))}\n"

    terminal.watch(draw, interval=interval, duration=duration)


def _status(sources: settings.Sources, form: str) -> str:
    from multicloud import scrape
    from multicloud.console import status as statuses

    shown = statuses.collect(sources)
    if form == "json":
        return statuses.as_json(shown)
    if form == "prometheus":
        return scrape.prometheus(shown.rows, len(shown.problems))
    return statuses.table(shown, color=terminal.colorful(), width=shutil.get_terminal_size().columns)


@cli.command()
@click.option("--metrics", default="", show_default=False, metavar="[ADDR:]PORT", help="Serve metrics for Prometheus.")
@click.option("--log", type=click.Choice(["text", "json"]), default="text", help="json: an object a line.")
@with_settings(settings.RUN_SETTINGS)
def run(metrics: str, log: str, sources: settings.Sources) -> None:
    """Set the weights again and again, beside HAProxy, by its own checks.

    It is what multicloud-run does, with the checks of the backends that --backends names, until SIGTERM or Ctrl-C;
    SIGHUP reads the settings file again.

    \b
    Examples:
      multicloud run --backends app,api --interval 0.5 --metrics 9101

    Exit code: 0 ended by a signal; 1 the port is taken; 2 wrong settings.
    """
    from multicloud import run as runs

    runs.run(sources, metrics, log)


@cli.command()
@click.option("-f", "files", multiple=True, metavar="haproxy.cfg", help="HAProxy's configuration, each file of it.")
@with_settings(tuple(dict.fromkeys((*settings.REWEIGH_SETTINGS, *settings.CHECK_SETTINGS))))
def doctor(files: tuple[str, ...], sources: settings.Sources) -> None:
    """Find what usually goes wrong, and say how to mend it.

    It looks at the settings, the running HAProxy, with -f its configuration, and the samples, and changes nothing. What
    is asked first explains what is asked later: after the first group of questions that has a problem it stops.
    As root it asks what HAProxy's user may do. Servers whose check fails are probed once, with their own settings.

    \b
    Examples:
      multicloud doctor -f /etc/haproxy/haproxy.cfg

    Exit code: 0 all well, 1 problems, 2 wrong settings.
    """
    from multicloud.console import doctor as doctors

    findings = doctors.examine(sources, files)
    colors = {"ok": "green", "problem": "red"}
    for kind, text in findings:
        click.echo(click.style(f"{kind:<8}", fg=colors.get(kind)) + light.printable(text), color=terminal.colorful())
    if any(kind == "problem" for kind, _ in findings):
        sys.exit(1)


@cli.command()
@click.option("--since", default="1h", metavar="WHEN", help="So long ago (90s, 15m, 1h), or a time: 08:30.")
@with_settings(settings.REWEIGH_SETTINGS)
def history(since: str, sources: settings.Sources) -> None:
    """Show who led when, and why that changed.

    The samples in the file are scored and ranked again, as they came. What HAProxy knows besides is not in them:
    weights set by hand, maintenance, requests in flight. A server counts as DOWN while its two newest checks failed.

    \b
    Examples:
      multicloud history --since 08:30

    Exit code: 0 shown, 1 no samples, 2 wrong settings.
    """
    from multicloud.console import history as histories

    for line in histories.lines(sources, since):
        click.echo(line)


@cli.command()
@click.option("-o", "--output", default="latency.png", metavar="FILE", help="Where to draw: a .png or .svg file.")
@click.option("--from", "begin", metavar="WHEN", help="Not what was before: 15m ago, or a time: 08:30.")
@click.option("--to", "end", metavar="WHEN", help="Not what came after.")
@with_settings(settings.REWEIGH_SETTINGS)
def plot(output: str, begin: str | None, end: str | None, sources: settings.Sources) -> None:
    """Draw the round-trip times over time, with the score that decides and the changes of favourite.

    Needs matplotlib, and says how to get it.

    \b
    Examples:
      multicloud plot --from 08:15 --to 08:45
      multicloud plot -o latency.svg --times /srv/edge1/times.txt

    Exit code: 0 drawn, 1 no samples to draw, 2 wrong settings.
    """
    if not output.endswith((".png", ".svg")):
        raise light.UsageError(f"cannot draw {output!r}; give a name that ends with .png or .svg")
    sources.read(settings.REWEIGH_SETTINGS)  # before matplotlib, which has something to say when it is loaded first
    with contextlib.chdir("/"):  # where no stranger's matplotlibrc lies
        from multicloud.console import plot as plots

    plots.draw(sources, output, begin, end)


cli.add_command(config)


@cli.command()
@click.option("--duration", type=click.FloatRange(min=0, min_open=True), metavar="S", help="Stop after S seconds.")
@click.option("--port", type=click.IntRange(1, 65535), default=8080, help="Port of the application.")
@click.option("--stats-port", type=click.IntRange(1, 65535), default=9000, help="Port of the stats page.")
@click.option("--beside", is_flag=True, help="With `multicloud run` beside HAProxy in place of external checks.")
def demo(duration: float | None, port: int, stats_port: int, beside: bool) -> None:
    """Run it all on this machine, with simulated regions.

    Four cloud regions take turns in being the fastest, with a real HAProxy in front; HAPROXY_BINARY names another one.
    Needs trustme, and says how to get it.

    \b
    Examples:
      multicloud demo --duration 60 --port 8088 --stats-port 9088
    """
    from multicloud import demo as demos

    with demos.running(port, stats_port, beside=beside) as (commands, heading):
        watch_status(settings.Sources(os.environ | commands), interval=1.0, duration=duration, heading=heading)


def main() -> None:
    """The command `multicloud`."""
    light.open_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale may not have the characters of the bars
    sys.exit(light.exit_code(_run))


def _run() -> int:
    """Do what the arguments say, and say what click does not like in our words. Returns the exit code."""
    try:
        return cli.main(prog_name="multicloud", standalone_mode=False) or 0
    except click.UsageError as error:
        if "\n" in error.message:  # the help, where no command is named
            error.show()
            return error.exit_code
        command = error.ctx.command_path if error.ctx else "multicloud"
        raise light.UsageError(f"{error.format_message()}; see {command} --help") from None
    except click.Abort:
        return 130
    except samplefile.SampleFileError as error:
        if not needs_root(error):
            raise
        raise light.UsageError(f"{error}; run this as root (sudo)") from None
    except ImportError as error:
        if error.name not in EXTRAS:
            raise
        pip = f"in the project's directory: pip install '.[{EXTRAS[error.name]}]'"
        apt = f"with the Debian package: apt install python3-{error.name}"  # Debian's have the modules' names
        raise light.UsageError(f"{error.name} is missing; {pip}, or {apt}") from None
    except OSError as error:
        raise light.CommandError(light.reason(error)) from None
