"""`multicloud config`: what the command is told, checked, and what it says of what it writes (haproxy_cfg)."""

from __future__ import annotations

import ipaddress
import os
import re
from typing import TYPE_CHECKING

from multicloud import haproxy_cfg, installed, settings
from multicloud.haproxy_cfg import Server
from multicloud.light import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from multicloud.haproxy_cfg import Plan, Version

HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_])?\.?")


def servers(texts: Iterable[str], *, http: bool = True) -> list[Server]:
    """The servers that HOST, HOST:PORT, NAME=ADDRESS or NAME=ADDRESS:PORT say. Raises UsageError."""
    found: dict[str, Server] = {}
    for text in texts:
        name, equals, place = text.partition("=")
        address, colon, number = (place if equals else name).rpartition(":")
        if not colon or number.endswith("]"):
            address, number = place if equals else name, "443"
        if not equals:
            name = address
        if not settings.is_name(name):
            raise UsageError(f"{text!r}: {name!r} cannot be a server's name; accepted: letters, digits and . : _ -")
        if name in found:
            raise UsageError(f"{text!r}: there is a server {name} already; accepted: another NAME=ADDRESS:PORT")
        if not _is_address(address):
            accepted = "a host name, an IPv4 address, or an IPv6 address in brackets"
            raise UsageError(f"{text!r}: {address!r} is no address; accepted: {accepted}")
        port = _port(text, number)
        found[name] = Server(name, address, port, tls=port != 80 if http else port == 443)
    if not found:
        raise UsageError("no server named; accepted: SERVER[=ADDRESS[:PORT]], one or more")
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
        raise UsageError(f"{text!r}: {number!r} is no port; accepted: 1 to 65535")
    return port


def _written(version: Version) -> str:
    """A version as one writes it: without a last number that is 0, as of a line that was named and no release."""
    return ".".join(map(str, version if version[2] else version[:2]))


def _directory(name: str) -> str:
    """Where HAProxy finds a command that is not where it looks by itself; "" for one that is.

    Raises UsageError where the path cannot stand in a configuration.
    """
    path = installed.command(name)
    if not path or os.path.dirname(path) in ("/usr/bin", "/usr/local/bin"):
        return ""
    if re.search(r'["$}\\\n]', path):
        raise UsageError(f"{path!r}: HAProxy cannot be told that; install multicloud elsewhere, such as in /opt")
    return path.removesuffix(name)


def write(command: str, texts: Iterable[str], plan: Plan) -> tuple[str, str]:
    """What `command` writes, and what else its user has to do, "" for nothing. Raises UsageError.

    The plan has no servers, which `texts` say. Without a version it is for the HAProxy on this machine.
    """
    backend, path = plan.backend, plan.path
    version = plan.version or installed.haproxy_version(os.environ)
    if not settings.is_name(backend) or backend in haproxy_cfg.TAKEN:
        taken = f", but {backend} is taken" * (backend in haproxy_cfg.TAKEN)
        raise UsageError(f"--backend {backend!r}; accepted: letters, digits and . : _ -{taken}")
    try:
        settings.PATH.parse(path)
    except ValueError:
        raise UsageError(f"--path {path!r}; accepted: {settings.PATH.accepts}") from None
    if path != "/" and not plan.http:
        raise UsageError(f"--path {path!r}: in mode tcp, checks ask for no path")
    directory = _directory("multicloud-check")
    plan = plan._replace(servers=servers(texts, http=plan.http), version=version, directory=directory)
    note = ""
    if plan.beside:
        note = f"`multicloud run` needs `backends = {backend}` in {settings.CONF_DEFAULT}, beside those that are there"
    elif path != "/":
        note = f"the checks need `[{backend}]` and, below it, `path = {path}` in {settings.CONF_DEFAULT}"
    head = [
        command,
        f"wrote this, for HAProxy {_written(version)}. For one more server, run it again with one more name.",
        *([f"Besides, {note}."] if note else []),
        *([_where_to(version, beside=plan.beside)] if plan.blocks else []),
    ]
    return "\n".join(f"# {line}" for line in head) + "\n\n" + haproxy_cfg.configuration(plan), note


def _where_to(version: Version, *, beside: bool) -> str:
    """Where blocks go, and what becomes of a chroot."""
    must = "must go" if version < installed.CRASHES else "must become `chroot /`"  # 3.4 warns without one
    chroot = "may stay." if beside else f"{must}: it would hide the checks."
    return f"It goes to the end of haproxy.cfg, as it is. A `chroot` in `global` {chroot}"
