"""The fake backend's command, run as HAProxy runs it, against a real HAProxy."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from multicloud import history, ranking, reweigh, runtime, samplefile, scores, settings
from multicloud.demo.router import haproxy_binary
from tests.edge import wait_until
from tests.haproxy import READING, haproxy, listening, process, recording, say_nothing, tell, weights
from tests.haproxy import servers as servers_of
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMAND = Path(sys.executable).with_name("multicloud-reweigh")

BACKENDS = """
backend upstream
    balance roundrobin
    server eu 127.0.0.1:1 weight 1
    server us 127.0.0.1:1 weight 1
    server ap 127.0.0.1:1 weight 1
backend other
    balance roundrobin
    server eu 127.0.0.1:1 weight 3
    server us 127.0.0.1:1 weight 4
"""

FAST_EU = "upstream us 0.2\nupstream eu 0.1\nupstream ap 0.3\n"
EU_IS_FAVORITE = {"eu": 256, "us": 1, "ap": 0}
AP_IS_OUT = "upstream/ap: weight 1 -> 0, others are faster: 300.0 ms\n"


@pytest.fixture
def router() -> Iterator[str]:
    with haproxy(BACKENDS) as address:
        yield address


def run(address: str, times: Path, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """Run the installed command in an environment as clean as HAProxy's."""
    environ = {"MULTICLOUD_SOCKET": address, "MULTICLOUD_TIMES": str(times), **environ}
    return subprocess.run([COMMAND, *arguments], env=environ, capture_output=True, text=True, timeout=60)


def states(address: str, backend: str = "upstream") -> list[str]:
    """The states of a backend's servers."""
    return [server.state for server in servers_of(address) if server.backend == backend]


def fails(result: subprocess.CompletedProcess[str], code: int, reason: str, changed: str = "") -> None:
    """The command left with this code and said why, in one line, and what it changed all the same."""
    assert (result.returncode, result.stdout) == (code, changed)
    assert result.stderr.startswith("error: ")
    assert reason in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_line_for_each_weight_that_changed_and_then_nothing(router: str, times: Path) -> None:
    times.write_text(FAST_EU)
    first = run(router, times)
    changed = "upstream/eu: weight 1 -> 256, the fastest: 100.0 ms\n" + AP_IS_OUT
    assert (first.returncode, first.stdout, first.stderr) == (0, changed, "")
    assert weights(router) == EU_IS_FAVORITE
    with recording(router) as recorded:
        second = run(recorded.path, times)
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")
    assert (recorded.connections, recorded.sent) == (1, [])


def test_who_overtakes_says_by_how_much(router: str, times: Path) -> None:
    times.write_text("upstream us 0.1\nupstream eu 0.2\nupstream ap 0.3\n")
    assert run(router, times).returncode == 0
    times.write_text("upstream us 0.1\nupstream eu 0.069\n")
    assert run(router, times).stdout.splitlines() == [
        "upstream/eu: weight 1 -> 256, 31 % faster than us",
        "upstream/us: weight 256 -> 1, the fastest after the favourite: 100.0 ms",
    ]


def test_a_backend_without_samples_is_untouched(router: str, times: Path) -> None:
    times.write_text(FAST_EU)
    assert run(router, times).returncode == 0
    assert weights(router, "other") == {"eu": 3, "us": 4}


@pytest.mark.parametrize("text", [None, "", "garbage\n", "upstream nobody 0.1\n", "nowhere eu 0.1\n"])
def test_there_is_nothing_to_do_yet_without_samples_of_known_servers(
    router: str, times: Path, text: str | None
) -> None:
    if text is not None:
        times.write_text(text)
    result = run(router, times)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert weights(router) == {"eu": 1, "us": 1, "ap": 1}


def test_maintenance_and_drain_are_untouched_and_down_gets_nothing(times: Path) -> None:
    port = free_port()
    backends = BACKENDS.replace(
        "backend other", f"    server down 127.0.0.1:{port} check inter 50ms fall 1\nbackend other"
    )
    with haproxy(backends) as address:
        wait_until(lambda: runtime.DOWN in states(address), 10, "the server is DOWN")
        tell(address, "set server upstream/eu state maint", "set server upstream/us state drain")
        times.write_text(FAST_EU + "upstream down 0.001\n")
        assert run(address, times).returncode == 0
        assert weights(address) == {"eu": 1, "us": 1, "ap": 256, "down": 0}
        tell(address, "set server upstream/eu state ready", "set server upstream/us state ready")
        assert run(address, times).returncode == 0
        assert weights(address) == {"eu": 256, "us": 1, "ap": 0, "down": 0}


def test_a_server_that_tracks_another_is_scored_by_its_samples_and_shares_its_state(times: Path) -> None:
    port = free_port()
    serving = socket.create_server(("127.0.0.1", 0))
    alive = f"127.0.0.1:{serving.getsockname()[1]} check inter 50ms"
    tracking = f"""
backend upstream
    balance roundrobin
    server eu {alive} weight 1
    server us {alive} weight 1
    server down 127.0.0.1:{port} check inter 50ms fall 1
backend once
    balance roundrobin
    server eu 127.0.0.1:1 track upstream/eu weight 1
    server west 127.0.0.1:1 track upstream/us weight 1
    server down 127.0.0.1:1 track upstream/down weight 1
backend once-more
    balance roundrobin
    server eu 127.0.0.1:1 track once/eu weight 1
    server alone 127.0.0.1:1 weight 9
"""
    with serving, haproxy(tracking) as address:
        wait_until(lambda: runtime.DOWN in states(address, "once"), 10, "the server is DOWN")
        times.write_text("upstream eu 0.02\nupstream us 0.01\nupstream down 0.001\nonce eu 0.001\n")
        assert run(address, times).returncode == 0
        assert weights(address) == {"eu": 1, "us": 256, "down": 0}
        assert weights(address, "once") == {"eu": 1, "west": 256, "down": 0}
        assert weights(address, "once-more") == {"eu": 256, "alone": 1}


@pytest.mark.parametrize("streams", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-", ">/dev/full 2>/dev/full"])
def test_it_needs_no_standard_streams(router: str, times: Path, streams: str) -> None:
    times.write_text(FAST_EU)
    environ = {"MULTICLOUD_SOCKET": router, "MULTICLOUD_TIMES": str(times)}
    assert subprocess.run(["/bin/sh", "-c", f'exec "{COMMAND}" {streams}'], env=environ, timeout=60).returncode == 0
    assert weights(router) == EU_IS_FAVORITE
    assert times.read_text() == FAST_EU


@pytest.mark.parametrize(
    ("command", "raises", "said"),
    [
        ("multicloud-reweigh", "RuntimeError('built for (X86_V2).')", "built for (X86_V2).; "),
        ("multicloud-run", "ImportError('IMPORTANT:\\n\\nOriginal error was: no libx.so\\n')", "no libx.so; "),
        ("multicloud status", "ModuleNotFoundError(\"No module named 'numpy'\")", "No module named 'numpy'; "),
    ],
)
def test_where_numpy_cannot_be_loaded_one_line_says_why(
    times: Path, tmp_path: Path, command: str, raises: str, said: str
) -> None:
    (tmp_path / "numpy.py").write_text(f"raise {raises}")
    arguments = f"{COMMAND.parent}/{command}".split()
    environ = {"PYTHONPATH": str(tmp_path), "MULTICLOUD_TIMES": str(times), "MULTICLOUD_BACKENDS": "app"}
    failed = subprocess.run(arguments, env=environ, capture_output=True, text=True, timeout=60)
    fails(failed, 1, f"numpy cannot be loaded: {said}with pip, install another version")


@pytest.mark.parametrize("option", ["--help", "--dry-run", "help"])
def test_an_argument_is_exit_code_2_and_reweighs_nothing(router: str, times: Path, option: str) -> None:
    times.write_text(FAST_EU)
    before = weights(router)
    fails(run(router, times, option), 2, "usage: multicloud-reweigh")
    assert weights(router) == before


def test_settings_and_a_sample_file_that_cannot_be_read_are_exit_code_2(router: str, times: Path) -> None:
    fails(run(router, times, MULTICLOUD_WINDOW="many"), 2, "MULTICLOUD_WINDOW: cannot read 'many'")
    times.mkdir()
    fails(run(router, times), 2, f"{times}: not a regular file")
    assert weights(router) == {"eu": 1, "us": 1, "ap": 1}


def test_a_haproxy_that_does_not_answer_is_exit_code_1(times: Path) -> None:
    with listening(say_nothing) as path:
        fails(run(path, times), 1, "no answer in time")


@pytest.mark.parametrize(("more", "said"), [([], "no"), (["nor", "never"], "no (and 2 more refusals)")])
def test_the_first_refusal_is_told_and_how_many_more_there_were(more: list[str], said: str) -> None:
    assert reweigh.refused(reweigh.Outcome(history.Samples(), {}, [], [], ["no", *more])) == said


def test_a_haproxy_that_refuses_is_exit_code_1(times: Path) -> None:
    times.write_text(FAST_EU)
    with haproxy(BACKENDS, level="operator") as address:
        fails(run(address, times), 1, "'set server upstream/eu weight 256' was refused: Permission denied")


def test_a_server_removed_between_reading_and_writing_is_refused_and_the_others_get_their_weights(
    router: str, times: Path
) -> None:
    times.write_text(FAST_EU)

    def remove(command: str) -> None:
        if command == "set server upstream/eu weight 256":
            tell(router, "set server upstream/eu state maint", "del server upstream/eu")

    with recording(router, before=remove) as recorded:
        refused = "'set server upstream/eu weight 256' was refused: No such server."
        fails(run(recorded.path, times), 1, refused, AP_IS_OUT)
    assert weights(router) == {"us": 1, "ap": 0}
    assert run(router, times).returncode == 0
    assert weights(router) == {"us": 256, "ap": 1}


def test_what_was_set_before_haproxy_was_lost_is_told(router: str, times: Path) -> None:
    times.write_text(FAST_EU)

    def lose(command: str) -> None:
        if command == "set server upstream/ap weight 0":
            raise ConnectionError

    with recording(router, before=lose) as recorded:
        lost = "HAProxy closed the connection at 'set server upstream/ap weight 0'"
        fails(run(recorded.path, times), 1, lost, "upstream/eu: weight 1 -> 256, the fastest: 100.0 ms\n")
    assert weights(router) == {"eu": 256, "us": 1, "ap": 1}


def test_a_reload_in_the_middle_is_made_good_by_the_next_reweigh(router: str, times: Path) -> None:
    times.write_text(FAST_EU)
    new: list[subprocess.Popen[bytes]] = []

    def reload(command: str) -> None:
        if command.startswith("set server") and not new:
            configuration = Path(router).with_name("haproxy.cfg")
            words = [haproxy_binary(), "-f", str(configuration), "-sf", str(process(router))]
            new.append(subprocess.Popen(words, env={**os.environ, "MULTICLOUD_SOCKET": router}))
            wait_until(lambda: process(router) == new[0].pid, 10, "the new process answers")

    try:
        with recording(router, before=reload) as recorded:
            assert run(recorded.path, times).returncode in (0, 1)  # as the old process lets it finish or not
        assert len(new) == 1
        assert weights(router) == {"eu": 1, "us": 1, "ap": 1}
        assert run(router, times).returncode == 0
        assert weights(router) == EU_IS_FAVORITE
    finally:
        for each in new:
            each.terminate()
            each.wait()


def test_a_worker_under_a_master_is_like_any_other(times: Path) -> None:
    times.write_text(FAST_EU)
    with haproxy(BACKENDS, extra="master-worker") as address:
        assert run(address, times).returncode == 0
        assert weights(address) == EU_IS_FAVORITE


def test_a_thousand_servers_get_their_weights_over_one_connection(times: Path) -> None:
    names = [f"s{number}.example.com" for number in range(1000)]
    times.write_text("".join(f"upstream {name} 0.{number + 1:06}\n" for number, name in enumerate(names)))
    lines = "".join(f"    server {name} 127.0.0.1:1 weight 2\n" for name in names)
    with haproxy(f"backend upstream\n{lines}") as address:
        with recording(address) as recorded:
            result = run(recorded.path, times)
        assert (result.returncode, len(result.stdout.splitlines())) == (0, 1000)
        assert (recorded.connections, len(recorded.sent)) == (1, 1000)
        assert weights(address) == {name: [256, 1, 0][min(number, 2)] for number, name in enumerate(names)}


def test_the_file_is_trimmed_even_while_haproxy_is_away(times: Path) -> None:
    times.write_text("upstream eu 0.1\n" * 21_000)
    fails(run(str(times.parent / "no.sock"), times), 1, "no such file or directory")
    assert times.read_text() == "upstream eu 0.1\n" * 10_000


def test_the_more_servers_there_are_the_fewer_samples_of_each_are_kept(times: Path) -> None:
    lines = "".join(f"upstream s{number} 0.1\n" for number in range(1000))
    times.write_text(lines * 205)
    fails(run(str(times.parent / "no.sock"), times), 1, "no such file or directory")
    assert times.read_text() == lines * 100


def test_weights_do_not_wait_for_the_trim(router: str, times: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times.write_text(FAST_EU * 7000)
    seen: list[dict[str, int]] = []
    monkeypatch.setattr(history, "trim", lambda *_: seen.append(weights(router)))
    reweigh.reweigh(sources(router, times), trim=True)
    assert seen == [EU_IS_FAVORITE]


def sources(address: str, times: Path, **environ: str) -> settings.Sources:
    return settings.Sources({"MULTICLOUD_SOCKET": address, "MULTICLOUD_TIMES": str(times), **environ})


def from_file(tmp_path: Path, text: str) -> settings.Sources:
    """Settings of a file with this text, and the sample file `times.txt` beside it."""
    (tmp_path / "multicloud.conf").write_text(text)
    return sources("", tmp_path / "times.txt", MULTICLOUD_CONF=str(tmp_path / "multicloud.conf"))


def test_a_dry_run_sends_nothing(router: str, times: Path) -> None:
    times.write_text(FAST_EU * 1000)
    outcome = reweigh.reweigh(sources(router, times), dry_run=True)
    assert [(change.server.name, change.weight) for change in outcome.changes] == [("eu", 256), ("ap", 0)]
    assert (outcome.refusals, outcome.samples.lines) == ([], 3000)
    assert weights(router) == {"eu": 1, "us": 1, "ap": 1}


def test_a_reweigh_trims_the_file_only_where_it_is_told_to(router: str, times: Path) -> None:
    times.write_text(FAST_EU * 7000)
    reweigh.reweigh(sources(router, times))
    assert times.read_text() == FAST_EU * 7000
    reweigh.reweigh(sources(router, times), trim=True)
    assert len(times.read_text()) < len(FAST_EU * 7000)


def test_a_recovery_as_old_as_the_window_is_told(router: str, times: Path) -> None:
    now = time.time()
    times.write_text("".join(f"upstream eu {seconds} {now}\n" for seconds in [0.3] * 4 + [0.02] * 5))
    outcome = reweigh.reweigh(sources(router, times, MULTICLOUD_WINDOW="5"))
    score = outcome.scores["upstream", "eu"]
    assert (len(score.counted), score.percentile) == (5, 90)
    assert score.since == pytest.approx(now, abs=0.01)


@pytest.mark.parametrize("line", ["percentile = 50", "min_samples = 30", "window = 5", "max_age = 8"])
def test_samples_are_scored_with_the_settings_of_their_backend(tmp_path: Path, line: str) -> None:
    now = 1_763_870_000.0
    newest_first = [history.Sample(0.03 + age * 7 % 25 / 4000, now - age) for age in range(25)]
    series = {("api", "eu"): newest_first, ("other", "eu"): newest_first}
    scored = reweigh.score(series, from_file(tmp_path, f"[api]\n{line}\n[eu]\npercentile = 1\n"), now)
    name, _, value = line.partition(" = ")
    own = scores.scores(series, now=now, **{name: int(value)})["api", "eu"]
    assert scored["api", "eu"].seconds == own.seconds
    assert scored["other", "eu"].seconds == scores.scores(series, now=now)["other", "eu"].seconds != own.seconds


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", [1, 256, 0]),
        ("hysteresis = 50", [256, 1, 0]),
        ("tolerance = 6", [256, 256, 1]),
        ("favorite = 99", [1, 99, 0]),
        ("backup = 9", [9, 256, 0]),
    ],
)
def test_servers_are_ranked_with_the_settings_of_their_backend(tmp_path: Path, line: str, expected: list[int]) -> None:
    servers = [runtime.Server("api", name, runtime.UP, weight) for name, weight in (("a", 256), ("b", 0), ("c", 0))]
    alone = runtime.Server("other", "a", runtime.UP, 1)
    timed = zip([*servers, alone], (0.02, 0.015, 0.03, 0.02), strict=True)
    scored = scores.scores({server.key: [history.Sample(seconds)] for server, seconds in timed}, now=0)
    decisions = reweigh.decide([*servers, alone], scored, from_file(tmp_path, f"[api]\n{line}\n"))
    assert [decision.weight for decision in decisions] == [*expected, 256]


HOUR = 3600


@pytest.fixture
def short_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is kept for the sake of an hour."""
    monkeypatch.setattr(history, "KEEP_IN_ALL", 0)


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize(
    ("ages", "left"),
    [
        ({"eu": [0] * 20}, {"eu": 20}),
        ({"eu": [0] * 21}, {"eu": 10}),
        ({"eu": [0] * 20, "us": [0] * 20}, {"eu": 20, "us": 20}),
        ({"eu": [0] * 20, "us": [0] * 21}, {"eu": 10, "us": 10}),
        ({"eu": [0.9 * HOUR] * 21}, {"eu": 10}),
        ({"eu": [0] * 20, "gone": [1.1 * HOUR]}, {"eu": 10}),
    ],
    ids=["twice what is kept", "more", "for each server", "more of one", "remembered", "none for one that is gone"],
)
def test_the_file_is_trimmed_when_it_has_more_than_twice_what_is_kept(
    tmp_path: Path, times: Path, ages: dict[str, list[float]], left: dict[str, int]
) -> None:
    now = time.time()
    times.write_text("".join(f"api {name} 0.1 {now - age}\n" for name, each in ages.items() for age in each))
    reweigh.trim_if_long(from_file(tmp_path, ""), 10, history.read(str(times), 10))
    assert {name: len(kept) for (_, name), kept in history.read(str(times), 100).series.items()} == left


@pytest.mark.usefixtures("short_files")
def test_samples_that_count_in_one_backend_are_remembered(tmp_path: Path, times: Path) -> None:
    times.write_text(f"api eu 0.1 {time.time() - 2 * HOUR}\n" * 21)
    reweigh.trim_if_long(from_file(tmp_path, f"[api]\nmax_age = {3 * HOUR}\n"), 10, history.read(str(times), 10))
    assert len(times.read_text().splitlines()) == 10


@pytest.mark.usefixtures("short_files")
@pytest.mark.parametrize(("beyond", "left"), [(0, 20), (1, 10)])
def test_the_file_is_trimmed_when_it_is_larger_than_half_of_what_is_read(
    tmp_path: Path, times: Path, monkeypatch: pytest.MonkeyPatch, beyond: int, left: int
) -> None:
    times.write_text("api eu 0.1\n" * 20)
    monkeypatch.setattr(samplefile, "MAX_BYTES", 2 * (times.stat().st_size - beyond))
    reweigh.trim_if_long(from_file(tmp_path, ""), 10, history.read(str(times), 10))
    assert len(times.read_text().splitlines()) == left


@pytest.mark.usefixtures("short_files")
def test_that_the_file_cannot_be_trimmed_is_a_warning(
    router: str, times: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def becomes_a_directory(path: str, *_: object) -> None:
        times.unlink()
        times.mkdir()
        trim(path, 10, 0.0)

    trim = history.trim
    monkeypatch.setattr(history, "trim", becomes_a_directory)
    times.write_text(FAST_EU * 1000)
    reweigh.reweigh(sources(router, times), trim=True)
    assert capfd.readouterr().err == f"warning: not trimmed: {times}: not a regular file\n"


def test_who_is_far_does_not_take_the_lead_and_the_second_look_leaves_it_so(
    router: str, times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times.write_text(FAST_EU * 30)
    tell(router, *(f"set server upstream/{each}" for each in ("us weight 256", "eu weight 0", "ap weight 0")))
    monkeypatch.setattr(reweigh, "connect_seconds", lambda *_: 0.25)
    outcome = reweigh.reweigh(sources(router, times))
    assert weights(router) == {"eu": 1, "us": 256, "ap": 0}
    reasons = {each.server.name: each.reason.name for each in outcome.decisions if each.server.backend == "upstream"}
    assert reasons == {"eu": "FAR", "us": "NEARER", "ap": "SLOWER"}


def test_who_is_far_is_known_where_the_samples_are_from_and_costs_all_backends_together_half_a_second(
    times: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers that track others may have no address of their own, as those before a relay."""
    asked: list[tuple[str, str, float]] = []

    def nobody_knows(address: str, port: str, timeout: float) -> float:
        asked.append((address, port, timeout))
        time.sleep(0.2)
        return 0.0

    relayed = f"""
backend relayed
    server eu {tmp_path}/relay.sock weight 0 track upstream/eu
    server us {tmp_path}/relay.sock weight 256 track upstream/us
"""
    times.write_text(FAST_EU * 30 + "other us 0.1\nother eu 0.2\n" * 30)
    monkeypatch.setattr(reweigh, "connect_seconds", nobody_knows)
    with socket.create_server(("127.0.0.1", 0)) as region:
        port = str(region.getsockname()[1])
        with haproxy(BACKENDS.replace("1:1 ", f"1:{port} check ") + relayed) as address:
            before = ("upstream/us weight 256", "upstream/eu weight 0", "other/eu weight 256", "other/us weight 0")
            tell(address, *(f"set server {each}" for each in before))
            reweigh.reweigh(sources(address, times))
            assert weights(address, "relayed") == {"eu": 256, "us": 1}
    assert [place[:2] for place in asked] == [("127.0.0.1", port)] * 2
    assert asked[1][2] <= reweigh.CONNECT - 0.2


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_how_long_a_connection_takes(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listening:
        port = str(listening.getsockname()[1])
        assert 0 < reweigh.connect_seconds(host, port, 1.0) < 1
        assert [reweigh.connect_seconds(host, port, timeout) for timeout in (0.0, -0.1)] == [0.0, 0.0]
        nowhere = ("-", "0"), ("", ""), ("localhost", port), (host, "x")
        assert [reweigh.connect_seconds(*each, 1.0) for each in nowhere] == [0.0] * 4
    assert reweigh.connect_seconds(host, port, 1.0) == 0.0


def test_a_reweigh_that_waits_wherever_it_can_is_done_before_haproxy_ends_it() -> None:
    assert runtime.TIMEOUT + reweigh.AGAIN + reweigh.CONNECT < 0.9 * reweigh.EVERY


def test_no_name_is_looked_up_in_the_time_of_a_connection() -> None:
    ask = "import sys; from multicloud import reweigh; reweigh.connect_seconds('127.0.0.1', '1', 1.0); "
    ask += "reweigh.connect_seconds('-', '0', 1.0); print('encodings.idna' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout == "False\n"


def test_each_backend_is_ranked_with_its_own_settings_and_one_that_tracks_it_too(tmp_path: Path, times: Path) -> None:
    times.write_text("one eu 0.010\none us 0.020\ntwo eu 0.010\ntwo us 0.020\n")
    conf = tmp_path / "multicloud.conf"
    conf.write_text("favorite = 200\n[two]\nfavorite = 100\nbackup = 2\n")
    servers = "    server eu 127.0.0.1:1{0}/eu weight 1\n    server us 127.0.0.1:2{0}/us weight 1\n"
    checked = "    server eu 127.0.0.1:1 weight 1\n    server us 127.0.0.1:2 weight 1\n"
    backends = f"backend one\n{checked}backend two\n    option tcp-check\n{checked.replace('weight', 'check weight')}"
    backends += f"backend two-once\n{servers.format(' track two')}"
    with haproxy(backends) as address:
        tell(address, "set server two/eu health up", "set server two/us health up")
        outcome = reweigh.reweigh(settings.Sources({**sources(address, times).environ, "MULTICLOUD_CONF": str(conf)}))
    assert {(each.server.backend, each.server.name): each.weight for each in outcome.decisions} == {
        ("one", "eu"): 200,
        ("one", "us"): 1,
        ("two", "eu"): 100,
        ("two", "us"): 2,
        ("two-once", "eu"): 100,
        ("two-once", "us"): 2,
    }


@pytest.fixture(scope="module")
def recorded_router() -> Iterator[tuple[str, list[str]]]:
    with haproxy(BACKENDS) as address, recording(address) as recorded:
        yield recorded.path, recorded.commands


fields = st.one_of(
    st.binary(max_size=8),
    st.sampled_from(
        [b"upstream", b"other", b"eu", b"us", b"#1", b"eu;id", b"0.1", b"nan", b"1e400", b"-1", b"99999999999999"]
    ),
)
hostile_line = st.lists(fields, max_size=5).map(b" ".join)


@given(st.lists(hostile_line, max_size=20).map(b"\n".join))
@hypothesis_settings(max_examples=50)
def test_no_content_sends_a_command_for_a_server_that_haproxy_did_not_list(
    recorded_router: tuple[str, list[str]], data: bytes
) -> None:
    address, commands = recorded_router
    with tempfile.TemporaryDirectory() as name:
        times = Path(name, "times.txt")
        times.write_bytes(data + b"\n" + FAST_EU.encode())
        outcome = reweigh.reweigh(sources(address, times))
    assert {("upstream", "eu"), ("upstream", "us"), ("upstream", "ap")} <= outcome.scores.keys()
    listed = [
        f"set server {server.backend}/{server.name} weight "
        for server in (decided.server for decided in outcome.decisions)
    ]
    for command in commands:
        assert command in READING or (
            command.startswith(tuple(listed)) and command.rsplit(" ", 1)[1] in ("0", "1", "256")
        )


def test_who_has_changed_weights_decides_again_until_nothing_differs(
    router: str, times: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times.write_text(FAST_EU)
    original = runtime.RuntimeAPI.set_weights
    others = ["set server upstream/us weight 7", "set server upstream/eu weight 3"]

    def interfere(api: runtime.RuntimeAPI, changes: list[ranking.Decision]) -> object:
        done = original(api, changes)
        if others:
            tell(router, others.pop(0))
        return done

    monkeypatch.setattr(runtime.RuntimeAPI, "set_weights", interfere)
    outcome = reweigh.reweigh(sources(router, times))
    changed = [(change.server.name, change.weight) for change in outcome.changes]
    assert changed == [("eu", 256), ("ap", 0), ("us", 1), ("eu", 256)]
    assert weights(router) == EU_IS_FAVORITE


def test_what_was_changed_is_told_though_the_look_after_it_fails(router: str, times: Path) -> None:
    times.write_text(FAST_EU)
    looks = iter(range(9))

    def cut(command: str) -> None:
        if command == "show servers state" and next(looks) == 1:
            raise OSError

    with recording(router, cut) as recorded:
        changed = "upstream/eu: weight 1 -> 256, the fastest: 100.0 ms\n" + AP_IS_OUT
        fails(run(recorded.path, times), 1, "HAProxy closed the connection at 'show servers state'", changed)


def test_reweighs_that_never_agree_end_and_leave_a_server_with_weight(router: str, times: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    times.write_text(FAST_EU)
    other.write_text(FAST_EU.replace("eu", "x").replace("ap", "eu").replace("x", "ap"))
    for _ in range(10):
        both = [
            subprocess.Popen(
                [COMMAND], env={"MULTICLOUD_SOCKET": router, "MULTICLOUD_TIMES": str(path)}, stdout=subprocess.DEVNULL
            )
            for path in (times, other)
        ]
        assert [each.wait(10) for each in both] == [0, 0]
        assert any(weights(router).values())
