"""Scores are a nearest-rank percentile of the newest samples, or the mean of few."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicloud.history import Sample
from multicloud.scores import CHANGE, RECOVERY_RUN, SLOWDOWN_BASE, SLOWDOWN_RUN, Score, percentiles, scores

EU = ("upstream", "eu")
NOW = 1_763_870_000.0
seconds = st.floats(min_value=1e-6, max_value=3600)
level = st.floats(min_value=0.0301, max_value=0.0399)  # times of which none is faster than another by a quarter


def score(newest_first: list[float], **settings: float) -> float:
    """The score of a server with these samples."""
    return scores({EU: [Sample(value, NOW) for value in newest_first]}, now=NOW, **settings)[EU].seconds  # type: ignore[arg-type]


def seconds_of(scored: dict[tuple[str, str], Score]) -> dict[tuple[str, str], float]:
    """The scores without what they were made of."""
    return {server: score.seconds for server, score in scored.items()}


def nearest_rank(values: list[float], percent: float) -> float:
    """The percentile, by its definition."""
    return sorted(values)[max(1, math.ceil(round(percent / 100 * len(values), 9))) - 1]


@given(st.lists(level, min_size=21, max_size=60), st.floats(min_value=0, max_value=100))
def test_the_percentile_is_the_nearest_rank_of_the_window(values: list[float], percent: float) -> None:
    assert score(values, percentile=percent) == nearest_rank(values[:30], percent)


@given(st.lists(level, min_size=1, max_size=20))
def test_the_mean_scores_up_to_the_minimum_of_samples(values: list[float]) -> None:
    assert score(values) == pytest.approx(sum(values) / len(values))


def since_change(newest_first: list[float], window: int) -> list[float]:
    """The samples since the last change, by its definition."""
    for size in range(1, len(newest_first)):
        four, four_before = newest_first[max(0, size - RECOVERY_RUN) : size], newest_first[size : size + RECOVERY_RUN]
        two, all_before = newest_first[max(0, size - SLOWDOWN_RUN) : size], newest_first[size:window]
        recovered = len(four) == len(four_before) == RECOVERY_RUN and max(four) < CHANGE * min(four_before)
        slowed = len(two) == SLOWDOWN_RUN and len(all_before) >= SLOWDOWN_BASE and CHANGE * min(two) > max(all_before)
        if recovered or slowed:
            return newest_first[:size]
    return newest_first


@given(st.lists(st.sampled_from([0.02, 0.021, 0.027, 0.03, 0.3]), min_size=1, max_size=60), st.integers(1, 50))
def test_only_what_was_measured_since_the_last_change_counts(values: list[float], window: int) -> None:
    available = values[: window + RECOVERY_RUN]
    since = since_change(available, window)
    counted = since[:window]
    few = len(counted) <= 3 and len(since) == len(available)
    expected = sum(counted) / len(counted) if few else nearest_rank(counted, 50)
    assert score(values, window=window, percentile=50, min_samples=3) == pytest.approx(expected)


@pytest.mark.parametrize("window", [21, 30, 60])
@pytest.mark.parametrize("percentile", [50, 90, 99])
def test_four_fast_samples_are_a_recovery_and_it_is_never_taken_back(window: int, percentile: float) -> None:
    for fast in range(RECOVERY_RUN, 100):
        assert score([0.02] * fast + [0.3] * 70, window=window, percentile=percentile) == pytest.approx(0.02)


@pytest.mark.parametrize("fast", [8, 17, 28])
def test_two_samples_that_are_slower_than_all_before_are_a_slowdown(fast: int) -> None:
    assert score([0.3, 0.02] + [0.02] * fast) < 0.05
    for slow in range(SLOWDOWN_RUN, 10):
        assert score([0.3] * slow + [0.02] * fast) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("newest_first", "counting"),
    [
        ([0.02] * 4 + [0.3] * 4, 4),
        ([0.02] * 3 + [0.3] * 27, 30),  # too few
        ([0.02, 0.02, 0.3, 0.02, 0.02] + [0.3] * 25, 30),  # not in a row
        ([0.02] * 4 + [0.3] * 3 + [0.02] + [0.3] * 22, 30),  # not from four slow ones
        ([0.74] * 4 + [1.0] * 26, 4),
        ([0.75] * 4 + [1.0] * 26, 30),  # not by more than a quarter
        ([0.3] * 2 + [0.02] * 8, 2),
        ([0.3] * 2 + [0.02] * 7, 9),  # too few before
        ([0.3, 0.02, 0.3] + [0.02] * 27, 30),  # not in a row
        ([0.3] * 2 + [0.02] * 20 + [0.25] + [0.02] * 7, 30),  # there was one as slow
        ([1.0] * 2 + [0.74] * 28, 2),
        ([1.0] * 2 + [0.75] * 28, 30),  # not by more than a third
        ([0.3] * 2 + [0.02] * 28 + [0.3] * 4, 2),
        ([0.3] * 2 + [0.02] * 27 + [0.3], 30),
    ],
)
def test_the_least_that_is_a_change_and_the_most_that_is_none(newest_first: list[float], counting: int) -> None:
    counted = scores({EU: [Sample(value, NOW) for value in newest_first]}, now=NOW)[EU]
    assert (len(counted.counted), counted.since) == (counting, None if counting in (30, len(newest_first)) else NOW)


def test_a_score_says_since_when_it_counts() -> None:
    newest_first = [Sample(0.3 if age < 3 else 0.02, NOW - age) for age in range(30)]
    scored = scores({EU: newest_first}, now=NOW)[EU]
    assert (scored.counted, scored.percentile, scored.since) == (newest_first[:3], 90, NOW - 2)


def test_the_twenty_first_sample_changes_from_the_mean_to_the_percentile() -> None:
    newest_first = [float(value) for value in range(1, 22)]
    assert score(newest_first[:20]) == 10.5
    assert score(newest_first) == 19.0


@pytest.mark.parametrize(
    ("age", "counts"), [(0, True), (300, True), (300.5, False), (None, True), (-3600, True), (NOW, False)]
)
def test_samples_count_for_their_age(age: float | None, counts: bool) -> None:
    when = None if age is None else NOW - age
    assert seconds_of(scores({EU: [Sample(0.1, when)]}, now=NOW)) == ({EU: 0.1} if counts else {})


def test_a_server_without_samples_has_no_score() -> None:
    assert scores({EU: []}, now=NOW) == {}


@given(st.dictionaries(st.text(max_size=3), st.lists(seconds, max_size=40), max_size=8))
def test_a_server_is_scored_alike_alone_and_among_others(samples: dict[str, list[float]]) -> None:
    series = {("b", name): [Sample(value, NOW) for value in values] for name, values in samples.items()}
    together = seconds_of(scores(series, now=NOW))
    alone: dict[tuple[str, str], float] = {}
    for server, values in series.items():
        alone |= seconds_of(scores({server: values}, now=NOW))
    assert together == pytest.approx(alone)


def test_what_counts_is_the_window_of_what_is_fresh() -> None:
    newest_first = [Sample(1.0, NOW), Sample(2.0, NOW - 301), Sample(3.0, NOW - 2), Sample(4.0, NOW - 3)]
    scored = scores({EU: newest_first}, now=NOW, window=2, max_age=300)[EU]
    assert (scored.counted, scored.percentile, scored.since) == ([newest_first[0], newest_first[2]], None, None)


def test_a_sample_of_exactly_the_maximum_age_counts_where_others_are_too_old() -> None:
    ages = [0, 300, 301]
    scored = scores({EU: [Sample(0.1, NOW - age) for age in ages]}, now=NOW, max_age=300)[EU]
    assert [NOW - (when or 0) for _, when, _ in scored.counted] == [0, 300]


def test_percentiles_are_measured_values() -> None:
    assert percentiles([0.5, 0.1, 0.2, 0.4, 0.3], (0, 20, 50, 90, 99)) == [0.1, 0.1, 0.3, 0.5, 0.5]
    assert percentiles([float(value) for value in range(1, 201)], (50, 100)) == [100, 200]


# Checks that failed


def outcome(newest_first: str, **settings: float) -> Score:
    """The score of a server after these checks: `.` is 20 ms, `s` 300 ms, and `x` a failure, which had 2 s."""
    samples = [Sample({".": 0.02, "s": 0.3, "x": 2.0}[check], NOW, check == "x") for check in newest_first]
    return scores({EU: samples}, now=NOW, **settings)[EU]  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [1, 5, 20, 21, 40])
def test_a_single_failure_never_matters(count: int) -> None:
    for place in range(count + 1):
        score = outcome("." * place + "x" + "." * (count - place))
        assert score.seconds == pytest.approx(0.02)
        assert score.failed == (place < 30)


def test_a_single_failure_matters_not_even_where_few_count_after_a_change() -> None:
    for place in range(5):
        assert outcome("." * place + "x" + "." * (4 - place) + "s" * 26).seconds <= 0.3
    assert outcome("x...." + "s" * 25).seconds == pytest.approx(0.02)


def test_a_single_failure_makes_no_percentile_a_mean() -> None:
    score = outcome("x" + "..s" * 8, percentile=50)
    assert (score.seconds, score.percentile, score.failed) == (0.02, 50, 1)


def test_a_server_of_which_nothing_but_a_failure_is_known_is_scored_by_it() -> None:
    assert outcome("x").seconds == 2.0


def test_two_failures_among_those_that_count_make_it_the_mean() -> None:
    score = outcome("x..x" + "." * 26)
    assert score.seconds == pytest.approx((28 * 0.02 + 4) / 30)
    assert (score.percentile, score.failed) == (None, 2)
    assert outcome("x..x.").seconds == pytest.approx((3 * 0.02 + 4) / 5)


def test_a_percentile_that_is_not_less_than_the_mean_stays() -> None:
    for checks in ("x..x..x..x..x" + "." * 17, "x" * 30):
        score = outcome(checks)
        assert (score.seconds, score.percentile) == (2.0, 90)


def test_after_two_failures_in_a_row_four_good_checks_are_a_return() -> None:
    for good in range(4):
        assert outcome("." * good + "xx" + "." * 24).seconds > 0.1
    assert outcome("....xx").failed == 0
    for good in range(4, 30):
        for before in ("xx", "xxx", "x" * 26):
            score = outcome("." * good + before + "." * 24)
            assert score.seconds == pytest.approx(0.02)
            assert score.failed == 0


def test_failures_that_come_and_go_are_forgotten_with_the_window_only() -> None:
    assert outcome(("." * 5 + "x") * 6).seconds > 0.1
    assert outcome("." * 26 + "x..x" + "." * 10).seconds > 0.1
    assert outcome("." * 27 + "x..x" + "." * 10).seconds == pytest.approx(0.02)


def test_one_failure_before_does_not_hide_a_slowdown() -> None:
    for place in range(2, 30):
        score = outcome("ss" + "." * (place - 2) + "x" + "." * (29 - place))
        assert (score.seconds, score.failed) == (0.3, 0)
    assert outcome("xx" + "." * 28).seconds == 2.0


def test_failures_before_a_return_do_not_hide_a_slowdown() -> None:
    for good in (8, 20, 26):
        assert outcome("ss" + "." * good + "xx" + "." * 4).seconds == pytest.approx(0.3)


@pytest.mark.parametrize("slow", ["ss", "xs", "sx"])
def test_a_slowdown_hides_no_failure_where_there_are_two(slow: str) -> None:
    for good in (8, 12, 24):
        score = outcome(slow + "." * good + "x..x")
        assert score.failed == 2 + slow.count("x")
        assert score.seconds > 0.1
    assert outcome("xs" + "." * 10 + "x").failed == 2
    assert outcome("ss" + "." * 10 + "x" + "." * 17 + "x").failed == 0, "the second is not in the window"


def test_a_change_before_what_counts_is_none() -> None:
    for good in (30, 31, 40):
        newest_first = [Sample(0.02, NOW - age) for age in range(good)]
        newest_first += [Sample(2.0, NOW - good - age, failed=True) for age in range(4)]
        score = scores({EU: newest_first}, now=NOW)[EU]
        assert (len(score.counted), score.since) == (30, NOW - 29 if good == 30 else None)
