"""`multicloud config`: what it is told by arguments and settings, checked, and where it is written (haproxy_cfg)."""

import contextlib
import ipaddress
import itertools
import os
import re
import shlex
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from multicloud import haproxy_cfg, installed, light, runtime, settings
from multicloud.console import parser
from multicloud.console.instance import proc
from multicloud.light import CommandError, UsageError
from multicloud.plan import AUTHORITIES, Plan, Server, escaped
from multicloud.settings import Settings, Sources

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")
OF_SERVER = (settings.PATH, settings.EXPECT, settings.HOST, settings.CA_FILE, settings.INSECURE)


class Wanted(NamedTuple):
    """The arguments of the command: None where an option is not given, and the settings say it."""

    servers: Sequence[str] = ()
    haproxy: str | None = None
    backend: str | None = None
    mode: str | None = None
    path: str | None = None
    blocks: bool = False
    beside: bool = False
    output: str | None = None
    others: Sequence[str] = ()


@click.command()
@click.argument("servers", nargs=-1, metavar="SERVER[=ADDRESS[:PORT]]...")
@click.option("--haproxy", metavar="VERSION", help="For this version; where not given, the HAProxy that is found.")
@click.option("--backend", metavar="NAME", help="The backend's name.  [default: upstream, or all of the settings]")
@click.option("--mode", type=click.Choice(["http", "tcp"]), help="What the servers speak.  [default: http]")
@click.option("--path", metavar="PATH", help="The path that the checks ask for.  [default: /]")
@click.option("--blocks", is_flag=True, help="Only what stands beside a configuration that is there.")
@click.option("--beside", is_flag=True, help="For `multicloud run`: HAProxy's own checks in place of external ones.")
@click.option("-o", "--output", metavar="FILE", help="Write it there, whole or not at all, if HAProxy accepts it.")
@click.option("--with", "others", multiple=True, metavar="FILE", help="What HAProxy reads before it, if none runs.")
def config(**arguments: Any) -> None:
    """Write an haproxy.cfg for these servers, or for those in the settings file.

    SERVER is a host name, HOST or HOST:PORT, or a name of your own and the address, NAME=ADDRESS or NAME=ADDRESS:PORT;
    an IPv6 address in brackets. The name is the host that the server is asked for, and must be in its certificate.
    Without a port it is 443. HAProxy speaks TLS to it, in mode http unless the port is 80, in mode tcp if it is 443.

    Without SERVER it is for each backend that has `servers` in the settings file. To add a server, write it there, and
    run again what the first line of the written file says.

    \b
    Examples:
      multicloud config eu.example.com us.example.com > haproxy.cfg
      multicloud config --blocks --output /etc/haproxy/multicloud.cfg
      multicloud config --mode tcp --backend db eu=db-eu.example.com:5432 us=db-us.example.com:5432

    Exit code: 0 written, 1 HAProxy does not accept it or it cannot be written, 2 wrong arguments or settings.
    """
    sources = settings.Sources(os.environ)
    wanted = _with_others(Wanted(**arguments), sources)
    text, notes = write(light.printable(shlex.join(["multicloud", *sys.argv[1:]])), sources, wanted)
    if wanted.output:
        replace(wanted.output, text, wanted.others)
        if wanted.blocks and not wanted.others:
            notes.append("HAProxy accepts this file alone; none runs that says what it reads beside it: `--with FILE`")
    else:
        click.echo(text, nl=False)
    for note in notes:
        light.warn(f"note: {note}")


def _with_others(wanted: Wanted, sources: Sources, here: Sequence[str] = ()) -> Wanted:
    """What is wanted, with the files beside the one that is written: those named, the running HAProxy's, or `here`."""
    if wanted.others and not wanted.blocks:
        raise UsageError("--with names what stands beside --blocks; a whole configuration stands alone")
    if not (wanted.blocks and (wanted.output or wanted.others)):
        return wanted._replace(others=())
    own = os.path.realpath(wanted.output or "")
    files = parser.files(wanted.others or running(sources) or here)
    return wanted._replace(others=[file for file in files if os.path.realpath(file) != own])


def running(sources: Sources) -> list[str]:
    """The configuration files of the HAProxy that answers at the socket; none where none does, or it is not here.

    Raises UsageError where others than root or this user may write one: its Lua would run as this user.
    """
    try:
        with runtime.RuntimeAPI(sources.read((settings.SOCKET,)).socket) as api:
            pid = settings.digits(api.info().get("Pid", ""))
    except (runtime.RuntimeAPIError, ValueError):
        return []
    words = proc(pid, "cmdline").split("\0")
    # A relative path is where HAProxy was started.
    named = [os.path.join(f"/proc/{pid}/cwd", file) for option, file in itertools.pairwise(words) if option == "-f"]
    files = [os.path.realpath(file) for file in parser.files(named) if os.path.exists(file)]
    for path in dict.fromkeys(each for file in files for each in (file, *map(str, Path(file).parents))):
        found = os.stat(path)
        sticky = stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX  # as /tmp is: each one's files stay so
        if found.st_uid not in (0, os.geteuid()) or (found.st_mode & 0o022 and not sticky):
            raise UsageError(f"{path}: others may write what HAProxy reads; accepted: --with FILE, for each file of it")
    return files


def outdated(path: str, here: Sequence[str], sources: Sources, version: str) -> str:
    """The command that wrote a file with --output, if it would write something else now; "" for any other file.

    Lines that were added to the file, other than servers, are its owner's. `here` are the files beside it where no
    HAProxy tells, and `version` is of the one that runs, "" where none does. Raises UsageError where it is refused now.
    """
    wanted = Wanted()
    with contextlib.suppress(OSError, ValueError, click.ClickException, click.exceptions.Exit):  # `--help` exits
        text = Path(path).read_text(errors="replace")
        command = text.partition("\n")[0].removeprefix("# ")
        words = shlex.split(command)
        if words[:2] == ["multicloud", "config"]:
            wanted = Wanted(**config.make_context("config", words[2:]).params)
    if not wanted.output:
        return ""
    wanted = wanted._replace(output=path, haproxy=wanted.haproxy or version or None)
    now, _ = write(command, sources, _with_others(wanted, sources, here))
    lines = iter(text.splitlines())
    same = all(line in lines for line in now.splitlines()) and now.count("\n    server ") == text.count("\n    server ")
    return "" if same else command


def replace(output: str, text: str, others: Sequence[str]) -> None:
    """Put the text in the place of a file, if HAProxy accepts it beside the others. Raises CommandError, UsageError."""
    haproxy = installed.find_haproxy(os.environ)
    if not haproxy:
        raise UsageError("no HAProxy found on PATH, which would have to accept it; name one in HAPROXY_BINARY")
    path = os.path.realpath(output)
    try:
        with tempfile.TemporaryDirectory(dir=os.path.dirname(path), prefix=".multicloud-") as directory:
            new = Path(directory, os.path.basename(path))
            new.write_text(text)
            old = os.stat(path) if os.path.exists(path) else None
            if old:
                os.chown(new, -1, old.st_gid)  # HAProxy may read it as a group
            new.chmod(old.st_mode & 0o777 if old else 0o644)
            command = [haproxy, "-c", *(word for each in (*others, str(new)) for word in ("-f", each))]
            said = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if said.returncode not in (0, 2):  # 2: no error, and nowhere to listen, as with `bind = none` alone
                alert = re.search(r"^\[ALERT\][ ()\d:]*(.*)$", said.stdout + said.stderr, re.MULTILINE)
                why = alert[1].replace(str(new), output) if alert else "it gave no reason"
                raise CommandError(f"{output} is not written: HAProxy does not accept it: {why}")
            new.replace(path)
    except OSError as error:
        raise CommandError(f"{output} is not written: {light.reason(error)}") from None


def servers(texts: Iterable[str], *, http: bool = True) -> list[Server]:
    """The servers that HOST, HOST:PORT, NAME=ADDRESS or NAME=ADDRESS:PORT say. Raises UsageError."""
    found: dict[str, Server] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        place = place if equals else name
        address, colon, number = place.rpartition(":")
        if not colon or number.endswith("]"):
            address, number = place, "443"
        name = (name if equals else address).rstrip(".")  # with which no certificate has it
        port = int(number) if re.fullmatch("[0-9]{1,5}", number) else 0
        places = "a host name, an IPv4 address, or an IPv6 address in brackets"
        refusals = {
            "a URL is no server; accepted: its host, HOST or HOST:PORT": "://" in text,
            f"{name!r} cannot be a server's name; accepted: letters, digits and . : _ -": not settings.is_name(name),
            f"there is a server {name} already; accepted: another NAME=ADDRESS:PORT": name in found,
            f"{address!r} is no address; accepted: {places}": not _is_address(address),
            f"{number!r} is no port; accepted: 1 to 65535": not 0 < port < 65536,
        }
        if why := next((why for why, refused in refusals.items() if refused), ""):
            raise UsageError(f"{text!r}: {why}")
        found[name] = Server(name, address, port, tls=port != 80 if http else port == 443)
    return list(found.values())


def _is_address(text: str) -> bool:
    brackets = re.fullmatch(r"\[([^%]*)\]", text)  # no scope: HAProxy knows none
    try:
        return ipaddress.ip_address(brackets[1] if brackets else text).version == (6 if brackets else 4)
    except ValueError:
        return HOST.fullmatch(text) is not None and ".." not in text and re.search("[^0-9.]", text) is not None


def write(command: str, sources: Sources, wanted: Wanted) -> tuple[str, list[str]]:
    """What `command` writes, which wants this, and what else its user has to do. Raises UsageError."""
    version = installed.version(wanted.haproxy) if wanted.haproxy else installed.haproxy_version(os.environ)
    number = ".".join(map(str, version)).removesuffix(".0")  # as one writes it
    there = parser.read(wanted.others, os.environ, number)
    own = there.global_section()
    place = os.path.dirname(installed.command("multicloud-check") or "")
    directory = "" if place in ("", "/usr/bin", "/usr/local/bin") else f"{place}/"
    logs = not there.sections or own.last("log") is not None
    machine = Plan(version=version, directory=directory, maxconn=own.last("maxconn") is None, logs=logs)
    if sources.where(settings.SOCKET) != "default":
        machine = machine._replace(socket=sources.text(settings.SOCKET))
    plans = [_plan(sources, wanted, *listed, machine) for listed in _listed(sources, wanted).items()]
    measured = [plan.backend for plan in plans if plan.backend in sources.read((settings.BACKENDS,)).backends]
    if measured and not wanted.beside:
        raise UsageError(
            f"{sources.where(settings.BACKENDS)} has {measured[0]}, which `multicloud run` measures by HAProxy's own "
            "checks; accepted: --beside, or `backends` without it"
        )
    text = haproxy_cfg.configuration(*plans)
    written, known = parser.parse([text], os.environ, number), {*there.twice()}
    both = parser.Configuration([*there.sections, *written.sections])
    if twice := next((each for each in both.twice() if each not in known), ""):
        others = f"another `bind` in {sources.path}, or `bind = none` for a frontend of your own, or another --backend"
        raise UsageError(f"{twice}; accepted: {others}")
    notes = _notes(sources, wanted, plans)
    more = f"write it into {sources.path} and run it again. What is changed here is lost then"
    if wanted.servers:
        more = "run it again with one more name" + ", and put that in the place of this" * wanted.blocks
    head = [command, f"wrote this, for HAProxy {number}. For one more server, {more}."]
    head += [f"Besides, {note}." for note in notes]
    if wanted.blocks:
        must = "must go" if version < installed.CRASHES else "must become `chroot /`"  # 3.4 warns without one
        chroot = f"a `chroot` in `global` {must}: it would hide the checks" * (not wanted.beside)
        where = "is read beside haproxy.cfg" if wanted.output else "goes to the end of haproxy.cfg, as it is"
        head.append(f"It {where}; {chroot or 'a `chroot` in `global` may stay'}.")
        notes += [chroot] * (chroot != "" and own.first_word("chroot") not in ("", "/"))
    return "\n".join(f"# {line}" for line in head) + "\n\n" + text, notes


def _listed(sources: Sources, wanted: Wanted) -> dict[str, Sequence[str]]:
    """The servers of each backend: those that are given, or the settings'. Raises UsageError."""
    backends = [name or "upstream" for name, lines in sources.sections.items() if settings.SERVERS.name in lines]
    if wanted.servers or sources.environ.get(settings.SERVERS.variable):
        backends = [wanted.backend or "upstream"]
    found = {name: wanted.servers or sources.read((settings.SERVERS,), name).servers for name in backends}
    listed = {name: texts for name, texts in found.items() if texts and wanted.backend in (None, name)}
    if not listed:
        raise UsageError(f"no server named; accepted: SERVER[=ADDRESS[:PORT]], or `servers` in {sources.path}")
    return listed


def _plan(sources: Sources, wanted: Wanted, backend: str, texts: Sequence[str], plan: Plan) -> Plan:
    """The plan for this machine, made one for a backend by arguments and settings. Raises UsageError."""
    values = sources.read((*OF_SERVER, settings.BIND, settings.MODE), backend)
    http = (wanted.mode or values.mode) == "http"
    path = wanted.path or values.path
    if not settings.is_name(backend):
        raise UsageError(f"--backend {backend!r}; accepted: letters, digits and . : _ -")
    try:
        settings.PATH.parse(path)
    except ValueError:
        raise UsageError(f"--path {path!r}; accepted: {settings.PATH.accepts}") from None
    if wanted.path not in (None, "/") and not http:
        raise UsageError(f"--path {path!r}: in mode tcp, checks ask for no path")
    if values.host and not HOST.fullmatch(values.host):
        raise UsageError(f"{sources.where(settings.HOST, backend)}: {values.host!r}; accepted: a name of a certificate")
    return plan._replace(
        servers=[_with_words(sources, wanted, backend, server, values) for server in servers(texts, http=http)],
        backend=backend,
        http=http,
        path=path,
        blocks=wanted.blocks,
        beside=wanted.beside,
        bind="" if sources.where(settings.BIND, backend) == "default" else values.bind,
        host=values.host.rstrip("."),
        ca_file=values.ca_file,
        insecure=values.insecure,
        expect=sources.text(settings.EXPECT, backend),
    )


def _with_words(sources: Sources, wanted: Wanted, backend: str, server: Server, values: Settings) -> Server:
    """The server with what its own section of the settings says. Raises UsageError where that cannot be written."""
    own = sources.read(OF_SERVER, backend, server.name)
    for setting in (settings.HOST, *((settings.PATH, settings.EXPECT) * wanted.beside)):
        said = getattr(own, setting.name)
        if (said or server.name) != (getattr(values, setting.name) or server.name):
            where = sources.where(setting, backend, server.name)
            or_named = f", or the server {said}={server.address}:{server.port}" * (setting is settings.HOST)
            raise UsageError(f"{where}: HAProxy cannot be told this of one server; accepted: in [{backend}]{or_named}")
    if not server.tls or (own.insecure, own.ca_file) == (values.insecure, values.ca_file):
        return server
    authorities = escaped(own.ca_file or AUTHORITIES)
    return server._replace(words="verify none" if own.insecure else f"verify required ca-file {authorities}")


def _notes(sources: Sources, wanted: Wanted, plans: Sequence[Plan]) -> list[str]:
    """What the settings file lacks for what is written."""
    if not wanted.beside:
        other = ((plan.backend, plan.path) for plan in plans if plan.path != sources.text(settings.PATH, plan.backend))
        return [f"the checks need `[{name}]` and, below it, `path = {path}` in {sources.path}" for name, path in other]
    names = [plan.backend for plan in plans]
    note = f"`multicloud run` needs `backends = {','.join(names)}` in {sources.path}, beside those that are there"
    return [] if {*names} <= {*sources.read((settings.BACKENDS,)).backends} else [note]
