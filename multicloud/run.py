"""The loop beside HAProxy: its own checks are the samples, and a reweigh follows them, again and again.

Each round asks the Runtime API over a connection of its own, so that after a reload it is the new process that answers.
Samples are in memory and in the sample file, where others may write too. Whatever is away or refuses, the loop goes on:
it says so once when that begins, and once when it is over.

Signals are blocked, and taken between two rounds only: SIGTERM and SIGINT end the loop, SIGHUP reads the settings.
"""

import gc
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence

from multicloud import haproxy_checks, history, light, overview, reweigh, runtime, samplefile, scrape, settings

USAGE = "multicloud-run [--metrics [ADDR:]PORT] [--log text|json]"
LOGS = ("text", "json")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
BACKEND = "backend "  # so begin the names of problems that backends have
TRIM_AGAIN = 60  # rounds to wait after a trim that failed, which reads the whole file
GARBAGE = 100_000  # net new objects before Python looks for cycles: a round of 1,000 servers makes 40,000, and none
ALIVE = 5.0  # seconds between two signs of life to systemd, at most: rounds may be rarer


def main() -> int:
    """The light command; return the exit code."""
    return run(settings.Sources(os.environ), *options_of(sys.argv[1:]))


def options_of(arguments: Sequence[str]) -> tuple[str, str]:
    """What `--metrics` says, "" where it is not there, and `--log`. Raises UsageError."""
    options = {"--metrics": "", "--log": LOGS[0]}
    words = iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        value = value if equals else next(words, "")
        if name not in options or not value or (name == "--log" and value not in LOGS):
            raise light.UsageError(f"usage: {USAGE}")
        options[name] = value
    return options["--metrics"], options["--log"]


def run(sources: settings.Sources, address: str = "", log: str = LOGS[0]) -> int:
    """Rounds until SIGTERM or SIGINT; the exit code. Prometheus' metrics are served at `address` where it is not "".

    What it says is `log`: text, or JSON, an object a line. Raises UsageError and CommandError, before the first round.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # before any thread is started, which inherits it
    gc.set_threshold(GARBAGE)
    rounds = Rounds(sources, as_json=log == "json")
    if address:
        threading.Thread(target=scrape.serve, args=(scrape.listen(address), rounds.page), daemon=True).start()
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
    """What is kept from one round to the next. `problems` are texts by what they are of."""

    def __init__(self, sources: settings.Sources, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self.problems: dict[str, str] = {}
        self.own: set[settings.Key] = set()  # the servers whose checks are recorded here
        self.checks = haproxy_checks.Checks()
        self.samples = history.Samples()
        self.totals = scrape.Totals()
        self._decided = 0.0
        # What the last round leaves to scrapers, who may come during the next one.
        self._last: tuple[list[runtime.Server], reweigh.Outcome | None, settings.Sources] = [], None, sources
        self._page = -1, b""  # and after how many rounds it was made
        self._use(sources)

    def _use(self, sources: settings.Sources) -> None:
        """Work with these settings from now on. Raises UsageError, and then nothing has changed."""
        values = sources.read(settings.RUN_SETTINGS)
        if not values.backends:
            places = f"MULTICLOUD_BACKENDS=app,api, or `backends = app,api` in {sources.path}"
            raise light.UsageError(f"no backends to measure; name them: {places}")
        self.newest, self.sources, self.values = reweigh.samples_needed(sources), sources, values

    def reload(self) -> None:
        """Read the settings file again. Where it cannot be read, the settings stay."""
        try:
            self._use(settings.Sources(self.sources.environ))
        except light.UsageError as error:
            self._say(light.warn, f"error: the settings stay as they were: {error}")
            return
        self.samples.stamp = None  # with a longer window the file may have more, so it is read as a whole
        self._say(light.print_line, "the settings were read again")

    def _say(self, write: Callable[[str], None], text: str, **facts: object) -> None:
        """Write a line: the text, or an object that has it, its time and the facts."""
        write(json.dumps({"time": round(time.time(), 3), "message": text, **facts}) if self.as_json else text)

    def round(self) -> None:
        """Measure, decide and set weights once, and say what has begun or ceased to be wrong."""
        began = time.monotonic()
        problems = dict(self.problems)  # what nobody looks at in this round stays as it was
        try:
            self.samples = history.follow(self.values.times, self.newest, self.samples, self.own)
        except samplefile.SampleFileError as error:
            problems["file"] = f"samples are kept in memory only: {error}"
        seen: tuple[list[runtime.Server], reweigh.Outcome | None] = [], None
        try:
            seen = self._reweigh(problems)
        except settings.SettingError as error:  # of two sections of which each is right by itself
            problems["settings"] = f"no weights are set: {error}"
        except (runtime.RuntimeAPIError, OSError) as error:
            problems["haproxy"] = str(error)
            # Where none is set, HAProxy may come back at another one of the usual places.
            self.values.socket = str(settings.SOCKET.parse(self.sources.text(settings.SOCKET)))
        self._last = *seen, self.sources
        self._tell(problems)
        self.totals.round(time.monotonic() - began, up="haproxy" not in problems)

    def _reweigh(self, problems: dict[str, str]) -> tuple[list[runtime.Server], reweigh.Outcome]:
        """Look at HAProxy's servers, decide and set weights. Raises RuntimeAPIError, SettingError and OSError."""
        lines: list[bytes] = []
        try:
            with runtime.RuntimeAPI(self.values.socket) as api:
                servers = api.servers()
                problems.pop("haproxy", None)
                for name in [name for name in problems if name.startswith(BACKEND)]:
                    del problems[name]
                problems |= unmeasured(servers, self.values.backends)
                lines = self._take(servers)
                now = time.monotonic()
                outcome = reweigh.weigh(api, servers, self.samples, self.sources, elapsed=now - self._decided)
                self._decided = now
        finally:
            self._record(lines, problems)  # last, since no weight should wait for it
        problems.pop("settings", None)
        problems.pop("refused", None)
        if outcome.refusals:
            problems["refused"] = reweigh.refused(outcome)
        self.totals.decided(outcome, time.time())
        for change in outcome.changes:
            server, weight = change.server, change.weight
            facts = {"backend": server.backend, "server": server.name, "before": server.weight, "weight": weight}
            text = reweigh.words(change, outcome.scores)
            self._say(light.print_line, text, **facts, reason=change.reason.name.lower())
        weights = {change.server.key: change.weight for change in outcome.changes}
        for server in servers:
            server.weight = weights.get(server.key, server.weight)
        return servers, outcome

    def _take(self, servers: Sequence[runtime.Server]) -> list[bytes]:
        """Add the checks that have ended to the samples; return their lines for the file."""
        measured = [
            server
            for server in servers
            if server.backend in self.values.backends and server.source == server.key and settings.is_name(server.name)
        ]
        self.own = {server.key for server in measured}
        now = round(time.time(), 3)  # as in the file
        ended = self.checks.ended(measured, self.samples.series, now=time.monotonic(), interval=self.values.interval)
        lines = []
        for server, seconds, failed in ended:
            self.totals.check(server.key, seconds, failed=failed)
            self.samples.add(server.backend, server.name, history.Sample(round(seconds, 6), now, failed), self.newest)
            lines.append(samplefile.format_line(server.backend, server.name, seconds, now, failed=failed))
        return lines

    def _record(self, lines: Sequence[bytes], problems: dict[str, str]) -> None:
        """Append samples to the file, and trim it where it is long."""
        if lines:
            try:
                self.samples.record(self.values.times, lines)
                problems.pop("file", None)
            except samplefile.SampleFileError as error:
                problems["file"] = f"samples are kept in memory only: {error}"
        if "trim" not in problems or self.totals.rounds % TRIM_AGAIN == 0:
            try:
                reweigh.trim_if_long(self.sources, self.newest, self.samples)
                problems.pop("trim", None)
            except samplefile.SampleFileError as error:
                problems["trim"] = f"the sample file is not trimmed: {error}"

    def _tell(self, problems: dict[str, str]) -> None:
        """Say what has begun, what has another reason than before, and what is over."""
        for name, text in self.problems.items():
            if name not in problems:
                self._say(light.warn, f"over: {text}")
        for name, text in problems.items():
            if self.problems.get(name) != text:
                self._say(light.warn, f"warning: {text}")
        self.problems = problems

    def page(self) -> bytes:
        """What a scraper reads of the last round, made when the first one asks for it."""
        count = self.totals.rounds
        if self._page[0] != count:
            rows: list[overview.Row] = []
            servers, seen, sources = self._last
            if seen:
                rows, _ = overview.rows(servers, seen.samples, seen.scores, sources, time.time())
            self._page = count, (scrape.prometheus(rows, len(self.problems)) + self.totals.text()).encode()
        return self._page[1]


def unmeasured(servers: Sequence[runtime.Server], backends: Sequence[str]) -> dict[str, str]:
    """The backends of which HAProxy's checks give no samples, with what to write."""
    problems = {}
    by_backend = runtime.by_backend(servers)
    external = {server.key for server in servers if server.check.startswith("PROC")}  # they record by themselves
    for backend in backends:
        everyone = by_backend.get(backend, [])
        able = [server for server in everyone if server.state != runtime.MAINT]
        members = [server for server in everyone if server.source == server.key]
        strangers = [server for server in able if server.source[0] not in backends and server.source not in external]
        tracked = ", ".join(dict.fromkeys(server.source[0] for server in (strangers if members else everyone)))
        if not everyone:
            text = "HAProxy has no backend of that name with servers: "
            text += f"write into `backends` what it has: {', '.join(by_backend) or 'none at all'}"
        elif not members:
            text = f"its servers track those of {tracked}: write that into `backends` instead"
        elif any(server.key in external for server in members):
            text = "it has external checks, which record by themselves: "
            text += "take it out of `backends`, or `option external-check` out of the backend"
        elif bare := [server.name for server in able if server.source == server.key and not server.check]:
            text = f"HAProxy does not check {', '.join(bare)}: write `check` on each `server` line"
        elif strangers:
            names = ", ".join(server.name for server in strangers)
            text = f"the checks of {names} are those of {tracked}: write that into `backends`, too"
        else:
            continue
        problems[BACKEND + backend] = f"{backend}: {text}"
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
