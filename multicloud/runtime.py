"""HAProxy's Runtime API: read the servers' states, set weights (HAProxy's management guide, section 9).

One connection for everything. It asks for the interactive mode, in which each command has a line of its own and each
answer ends with a prompt: so an answer is never taken for another command's, and no line grows with the number of
servers. In that mode too, silence is success and any text is a refusal.
"""

from __future__ import annotations

import os
import re
import socket
from operator import itemgetter
from time import monotonic, sleep

from multicloud import ranking, settings
from multicloud.ranking import DOWN, DRAIN, MAINT, UP

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

TIMEOUT = 1.5
"""Seconds for all that is said over one connection: less than HAProxy gives the check that this is."""

PROMPT = b"> "
"""What stands at the begin of a line behind an answer."""

MAINT_BITS = 0x01 | 0x02  # forced, inherited; 0x04, configured, stays where an operator has ended it
INHERITED_BIT = 0x02
UNRESOLVED_BIT = 0x20
DRAIN_BITS = 0x08 | 0x10  # forced, inherited
STOPPED, STOPPING = 0, 3

STATE_COLUMNS = (
    *("be_name", "srv_name", "srv_op_state", "srv_admin_state"),
    *("srv_uweight", "srv_addr", "srv_port", "srv_fqdn"),
)
STAT_COLUMNS = (
    *("pxname", "svname", "tracked", "lastchg", "check_status", "check_code", "check_duration", "mode"),
    *("chkfail", "hanafail", "check_health", "check_rise", "last_chk", "agent_status"),
)
QUOTED = re.compile('"(?:[^"]|"")*"')


class RuntimeAPIError(Exception):
    """HAProxy cannot be reached or refused a command. The text says which and why."""


class Server(ranking.Server):
    """All that HAProxy says of a server, read once.

    `address`, `port` and `tls` ("1", "0", or "" where HAProxy does not say) are what it tells a check of it. `mode` is
    its backend's. `since_change` and `check_seconds` are seconds, None where there was no check; `check` is the status
    of the last check, "" without one, and `code` its exit code or status. `host` is the name that HAProxy finds the
    address by, "" where it is told the address.

    `report` has what may differ from one check to the next, as HAProxy writes it: status, duration and the server's
    health. `failures` counts the checks that failed while it was UP, and `lacks` those that it has yet to pass in a row
    to be UP. `words` are the last check's, "" where they are quoted or another check is under way, which `busy` says.
    """

    __slots__ = (
        *("address", "agent", "busy", "check", "check_seconds", "code", "failures", "host", "lacks", "mode", "port"),
        *("report", "since_change", "tls", "words"),
    )

    def __init__(self, backend: str, name: str, state: str, weight: int, *, unresolved: bool = False) -> None:
        super().__init__(backend, name, state, weight, unresolved=unresolved)
        self.address = self.host = self.port = self.tls = self.check = self.code = self.words = self.agent = ""
        self.report: tuple[str, ...] = ()
        self.failures = self.lacks = 0
        self.busy = False
        self.mode = "http"
        self.since_change = 0.0
        self.check_seconds: float | None = None


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
        """The lines of the answer to one command, as they come: a long one takes HAProxy a while.

        No other command may be sent before the last line. Raises RuntimeAPIError.
        """
        rest = b""
        try:
            self._socket.settimeout(self._time_left())
            self._socket.sendall(command.encode() + b"\n")
            while rest != PROMPT:
                self._socket.settimeout(self._time_left())
                received = self._socket.recv(1 << 16)
                if not received:
                    raise RuntimeAPIError(f"{self.address}: HAProxy closed the connection at {command!r}")
                whole, end, rest = (rest + received).rpartition(b"\n")
                if end:
                    yield from whole.decode(errors="replace").split("\n")
        except OSError as error:
            raise self._broken(error) from None

    def servers(self) -> list[Server]:
        """All servers of all backends, in the order of the configuration. Raises RuntimeAPIError."""
        try:
            states = self.lines("show servers state")
            if (version := next(states, "")) != "1":
                raise ValueError(version)
            servers = [_server(row) for row in rows(states, " ", STATE_COLUMNS, ("srv_use_ssl",))]
        except ValueError as error:
            raise RuntimeAPIError(f"{self.address}: no server states in the answer: {str(error)[:100]!r}") from None
        try:
            known = {server.key: server for server in servers}
            tracked = {}
            for backend, name, track, *row in rows(self.lines("show stat -1 4 -1"), ",", STAT_COLUMNS):
                if (backend, name) in known:
                    _add_stat(known[backend, name], row)
                if track:
                    other, _, its_name = track.partition("/")
                    tracked[backend, name] = other, its_name
            for server in servers if tracked else ():
                while server.source in tracked:  # which may track another in turn; HAProxy refuses circles
                    server.source = tracked[server.source]
        except ValueError as error:
            raise RuntimeAPIError(f"{self.address}: no statistics in the answer: {str(error)[:100]!r}") from None
        return servers

    def set_weights(self, changes: Iterable[ranking.Decision]) -> tuple[list[ranking.Decision], list[str]]:
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

    def _time_left(self) -> float:
        """Seconds; what never stops talking is stopped here. Raises TimeoutError."""
        left = self._deadline - monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def _broken(self, error: OSError) -> RuntimeAPIError:
        reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or str(error)).lower()
        missing = self.address == settings.SOCKET.default and isinstance(error, FileNotFoundError)
        if missing and not any(map(os.path.exists, settings.SOCKET.others)):
            reason += f"; nor is there {' or '.join(settings.SOCKET.others)}"
        return RuntimeAPIError(f"{self.address}: {reason}; is it the `stats socket` of a running HAProxy?")


def set_weight(change: ranking.Decision) -> str:
    """The Runtime API's command, as it is sent and as a dry run shows it."""
    return f"set server {change.server.backend}/{change.server.name} weight {change.weight}"


def rows(
    lines: Iterable[str], separator: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, ...]]:
    """The named columns of each row of a table whose first line has their names behind a `#`.

    An `optional` column that is not there is "". A quoted field, which only HAProxy's texts for people are, is "" too,
    and it may have line's ends in it. Raises ValueError with the line that is none of such a table.
    """
    lines = iter(lines)
    header = next(lines, "")
    names = header.removeprefix("# ").split(separator)
    places = [names.index(name) if name in names else -1 for name in (*columns, *optional)]
    if -1 in places[: len(columns)]:
        raise ValueError(header)
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
        fields.append("")
        yield pick(fields)


def _server(row: Sequence[str]) -> Server:
    backend, name, op_state, admin_state, weight, address, port, host, tls = row
    bits = int(admin_state)
    server = Server(
        backend,
        name,
        _state(int(op_state), bits),
        int(weight),
        # One that tracks another whose name does not resolve has inherited that maintenance, beside its own.
        unresolved=bool(bits & UNRESOLVED_BIT and not bits & MAINT_BITS & ~INHERITED_BIT),
    )
    server.address, server.port, server.tls = address, port, tls
    server.host = host.removeprefix("-")  # which stands for none
    return server


def _add_stat(server: Server, row: Sequence[str]) -> None:
    since_change, check, server.code, duration, server.mode, *counts, server.words, server.agent = row
    failures, observed, health, rise = counts
    server.since_change = float(since_change or 0)
    server.check = check.removeprefix("* ")
    server.busy = server.check != check
    server.report = server.check, duration, health  # not its code, which is 0 as soon as the next one begins
    if not server.agent:  # whose `down` HAProxy counts, too; `observed` has what `observe` saw in users' requests
        server.failures = int(failures or 0) - int(observed or 0)
    server.lacks = max(int(rise or 0) - int(health or 0), 0)
    server.check_seconds = float(duration) / 1000 if duration else None


def _state(op_state: int, admin_state: int) -> str:
    if admin_state & (MAINT_BITS | UNRESOLVED_BIT):
        return MAINT
    if admin_state & DRAIN_BITS or op_state == STOPPING:
        return DRAIN
    return DOWN if op_state == STOPPED else UP


def _connect(address: str, deadline: float) -> socket.socket:
    host, colon, port = address.rpartition(":")
    timeout = deadline - monotonic()
    if "/" not in address and colon:
        return socket.create_connection((host.strip("[]"), int(port)), timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        while True:
            try:
                connection.connect(address)
                return connection
            except BlockingIOError:  # its queue is full, for which the kernel does not wait as in TCP
                if monotonic() >= deadline:
                    raise TimeoutError from None
                sleep(0.005)
    except BaseException:
        connection.close()
        raise
