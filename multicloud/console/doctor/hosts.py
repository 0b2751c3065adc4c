"""Host names of servers, which HAProxy finds the addresses by."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multicloud.console import names
from multicloud.console.doctor.finding import ok, problem, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from multicloud.console.doctor.finding import Finding
    from multicloud.console.instance import Instance
    from multicloud.console.parser import Configuration


def hosts(instance: Instance, found: Configuration | None) -> Iterator[Finding]:
    """Names of which HAProxy may have a last address only. Of those in maintenance `problems` tells."""
    sections = found.sections if found else []
    lines = [line for section in sections if section.kind == "resolvers" for line in section.lines]
    configured = {line[1]: line[2] for line in lines if line[0] == "nameserver" and len(line) > 2}
    addresses = {server.host: server.address for server in instance.servers if server.host}
    lost = {server.host for server in instance.servers if server.unresolved}
    resolving: set[str] = set()
    answering = []
    for name in instance.nameservers if addresses else ():
        address = names.address(configured.get(name, name))
        if address is None:
            yield unknown(f"the address of the name server {name} was not found: -f haproxy.cfg may have it")
            return
        known = names.known(list(addresses), address)
        if known is None:
            yield problem(
                f"the name server {name} does not answer from here: a name that no other one knows keeps its last "
                f"address in HAProxy, if it had one ({', '.join(addresses)})",
            )
        else:
            resolving |= known
            answering.append(name)
    for host in addresses if answering else ():
        if host not in resolving | lost:
            yield problem(
                f"the name {host} does not resolve any more, says {' and '.join(answering)}: HAProxy keeps its last "
                f"address {addresses[host]}, and does not read /etc/hosts",
            )
    if answering and resolving == set(addresses):
        yield ok(f"the name servers know the names of all {len(addresses)} hosts")
