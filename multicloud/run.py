"""The loop beside HAProxy: its own checks are the samples, and a reweigh follows them, again and again.

Each round asks the Runtime API over a connection of its own, so that after a reload it is the new process that answers.
Samples are in memory and in the sample file, where others may write too. Whatever is away or refuses, the loop goes on:
it says so once when that begins, and once when it is over.

Signals are blocked, and taken between two rounds only: SIGTERM and SIGINT end the loop, SIGHUP reads the settings.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
import time

from multicloud import durations, metrics, process, ranking, reweigh, runtime, samples, scores, settings

TYPE_CHECKING = False  # `typing` is not needed at run time
if TYPE_CHECKING:
    from collections.abc import Sequence

USAGE = "multicloud-run [--metrics [ADDR:]PORT]"
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

TRIM_AGAIN = 60
"""Rounds between two attempts at a trim that failed, which reads the whole file."""

ALIVE = 5.0
"""Seconds between two signs of life to systemd, at most: rounds may be rarer."""


class UsageError(Exception):
    """Arguments or settings with which there is nothing to do. The text says what to write."""


class ListenError(Exception):
    """The port for scrapers cannot be had. The text says why."""


def main() -> int:
    """The light command; return the exit code."""
    try:
        return run(settings.Sources(os.environ), address_of(sys.argv[1:]))
    except (settings.SettingError, UsageError) as error:
        process.tell(f"error: {error}")
        return 2
    except ListenError as error:
        process.tell(f"error: {error}")
        return 1


def address_of(arguments: Sequence[str]) -> str:
    """What `--metrics` says, "" where it is not there. Raises UsageError."""
    option, _, value = " ".join(arguments).replace("=", " ", 1).partition(" ")
    if option not in ("", "--metrics") or (option and not value) or " " in value:
        raise UsageError(f"usage: {USAGE}")
    return value


def run(sources: settings.Sources, address: str = "") -> int:
    """Rounds until SIGTERM or SIGINT; the exit code. Prometheus' metrics are served at `address` where it is not "".

    Raises SettingError, UsageError and ListenError, before the first round.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread is started, which inherits it
    rounds = Rounds(sources)
    if address:
        threading.Thread(target=metrics.serve, args=(_listen(address), rounds.page), daemon=True).start()
    due = time.monotonic()
    while True:
        rounds.round()
        notify("READY=1\nWATCHDOG=1")
        due = max(due + rounds.values.interval, time.monotonic())  # a round that came late is not made up for
        received = _wait(due)
        if received == signal.SIGHUP:
            rounds.reload()
            due = time.monotonic()
        elif received:
            notify("STOPPING=1")
            return 0


class Rounds:
    """What is kept from one round to the next."""

    def __init__(self, sources: settings.Sources) -> None:
        self.problems: dict[str, str] = {}
        self.count = self.failures = 0
        self.seconds = self.ended = 0.0
        self.servers: list[runtime.Server] = []
        self.outcome: reweigh.Outcome | None = None
        self._page = 0, b""
        self._use(sources)

    def _use(self, sources: settings.Sources) -> None:
        """Work with these settings from now on. Raises SettingError and UsageError, and then nothing has changed."""
        values = sources.read(settings.RUN)
        if not values.backends:
            raise UsageError(
                "no backends to measure; name them: MULTICLOUD_BACKENDS=app,api, "
                f"or `backends = app,api` in {sources.path}"
            )
        newest = reweigh.longest_window(sources) + scores.RUN
        self.sources, self.values, self.newest = sources, values, newest
        self.durations = durations.Durations()
        self.found = samples.Samples()

    def reload(self) -> None:
        """Read the settings file again. Where it cannot be read, the settings stay."""
        before = self.values.times, self.found
        try:
            self._use(settings.Sources(self.sources.environ))
        except (settings.SettingError, UsageError) as error:
            process.tell(f"error: the settings stay as they were: {error}")
            return
        if self.values.times == before[0]:
            self.found = before[1]
        process.say("the settings were read again")

    def round(self) -> None:
        """Measure, decide and set weights once, and say what has begun or ceased to be wrong."""
        began = time.monotonic()
        problems: dict[str, str] = {}
        self.outcome = None
        try:
            self.found = samples.read_on(self.values.times, self.newest, self.found)
        except samples.SampleFileError as error:
            problems["file"] = f"samples are kept in memory only: {error}"
        try:
            self._reweigh(problems)
        except (runtime.RuntimeAPIError, settings.SettingError) as error:
            problems["haproxy"] = str(error)
            self.failures += 1
        self.count += 1
        self.seconds = time.monotonic() - began
        self.ended = time.time()
        self._tell(problems)

    def _reweigh(self, problems: dict[str, str]) -> None:
        """Raises RuntimeAPIError and SettingError."""
        taken: list[bytes] = []
        try:
            turn = reweigh.turn_of(self.values)
            try:
                with runtime.RuntimeAPI(self.values.socket) as api:
                    self.servers = api.servers()
                    problems |= unmeasured(self.servers, self.values.backends)
                    taken = self._take(self.servers)
                    if turn:  # else another reweigh is at work
                        self.outcome = reweigh.weigh(api, self.servers, self.found, self.sources)
            finally:
                if turn:
                    turn.close()
        finally:
            self._record(taken, problems)  # last, since no weight should wait for it
        if self.outcome:
            for change in self.outcome.changes:
                server = change.server
                process.say(f"{server.backend}/{server.name}: weight {server.weight} -> {change.weight}")
            if self.outcome.refusals:
                problems["refused"] = reweigh.refused(self.outcome)

    def _take(self, servers: Sequence[runtime.Server]) -> list[bytes]:
        """Add the checks that have ended to the samples; return their lines for the file."""
        measured = [
            server
            for server in servers
            if server.backend in self.values.backends and server.source == server.key and settings.is_name(server.name)
        ]
        now = round(time.time(), 3)  # as in the file
        ended = self.durations.ended(measured, self.found.series, now=time.monotonic(), every=self.values.interval)
        for server, seconds, failed in ended:
            self.found.add(server.backend, server.name, (round(seconds, 6), now, failed), self.newest)
        return [
            samples.line(server.backend, server.name, seconds, now, failed=failed) for server, seconds, failed in ended
        ]

    def _record(self, taken: Sequence[bytes], problems: dict[str, str]) -> None:
        """Append samples to the file, and trim it where it is long."""
        if not taken and "file" in self.problems:
            problems["file"] = self.problems["file"]  # nobody has tried
        elif taken and "file" not in problems:
            try:
                samples.append_all(self.values.times, self.newest, taken, self.found)
            except samples.SampleFileError as error:
                problems["file"] = f"samples are kept in memory only: {error}"
        if "trim" in self.problems and self.count % TRIM_AGAIN:
            problems["trim"] = self.problems["trim"]
        else:
            try:
                reweigh.trim_if_long(self.sources, max(samples.KEEP, self.newest), self.found)
            except samples.SampleFileError as error:
                problems["trim"] = f"the sample file is not trimmed: {error}"

    def _tell(self, problems: dict[str, str]) -> None:
        for name, text in problems.items():
            if name not in self.problems:
                process.tell(f"warning: {text}")
        for name, text in self.problems.items():
            if name not in problems:
                process.tell(f"over: {text}")
        # What was said when it began is what is over in the end.
        self.problems = {name: self.problems.get(name, text) for name, text in problems.items()}

    def page(self) -> bytes:
        """What a scraper reads of the last round, made when the first one asks for it."""
        count, outcome = self.count, self.outcome
        if self._page[0] != count or not count:
            rows: list[metrics.Row] = []
            if outcome:
                rows, _ = metrics.rows(self.servers, outcome.samples, outcome.scores, self.sources, time.time())
            own = metrics.rounds(count, self.failures, self.seconds, self.ended)
            self._page = count, (metrics.prometheus(rows, len(self.problems)) + own).encode()
        return self._page[1]


def unmeasured(servers: Sequence[runtime.Server], backends: Sequence[str]) -> dict[str, str]:
    """The backends of which HAProxy's checks give no samples, with what to write."""
    problems = {}
    for backend in backends:
        members = [server for server in servers if server.backend == backend]
        bare = [server.name for server in members if not server.check and server.state != ranking.MAINT]
        if not members:
            known = ", ".join(dict.fromkeys(server.backend for server in servers)) or "none at all"
            text = (
                f"HAProxy has no backend of that name with servers: write in MULTICLOUD_BACKENDS what it has: {known}"
            )
        elif any(server.source != server.key for server in members):
            tracked = ", ".join(dict.fromkeys(server.source[0] for server in members))
            text = f"its servers track those of {tracked}: write that in MULTICLOUD_BACKENDS instead"
        elif any(server.check.startswith("PROC") for server in members):
            text = (
                "it has external checks, which record by themselves: "
                "take it out of MULTICLOUD_BACKENDS, or `option external-check` out of the backend"
            )
        elif bare:
            text = f"HAProxy does not check {', '.join(bare)}: write `check` on each `server` line"
        else:
            continue
        problems[f"backend {backend}"] = f"{backend}: {text}"
    return problems


def notify(state: str) -> None:
    """Tell systemd, where it wants to know (sd_notify(3)); that it cannot be told changes nothing."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if path.startswith(("/", "@")):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
            connection.setblocking(False)
            try:
                connection.sendto(state.encode(), path.replace("@", "\0", 1) if path[0] == "@" else path)
            except OSError:
                return


def _wait(due: float) -> int:
    """Until the monotonic clock says `due`; the signal that came first, or 0."""
    while True:
        left = due - time.monotonic()
        received = signal.sigtimedwait(SIGNALS, max(0.0, min(left, ALIVE)))
        if received:
            return received.si_signo
        if left <= ALIVE:
            return 0
        notify("WATCHDOG=1")


def _listen(address: str) -> socket.socket:
    try:
        return metrics.listen(address)
    except (ValueError, UnicodeError):
        raise UsageError(f"--metrics: cannot read {address!r}; accepted: [ADDR:]PORT, 127.0.0.1:9101") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise ListenError(f"--metrics {address}: {reason.lower()}") from None
