"""The project's haproxy.cfg as a template: text to text, and nothing is checked here.

What comes out is that file with servers in each of its lists, its `.if` decided for one version of HAProxy, and less
what is not wanted. For no server and no version it is that file as it is.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    Version = tuple[int, int, int]

VARIABLE = re.compile(r"\$\{\w+-([^}]*)\}")
QUOTED = re.compile(r'"([^"$\s]*)"')

NAMES = re.compile(r"(?<![\w-])(upstream|last-resort|choice|router|(?:(?<=^defaults )|(?<= from ))regions)\b")
"""The names in the template that belong to one application."""

LIST_ENDS = "    # End of "
"""So begins the last comment line of a list in the template. The comment lines above it are examples."""

# What is left out: sections by how their first lines begin, and lines by how they begin.
NOT_TCP = (
    r"http-|option (http-|forwardfor)|retry-on|timeout http|default-server pool-purge|use_backend \S+-once |"
    r"backend upstream-once"
)
NOT_BESIDE = r"insecure-fork-wanted|(option )?external-check|backend reweigh"
NOT_A_BLOCK = r"log stdout|stats socket|bind .* accept-proxy|http-request set-header Fly_Extra|frontend stats"

TAKEN = ("default", "common", "tcp-common", "choices", "relay", "reweigh", "stats")
"""The names in the template that belong to no application."""

ONCE = """\
# ---- Once for all applications: leave out each section that your file has already, by its name ----
"""
GLOBAL = """\
# Into `global`: here, at the end of the file, it adds to what is there. A `stats socket` of `level admin` must be there
# already: Debian's own is one.
"""
APPLICATION = """\
# ---- For the application `upstream` ----
# Where users come in. If you have a frontend, leave this one out and write its lines below `bind` into yours, above any
# other `use_backend`.
"""


class Server(NamedTuple):
    """A server; an IPv6 address is in brackets, and `tls` is whether HAProxy speaks TLS to it."""

    name: str
    address: str
    port: int
    tls: bool = True


class Section(NamedTuple):
    """A section of a configuration: the comment lines above it, its first line, and the lines below that."""

    above: list[str]
    first: str
    body: list[str]


def shipped() -> str:
    """The project's haproxy.cfg, which is in the package, or at the top of the checkout that it runs from."""
    beside = Path(__file__).parents[1] / "haproxy.cfg"
    return (beside if beside.exists() else Path(__file__).parents[2] / "haproxy.cfg").read_text()


def configuration(
    servers: Sequence[Server],
    version: Version | None,
    *,
    head: str = "",
    backend: str = "upstream",
    tcp: bool = False,
    path: str = "/",
    blocks: bool = False,
    beside: bool = False,
) -> str:
    """The configuration for these servers and that version; without a `head`, it begins as the template does."""
    comment, _, text = shipped().partition("\n\n")
    if version:
        text = _decided(text, min(version, (3, 2, 0)) if tcp else version)  # only HTTP needs a relay from 3.3 on
    if tcp:
        text = text.replace("mode http\n    log", "mode tcp\n    log").replace("option httplog", "option tcplog")
    if not all(server.tls for server in servers):
        text = text.replace("default-server ssl ", "default-server ")
    if blocks:
        text = _as_blocks(text, tcp=tcp)
    unwanted = re.compile("|".join([NOT_TCP] * tcp + [NOT_BESIDE] * beside + [NOT_A_BLOCK] * blocks) or "(?!)")
    checks = _own_checks(path, version) if beside and not tcp else []
    relay = re.search(r"frontend relay .*\n +bind (.*)", text)
    written = [head or comment, ""]
    for section in sorted(_sections(text), key=lambda section: blocks and NAMES.search(section.first) is not None):
        lines = _lines(section.first, servers, backend, relay[1] if relay else "", own_checks=bool(checks))
        body = list(_body(_named(section.body, backend), unwanted, lines, checks))
        if body and not unwanted.match(section.first):
            written += [*_named([*section.above, section.first], backend), *body]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(written)).rstrip("\n") + "\n"


def _as_blocks(text: str, *, tcp: bool) -> str:
    """The text with its variables' defaults in place of them, and comments that say where each piece goes."""
    text = QUOTED.sub(r"\1", VARIABLE.sub(r"\1", text))
    if tcp:  # beside an application that is HTTP
        text = re.sub(r"\b(defaults|from) common\b", r"\1 tcp-common", text)
    return f"{ONCE}{GLOBAL}{text}".replace("frontend router", f"{APPLICATION}frontend router")


def _decided(text: str, version: Version) -> str:
    """The text with one branch of each `.if version_atleast(…)`. They are not nested."""
    kept, wanted = [], True
    for line in text.splitlines():
        if condition := re.match(r"\.if version_atleast\((.*)\)", line):
            wanted = version >= tuple(map(int, condition[1].split(".")))
        elif line == ".else":
            wanted = not wanted
        elif line == ".endif":
            wanted = True
        elif wanted:
            kept.append(line)
    return "\n".join(kept)


def _sections(text: str) -> list[Section]:
    """The sections of a text. Comments above a section are not indented, and those in it are; nothing is lost."""
    sections: list[Section] = []
    above: list[str] = []
    for line in text.splitlines():
        if line.startswith("#") or (above and line.startswith(".")):
            above.append(line)
        elif re.match(r"[a-z]", line):
            sections.append(Section(above, line, []))
            above = []
        else:
            sections[-1].body.append(line)
    return sections


def _named(lines: Iterable[str], backend: str) -> list[str]:
    """The lines with the names of this application."""
    if backend == "upstream":
        return list(lines)
    return [NAMES.sub(lambda n: backend if n[1] == "upstream" else f"{backend}-{n[1]}", line) for line in lines]


def escaped(word: str) -> str:
    """A word as it stands in a configuration without quotes around it."""
    return re.sub(r"([\\\"'# ])", r"\\\1", word)


def _own_checks(path: str, version: Version | None) -> list[str]:
    """HAProxy's own checks, each server asked by its name, over a kept connection where HAProxy can.

    After one that failed, the next comes sooner.
    """
    send = f"    http-check send meth GET uri {escaped(path)} ver HTTP/1.1 hdr Host %[srv_name]"
    # For multicloud-run: the time from the request to its answer, and a number that no other check has.
    begun = "    http-check set-var(check.begun) date(0,us)"
    expect = '    http-check expect status 200 on-success "%[date(0,us),sub(check.begun)]us@%[date(0,ms)]"'
    lines = ["    option httpchk", begun, send, expect, "    default-server fastinter 500ms"]
    if version and version >= (3, 2, 0):
        lines[2] += " hdr Connection keep-alive"  # HAProxy would say `close`
        lines.append("    default-server check-reuse-pool")
    return lines


def _lines(first: str, servers: Sequence[Server], backend: str, relay: str, *, own_checks: bool) -> list[str]:
    """The servers' lines in the section that begins with `first`."""
    # Not `no-ssl`: of a server with that, HAProxy tells an external check that it speaks TLS.
    ssl = "" if all(server.tls for server in servers) else " ssl"
    lines = []
    for server in servers:
        line = f"    server {server.name} "
        if first.endswith("from choices"):
            line += relay
        else:
            line += f"{server.address}:{server.port}" + ssl * server.tls
        if own_checks and server.tls and first.startswith("backend upstream from"):
            line += f" check-sni {server.name}"
        if first.startswith(("backend upstream-once", "backend choice")):
            line += f" track {backend}/{server.name}"
        lines.append(line)
    return lines


def _body(body: Iterable[str], unwanted: re.Pattern[str], lines: Sequence[str], checks: Iterable[str]) -> Iterator[str]:
    """A section's lines with the servers in its list, and without what is unwanted and the comments on nothing else."""
    comments: list[str] = []
    gone = False
    for line in body:
        if lines and line.startswith(LIST_ENDS):
            yield from lines
            comments = []
        elif line.startswith("    #"):
            comments = [line] if gone else [*comments, line]
            gone = False
        elif unwanted.match(line.strip()):
            if line == "    option external-check":
                yield from checks
            gone = True
        else:
            yield from () if gone and not line else comments
            yield line
            comments, gone = [], False
    if not gone:
        yield from comments
