"""`multicloud history`: who led when, and why that changed."""

import re
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from multicloud import settings
from multicloud.console import history as histories
from multicloud.history import Sample
from multicloud.light import UsageError
from tests.command import run

NOW = 1763870000.0
SOURCES = settings.Sources({})


def series(**servers: Sequence[float | None]) -> dict[tuple[str, str], list[Sample]]:
    """A sample a server every two seconds, newest first; None is a check that failed."""
    return {
        ("app", name): [
            Sample(2.0 if value is None else value, NOW + 2 * number, value is None)
            for number, value in enumerate(values)
        ][::-1]
        for name, values in servers.items()
    }


def told(**servers: Sequence[float | None]) -> list[tuple[float, str, str, str]]:
    """The changes: seconds since the first sample, before, after and the words."""
    found = histories.replay(series(**servers), SOURCES).switches
    return [(switch.time - NOW, switch.before, switch.after, switch.words()) for switch in found]


def test_who_leads_first_and_who_overtakes_and_when() -> None:
    slow = [0.05] * 20 + [0.2] * 20
    assert told(eu=slow, us=[0.08] * 40) == [
        (0, "", "eu", "the fastest"),
        (42, "eu", "us", "60 % faster than eu"),  # the second slow sample
    ]


def test_a_server_is_down_while_its_two_newest_checks_failed_and_comes_back() -> None:
    away: list[float | None] = [0.05] * 20 + [None] * 5 + [0.05] * 15
    assert told(eu=away, us=[0.08] * 40) == [
        (0, "", "eu", "the fastest"),
        (42, "eu", "us", "eu is out: DOWN"),
        (56, "us", "eu", "38 % faster than us"),  # the fourth good one
    ]


def test_each_backend_has_its_own_and_one_server_alone_leads() -> None:
    both = series(eu=[0.05] * 3) | {("db", "one"): [Sample(0.1, NOW)]}
    switches = histories.replay(both, SOURCES).switches
    assert [(switch.backend, switch.after) for switch in switches] == [("app", "eu"), ("db", "one")]


LINE = [0.05] * 100 + [0.15, 0.25, 0.2, 0.26, 0.18, 0.24] * 5 + [0.05] * 40


def test_servers_share_while_the_samples_of_the_favourite_vary_as_those_of_a_line() -> None:
    (shared,) = histories.replay(series(eu=LINE, us=[0.08] * len(LINE)), SOURCES).sharings
    assert (shared.backend, shared.servers) == ("app", ["eu", "us"])
    assert 200 <= shared.begin - NOW < 210 < shared.end - NOW < 260


def test_the_one_that_was_full_is_named_first() -> None:
    (shared,) = histories.replay(series(us=LINE, eu=[0.08] * len(LINE)), SOURCES).sharings
    assert shared.servers == ["us", "eu"]
    (shared,) = histories.replay(series(eu=[0.08] * len(LINE), us=LINE), SOURCES).sharings
    assert shared.servers == ["us", "eu"]


def test_a_server_leads_neither_before_its_first_sample_nor_after_its_last_one() -> None:
    both = series(eu=[0.05] * 60, us=[0.08] * 60)
    both["app", "us"] = both["app", "us"][:50]  # it came 20 s later
    both["app", "eu"] = both["app", "eu"][20:]  # and eu went 40 s sooner
    switches = histories.replay(both, SOURCES).switches
    assert [(each.time - NOW, each.before, each.after, each.words()) for each in switches] == [
        (0, "", "eu", "the fastest"),
        (90, "eu", "us", "eu is out: DOWN"),
    ]


def test_who_is_slow_and_steady_is_left_and_nobody_shares() -> None:
    slow = [0.05] * 100 + [0.2] * 40
    assert histories.replay(series(eu=slow, us=[0.08] * len(slow)), SOURCES).sharings == []


def test_a_score_is_the_one_that_decided_then() -> None:
    sources = settings.Sources({"MULTICLOUD_MIN_SAMPLES": "2", "MULTICLOUD_MAX_AGE": "50"})
    timed = [Sample(0.040, 100.0), Sample(0.020, 2.0), Sample(0.030, 1.0), Sample(0.010, 0.0)]
    scores = histories.replay({("app", "eu"): timed}, sources).scores["app", "eu"]
    assert scores == [(0, 0.01), (1, pytest.approx(0.02)), (2, 0.03), (100, 0.04)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", NOW - 90),
        ("15m", NOW - 900),
        ("1h", NOW - 3600),
        ("2d", NOW - 172800),
        (time.strftime("%H:%M:%S", time.localtime(NOW)), NOW),
        (time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(NOW)), NOW),
    ],
)
def test_a_time_is_so_long_ago_or_one_of_a_clock(text: str, expected: float) -> None:
    assert histories.moment(text, NOW) == expected


@pytest.mark.parametrize("text", ["", "1", "1y", "h", "-1h", "25:00", "yesterday", "1e3s"])
def test_other_times_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"^cannot read .*; accepted: 15m, 1h"):
        histories.moment(text, NOW)


def write(times: Path, begin: float, **servers: Sequence[float]) -> settings.Sources:
    """A sample a server every two seconds from the UNIX time `begin` on, in a file, and settings that name it."""
    lines = [
        f"upstream {name} {seconds:.6f} {begin + 2 * number:.3f}\n"
        for name, values in servers.items()
        for number, seconds in enumerate(values)
    ]
    times.write_text("garbage\nupstream eu 0.010000\n" + "".join(lines))
    return settings.Sources({"MULTICLOUD_TIMES": str(times)})


def test_of_what_was_before_only_who_led_is_shown(times: Path) -> None:
    eu = [0.05] * 100 + [0.2] * 100 + [0.05] * 100
    sources = write(times, time.time() - 600, eu=eu, us=[0.08] * 300)
    done = run("history", "--times", str(times))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert [line[20:] for line in lines] == [
        "upstream: eu leads",
        "upstream: eu -> us, 60 % faster than eu",
        "upstream: us -> eu, 38 % faster than us",
    ]
    assert histories.lines(sources, "5m") == lines[1:]
    assert histories.lines(sources, "1s") == lines[2:]


def test_a_time_of_sharing_has_its_line(times: Path) -> None:
    sources = write(times, int(time.time()) - 2 * len(LINE), eu=LINE, us=[0.08] * len(LINE))
    (line,) = [line for line in histories.lines(sources, "1h") if " share " in line]
    assert re.fullmatch(r"[-\d]+ [:\d]+ upstream: eu, us share until \d\d:\d\d:\d\d, if eu has users enough", line)


@pytest.mark.parametrize("text", [None, "", "garbage\nupstream eu 0.1\n"])
def test_without_samples_there_is_nothing_to_tell(times: Path, text: str | None) -> None:
    if text is not None:
        times.write_text(text)
    done = run("history", "--times", str(times))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: {times}: no samples with a time to replay; `multicloud doctor` finds out why\n"


def test_a_time_that_cannot_be_read_is_one_line(times: Path) -> None:
    done = run("history", "--times", str(times), "--since", "soon")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
