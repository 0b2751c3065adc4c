"""HAProxy's Runtime API: read the servers' states, set weights (HAProxy's management guide, section 9).

One connection for everything. It asks for the interactive mode, in which each command has a line of its own and each
answer ends with a prompt: so an answer is never taken for another command's, and no line grows with the number of
servers. In that mode too, silence is success and any text is a refusal.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections import namedtuple
from collections.abc import Iterable, Iterator, Sequence
from operator import itemgetter
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

from multicloud import light, settings

if TYPE_CHECKING:
    from multicloud.ranking import Decision  # which imports this module

    T = TypeVar("T", "Server", Decision)

UP, DOWN, MAINT, DRAIN = "UP", "DOWN", "MAINT", "DRAIN"
TIMEOUT = 1.0  # seconds for all that is said over one connection
PROMPT = b"> "  # what stands at the begin of a line behind an answer
FORCED_BIT, INHERITED_BIT, UNRESOLVED_BIT = 0x01, 0x02, 0x20
MAINT_BITS = FORCED_BIT | INHERITED_BIT | UNRESOLVED_BIT  # not 0x04, which stays where an operator has ended it
DRAIN_BITS = 0x08 | 0x10  # forced, inherited
STOPPED, STOPPING = 0, 3
# Rows of `show servers state` and of `show stat`: the columns that are read, by their names.
StateRow = namedtuple(
    "StateRow", "be_name srv_name srv_op_state srv_admin_state srv_uweight srv_addr srv_port srv_use_ssl srv_fqdn"
)
StatRow = namedtuple(
    "StatRow",
    "pxname svname tracked lastchg check_status check_code check_duration mode chkfail hanafail check_health "
    "check_rise last_chk agent_status scur stot rate ttime rtime bck",
)
ABSTRACT, SUN_PATH = "abns@", 108  # how an abstract socket is named; the bytes that its name has in the end (unix(7))
QUOTED = re.compile('"(?:[^"]|"")*"')


class RuntimeAPIError(light.CommandError):
    """HAProxy cannot be reached or refused a command. The text says which and why."""


class Server:
    """All that HAProxy says of a server, read once."""

    def __init__(self, backend: str, name: str, state: str, weight: int, *, unresolved: bool = False) -> None:
        self.backend, self.name = backend, name
        self.key = backend, name  # which no other server has
        self.source = self.key  # the key of the server whose samples score it: its own, or the one's that it tracks
        self.state = state  # UP, DOWN, MAINT or DRAIN
        self.state_age = 0.0  # seconds since it changed
        self.unresolved = unresolved  # it is in maintenance because its name does not resolve, by no operator's word
        self.weight = weight  # 0 to 256
        self.reserve = False  # whether it is HAProxy's own `backup`, which gets traffic while no other is UP
        self.address = self.port = self.tls = ""  # what a check is told; `tls` "1", "0", or "" where nobody says
        self.host = ""  # the name that HAProxy finds the address by, "" where it is told the address
        self.mode = "http"  # its backend's
        self.check = self.code = ""  # the status of the last check, "" without one, and its exit code or HTTP status
        self.check_seconds: float | None = None
        self.last_chk = ""  # the words of that check, "" where they are quoted or the next one is under way
        self.check_running = False
        self.fingerprint: tuple[str, ...] = ()  # what may differ from one check to the next: status, duration, health
        self.failures = 0  # checks that failed while the server was UP
        self.rise_left = 0  # checks that it has yet to pass in a row to be UP
        self.in_flight = self.rate = 0  # requests that it has now, and how many came in the last second
        self.answers = 0  # requests that it has answered since HAProxy's start; may be negative after `clear counters`
        self.total_time = self.response_time = 0.0  # mean seconds of the last of them, and those until answers began


def by_backend(those: Iterable[T]) -> dict[str, list[T]]:
    """The servers, or the decisions, of each backend, in their order."""
    backends: dict[str, list[T]] = {}
    for each in those:
        backends.setdefault(each.backend, []).append(each)
    return backends


class RuntimeAPI:
    """A connection to the Runtime API at a UNIX socket's path or host:port; a context manager."""

    def __init__(self, address: str, timeout: float = TIMEOUT) -> None:
        self.address = address
        self._deadline = monotonic() + timeout
        try:
            self._socket = _connect(address, self._deadline)
        except OSError as error:
            raise self._broken(error) from None
        except UnicodeError:
            raise RuntimeAPIError(f"{address}: not a host name") from None
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
        return "\n".join(self.lines(command)).strip("\n")

    def lines(self, command: str) -> Iterator[str]:
        """The lines of the answer to one command, as they come: no other may be sent before. Raises RuntimeAPIError."""
        rest = b""
        try:
            self._socket.settimeout(light.time_left(self._deadline))
            self._socket.sendall(command.encode() + b"\n")
            while rest != PROMPT:
                self._socket.settimeout(light.time_left(self._deadline))  # what never stops talking is stopped here
                received = self._socket.recv(1 << 16)
                if not received:
                    raise RuntimeAPIError(f"{self.address}: HAProxy closed the connection at {command!r}")
                whole, end, rest = (rest + received).rpartition(b"\n")
                if end:
                    yield from whole.decode(errors="replace").split("\n")
        except OSError as error:
            raise self._broken(error) from None

    def info(self) -> dict[str, str]:
        """What HAProxy says of its process (`show info`), by name. Raises RuntimeAPIError."""
        return dict(line.split(": ", 1) for line in self.ask("show info").splitlines() if ": " in line)

    @contextlib.contextmanager
    def expecting(self, what: str) -> Iterator[None]:
        """Raise a RuntimeAPIError for an answer that cannot be read within it (KeyError, ValueError)."""
        try:
            yield
        except (KeyError, ValueError) as error:
            raise RuntimeAPIError(f"{self.address}: no {what} in the answer: {str(error)[:100]!r}") from None

    def servers(self) -> list[Server]:
        """All servers of all backends, in the order of the configuration. Raises RuntimeAPIError."""
        with self.expecting("server states"):
            states = self.lines("show servers state")
            if (version := next(states, "")) != "1":
                raise ValueError(version)
            servers = [_server(row) for row in map(StateRow._make, rows(states, " ", StateRow._fields))]
        by_key = {server.key: server for server in servers}
        tracked: dict[settings.Key, settings.Key] = {}
        with self.expecting("statistics"):
            for row in map(StatRow._make, rows(self.lines("show stat -1 4 -1"), ",", StatRow._fields)):
                key = row.pxname, row.svname
                if key in by_key:
                    _add_stat(by_key[key], row)
                if row.tracked:
                    backend, _, name = row.tracked.partition("/")
                    tracked[key] = backend, name
        for server in servers:
            for _ in tracked:
                if server.source not in tracked:
                    break
                server.source = tracked[server.source]  # which may track another in turn
            if server.source in tracked:
                raise RuntimeAPIError(f"{self.address}: {server.backend}/{server.name} tracks itself")
        return servers

    def set_weights(self, changes: Iterable[Decision]) -> tuple[list[Decision], list[str]]:
        """Set each weight. Returns the changes that were accepted, and what was said to the others.

        Where HAProxy is lost on the way, that is said to the first of those that are left, and no more is sent.
        """
        accepted, refusals = [], []
        for change in changes:
            command = set_weight(change)
            try:
                answer = self.ask(command)
            except RuntimeAPIError as error:
                refusals.append(str(error))
                break
            if answer:
                refusals.append(f"{self.address}: {command!r} was refused: {' '.join(answer.split())}")
            else:
                accepted.append(change)
        return accepted, refusals

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Something else is done meanwhile, whose time does not count as talking."""
        began = monotonic()
        try:
            yield
        finally:
            self._deadline += monotonic() - began

    def _broken(self, error: OSError) -> RuntimeAPIError:
        reason = "no answer in time" if isinstance(error, TimeoutError) else light.reason(error)
        missing = self.address == settings.SOCKET.default and isinstance(error, FileNotFoundError)
        if missing and not any(map(os.path.exists, settings.SOCKET.others)):
            reason += f"; nor is there {' or '.join(settings.SOCKET.others)}"
        return RuntimeAPIError(f"{self.address}: {reason}; is it the `stats socket` of a running HAProxy?")


def set_weight(change: Decision) -> str:
    """The Runtime API's command, as it is sent and as a dry run shows it."""
    return f"set server {change.server.backend}/{change.server.name} weight {change.weight}"


def rows(lines: Iterable[str], separator: str, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The named columns of each row of a table whose first line has their names behind a `#`.

    A quoted field, which only HAProxy's texts for people are, is "", and it may have line's ends in it. Raises
    ValueError with the line that is none of such a table.
    """
    lines = iter(lines)
    header = next(lines, "")
    names = header.removeprefix("# ").split(separator)
    if not {*columns} <= {*names}:
        raise ValueError(header)
    places = [names.index(name) for name in columns]
    width = max(places) + 1
    pick = itemgetter(*places)
    for line in filter(None, lines):
        if '"' in line:
            while line.count('"') % 2:
                if (more := next(lines, None)) is None:
                    raise ValueError(line)
                line += more
            line = QUOTED.sub("", line)
        fields = line.split(separator, width)  # the columns to the right are not split
        if len(fields) < width:
            raise ValueError(line)
        yield pick(fields)


def _server(row: StateRow) -> Server:
    bits, op_state = int(row.srv_admin_state), int(row.srv_op_state)
    if bits & MAINT_BITS:
        state = MAINT
    elif bits & DRAIN_BITS or op_state == STOPPING:
        state = DRAIN
    else:
        state = DOWN if op_state == STOPPED else UP
    names = light.printable(row.be_name), light.printable(row.srv_name)  # what answers may be no HAProxy
    server = Server(*names, state, int(row.srv_uweight))
    # One that tracks another whose name does not resolve has inherited that maintenance, beside its own.
    server.unresolved = bool(bits & UNRESOLVED_BIT and not bits & FORCED_BIT)
    server.address, server.port, server.tls = row.srv_addr, row.srv_port, row.srv_use_ssl
    server.host = light.printable(row.srv_fqdn.removeprefix("-"))  # which stands for none; a name server may say it
    return server


def _add_stat(server: Server, row: StatRow) -> None:
    check, duration, health = row.check_status, row.check_duration, row.check_health
    server.state_age = float(row.lastchg or 0)
    server.mode, server.reserve = row.mode, row.bck == "1"
    server.check = check.removeprefix("* ")
    server.check_running = server.check != check
    server.check_seconds = float(duration) / 1000 if duration else None
    server.code, server.last_chk = row.check_code, row.last_chk
    server.fingerprint = server.check, duration, health  # not its code, which is 0 as soon as the next one begins
    # An agent's `down` counts there, too; `hanafail` has what `observe` saw in users' requests.
    if not row.agent_status:
        server.failures = int(row.chkfail or 0) - int(row.hanafail or 0)
    server.in_flight, server.rate = int(row.scur or 0), int(row.rate or 0)
    server.answers = int(row.stot or 0) - server.in_flight
    server.total_time, server.response_time = float(row.ttime or 0) / 1000, float(row.rtime or 0) / 1000
    server.rise_left = max(int(row.check_rise or 0) - int(health or 0), 0)


def _connect(address: str, deadline: float) -> socket.socket:
    """Connect to what `settings.SOCKET` has. Raises OSError and UnicodeError."""
    host, colon, port = address.rpartition(":")
    if address.startswith(ABSTRACT):
        address = "\0" + address.removeprefix(ABSTRACT).ljust(SUN_PATH - 1, "\0")
    elif "/" not in address and colon:
        return socket.create_connection((host.strip("[]"), int(port)), light.time_left(deadline))
    connection = socket.socket(socket.AF_UNIX)
    try:
        light.connect(connection, address, deadline)
    except BaseException:
        connection.close()
        raise
    return connection
