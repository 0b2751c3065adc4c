"""`multicloud config`: what the command is told, checked, and what it writes. `template` makes the text of it."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from multicloud import settings
from multicloud.console.instance import find_haproxy, version_line
from multicloud.console.template import TAKEN, Server, configuration, escaped

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from multicloud.console.template import Version

OLDEST = (2, 6, 0)
CRASHES = (3, 4, 0)
"""It does at start, on any external check."""

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


class ConfigError(Exception):
    """A server, a version or another argument that cannot be used. The text says which, and what is accepted."""


def servers(texts: Iterable[str], *, tcp: bool = False) -> list[Server]:
    """The servers that HOST, HOST:PORT, NAME=ADDRESS or NAME=ADDRESS:PORT say. Raises ConfigError."""
    found: dict[str, Server] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        address, colon, number = (place if equals else name).rpartition(":")
        if not colon or number.endswith("]"):
            address, number = place if equals else name, "443"
        if not equals:
            name = address
        if not settings.is_name(name):
            raise ConfigError(f"{text!r}: {name!r} cannot be a server's name; accepted: letters, digits and . : _ -")
        if name in found:
            raise ConfigError(f"{text!r}: there is a server {name} already; accepted: another NAME=ADDRESS:PORT")
        if not _is_address(address):
            accepted = "a host name, an IPv4 address, or an IPv6 address in brackets"
            raise ConfigError(f"{text!r}: {address!r} is no address; accepted: {accepted}")
        port = _port(text, number)
        found[name] = Server(name, address, port, tls=port == 443 if tcp else port != 80)
    if not found:
        raise ConfigError("no server named; accepted: SERVER[=ADDRESS[:PORT]], one or more")
    return list(found.values())


def _is_address(text: str) -> bool:
    if "%" in text:  # no scope: HAProxy knows none
        return False
    brackets = text.startswith("[") and text.endswith("]")
    try:
        return ipaddress.ip_address(text[1:-1] if brackets else text).version == (6 if brackets else 4)
    except ValueError:
        return HOST.fullmatch(text) is not None and ".." not in text and re.search("[^0-9.]", text) is not None


def _port(text: str, number: str) -> int:
    try:
        port = settings.port(number)
    except ValueError:
        port = 0
    if not port:
        raise ConfigError(f"{text!r}: {number!r} is no port; accepted: 1 to 65535")
    return port


def version(text: str) -> Version:
    """The version that `2.8`, `2.8.25` or the first line of `haproxy -v` says. Raises ConfigError."""
    found = re.match(r"(?:HA-?Proxy version )?((\d{1,3})\.(\d{1,3})(?:\.(\d{1,3}))?)(?![\d.])", text)
    if not found:
        raise ConfigError(f"HAProxy {text!r}: cannot read the version; accepted: such as 2.8 or 2.8.25")
    numbers = int(found[2]), int(found[3]), int(found[4] or 0)
    if numbers < OLDEST:
        raise ConfigError(f"HAProxy {found[1]} is too old; accepted: 2.6 and newer")
    if numbers == CRASHES and found[4]:
        raise ConfigError(f"HAProxy {found[1]} crashes on any external check; accepted: 2.6 and newer, such as 3.4.1")
    return numbers


def _written(version: Version) -> str:
    """A version as one writes it: without a last number that is 0, as of a line that was named and no release."""
    return ".".join(map(str, version if version[2] else version[:2]))


def installed_version(environ: Mapping[str, str]) -> Version:
    """The version of the HAProxy on this machine (find_haproxy). Raises ConfigError."""
    found = find_haproxy(environ)
    if not found:
        raise ConfigError("no HAProxy found on PATH; say for which one, such as --haproxy 2.8")
    try:
        return version(version_line(found))
    except OSError as error:
        raise ConfigError(f"{found}: {(error.strerror or str(error)).lower()}; or say --haproxy 2.8") from None


def program(name: str) -> str | None:
    """Where a light command is: beside the Python that runs this, or on PATH. None where it is not."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.exists() else shutil.which(name)


def _place(name: str, *, quoted: bool) -> str:
    """What a configuration calls a light command: its name where HAProxy finds that by itself, else its path.

    Raises ConfigError where the path cannot stand there.
    """
    path = program(name)
    if not path or os.path.dirname(path) in ("/usr/bin", "/usr/local/bin"):
        return name
    if re.search(r'["$}\\\n]', path):
        raise ConfigError(f"{path!r}: HAProxy cannot be told that; install multicloud elsewhere, such as in /opt")
    return path if quoted else escaped(path)


def write(
    command: str,
    texts: Iterable[str],
    version: Version,
    *,
    backend: str = "upstream",
    tcp: bool = False,
    path: str = "/",
    blocks: bool = False,
    beside: bool = False,
) -> tuple[str, str]:
    """What `command` writes, and what else its user has to do, "" for nothing. Raises ConfigError."""
    if not settings.is_name(backend) or backend in TAKEN:
        taken = f", but {backend} is taken" * (backend in TAKEN)
        raise ConfigError(f"--backend {backend!r}; accepted: letters, digits and . : _ -{taken}")
    try:
        settings.PATH.parse(path)
    except ValueError:
        raise ConfigError(f"--path {path!r}; accepted: {settings.PATH.accepts}") from None
    if tcp and path != "/":
        raise ConfigError(f"--path {path!r}: in mode tcp, checks ask for no path")
    note = ""
    if beside:
        note = f"`multicloud run` needs `backends = {backend}` in {settings.CONF_DEFAULT}, beside those that are there"
    elif path != "/":
        note = f"the checks need `[{backend}]` and, below it, `path = {path}` in {settings.CONF_DEFAULT}"
    head = [
        command,
        f"wrote this, for HAProxy {_written(version)}. For one more server, run it again with one more name.",
        *([f"Besides, {note}."] if note else []),
        *([_where_to(version, beside=beside)] if blocks else []),
    ]
    text = configuration(
        servers(texts, tcp=tcp),
        version,
        head="\n".join(f"# {line}" for line in head),
        backend=backend,
        tcp=tcp,
        path=path,
        blocks=blocks,
        beside=beside,
    )
    text = re.sub(
        r"(external-check command (?:\S*-)?)(multicloud-\w+)", lambda c: c[1] + _place(c[2], quoted=not blocks), text
    )
    return text + f"\n# End of what multicloud config wrote for {backend}.\n" * blocks, note


def _where_to(version: Version, *, beside: bool) -> str:
    """Where blocks go, and what becomes of a chroot."""
    if beside:
        return "It goes to the end of haproxy.cfg, as it is. A `chroot` in `global` may stay."
    must = "must become `chroot /`" if version >= CRASHES else "must go"  # which warns without one
    return f"It goes to the end of haproxy.cfg, as it is. A `chroot` in `global` {must}: it would hide the checks."
