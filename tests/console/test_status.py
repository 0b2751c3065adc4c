"""`multicloud status`: the table, on a terminal and for scripts, and the problems in words."""

import json
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from multicloud import history, overview, runtime, scrape, settings
from multicloud.console import problems, status
from multicloud.console.instance import PASSED, REWEIGH_SERVER, Case
from multicloud.console.terminal import ENTER, HOME, LEAVE
from multicloud.runtime import DOWN, MAINT, UP, Server
from tests.command import BARE, PROGRAM, Terminal, run
from tests.edge import Edge, edge, wait_until
from tests.haproxy import haproxy, listening
from tests.ports import demo_ports

LONG = ("helloworld-in-a-long-named-project-0123456789-uc.a.run.app", "helloworld-in-a-long-named-project-eu")
SOURCES = settings.Sources({})


@pytest.fixture(scope="module")
def router() -> Iterator[Edge]:
    """A router that is measured and has ranked: the first is the fastest."""
    with edge({LONG[0]: 0.01, LONG[1]: 0.1}) as running:
        wait_until(lambda: running.weights() == {LONG[0]: 256, LONG[1]: 1}, 30, "the two are ranked")
        yield running


# The table


def test_the_table_says_where_traffic_goes(router: Edge) -> None:
    done = run("status", environ={**router.router.settings, "COLUMNS": "120"})
    assert (done.returncode, done.stderr) == (0, "")
    head, first, second = done.stdout.splitlines()[:3]
    assert head.split() == ["upstream", "state", "weight", "n", "p50", "p90", "p99", "last", "age", "trend"]
    assert first.split()[:4] == ["*", LONG[0], "UP", "256"]
    assert second.split()[:3] == [LONG[1], "UP", "1"]
    assert "\x1b" not in done.stdout


@pytest.mark.parametrize("columns", [80, 200])
def test_the_table_fits_and_long_names_keep_both_ends(router: Edge, columns: int) -> None:
    lines = run("status", environ={**router.router.settings, "COLUMNS": str(columns)}).stdout.splitlines()
    assert max(map(len, lines)) <= columns
    assert lines[1].startswith("* hello")
    assert ("uc.a.run.app " in lines[1]) == (columns == 200)
    assert "run.app " in lines[1]


@pytest.mark.parametrize(("environ", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"NO_COLOR": ""}, True)])
def test_colour_is_for_terminals_and_can_be_refused(router: Edge, environ: dict[str, str], colored: bool) -> None:
    with Terminal("status", environ={**router.router.settings, **environ}) as terminal:
        assert terminal.wait() == 0
    assert (status.GREEN in terminal.output) == colored


def test_the_trend_is_scaled_by_the_slower_samples_of_the_backend_but_not_by_one_that_sticks_out() -> None:
    fast = overview.Row(
        "b", "fast", UP, 256, True, 3, 0, (0.01, 0.01, 0.01), 0.01, 1.0, 0.0, (*[0.01] * 8, 9.0, 0.02, 0.01)
    )
    slow = overview.Row("b", "slow", UP, 1, False, 1, 0, (0.08, 0.08, 0.08), 0.08, 1.0, 0.0, (0.08,))
    new = overview.Row("b", "new", UP, 0, False, 0, 2, None, None, None, None, (0.01, None, None))
    lines = status.table(status.Status([fast, slow, new], []), width=80).splitlines()
    assert lines[1].endswith(" ▂▂▂▂▂▂▂▂█▃▂")
    assert lines[2].endswith(" █")
    assert lines[3].split() == ["new", "UP", "0", "0", *["-"] * 3, "fail", "-", "▂xx"]
    assert "x a check that failed" in lines


def test_the_trend_of_the_shortest_and_the_longest_time_is_drawn(tmp_path: Path) -> None:
    times = tmp_path / "times.txt"
    times.write_text("app eu 3600 1\n" + "app eu 0.000001 2\n" * 20)
    with haproxy("backend app\n    server eu 127.0.0.1:1") as address:
        shown = run("status", environ={"MULTICLOUD_SOCKET": address, "MULTICLOUD_TIMES": str(times)})
    assert (shown.returncode, shown.stderr) == (0, "")


INFO = b"Version: 2.8.25\nPid: 7"
STATES = f"1\n# {' '.join(runtime.StateRow._fields)}".encode()


@pytest.mark.parametrize(
    ("info", "stat", "said"),
    [
        (b"Pid: 7", b"# pxname,algo", "no version and process in the answer: "),
        (b"Version: 2.8.25\nPid: me", b"# pxname,algo", "no version and process in the answer: "),
        (INFO, b"# pxname,al", "no statistics in the answer: '# pxname,al'"),
        (INFO, b"# pxname,algo\nb", "no statistics in the answer: 'b'"),
    ],
)
def test_an_answer_that_is_cut_is_one_line(info: bytes, stat: bytes, said: str) -> None:
    answers = {b"show info": info, b"show stat": stat, b"show servers": STATES}

    def answer(connection: socket.socket) -> None:
        while asked := connection.recv(1 << 16):
            connection.sendall(next((text for name, text in answers.items() if asked.startswith(name)), b"") + b"\n> ")

    with listening(answer) as path:
        failed = run("status", environ={"MULTICLOUD_SOCKET": path})
    assert (failed.returncode, failed.stdout) == (1, "")
    assert failed.stderr.startswith(f"error: {path}: {said}")
    assert len(failed.stderr.splitlines()) == 1


def test_problems_stand_under_the_table_and_are_wrapped() -> None:
    text = status.table(status.Status([], ["word " * 40 + "end"], ["good to know"]), width=60)
    lines = text.splitlines()
    assert "? good to know" in lines
    assert lines[1].startswith("! word")
    assert lines[2].startswith("  word")
    assert lines[-3].endswith("end")
    assert lines[-1] == "`multicloud doctor` looks further"
    assert max(map(len, lines[1:])) <= 60


# --watch


def test_watching_redraws_in_place_follows_the_size_and_ends_with_ctrl_c(router: Edge) -> None:
    with Terminal("status", "--watch", "1", environ=router.router.settings) as terminal:
        drawn = terminal.wait_for("age of the last in s")
        assert terminal.output.startswith(ENTER + HOME)
        terminal.resize(3, 100)
        drawn = terminal.wait_for("more lines; a taller window shows them", after=drawn, seconds=20)
        terminal.press(b"\x03")
        assert terminal.wait() == 0
    after = terminal.output[drawn:]
    assert LEAVE in after
    assert "age of the last in s" in after[after.index(LEAVE) :], "the last table stays"
    assert "Traceback" not in terminal.output
    assert terminal.output.count(HOME) >= 2


def test_watching_goes_on_where_haproxy_does_not_answer(tmp_path: Path) -> None:
    with Terminal("status", "--watch=0.2", "--socket", f"{tmp_path}/none.sock") as terminal:
        drawn = terminal.wait_for("error: ")
        terminal.wait_for("error: ", after=drawn)
        terminal.press(b"\x03")
        assert terminal.wait() == 0


def test_a_terminated_watch_leaves_the_terminal_as_it_was(router: Edge) -> None:
    with Terminal("status", "--watch", environ=router.router.settings) as terminal:
        terminal.wait_for("age of the last in s")
        terminal.signal(signal.SIGTERM)
        assert terminal.wait() == 128 + signal.SIGTERM
    assert LEAVE in terminal.output


def test_watching_into_a_pipe_that_closes_ends_quietly(router: Edge) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", '"$0" status --watch=0.1 | head -n 3', PROGRAM],
        env={**BARE, **router.router.settings},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 3
    assert "\x1b" not in done.stdout


def test_only_the_table_is_watched(router: Edge) -> None:
    done = run("status", "--watch", "--format", "json", environ=router.router.settings)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --watch shows the table only")


# For scripts


def test_json_has_an_object_for_each_server(router: Edge) -> None:
    done = run("status", "--format", "json", environ=router.router.settings)
    assert (done.returncode, done.stderr) == (0, "")
    first, second = json.loads(done.stdout)
    assert (first["backend"], first["server"], first["state"]) == ("upstream", LONG[0], "UP")
    assert (first["weight"], first["favorite"]) == (256, True)
    assert (second["weight"], second["favorite"]) == (1, False)
    for server in (first, second):
        assert server["samples"] >= 1
        assert 0.01 <= server["p50"] <= server["p90"] <= server["p99"]
        assert server["last"] == server["trend"][-1]
        assert min(server["trend"]) <= server["score"] <= server["p99"] * 1.1  # the mean, where there are few
        assert server["traffic"] == server["weight"] / 257
        assert 0 <= server["age"] < 60
        assert abs(time.time() - server["age"] - server["time"]) < 60


def test_prometheus_reads_it(router: Edge) -> None:
    done = run("status", "--format", "prometheus", environ=router.router.settings)
    assert (done.returncode, done.stderr) == (0, "")
    families = {family.name: family for family in text_string_to_metric_families(done.stdout)}
    words = (
        "up weight favorite samples failed_samples last_rtt_seconds score_seconds score_is_mean traffic_ratio "
        "requests_in_flight last_sample_timestamp_seconds state"
    )
    gauges = ["multicloud_problems", *(f"multicloud_server_{word}" for word in words.split())]
    expected = dict.fromkeys(gauges, "gauge") | {"multicloud_server_rtt_seconds": "summary"}
    assert {name: family.type for name, family in families.items()} == expected
    weights = {sample.labels["server"]: sample.value for sample in families["multicloud_server_weight"].samples}
    assert weights == {LONG[0]: 256, LONG[1]: 1}
    quantiles = {sample.labels["quantile"] for sample in families["multicloud_server_rtt_seconds"].samples}
    assert quantiles == {"0.5", "0.9", "0.99"}
    for sample in families["multicloud_server_last_sample_timestamp_seconds"].samples:
        assert abs(time.time() - sample.value) < 60


def test_prometheus_labels_are_escaped() -> None:
    strange = 'a"b\\c\nd'
    row = overview.Row(strange, strange, UP, 1, False, 1, 0, (0.1, 0.2, 0.3), 0.1, 1763870000.123, 1.0, ())
    text = scrape.prometheus([row], 1)
    families = {family.name: family for family in text_string_to_metric_families(text)}
    for name, family in families.items():
        for sample in family.samples:
            assert name == "multicloud_problems" or sample.labels["server"] == strange
    assert families["multicloud_server_last_sample_timestamp_seconds"].samples[0].value == 1763870000.123
    assert families["multicloud_problems"].samples[0].value == 1


# Problems


NOW = 1763870000.0


def measured(*milliseconds: float, last: float = 0.0, every: float = 2.0) -> history.Samples:
    """Samples of servers a, b, c … every so many seconds, the newest `last` seconds ago."""
    found = history.Samples()
    for name, time_ms in zip("abc", milliseconds, strict=False):
        found.series["upstream", name] = [history.Sample(time_ms / 1000, NOW - last - every * i) for i in range(90)]
    return found


def seen(
    *servers: Server, found: history.Samples, since: float = 100.0, sources: settings.Sources = SOURCES
) -> list[str]:
    """The problems that are found in a HAProxy whose process is not here, and which says so of its servers."""
    for server in servers:
        server.state_age, server.check, server.code, server.check_seconds = since, PASSED, "0", 0.1
    return problems.problems(Case(sources, "2.8.25", servers=servers, samples=found, now=NOW))


@pytest.mark.parametrize(
    ("states", "weights", "since", "last", "every", "expected"),
    [
        ((UP, UP), (256, 1), 100, 0, 2, []),
        ((UP, UP), (1, 256), 100, 0, 2, ["has had other weights for at least 10 s"]),
        ((UP, UP), (1, 256), 12, 0, 2, ["has had other weights for at least 10 s"]),
        ((UP, UP), (1, 256), 5, 0, 2, []),
        ((UP, UP), (0, 0), 5, 0, 2, ["every server of upstream that is UP has weight 0"]),
        ((UP, MAINT), (0, 1), 5, 0, 2, ["every server of upstream that is UP has weight 0"]),
        ((DOWN, MAINT), (0, 1), 5, 0, 2, ["no server of upstream is UP (DOWN, MAINT), so each request to it is a 503"]),
        ((UP, UP), (256, 1), 100, 40, 2, ["no samples for upstream/a since", "no samples for upstream/b since"]),
        ((UP, DOWN), (256, 0), 100, 40, 2, ["no samples for upstream/a since"]),
        ((UP, UP), (256, 1), 100, 40, 30, []),
    ],
)
def test_problems_are_found_from_states_weights_and_samples(
    states: tuple[str, str], weights: tuple[int, int], since: float, last: float, every: float, expected: list[str]
) -> None:
    servers = [
        Server("upstream", name, state, weight) for name, state, weight in zip("ab", states, weights, strict=True)
    ]
    said = seen(*servers, found=measured(20, 40, last=last, every=every), since=since)
    assert len(said) == len(expected), said
    for line, part in zip(said, expected, strict=True):
        assert part in line


def test_a_weight_that_a_reweigh_would_just_have_changed_is_no_problem() -> None:
    found = measured(20, 40)
    found.series["upstream", "a"][:2] = [history.Sample(9.0, NOW), history.Sample(9.0, NOW - 2)]
    eager = settings.Sources({"MULTICLOUD_WINDOW": "1"})
    servers = Server("upstream", "a", UP, 256), Server("upstream", "b", UP, 1)
    assert seen(*servers, found=found, sources=eager) == []


def test_a_server_that_was_never_measured_and_a_reweigh_that_is_down_are_problems() -> None:
    servers = Server("upstream", "a", UP, 256), Server("upstream", "z", UP, 1)
    said = seen(*servers, Server("reweigh", REWEIGH_SERVER, DOWN, 1), found=measured(20))
    assert [line.split(":")[0] for line in said] == [
        "reweigh/multicloud-reweigh is DOWN, so nobody sets weights",
        "no samples for upstream/z, which is UP",
    ]


@pytest.mark.parametrize(("state", "said"), [(DOWN, "so nobody sets weights"), (MAINT, "an operator has frozen")])
def test_wrong_weights_follow_from_a_reweigh_that_does_not_run(state: str, said: str) -> None:
    servers = Server("upstream", "a", UP, 1), Server("upstream", "b", UP, 256)
    (line,) = seen(*servers, Server("reweigh", REWEIGH_SERVER, state, 1), found=measured(20, 40))
    assert said in line


def test_in_mode_tcp_a_connection_is_closed_where_a_request_would_be_a_503() -> None:
    server = Server("upstream", "a", DOWN, 1)
    server.mode = "tcp"
    (line,) = seen(server, found=measured(20))
    assert line.endswith("so each connection to it is closed")


def test_a_reweigh_under_another_name_needs_no_samples() -> None:
    servers = Server("upstream", "a", UP, 256), Server("reweigh", "other-name", UP, 1)
    assert seen(*servers, found=measured(20)) == []


def test_problems_of_a_real_haproxy_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(problems, "TOLERATED", 2.0)
    monkeypatch.setattr(problems, "STEP", 1)

    def without_reweigh(text: str) -> str:
        return text.replace("server multicloud-reweigh 127.0.0.1:1 check", "server multicloud-reweigh 127.0.0.1:1")

    with edge({"eu": 0.01, "us": 0.1}, configure=without_reweigh) as running:
        sources = settings.Sources(running.router.settings)

        def told(part: str) -> bool:
            return part in " ".join(status.collect(sources).problems)

        wait_until(lambda: told("upstream has had other weights for"), 30, "nobody reweighs")
        assert run("reweigh", environ=running.router.settings).returncode == 0
        assert not told("upstream has had other weights for")
        with open(running.router.settings["MULTICLOUD_TIMES"], "a", encoding="ascii") as file:
            file.write("this is no sample\n")
        assert told("has lines that are no samples (1)")
        running.tell("set server upstream/eu weight 0")
        running.tell("set server upstream/us weight 0")
        assert told("every server of upstream that is UP has weight 0")
        running.tell("disable health upstream/eu")
        wait_until(lambda: told("no samples for upstream/eu since "), 30, "eu is not checked any more")
        running.tell("enable health upstream/eu")
        for region in running.regions:
            running.regions.stop(region)
        wait_until(lambda: told("no server of upstream is UP (DOWN)"), 30, "both are DOWN")


# The demo


def test_the_demo_shows_the_same_table_and_leaves_nothing_when_its_terminal_is_closed() -> None:
    port, stats_port = map(str, demo_ports())
    with tempfile.TemporaryDirectory() as directory:  # short, as a socket's path must be
        environ = {"TMPDIR": directory}
        with Terminal("demo", "--port", port, "--stats-port", stats_port, environ=environ) as terminal:
            terminal.wait_for("fastest region right now: ")
            terminal.wait_for("age of the last in s")
            terminal.signal(signal.SIGHUP)
            assert terminal.wait() == 128 + signal.SIGHUP
        assert LEAVE in terminal.output
        assert "Traceback" not in terminal.output
        assert os.listdir(directory) == []
