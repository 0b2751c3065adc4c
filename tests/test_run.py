"""multicloud-run beside a real HAProxy, whose own checks are the samples."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from multicloud import history, reweigh, run, runtime, settings
from tests import command, haproxy, servers
from tests.command import BARE
from tests.edge import Router, wait_until
from tests.ports import free_port
from tests.regions import Regions
from tests.user import asked

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = str(Path(sys.executable).with_name("multicloud-run"))
SETTINGS = "backends = app\ninterval = 0.1\n"
NUMBERED = 'http-check expect status 200 on-success "%[date(0,ms)]"'
"""With which no check is taken for another one."""


class Site:
    """Regions `eu` (20 ms) and `us` (60 ms), a HAProxy that checks them itself, and the files around it."""

    def __init__(self, regions: Regions, directory: Path, extra: str = "", inter: str = "200ms") -> None:
        self.region = {region.name: region for region in regions}
        self.region["eu"].delay, self.region["us"].delay = 0.02, 0.06
        servers = "".join(
            f"    server {name} 127.0.0.1:{region.port} check inter {inter} weight 1\n"
            for name, region in self.region.items()
        )
        web = f"frontend users\n    bind unix@{directory}/web.sock\n    default_backend app\n"
        app = f"{web}backend app\n    option httpchk GET /\n    {NUMBERED}\n{servers}\n{extra}"
        self.directory = directory
        self.text = haproxy.CONFIGURATION.format(backends=app, level="admin expose-fd listeners", extra="")
        self.times = directory / "times.txt"
        self.conf = directory / "multicloud.conf"
        self.conf.write_text(SETTINGS)
        self.router = self.new()

    def new(self) -> Router:
        """A HAProxy that has not been started."""
        return Router(self.directory, self.text, commands={}, environ={})

    @property
    def address(self) -> str:
        """The Runtime API's."""
        return self.router.settings["MULTICLOUD_SOCKET"]

    @property
    def environ(self) -> dict[str, str]:
        """What any of the commands is told of it."""
        return {
            "MULTICLOUD_CONF": str(self.conf),
            "MULTICLOUD_SOCKET": self.address,
            "MULTICLOUD_TIMES": str(self.times),
        }

    def weights(self) -> dict[str, int]:
        """Of the servers of `app`."""
        return haproxy.weights(self.address, "app")

    def wait_for_weights(self, **expected: int) -> None:
        """Return once the servers of `app` have these."""
        wait_until(lambda: self.weights() == expected, 15, f"{expected}")

    def samples(self, server: str, backend: str = "app") -> list[history.Sample]:
        """Of a server, as the file has them, the oldest first."""
        return history.read(str(self.times), 10_000).series.get((backend, server), [])[::-1]

    @contextlib.contextmanager
    def beside(self, *arguments: str, **environ: str) -> Iterator[Beside]:
        """Run multicloud-run, and end it with SIGTERM where the test has not."""
        around = {**BARE, **self.environ, **environ}
        number = len(list(self.directory.glob("said.*")))
        said, warned = self.directory / f"said.{number}", self.directory / f"warned.{number}"
        with said.open("w") as out, warned.open("w") as err:
            process = subprocess.Popen([PROGRAM, *arguments], env=around, stdout=out, stderr=err)
        try:
            yield Beside(process, said, warned, self.conf)
        finally:
            process.terminate()
            assert process.wait(timeout=10) in (0, 1, 2)


class Beside:
    """The running loop, and what it wrote."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path, warned: Path, conf: Path) -> None:
        self.process = process
        self.said = said
        self.warned = warned
        self._conf = conf

    def read_again(self, settings: str) -> None:
        """Have it read these settings."""
        self._conf.write_text(settings)
        self.process.send_signal(signal.SIGHUP)

    def wait_for(self, line: str) -> None:
        """Return once it has written what matches `line`; anywhere."""
        wait_until(lambda: bool(re.search(line, self.said.read_text() + self.warned.read_text())), 15, line)

    def count(self, line: str) -> int:
        """How many of the warnings match."""
        return len(re.findall(line, self.warned.read_text()))


@contextlib.contextmanager
def site(directory: Path, extra: str = "", inter: str = "200ms") -> Iterator[Site]:
    """Run it all but the loop."""
    with Regions(["eu", "us"], tls=False) as regions:
        made = Site(regions, directory, extra, inter)
        with made.router:
            yield made


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Site]:
    with site(tmp_path) as made:
        yield made


def test_each_of_haproxys_checks_is_one_sample_with_its_duration(here: Site) -> None:
    seen: dict[str, dict[str, float]] = {"eu": {}, "us": {}}

    def are_seen() -> bool:
        for server in haproxy.servers(here.address):
            if server.last_chk and server.check_seconds is not None:
                seen[server.name].setdefault(server.last_chk, server.check_seconds)
        return len(seen["us"]) >= 30

    with here.beside():
        wait_until(are_seen, 60, "thirty checks")
    for name, checks in seen.items():
        recorded = [seconds for seconds, _, failed in here.samples(name) if not failed]
        durations = list(checks.values())
        shift = next(start for start in range(10) if durations[start : start + 8] == recorded[:8])
        assert recorded[:20] == durations[shift : shift + 20]


def test_haproxy_is_looked_for_again_where_no_socket_is_set(here: Site, places: tuple[str, str, str]) -> None:
    with socket.socket(socket.AF_UNIX) as left_behind:
        left_behind.bind(places[0])
    rounds = run.Rounds(settings.Sources({"MULTICLOUD_BACKENDS": "app", "MULTICLOUD_TIMES": str(here.times)}))
    rounds.round()
    os.symlink(here.address, places[1])
    rounds.round()
    rounds.round()
    assert (rounds.totals.failures, rounds.problems) == (2, {})


def test_a_server_that_slows_down_loses_the_favourites_weight(here: Site) -> None:
    with here.beside() as beside:
        beside.wait_for(r"app/eu: weight 1 -> 256")
        here.wait_for_weights(eu=256, us=1)
        wait_until(lambda: len(here.samples("eu")) > 8, 15, "samples from before")
        here.region["eu"].delay = 0.15
        here.wait_for_weights(us=256, eu=1)
        overtook = r"app/us: weight 1 -> 256, \d+ % faster than eu\n"
        beside.wait_for(overtook + r"app/eu: weight 256 -> 1, the fastest after the favourite: \d+\.\d ms\n")
    assert beside.warned.read_text() == ""


def test_an_smtp_server_cannot_say_how_long_its_checks_took_and_which_they_are(tmp_path: Path) -> None:
    def lie(connection: servers.Connection) -> None:
        connection.send(b"220 1us@1\r\n")
        while connection.socket.recv(1000):
            time.sleep(0.03)
            connection.send(b"250 1us@1\r\n")

    with servers.Server(lie, tls=servers.good()) as liar:
        check = f"server liar {liar.address}:{liar.port} ssl verify none check inter 200ms"
        with site(tmp_path, f"backend mail\n    mode tcp\n    option smtpchk\n    {check}\n") as here:
            with here.beside(MULTICLOUD_BACKENDS="mail"):
                wait_until(lambda: len(here.samples("liar", "mail")) > 3, 15, "samples of several checks")
            assert min(here.samples("liar", "mail"))[0] > 0.08


def test_for_who_collects_logs_each_line_is_an_object(here: Site) -> None:
    with here.beside("--log", "json") as beside:
        beside.wait_for(r"app/eu: weight 1 -> 256")
        beside.read_again("none")
        beside.wait_for("the settings stay")
        here.router.__exit__()
        beside.wait_for("haproxy.sock")
    facts = {"backend": "app", "server": "eu", "before": 1, "weight": 256}
    changes = map(json.loads, beside.said.read_text().splitlines())
    change = next(each for each in changes if facts.items() <= each.items())
    assert change.keys() == {"time", "message", "reason", *facts}
    reasons = {"fastest": r"the fastest: \d+\.\d ms", "overtook": r"\d+ % faster than us"}  # who was measured first
    assert re.fullmatch(f"app/eu: weight 1 -> 256, {reasons[change['reason']]}", change["message"])
    for line in beside.warned.read_text().splitlines():
        warned = json.loads(line)
        assert warned.keys() == {"time", "message"}
        assert abs(warned["time"] - time.time()) < 60


def test_a_check_that_fails_is_a_failed_sample_with_the_time_it_was_allowed(here: Site) -> None:
    with here.beside():
        wait_until(lambda: len(here.samples("us")) > 5, 10, "samples")
        here.region["us"].status = 500
        wait_until(lambda: here.samples("us")[-1][2], 10, "a failed sample")
        seconds, when, failed = here.samples("us")[-1]
    assert failed
    assert when
    assert 0.1 <= seconds <= 2


def eu(here: Site) -> runtime.Server:
    """What HAProxy says of `eu`."""
    return next(server for server in haproxy.servers(here.address) if server.name == "eu")


@pytest.mark.slow
def test_a_check_that_failed_right_before_a_good_one_is_a_failed_sample_too(tmp_path: Path) -> None:
    with site(tmp_path, inter="1s fastinter 100ms") as here:
        here.conf.write_text("backends = app\ninterval = 0.4\n")
        with here.beside() as beside:
            beside.wait_for(r"app/eu: weight 1 -> 256")
            wait_until(lambda: len(here.samples("eu")) > 4, 15, "it is known how far checks are apart")
            before = eu(here).failures
            here.region["eu"].hangs = 3
            wait_until(lambda: eu(here).failures >= before + 4, 40, "failed checks")
            here.region["eu"].hangs = 0
            wait_until(lambda: not any(each.failed for each in here.samples("eu")[-3:]), 15, "good ones")
            assert sum(each.failed for each in here.samples("eu")) == eu(here).failures - before
            assert here.weights() == {"us": 256, "eu": 1}


def test_all_checks_that_bring_a_server_back_are_samples_though_they_come_faster_than_rounds(tmp_path: Path) -> None:
    with site(tmp_path, inter="1s fastinter 100ms rise 4") as here:
        here.conf.write_text("backends = app\ninterval = 0.4\n")
        with here.beside() as beside:
            beside.wait_for(r"app/eu: weight 1 -> 256")
            here.region["eu"].status = 500
            wait_until(lambda: here.weights()["eu"] == 0, 20, "eu to be DOWN")
            here.region["eu"].status = 200
            wait_until(lambda: eu(here).state == "UP", 20, "eu to be UP")
            time.sleep(0.6)
            came = [failed for _, _, failed in here.samples("eu")]
        assert came[-4:] == [False] * 4
        assert came[::-1].index(True) <= 5


def test_a_check_from_before_maintenance_is_not_counted_again_after_it(here: Site) -> None:
    with here.beside():
        wait_until(lambda: len(here.samples("eu")) > 5, 15, "samples")
        haproxy.tell(here.address, "set server app/eu state maint")
        here.region["eu"].hangs = 1
        time.sleep(1)
        before = len(here.samples("eu"))
        haproxy.tell(here.address, "set server app/eu state ready")
        wait_until(lambda: len(here.samples("eu")) > before + 1, 15, "checks that fail")
        assert [failed for _, _, failed in here.samples("eu")[before:]] == [True] * (len(here.samples("eu")) - before)


def test_requests_of_users_that_fail_are_no_failed_checks(tmp_path: Path) -> None:
    with Regions(["eu", "us"], tls=False) as regions:
        port = free_port()
        here = Site(regions, tmp_path, f"frontend web\n    bind 127.0.0.1:{port}\n    default_backend app\n", "1s")
        observed = "observe layer7 error-limit 3 on-error fail-check weight 1"
        here.text = here.text.replace("weight 1", observed)
        here.router = here.new()
        with here.router, here.beside() as beside:
            beside.wait_for(r"app/eu: weight 1 -> 256")
            before = haproxy.tell(here.address, "show stat")[0]
            assert "HANA" not in before
            known = len(here.samples("eu"))
            wait_until(lambda: len(here.samples("eu")) > known, 15, "a check: the next one comes a second later")
            here.region["eu"].status = 500
            for _ in range(3):
                asked(port)
            here.region["eu"].status = 200
            wait_until(lambda: "HANA" in haproxy.tell(here.address, "show stat")[0], 15, "what HAProxy observed")
            wait_until(lambda: not any(each[2] for each in here.samples("eu")[-2:]), 15, "checks after that")
        assert not any(failed for _, _, failed in here.samples("eu"))


def test_a_restart_of_haproxy_is_said_once_and_weights_are_set_again(here: Site) -> None:
    with here.beside() as beside:
        beside.wait_for(r"weight 1 -> 256")
        here.router.__exit__()
        beside.wait_for(r"warning: .*haproxy.sock: ")
        time.sleep(1)  # of many rounds
        with here.new():
            beside.wait_for(r"over: .*haproxy.sock: ")
            here.wait_for_weights(eu=256, us=1)
    said = beside.warned.read_text().splitlines()  # a reset first, perhaps, and then that it is refused
    assert len(said) == len(set(said))
    assert beside.count("over: ") == 1


def test_after_a_reload_it_is_the_new_haproxy_that_is_asked(here: Site) -> None:
    with here.beside() as beside:
        here.wait_for_weights(eu=256, us=1)
        here.router.reload()
        here.wait_for_weights(eu=256, us=1)
        before = len(here.samples("eu"))
        wait_until(lambda: len(here.samples("eu")) > before + 3, 10, "samples of the new process")
        assert beside.process.poll() is None


def test_a_haproxy_that_does_not_answer_is_said_once(here: Site) -> None:
    pid = haproxy.process(here.address)
    with here.beside() as beside:
        beside.wait_for(r"weight 1 -> 256")
        os.kill(pid, signal.SIGSTOP)
        try:
            beside.wait_for(r"warning: .*no answer in time")
            time.sleep(2)
        finally:
            os.kill(pid, signal.SIGCONT)
        beside.wait_for(r"over: .*no answer in time")
        assert beside.count("warning: ") == 1


def test_a_sample_file_that_cannot_be_written_is_said_once_and_weights_are_set(here: Site) -> None:
    away = here.directory / "away" / "times.txt"
    with here.beside(MULTICLOUD_TIMES=str(away)) as beside:
        beside.wait_for(r"weight 1 -> 256")
        beside.wait_for(r"warning: samples are kept in memory only: .*no such directory")
        time.sleep(1)
        away.parent.mkdir()
        beside.wait_for(r"over: samples are kept in memory only")
        wait_until(lambda: away.exists() and " eu " in away.read_text(), 10, "samples in the file")
        assert beside.count("warning: ") == beside.count("over: ") == 1


def test_what_the_file_has_from_before_counts_at_once(here: Site) -> None:
    now = time.time()
    here.times.write_text("".join(f"app {name} {seconds} {now}\n" for name, seconds in (("eu", 0.9), ("us", 0.1))) * 15)
    with here.beside() as beside:
        beside.wait_for(r"app/us: weight 1 -> 256")


def test_a_file_that_vanishes_takes_no_memory_away(here: Site) -> None:
    with here.beside():
        wait_until(lambda: len(here.samples("eu")) > 8, 15, "samples")
        first = here.samples("eu")[0]
        here.times.unlink()
        wait_until(lambda: len(here.samples("eu")) > 2, 10, "a new file")
        assert first not in here.samples("eu")
        assert here.weights() == {"eu": 256, "us": 1}


@pytest.mark.parametrize(
    ("backends", "extra", "what"),
    [
        ("app,api", "", r"api: HAProxy has no backend of that name with servers: .* it has: app"),
        ("app,bare", "backend bare\n    server ap 127.0.0.1:1\n", r"bare: HAProxy does not check ap: write `check`"),
        ("app,once", "backend once\n    server eu 127.0.0.1:1 track app/eu\n", r"once: .* track those of app: write"),
        (
            "app",
            "    server ap 127.0.0.1:1 track other/ap\nbackend other\n    server ap 127.0.0.1:1 check\n",
            r"app: the checks of ap are those of other: write",
        ),
    ],
)
def test_a_backend_that_cannot_be_measured_is_named_once_and_the_others_are(
    tmp_path: Path, backends: str, extra: str, what: str
) -> None:
    with site(tmp_path, extra) as here, here.beside(MULTICLOUD_BACKENDS=backends) as beside:
        beside.wait_for(what)
        beside.wait_for(r"app/eu: weight 1 -> 256")
        time.sleep(1)
        assert beside.count(what) == 1


def test_a_backend_with_external_checks_is_named() -> None:
    external = """
backend external
    option external-check
    external-check path "/usr/bin:/bin"
    external-check command /bin/true
    server ap 127.0.0.1:1 check inter 200ms
"""
    with haproxy.haproxy(external, extra="insecure-fork-wanted\n    external-check") as address:

        def said() -> str:
            return run.unmeasured(haproxy.servers(address), ("external",)).get("backend external", "")

        wait_until(lambda: "option external-check" in said(), 10, "its name")


def test_external_checks_may_be_beside_it(tmp_path: Path) -> None:
    with Regions(["eu", "us"], tls=False) as regions:
        first, second = regions
        extra = (
            'backend external\n    option external-check\n    external-check path "${PATH}"\n'
            '    external-check command "${MULTICLOUD_CHECK}"\n'
            f"    server near 127.0.0.1:{first.port} check inter 200ms weight 1\n"
            f"    server far 127.0.0.1:{second.port} check inter 200ms weight 1\n"
        )
        here = Site(regions, tmp_path, extra)
        here.text = here.text.replace("global\n", "global\n    insecure-fork-wanted\n    external-check\n")
        here.router = here.new()
        with here.router, here.beside():
            here.wait_for_weights(eu=256, us=1)
            external = {"near": 256, "far": 1}
            wait_until(lambda: haproxy.weights(here.address, "external") == external, 20, "weights by external checks")
            assert here.samples("near", "external")
            wait_until(lambda: bool(here.samples("eu")), 5, "samples")  # which are written after weights are set


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_after_the_round(here: Site, number: int) -> None:
    with here.beside() as beside:
        beside.wait_for(r"weight 1 -> 256")
        beside.process.send_signal(number)
        assert beside.process.wait(timeout=10) == 0
    assert beside.warned.read_text() == ""
    assert here.times.read_bytes().endswith(b"\n")


STAY = "error: the settings stay as they were: "


def test_sighup_reads_the_settings_again(here: Site) -> None:
    with here.beside() as beside:
        beside.wait_for(r"weight 1 -> 256")
        beside.read_again(f"{SETTINGS}favorite = 99\n")
        here.wait_for_weights(eu=99, us=1)
        wrong = ("backend = app\n", "", f"{SETTINGS}window = none\n", f"{SETTINGS}favorite = 1\nbackup = 2\n")
        for number, each in enumerate(wrong):
            beside.read_again(each)
            while beside.count(STAY) == number:
                time.sleep(0.05)
        assert here.weights() == {"eu": 99, "us": 1}
        assert beside.process.poll() is None


def test_settings_that_contradict_each_other_across_sections_are_said_once_and_nothing_old_is_served(
    tmp_path: Path,
) -> None:
    port = free_port()
    tracking = "backend once\n    server eu 127.0.0.1:1 track app/eu\n"
    with site(tmp_path, tracking) as here, here.beside("--metrics", str(port)) as beside:
        beside.wait_for(r"app/eu: weight 1 -> 256")
        beside.read_again(f"{SETTINGS}[app]\nfavorite = 5\n[once]\nbackup = 10\n")
        beside.wait_for(r"warning: no weights are set: .* backup: 10 is above .* favorite, which is 5")
        time.sleep(0.5)
        page = scrape(port)
        assert "multicloud_server_weight{" not in page
        assert (value(page, "multicloud_problems"), value(page, "multicloud_rounds_failed_total")) == (1, 0)
        beside.read_again(SETTINGS)
        beside.wait_for(r"over: no weights are set")
        assert beside.count("warning") == 1


def test_a_server_that_is_added_while_a_round_decides_gets_its_weight(tmp_path: Path) -> None:
    with site(tmp_path) as here:
        looks = iter(range(9))

        def add(command: str) -> None:
            if command == "show servers state" and next(looks) == 1:
                haproxy.tell(here.address, "add server app/ap 127.0.0.1:1", "enable server app/ap")

        with haproxy.recording(here.address, add) as recorded, here.beside(MULTICLOUD_SOCKET=recorded.path) as beside:
            beside.wait_for(r"app/ap: weight 1 -> 0")
            assert beside.process.poll() is None


def test_parts_move_by_the_time_that_has_passed_however_long_a_round_takes(
    here: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    elapsed: list[float] = []
    original = reweigh.weigh

    def slow(*arguments: Any, **others: Any) -> reweigh.Outcome:
        elapsed.append(others["elapsed"])
        time.sleep(0.2)
        if len(elapsed) == 2:
            raise runtime.RuntimeAPIError("away")
        return original(*arguments, **others)

    monkeypatch.setattr(reweigh, "weigh", slow)
    rounds = run.Rounds(settings.Sources(here.environ | {"MULTICLOUD_INTERVAL": "0.1"}))
    for _ in range(3):
        rounds.round()
    assert elapsed[1] >= 0.2
    assert elapsed[2] >= 0.4  # since weights were decided


def test_a_problem_is_said_when_it_begins_when_its_reason_changes_and_when_it_is_over(
    capsys: pytest.CaptureFixture[str],
) -> None:
    rounds = run.Rounds(settings.Sources({"MULTICLOUD_CONF": os.devnull, "MULTICLOUD_BACKENDS": "app"}))
    for problems in ({"backend app": "one"}, {"backend app": "one", "file": "a"}, {"backend app": "two"}, {}):
        rounds._tell(problems)
    said = capsys.readouterr().err.splitlines()
    assert said == ["warning: one", "warning: a", "over: a", "warning: two", "over: two"]


def test_sighup_loses_no_sample_that_is_in_memory_only(here: Site) -> None:
    here.times.mkdir()
    here.conf.write_text(f"{SETTINGS}min_samples = 0\n")
    with here.beside("--metrics", str(port := free_port())) as beside:

        def known() -> float:
            return value(scrape(port), r'multicloud_server_samples\{backend="app",server="eu"\}')

        beside.wait_for(r"weight 1 -> 256")
        wait_until(lambda: known() >= 10, 15, "samples")
        beside.read_again(f"{SETTINGS}window = 40\n")
        beside.wait_for("the settings were read again")
        assert known() >= 10


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ((), {"MULTICLOUD_BACKENDS": ""}, r"error: no backends to measure; name them: MULTICLOUD_BACKENDS=app,api"),
        ((), {"MULTICLOUD_WINDOW": "x"}, r"error: MULTICLOUD_WINDOW: cannot read 'x'"),
        (("--metrics",), {}, r"error: usage: multicloud-run \[--metrics \[ADDR:\]PORT\]"),
        (("--metrics", "1", "2"), {}, r"error: usage: "),
        (("--log", "xml"), {}, r"error: usage: .* \[--log text\|json\]"),
        (("--metrics=here",), {}, r"error: --metrics: cannot read 'here'; accepted: \[ADDR:\]PORT"),
        (("--metrics", "::1:x"), {}, r"error: --metrics: cannot read '::1:x'"),
    ],
)
def test_what_cannot_be_meant_is_exit_code_2_and_one_line(
    tmp_path: Path, arguments: tuple[str, ...], environ: dict[str, str], message: str
) -> None:
    around = {"MULTICLOUD_CONF": os.devnull, "MULTICLOUD_BACKENDS": "app", "MULTICLOUD_TIMES": f"{tmp_path}/t"}
    done = command.run(*arguments, environ={**around, **environ}, program=PROGRAM)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.match(message, done.stderr)
    assert done.stderr.count("\n") == 1


def test_the_command_for_people_is_the_same_function(here: Site) -> None:
    with command.Terminal("run", "--interval", "0.2", environ=here.environ) as terminal:
        terminal.wait_for("app/eu: weight 1 -> 256")
        terminal.press(b"\x03")
        assert terminal.wait() == 0
    assert command.run("run", environ={"MULTICLOUD_CONF": os.devnull}).returncode == 2
    assert command.run("run", "--metrics", "x", environ=here.environ).returncode == 2


def scrape(port: int) -> str:
    """What a scraper reads, once the loop listens."""
    for patience in range(100, -1, -1):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
                text: str = answer.read().decode()
            return text
        except urllib.error.URLError:
            if not patience:
                raise
            time.sleep(0.1)
    raise AssertionError


def value(text: str, name: str) -> float:
    return float(re.findall(rf"^{name} (\S+)$", text, re.MULTILINE)[0])


def test_metrics_are_those_of_status_and_the_rounds(here: Site) -> None:
    port = free_port()
    with here.beside("--metrics", str(port)):
        here.wait_for_weights(eu=256, us=1)
        status = command.run("status", "--format", "prometheus", environ=here.environ).stdout
        wait_until(lambda: 'multicloud_server_weight{backend="app",server="eu"} 256.0' in scrape(port), 10, "a weight")
        text = scrape(port)
    shown = {family.name: family.type for family in text_string_to_metric_families(text)}
    own = {
        "multicloud_rounds": "counter",
        "multicloud_rounds_failed": "counter",
        "multicloud_round_duration_seconds": "gauge",
        "multicloud_last_round_timestamp_seconds": "gauge",
        "multicloud_haproxy_up": "gauge",
        "multicloud_check_seconds": "histogram",
        "multicloud_checks_failed": "counter",
        "multicloud_weight_changes": "counter",
        "multicloud_decisions": "counter",
        "multicloud_favorite_changes": "counter",
        "multicloud_favorite_since_timestamp_seconds": "gauge",
    }
    assert shown == {family.name: family.type for family in text_string_to_metric_families(status)} | own
    assert value(text, "multicloud_rounds_total") > 1
    assert value(text, "multicloud_rounds_failed_total") == 0
    assert value(text, "multicloud_haproxy_up") == 1
    counted = value(text, r'multicloud_check_seconds_count\{backend="app",server="eu"\}')
    assert 1 <= counted <= len(here.samples("eu"))
    assert abs(value(text, "multicloud_last_round_timestamp_seconds") - time.time()) < 60


def test_metrics_of_a_haproxy_that_is_away_have_no_servers(here: Site) -> None:
    port = free_port()
    with here.beside("--metrics", f"127.0.0.1:{port}"):
        wait_until(lambda: "multicloud_server_up{" in scrape(port), 10, "servers")
        here.router.__exit__()
        wait_until(lambda: "multicloud_server_up{" not in scrape(port), 10, "no servers")
        text = scrape(port)
        assert value(text, "multicloud_problems") == 1
        assert value(text, "multicloud_haproxy_up") == 0
        assert value(text, "multicloud_rounds_failed_total") >= 1


def test_scrapers_that_are_slow_or_hostile_delay_no_round_and_the_next_scraper_by_a_second_each(here: Site) -> None:
    port = free_port()
    with here.beside("--metrics", str(port)) as beside, contextlib.ExitStack() as stack:
        wait_until(lambda: bool(re.search(r"^multicloud_rounds_total [3-9]", scrape(port), re.MULTILINE)), 10, "rounds")
        before = value(scrape(port), "multicloud_rounds_total")
        silent, dripping = (stack.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2))

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    dripping.sendall(b"x")
                    time.sleep(0.001)

        thread = threading.Thread(target=drip)
        thread.start()
        assert value(scrape(port), "multicloud_rounds_total") > before + 10
        thread.join(10)
        assert not thread.is_alive(), "it was cut off"
        assert silent.recv(1) == b""
        assert len(os.listdir(f"/proc/{beside.process.pid}/fd")) < 10


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told(here: Site, abstract: bool) -> None:
    name = f"multicloud-test-{os.getpid()}" if abstract else str(here.directory / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}" if abstract else name)
        listener.settimeout(15)
        with here.beside(NOTIFY_SOCKET=f"@{name}" if abstract else name) as beside:
            assert listener.recv(4096) == b"READY=1\nWATCHDOG=1"
            assert b"WATCHDOG=1" in listener.recv(4096)
            beside.process.terminate()
            assert beside.process.wait(timeout=10) == 0
        received = b""
        while b"STOPPING" not in received:
            received = listener.recv(4096)


def test_two_loops_and_a_reweigh_agree(here: Site) -> None:
    reweigh = str(Path(PROGRAM).with_name("multicloud-reweigh"))
    here.region["us"].delay = 0.15
    with here.beside() as one, here.beside() as other:
        here.wait_for_weights(eu=256, us=1)
        for _ in range(5):
            done = command.run(environ=here.environ, program=reweigh)
            assert (done.returncode, done.stderr) == (0, "")
            assert here.weights() == {"eu": 256, "us": 1}
    assert one.warned.read_text() == other.warned.read_text() == ""
