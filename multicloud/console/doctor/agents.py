"""Agents of servers (`agent-check`): one that says a weight and the reweigh overwrite each other's."""

from __future__ import annotations

import re
import socket
from typing import TYPE_CHECKING

from multicloud.console.doctor.finding import ok, problem, unknown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from multicloud.console.doctor.finding import Finding
    from multicloud.runtime import Server

ASKED, PATIENCE = 4, 1.0
"""How many agents are asked, and for how many seconds each."""

WEIGHT = re.compile(r"(?:^|[\s,])(\d+%|weight:\d+%?)(?=[\s,]|$)")
"""A word that sets a weight, among those that HAProxy reads (its configuration manual, `agent-check`)."""


def agents(servers: Sequence[Server]) -> Iterator[Finding]:
    """What the agents of these servers say, which are weighed."""
    for number, server in enumerate(server for server in servers if server.agent and server.agent_port.isdigit()):
        name = f"{server.backend}/{server.name}"
        said = _ask(server) if number < ASKED else None
        if said is None:
            yield unknown(
                f"{name} has an `agent-check`, whose agent was not heard from here: if it says a weight, it and the "
                "reweigh overwrite each other's"
            )
        elif weight := WEIGHT.search(said):
            yield problem(
                f"the agent of {name} says the weight {weight[1]}, so it and the reweigh overwrite each other's: "
                "let it say `up`, `down`, `drain` and the like alone, or remove `agent-check`"
            )
        else:
            yield ok(f"the agent of {name} says no weight")


def _ask(server: Server) -> str | None:
    """The line that an agent says, as far as it comes at once; None where none does."""
    try:
        place = server.agent_address or server.address, int(server.agent_port)
        with socket.create_connection(place, PATIENCE) as connection:
            connection.settimeout(PATIENCE)
            said = connection.recv(1 << 12)
    except OSError:
        return None
    return re.split(r"[\r\n]", said.decode(errors="replace"))[0] or None
