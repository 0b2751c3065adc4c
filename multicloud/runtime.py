"""HAProxy's Runtime API: read the servers' states, set weights (HAProxy's management guide, section 9).

One connection for everything. It asks for the interactive mode, in which each command has a line of its own and each
answer ends with a prompt: so an answer is never taken for another command's, and no line grows with the number of
servers. In that mode too, silence is success and any text is a refusal.
"""

from __future__ import annotations

import socket
from time import monotonic

from multicloud.ranking import DOWN, DRAIN, MAINT, UP, Server

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable

TIMEOUT = 1.5
"""Seconds for all that is said over one connection: less than HAProxy gives the check that this is."""

PROMPT = b"\n> "
MAINT_BITS = 0x01 | 0x02 | 0x04 | 0x20  # forced, inherited, configured, or because its name does not resolve
DRAIN_BITS = 0x08 | 0x10  # forced, inherited
STOPPED, STOPPING = 0, 3
COLUMNS = ("be_name", "srv_name", "srv_op_state", "srv_admin_state", "srv_uweight")


class RuntimeAPIError(Exception):
    """HAProxy cannot be reached or refused a command. The text says which and why."""


class RuntimeAPI:
    """A connection to the Runtime API at a UNIX socket's path or host:port; a context manager."""

    def __init__(self, address: str, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._deadline = monotonic() + timeout
        try:
            self._socket = _connect(address, timeout)
        except OSError as error:
            raise self._broken(error) from None
        try:
            self.ask("prompt")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> RuntimeAPI:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def ask(self, command: str) -> str:
        """The answer to one command, without the blank lines around it. Raises RuntimeAPIError."""
        answer = b""
        try:
            self._socket.settimeout(self._time_left())
            self._socket.sendall(command.encode() + b"\n")
            while not answer.endswith(PROMPT):
                self._socket.settimeout(self._time_left())
                received = self._socket.recv(1 << 16)
                if not received:
                    raise RuntimeAPIError(f"{self.address}: HAProxy closed the connection at {command!r}")
                answer += received
        except OSError as error:
            raise self._broken(error) from None
        return answer.removesuffix(PROMPT).decode(errors="replace").strip("\n")

    def servers(self) -> list[Server]:
        """All servers of all backends, in the order of the configuration. Raises RuntimeAPIError."""
        answer = self.ask("show servers state")
        servers = []
        try:
            version, header, *rows = answer.splitlines()
            if version != "1":
                raise ValueError
            names = header.removeprefix("# ").split(" ")
            columns = [names.index(name) for name in COLUMNS]
            for row in rows:
                fields = row.split(" ")
                backend, name, op_state, admin_state, weight = (fields[column] for column in columns)
                servers.append(Server(backend, name, _state(int(op_state), int(admin_state)), int(weight)))
        except (ValueError, IndexError):
            raise RuntimeAPIError(f"{self.address}: no server states in the answer {answer[:100]!r}") from None
        return servers

    def set_weights(self, changes: Iterable[tuple[Server, int]]) -> tuple[list[tuple[Server, int]], list[str]]:
        """Set each weight. Returns the changes that were accepted, and what was said to the others."""
        accepted, refusals = [], []
        for server, weight in changes:
            command = set_weight(server, weight)
            answer = self.ask(command)
            if answer:
                refusals.append(f"{self.address}: {command!r} was refused: {' '.join(answer.split())}")
            else:
                accepted.append((server, weight))
        return accepted, refusals

    def _time_left(self) -> float:
        """Seconds; what never stops talking is stopped here. Raises TimeoutError."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _broken(self, error: OSError) -> RuntimeAPIError:
        reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        return RuntimeAPIError(f"{self.address}: {reason}; is it the `stats socket` of a running HAProxy?")


def set_weight(server: Server, weight: int) -> str:
    """The Runtime API's command, as it is sent and as a dry run shows it."""
    return f"set server {server.backend}/{server.name} weight {weight}"


def _state(op_state: int, admin_state: int) -> str:
    if admin_state & MAINT_BITS:
        return MAINT
    if admin_state & DRAIN_BITS or op_state == STOPPING:
        return DRAIN
    return DOWN if op_state == STOPPED else UP


def _connect(address: str, timeout: float) -> socket.socket:
    host, colon, port = address.rpartition(":")
    if "/" in address or not colon:
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(address)
        except BaseException:
            connection.close()
            raise
        return connection
    return socket.create_connection((host.strip("[]"), int(port)), timeout)
