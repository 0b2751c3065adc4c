"""What a person types: `multicloud check` and `multicloud reweigh`, and what all commands have in common."""

import functools
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import pytest

from multicloud import history, probe, ranking, reweigh, settings, sharing
from multicloud.console import check as probes
from multicloud.console import explain
from multicloud.console.cli import _run, cli
from multicloud.history import Sample
from multicloud.light import UsageError
from multicloud.runtime import DOWN, DRAIN, MAINT, UP, Server
from tests.command import BARE, PROGRAM, Terminal, run
from tests.console.patient import asked_by_somebody
from tests.edge import Edge, edge, wait_until

GREEN = "\x1b[32m"
CHECK = settings.Sources({}).read(settings.CHECK_SETTINGS)


@pytest.fixture(scope="module")
def router() -> Iterator[Edge]:
    """A router that is measured and has ranked: eu is the fastest, us the second."""
    with edge({"eu": 0.01, "us": 0.08, "asia": 0.2}, commands={"MULTICLOUD_HYSTERESIS": "50"}) as running:
        ranked = {"eu": 256, "us": 1, "asia": 0}
        wait_until(lambda: all(running.weights(each) == ranked for each in running.backends()), 30, "all are ranked")
        yield running


def haproxy(router: Edge, name: str, **more: str) -> dict[str, str]:
    """The environment that HAProxy gives the check of a region."""
    return {
        **router.router.settings,
        "HAPROXY_PROXY_NAME": "upstream",
        "HAPROXY_SERVER_NAME": name,
        "HAPROXY_SERVER_ADDR": "127.0.0.1",
        "HAPROXY_SERVER_PORT": str(router.region[name].port),
        **more,
    }


# All commands


@pytest.mark.parametrize("command", cli.commands)
def test_each_command_has_help_with_examples(command: str) -> None:
    shown = run(command, "--help")
    assert shown.returncode == 0
    assert f"Examples:\n    multicloud {command}" in shown.stdout
    assert "[MULTICLOUD_" in shown.stdout or command in ("config", "demo")


@pytest.mark.parametrize("command", ["doctor", "status", "check http://127.0.0.1:1", "config eu", "reweigh --dry-run"])
def test_that_standard_output_is_closed_is_no_fault_of_the_program(command: str) -> None:
    shell = f"{PROGRAM} {command} >&-"
    done = subprocess.run(["/bin/sh", "-c", shell], env=BARE, capture_output=True, text=True, check=False)
    assert "please report it" not in done.stderr


@pytest.mark.root("become somebody else")
def test_who_may_not_read_the_samples_is_told_as_whom_to_ask(tmp_path: Path) -> None:
    times = tmp_path / "times.txt"
    times.touch(mode=0o600)

    def ask() -> list[str]:
        sys.argv = ["multicloud", "history", "--times", str(times)]
        with pytest.raises(UsageError) as refused:
            _run()
        return [str(refused.value)]

    for directory in [tmp_path, *tmp_path.parents][:3]:
        directory.chmod(0o755)
    assert asked_by_somebody(ask) == [f"{times}: permission denied; run this as root (sudo)"]


def test_the_version_is_the_packages() -> None:
    shown = run("--version")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, f"multicloud, version {version('multicloud')}\n", "")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shells_get_completion(shell: str) -> None:
    script = run(environ={"_MULTICLOUD_COMPLETE": f"{shell}_source"})
    assert script.returncode == 0
    assert "_MULTICLOUD_COMPLETE=" in script.stdout
    words = {"COMP_WORDS": "multicloud st", "COMP_CWORD": "st" if shell == "fish" else "1"}
    completed = run(environ={"_MULTICLOUD_COMPLETE": f"{shell}_complete", **words})
    assert "status" in completed.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ("check --expect ok https://a.example", 2, "MULTICLOUD_EXPECT: cannot read 'ok'; accepted: "),
        ("reweigh --window 0", 2, "MULTICLOUD_WINDOW: cannot read "),
        ("status --socket localhost:port", 2, "MULTICLOUD_SOCKET: cannot read "),
        ("doctor --percentile 101", 2, "MULTICLOUD_PERCENTILE: cannot read "),
        ("plot --max-age soon", 2, "MULTICLOUD_MAX_AGE: cannot read "),
        ("run --interval never", 2, "MULTICLOUD_INTERVAL: cannot read "),
        ("reweigh --socket none.sock", 1, "none.sock: no such file or directory; is it the `stats socket`"),
        ("status --socket none.sock", 1, "none.sock: no such file or directory; is it the `stats socket`"),
        ("plot --times /", 2, "/: not a regular file"),
        ("check --record tcp://127.0.0.1:9", 2, "--record needs HAPROXY_PROXY_NAME and HAPROXY_SERVER_NAME"),
        ("check --connect 127.0.0.1", 2, "--connect needs a URL"),
        ("check --connect 127.0.0.1: a.example", 2, "cannot connect to '127.0.0.1:'; give "),
        ("check tcp://none.invalid:1", 1, "none.invalid: "),
        ("doctor -f none.cfg", 2, "none.cfg: no such file or directory"),
        ("check --speed", 2, "No such option"),
        ("speed", 2, "No such command 'speed'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_an_exit_code(arguments: str, code: int, said: str) -> None:
    done = run(*arguments.split())
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith(f"error: {said}")
    assert done.stderr.count("\n") == 1


def test_bars_are_shown_as_far_as_the_locale_can(router: Edge) -> None:
    done = run("status", environ={**router.router.settings, "PYTHONIOENCODING": "latin-1"})
    assert (done.returncode, done.stderr) == (0, "")
    assert "?" in done.stdout


# multicloud check


def test_a_check_shows_its_phases_as_a_waterfall(router: Edge) -> None:
    url = f"https://eu:{router.region['eu'].port}/health"
    done = run("check", url, "--connect", "127.0.0.1", environ=router.router.settings)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"https://eu:{router.region['eu'].port} (127.0.0.1)"
    assert [line.split()[0] for line in lines[1:6]] == ["resolve", "connect", "TLS", "first", "total"]
    bars = [(line.index("▇"), line.rindex("▇") + 1) for line in lines[1:5]]
    assert all(start < end for start, end in bars)
    assert bars == sorted(bars)
    assert lines[6:8] == ["  status      200", "  TLS         TLSv1.3"]
    assert lines[8].startswith("  certificate eu and 2 more, ")
    assert lines[8].endswith(" days left")
    assert lines[9].startswith("up: ")
    assert " ms from the request" in lines[9]
    assert ", which counts" in lines[9]
    assert GREEN not in done.stdout
    counting = run("check", url, "--connect", "127.0.0.1", "--clock", "connection", environ=router.router.settings)
    assert " ms from the start of the connection, which counts; " in counting.stdout


@pytest.mark.parametrize(("environ", "colored"), [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)])
def test_a_check_has_colour_on_a_terminal_only(router: Edge, environ: dict[str, str], colored: bool) -> None:
    url = f"https://eu:{router.region['eu'].port}"
    with Terminal("check", url, "--connect=127.0.0.1", environ={**router.router.settings, **environ}) as terminal:
        assert terminal.wait() == 0
        assert "up: " in terminal.output
        assert (GREEN in terminal.output) == colored


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_waterfall_fits_the_terminal(columns: int) -> None:
    lines = probes.waterfall({"resolve": 0.001, "connect": 0.02, "tls": 0.04, "first_byte": 0.0201}, columns)
    assert max(map(len, lines)) <= columns
    assert lines[-1].split() == ["total", "81.1", "ms"]


def test_a_server_that_is_down_is_said_to_be_and_why(router: Edge) -> None:
    where = ("--connect", f"127.0.0.1:{router.region['eu'].port}")
    done = run("check", "https://eu/", "--expect", "204", *where, environ=router.router.settings)
    assert done.returncode == 1
    assert "  status      200\n" in done.stdout
    assert "up:" not in done.stdout
    assert done.stderr == f"error: https://eu:{router.region['eu'].port} (127.0.0.1): status 200, expected 204\n"


def test_a_check_can_be_read_by_a_script(router: Edge) -> None:
    where = ("--connect", f"127.0.0.1:{router.region['us'].port}", "--count", "3", "--format", "json")
    done = run("check", "us", *where, environ=router.router.settings)
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert (told["scheme"], told["host"], told["address"], told["path"]) == ("https", "us", "127.0.0.1", "/")
    assert told["up"] is True
    assert len(told["probes"]) == 3
    for probed in told["probes"]:
        assert probed["rtt"] >= 0.08
        assert list(probed["phases"]) == ["connect", "tls", "first_byte"]
        assert probed["certificate"]["names"] == ["eu", "us", "asia"]
    assert told["rtt"]["min"] <= told["rtt"]["p50"] <= told["rtt"]["p90"] <= told["rtt"]["max"]
    failed = run("check", "us", *where, "--expect", "404", environ=router.router.settings)
    assert failed.returncode == 1
    told = json.loads(failed.stdout)
    assert (told["up"], told["rtt"]) == (False, None)
    assert told["probes"][0]["error"] == "status 200, expected 404"


def test_several_checks_are_summed_up(router: Edge) -> None:
    done = run("check", "--count", "4", f"tcp://127.0.0.1:{router.region['eu'].port}")
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[:2] for line in lines[1:5]] == [[str(number), "up"] for number in (1, 2, 3, 4)]
    words = lines[5].split()
    assert words[:4] == ["4", "of", "4", "up:"]
    assert words[4:12:2] == ["min", "p50", "p90", "max"]


def test_nothing_is_recorded_unless_it_is_asked_for(router: Edge, tmp_path: Path) -> None:
    times = tmp_path / "times.txt"
    command = ("check", f"tcp://127.0.0.1:{router.region['eu'].port}", "--times", str(times))
    names = {"HAPROXY_PROXY_NAME": "upstream", "HAPROXY_SERVER_NAME": "eu"}
    assert run(*command, environ=names).returncode == 0
    assert not times.exists()
    assert run(*command, "--record", "--count", "2", environ=names).returncode == 0
    assert [line.split()[:2] for line in times.read_text().splitlines()] == [["upstream", "eu"]] * 2


@pytest.mark.parametrize(
    ("change", "code", "recorded"),
    [
        ({}, 0, 1),
        ({"MULTICLOUD_EXPECT": "204"}, 1, 1),
        ({"HAPROXY_SERVER_PORT": "no"}, 2, 0),
        ({"MULTICLOUD_SCHEME": "ftp"}, 2, 0),
        ({"HAPROXY_SERVER_ADDR": ""}, 2, 0),
    ],
)
def test_with_haproxys_environment_and_record_it_does_what_haproxys_call_does(
    router: Edge, tmp_path: Path, change: dict[str, str], code: int, recorded: int
) -> None:
    by_haproxy, by_hand = tmp_path / "haproxy.txt", tmp_path / "hand.txt"
    environ = haproxy(router, "eu", **change)
    light = run(environ={**environ, "MULTICLOUD_TIMES": str(by_haproxy)}, program=f"{PROGRAM}-check")
    done = run("check", "--record", environ={**environ, "MULTICLOUD_TIMES": str(by_hand)})
    assert (done.returncode, done.stderr) == (light.returncode, light.stderr)
    assert done.returncode == code
    for times in (by_haproxy, by_hand):
        lines = times.read_text().splitlines() if times.exists() else []
        assert [line.split()[:2] for line in lines] == [["upstream", "eu"]] * recorded
        assert [line.endswith(" failed") for line in lines] == [code == 1] * recorded


def test_without_a_server_a_person_is_told_what_to_give() -> None:
    for environ in ({}, {"HAPROXY_SERVER_NAME": "eu"}):
        done = run("check", environ=environ)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"error: no server to probe; give {probes.ACCEPTED}\n"


def test_the_time_that_counts_is_said_with_its_reason() -> None:
    result = probe.Probe()
    result.phases = {"connect": 0.05, "first_byte": 0.001}
    ways = {
        0.05: "up: 50.0 ms to connect, which counts, since no answer comes sooner; 1.0 ms from the request",
        0.051: "up: 51.0 ms from the start of the connection, which counts; 1.0 ms from the request",
        0.001: "up: 1.0 ms from the request, which counts; 51.0 ms from the start of the connection",
    }
    for result.seconds, text in ways.items():
        assert probes.verdict(result) == text


def test_what_a_certificate_says_does_not_control_the_terminal() -> None:
    result = probe.Probe()
    result.tls_version = "TLSv1.3"
    result.error = "\x9b2J"
    result.certificate = {
        "subject": ((("commonName", "eu\x1b]0;title\x07\n\u202e"),),),
        "notAfter": "Jan  1 00:00:00 2030 GMT",
    }
    shown = [*probes.facts(result), probes.one_line(1, result)]
    assert all(line.isprintable() for line in shown)
    assert r"eu\x1b]0;title\x07\n\u202e" in shown[1]


def test_a_sample_file_that_cannot_be_written_is_a_warning(router: Edge, tmp_path: Path) -> None:
    done = run("check", "--record", environ=haproxy(router, "eu", MULTICLOUD_TIMES=str(tmp_path)))
    assert done.returncode == 0
    assert done.stderr == f"warning: not recorded: {tmp_path}: is a directory\n"


@pytest.mark.parametrize(
    ("url", "connect", "expected", "path"),
    [
        ("127.0.0.1", None, "https://127.0.0.1:443 (127.0.0.1)", "/"),
        ("127.0.0.1:8443", None, "https://127.0.0.1:8443 (127.0.0.1)", "/"),
        ("http://127.0.0.1/a/b?c=d#e", None, "http://127.0.0.1:80 (127.0.0.1)", "/a/b?c=d"),
        ("2001:db8::1", None, "https://[2001:db8::1]:443 (2001:db8::1)", "/"),
        ("[2001:db8::1]", None, "https://[2001:db8::1]:443 (2001:db8::1)", "/"),
        ("[2001:db8::1]:8443/x", None, "https://[2001:db8::1]:8443 (2001:db8::1)", "/x"),
        ("tls://[::1]:5433", None, "tls://[::1]:5433 (::1)", "/"),
        ("eu.example.com", "192.0.2.7", "https://eu.example.com:443 (192.0.2.7)", "/"),
        ("https://eu.example.com:8443/", "192.0.2.7", "https://eu.example.com:8443 (192.0.2.7)", "/"),
        ("eu.example.com", "192.0.2.7:9", "https://eu.example.com:9 (192.0.2.7)", "/"),
        ("eu.example.com", "2001:db8::7", "https://eu.example.com:443 (2001:db8::7)", "/"),
        ("eu.example.com", "[2001:db8::7]:9", "https://eu.example.com:9 (2001:db8::7)", "/"),
    ],
)
def test_what_is_meant_by_a_url(url: str, connect: str | None, expected: str, path: str) -> None:
    target, _ = probes.resolve(url, connect, CHECK)
    assert (str(target), target.path) == (expected, path)


UNUSABLE = ("a:", "a:b", "a:70000", "a:0", "a:" + "9" * 5000, "[::1", "[::1]8", "a b")


@pytest.mark.parametrize("url", [*UNUSABLE, "ftp://a", "https://", "tcp://a", "https://a/b c", "https://a/\n"])
def test_what_cannot_be_probed_is_a_usage_error(url: str) -> None:
    with pytest.raises(UsageError, match="cannot probe"):
        probes.resolve(url, "127.0.0.1", CHECK)


# multicloud reweigh


def test_a_dry_run_prints_the_commands_and_nothing_else(router: Edge) -> None:
    environ = {**router.router.settings, "MULTICLOUD_FAVORITE": "200", "MULTICLOUD_BACKUP": "7"}
    before = router.weights()
    done = run("reweigh", "--dry-run", environ=environ)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        *(f"set server {backend}/us weight 7" for backend in router.backends()),
        *(f"set server {backend}/eu weight 200" for backend in router.backends()),
    ]
    assert router.weights() == before
    assert run("reweigh", "--dry-run", environ=router.router.settings).stdout == ""


def test_a_verbose_dry_run_explains_on_standard_error(router: Edge) -> None:
    environ = {**router.router.settings, "MULTICLOUD_FAVORITE": "200"}
    done = run("reweigh", "--dry-run", "-v", environ=environ)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [f"set server {backend}/eu weight 200" for backend in router.backends()]
    lines = done.stderr.splitlines()
    assert (lines[0], lines[-1]) == ("upstream:", "would send:")
    assert lines[1].split()[:2] == ["eu", "UP"]
    assert lines[1].endswith("weight 256 -> 200  favourite: the fastest")
    assert lines[2].endswith("backup: the fastest after the favourite")
    assert lines[3].endswith("out: others are faster")
    assert lines[4] == "upstream-once: the same, since its servers track those of upstream"


def test_by_hand_it_shows_what_was_sent(router: Edge) -> None:
    with Terminal("reweigh", "--favorite", "200", environ=router.router.settings, columns=120) as terminal:
        assert terminal.wait() == 0
    assert "favourite: the fastest" in terminal.output
    assert "sent: set server upstream/eu weight 200" in terminal.output.splitlines()
    assert terminal.output.splitlines()[-1].endswith("/eu weight 200")
    wait_until(lambda: router.weights()["eu"] == 256, 30, "HAProxy's own reweigh sets it back")
    done = run("reweigh", environ=router.router.settings)
    assert done.stdout.endswith("nothing to send: the weights are what they should be\n")


NOW = 1763870000.0
STATES = {"U": UP, "D": DOWN, "M": MAINT, "R": DRAIN}
FASTEST, SECOND = "favourite: the fastest", "backup: the fastest after the favourite"
SHARES, FLYING, BE, SLOWER = "shares the lead:", "requests in flight,", "would be usual", "out: others are faster"
AHEAD = "favourite: 25 % faster than a"
KEPT = "favourite: kept by hysteresis: b is 5 % faster"
UNKNOWN, IS_DOWN = "out: no samples that count", "out: DOWN"
MAINTAINED, DRAINED = (f"left alone: an operator {what}" for what in ("put it into maintenance", "drains it"))


def explained(servers: Sequence[Server], series: dict[tuple[str, str], list[Sample]], tolerance: int = 0) -> list[str]:
    """How a reweigh is explained that finds these samples and, where servers share, 600 users a second of `a`."""
    sources = settings.Sources({"MULTICLOUD_TOLERANCE": str(tolerance)})
    found = history.Samples()
    found.series = series
    scored = reweigh.score(series, sources, NOW)
    shared = any(1 < server.weight < 256 for server in servers)
    users = {("upstream", "a"): sharing.Load(41, 600, 0.01)} if shared else {}
    share = functools.partial(
        sharing.share, samples=series, users=users, again=lambda: users, connect=lambda _: 0.0, now=0.0, elapsed=0.0
    )
    decisions = reweigh.decide(servers, scored, sources, share)
    return explain.explain(reweigh.Outcome(found, scored, decisions, ranking.changes(decisions), []), sources)


@pytest.mark.parametrize(
    ("states", "milliseconds", "weights", "tolerance", "expected"),
    [
        ("UU", [20, 30], [256, 1], 0, [FASTEST, SECOND]),
        ("UU", [20, 30], [1, 1], 0, [FASTEST, SECOND]),
        ("UU", [20, 19], [256, 1], 0, [KEPT, SECOND]),
        ("UU", [20, 15], [256, 1], 0, [SECOND, AHEAD]),
        ("DMRU", [10, 10, 10, 20], [256, 0, 0, 0], 0, [IS_DOWN, MAINTAINED, DRAINED, FASTEST]),
        ("UUU", [None, 20, 30], [1, 1, 1], 0, [UNKNOWN, FASTEST, SECOND]),
        (
            "DUU",
            [10, None, None],
            [0, 256, 1],
            0,
            [IS_DOWN, "favourite: no samples that count", "backup: no samples that count"],
        ),
        ("DD", [10, 20], [256, 1], 0, ["left alone: no server of its backend is UP"] * 2),
        ("UUU", [20, 24, 40], [1, 1, 1], 5, [FASTEST, "favourite: within the tolerance of a, the fastest", SECOND]),
        ("UUU", [20, 30, 30], [1, 1, 1], 0, [FASTEST, SECOND, SLOWER]),
        (
            "UUU",
            [20, 30, 40],
            [256, 99, 0],
            0,
            [f"{SHARES} 41 {FLYING} 12 {BE}", f"{SHARES} 0 {FLYING} 0 {BE}", SLOWER],
        ),
    ],
)
def test_every_decision_is_explained(
    states: str, milliseconds: list[float | None], weights: list[int], tolerance: int, expected: list[str]
) -> None:
    columns = zip("abcd", states, weights, strict=False)
    servers = [Server("upstream", name, STATES[state], weight) for name, state, weight in columns]
    times = zip(servers, milliseconds, strict=True)
    series = {server.key: [Sample(time_ms / 1000, NOW)] for server, time_ms in times if time_ms is not None}
    first, *lines = explained(servers, series, tolerance)
    assert first == "upstream:"
    for line, why in zip(lines, expected, strict=True):
        assert line.endswith(why)


def test_a_score_is_said_to_be_made_of_what_came_after_a_recovery() -> None:
    samples = [Sample(0.02 if age < 6 else 0.3, NOW - age) for age in range(30)]
    lines = explained([Server("upstream", "a", UP, 256)], {("upstream", "a"): samples})
    since = time.strftime("%H:%M:%S", time.localtime(NOW - 5))
    assert f"of 6 since {since}: 20.0 ms" in lines[1]


def test_a_name_that_does_not_resolve_is_not_taken_for_an_operators_word() -> None:
    servers = [Server("upstream", "a", UP, 256), Server("upstream", "b", MAINT, 1, unresolved=True)]
    lines = explained(servers, {server.key: [Sample(0.02)] for server in servers})
    assert lines[2].endswith("left alone: its name does not resolve")


def test_samples_that_are_too_old_are_said_to_be() -> None:
    servers = [Server("upstream", "a", UP, 1), Server("other", "b", UP, 1)]
    assert explained(servers, {servers[0].key: [Sample(0.02, NOW - 1000)]}) == [
        "upstream:",
        "  a  UP  no samples newer than 300 s  weight 1  left alone: no server of its backend has samples that count",
    ]


def test_without_any_sample_a_reweigh_says_so(router: Edge, tmp_path: Path) -> None:
    none = str(tmp_path / "none.txt")
    done = run("reweigh", "--times", none, environ=router.router.settings)
    assert done.returncode == 0
    assert done.stdout.startswith(f"{none} has no samples of any server that HAProxy knows: weights stay as they are\n")
    assert not os.path.exists(none)
