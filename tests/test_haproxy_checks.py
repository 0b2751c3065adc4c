"""Which of HAProxy's checks are counted, of what it says of the last one at each look."""

from __future__ import annotations

import pytest

from multicloud.haproxy_checks import INTER, LEAST, Checks
from multicloud.runtime import UP, Server


def says(
    check: str = "L7OK",
    milliseconds: float = 30,
    *,
    busy: bool = False,
    words: str = "",
    failures: int = 0,
    rise_left: int = 0,
) -> Server:
    """A server with what HAProxy says of its last check."""
    server = Server("app", "eu", UP, 1)
    server.check, server.check_seconds, server.check_running = check, milliseconds / 1000, busy
    server.last_chk = "" if busy else words
    server.fingerprint = check, str(milliseconds), "4"
    server.failures, server.rise_left = failures, rise_left
    return server


def counted(*looks: Server, every: float = 1.0, measured: tuple[tuple[str, str], ...] = ()) -> list[float]:
    """The seconds of the checks that are counted, of a look every so many seconds."""
    checks = Checks()
    found = []
    for number, server in enumerate(looks):
        found += checks.ended([server], measured, now=1000 + number * every, interval=every)
    return [seconds for _, seconds, _ in found]


def test_a_check_counts_once_however_often_it_is_seen() -> None:
    assert counted(says(milliseconds=30), says(milliseconds=30), says(milliseconds=31), says(milliseconds=31)) == [
        0.030,
        0.031,
    ]


def test_checks_that_failed_between_two_looks_count_too() -> None:
    looks = says(words="1"), says(words="3", failures=1), says("L7TOUT", 2000, failures=3), says(words="6", failures=3)
    assert counted(*looks) == [0.030, INTER, 0.030, 2.0, 2.0, 0.030]
    assert [failed for *_, failed in Checks().ended([says(failures=7)], (), now=1000, interval=1)] == [False]


def test_failures_before_the_counters_were_cleared_do_not_count_again() -> None:
    assert counted(says(words="1", failures=7), says(words="1"), says(words="2")) == [0.030] * 2
    assert counted(says("L7TOUT", 2000, failures=7), says("L7TOUT", 2000, failures=0)) == [2.0]


def test_where_good_checks_go_unseen_so_do_failed_ones() -> None:
    looks = [says(words=str(number), failures=number // 4) for number in range(20)]  # another check at each look
    assert counted(*looks) == [0.030] * 20


def test_checks_that_brought_a_server_back_count_though_only_the_last_one_was_seen() -> None:
    down = says("L4CON", 0, rise_left=3)
    assert counted(down, says(milliseconds=30)) == [INTER] + [0.030] * 3
    assert counted(down, says(milliseconds=30, rise_left=2), says(milliseconds=31)) == [INTER, 0.030, 0.031, 0.031]
    assert counted(down, says(milliseconds=30, rise_left=1), says(milliseconds=31)) == [INTER, 0.030, 0.030, 0.031]
    assert counted(says(milliseconds=30, rise_left=2)) == [0.030]


@pytest.mark.parametrize("words", ["Service Unavailable", "503", "a@7"])
def test_the_words_of_a_check_that_failed_are_the_servers_and_number_nothing(words: str) -> None:
    looks = [says("L7STS", number, words=words, failures=number) for number in range(1, 4)]
    assert counted(says(words="ok@1"), *looks) == [0.030] + [INTER] * 3


def test_a_health_that_an_operator_sets_is_no_check() -> None:
    raised = says(words="1")
    raised.fingerprint = "L7OK", "30", "3"
    assert counted(says(words="1", rise_left=10), raised) == [0.030]


def test_a_check_from_before_a_pause_is_not_counted_again_after_it() -> None:
    paused = says("", 0)
    for words in ("1", ""):
        before, after = says(words=words), says(words=words)
        after.fingerprint = "L7OK", "30", "2"  # HAProxy has set its health
        assert counted(before, paused, paused, after, after) == [0.030]
    assert counted(says(words="1"), paused, says(milliseconds=31, words="2")) == [0.030, 0.031]
    assert counted(says(words="1"), paused, says(busy=True), says(words="2")) == [0.030] * 2
    assert counted(says("L7TOUT", 2000), paused, says("L7TOUT", 2000), says(words="2")) == [2.0, 0.030]
    assert counted(paused, says(words="1"), says(milliseconds=31, words="2")) == [0.031]


def test_after_a_long_time_without_looks_the_last_check_stands_for_all() -> None:
    checks = Checks()
    looks = [(1000, says(words="1")), (1002, says(words="2")), (1600, says(words="3", failures=20))]
    found = [each for now, server in looks for each in checks.ended([server], (), now=now, interval=1.0)]
    assert [(seconds, failed) for _, seconds, failed in found] == [(0.030, False)] * 3


def test_the_first_check_of_a_new_haproxy_counts_once() -> None:
    down = says("L4CON", 0, failures=3, rise_left=10)
    assert counted(down, says(milliseconds=30)) == [INTER, 0.030]


def test_a_check_counts_when_it_is_seen_first_unless_the_server_was_measured_before() -> None:
    assert counted(says()) == [0.030]
    assert counted(says(), says(milliseconds=31), measured=(("app", "eu"),)) == [0.031]


def test_one_that_was_under_way_and_is_no_longer_is_another_one() -> None:
    assert counted(says(), says(), says(busy=True), says(), says()) == [0.030, 0.030]


def test_an_answer_that_came_sooner_than_a_round_trip_was_sent_before_it_was_asked_for() -> None:
    early = says(milliseconds=100, words="500us@1")
    assert counted(early, says(milliseconds=100, busy=True), says(milliseconds=101, words="500us@2")) == pytest.approx(
        [0.04975, 0.05025]
    ), "a connection and its TLS handshake take two"
    early.tls = "0"
    assert counted(early) == pytest.approx([0.0995])


def test_what_was_seen_first_while_another_was_under_way_is_left_to_the_next() -> None:
    assert counted(says(milliseconds=90, busy=True), says(milliseconds=90, words="30000us@1")) == [0.030]


def test_one_that_is_under_way_has_not_ended() -> None:
    assert counted(says(), *[says(busy=True)] * 30) == [0.030]


def test_one_that_has_ended_and_whose_connection_is_being_closed_counts_once() -> None:
    closing = says("L4OK", 31, busy=True)
    assert counted(says("L4OK", 30), closing, says("L4OK", 31)) == [0.030, 0.031]
    closing = says(milliseconds=31)
    closing.check_running, closing.last_chk = True, "2"
    assert counted(says(words="1"), closing, says(milliseconds=31, words="2")) == [0.030, 0.031]


def test_words_that_are_a_number_tell_all_of_them() -> None:
    looks = [says(words=str(number // 2)) for number in range(40)]
    assert counted(*looks) == [0.030] * 20
    assert counted(*[says(words="1")] * 40) == [0.030]


def test_words_that_have_the_time_from_the_request_are_the_sample() -> None:
    assert counted(says(milliseconds=90, words="30123us@1"), says(milliseconds=90, words="30123us@2")) == [0.030123] * 2
    assert counted(*[says(milliseconds=90, words="30123us@1")] * 40) == [0.030123]
    assert counted(says(milliseconds=0, words="0us@1")) == [LEAST]


def test_while_the_next_check_is_under_way_the_request_is_the_check_less_what_was_around_the_last_one() -> None:
    looks = [says(milliseconds=90, words="30000us@1"), says(milliseconds=295, busy=True)]
    assert counted(*looks, says(milliseconds=295, busy=True)) == pytest.approx([0.030, 0.235])


def test_what_an_smtp_server_says_is_neither_a_time_nor_a_number() -> None:
    greetings = [says(milliseconds=90, words="1us@1"), says(milliseconds=91, words="1us@1")]
    for server in greetings:
        server.mode, server.code = "tcp", "221"
    assert counted(*greetings) == [0.090, 0.091]
    numbered = says(milliseconds=90, words="1us@1")
    numbered.mode, numbered.code = "tcp", "0"  # of `tcp-check expect`
    assert counted(numbered) != [0.090]


def test_a_clock_that_is_set_makes_no_request_longer_than_its_check() -> None:
    assert counted(says(milliseconds=90, words="3600000000us@1")) == [pytest.approx(0.091)]


@pytest.mark.parametrize("words", ["-5us@1", "us@1", "9999999999999us@1", "\u0663us@1", "\u00b2us@1"])
def test_words_without_a_time_leave_the_whole_check(words: str) -> None:
    assert counted(says(milliseconds=90, words=words)) == [0.090]


def test_the_same_words_again_once_a_check_has_ended_are_no_difference() -> None:
    assert counted(says(words="Connection refused"), says(words="Connection refused")) == [0.030]


def test_one_that_ended_the_same_way_counts_once_it_is_as_late_as_the_others_were() -> None:
    varied = [says(milliseconds=30 + number % 2) for number in range(5) for _ in range(2)]  # one every two looks
    assert len(counted(*varied, *[says(milliseconds=50)] * 20)) == 5 + 10


def test_before_that_is_known_it_counts_every_ten_seconds() -> None:
    assert len(counted(*[says()] * 100)) == 10
    assert len(counted(*[says()] * 10)) == 1


def test_where_looks_are_rarer_than_checks_each_look_counts() -> None:
    assert len(counted(*[says(milliseconds=30 + number % 2) for number in range(10)], *[says()] * 10, every=5)) >= 19


def test_a_check_of_no_time_takes_half_a_millisecond() -> None:
    assert counted(says("L4OK", 0)) == [LEAST]


@pytest.mark.parametrize(
    ("check", "milliseconds", "expected"),
    [
        ("L4TOUT", 500, 0.5),
        ("L7TOUT", 3000, 3.0),
        ("L4CON", 0, INTER),
        ("L6RSP", 12, INTER),
        ("L7STS", 40, INTER),
        ("L7RSP", 5000, 5.0),
    ],
)
def test_a_failed_check_has_the_time_that_it_was_allowed(check: str, milliseconds: float, expected: float) -> None:
    server = says(check, milliseconds)
    assert Checks().ended([server], (), now=0.0, interval=1.0) == [(server, expected, True)]


def test_a_failed_check_was_allowed_as_long_as_the_checks_are_apart() -> None:
    looks = [says(milliseconds=30 + number) for number in range(6)]
    assert counted(*looks, says("L4CON", 0), every=5)[-1] == 5


@pytest.mark.parametrize("check", ["INI", "UNK", "SOCKERR", "HANA", "L7OKC", "PROCOK", "PROCERR", "CHECKED", ""])
def test_what_says_nothing_of_the_servers_time_is_not_counted(check: str) -> None:
    assert counted(says(check), says(check, 31)) == []
