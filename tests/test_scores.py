"""Scores are a nearest-rank percentile of the newest samples, or the mean of few."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicloud.scores import countable, percentiles, scores

EU = ("upstream", "eu")
NOW = 1_763_870_000.0
seconds = st.floats(min_value=1e-6, max_value=3600)


@given(st.lists(seconds, min_size=21, max_size=60), st.floats(min_value=0, max_value=100))
def test_the_percentile_is_the_nearest_rank_of_the_window(values: list[float], percent: float) -> None:
    window = values[:30]
    rank = max(1, math.ceil(round(percent / 100 * len(window), 9)))
    score = scores({EU: [(value, NOW) for value in values]}, now=NOW, percentile=percent)[EU]
    assert score == sorted(window)[rank - 1]


@given(st.lists(seconds, min_size=1, max_size=20))
def test_the_mean_scores_up_to_the_minimum_of_samples(values: list[float]) -> None:
    score = scores({EU: [(value, NOW) for value in values]}, now=NOW)[EU]
    assert score == pytest.approx(sum(values) / len(values))


def test_the_twenty_first_sample_changes_from_the_mean_to_the_percentile() -> None:
    newest_first = [(float(value), NOW) for value in range(1, 22)]
    assert scores({EU: newest_first[:20]}, now=NOW)[EU] == 10.5
    assert scores({EU: newest_first}, now=NOW)[EU] == 19.0


@pytest.mark.parametrize(
    ("age", "counts"), [(0, True), (300, True), (300.5, False), (None, True), (-3600, True), (NOW, False)]
)
def test_samples_count_for_their_age(age: float | None, counts: bool) -> None:
    when = None if age is None else NOW - age
    assert scores({EU: [(0.1, when)]}, now=NOW) == ({EU: 0.1} if counts else {})


def test_a_server_without_samples_has_no_score() -> None:
    assert scores({EU: []}, now=NOW) == {}


@given(st.dictionaries(st.text(max_size=3), st.lists(seconds, max_size=40), max_size=8))
def test_a_server_is_scored_alike_alone_and_among_others(samples: dict[str, list[float]]) -> None:
    series = {("b", name): [(value, NOW) for value in values] for name, values in samples.items()}
    together = scores(series, now=NOW)
    alone: dict[tuple[str, str], float] = {}
    for server, values in series.items():
        alone |= scores({server: values}, now=NOW)
    assert together == pytest.approx(alone)


def test_countable_is_the_window_of_what_is_fresh() -> None:
    newest_first = [(1.0, NOW), (2.0, NOW - 301), (3.0, NOW - 2), (4.0, NOW - 3)]
    assert countable(newest_first, now=NOW, window=2, max_age=300) == [1.0, 3.0]


def test_percentiles_are_measured_values() -> None:
    assert percentiles([0.5, 0.1, 0.2, 0.4, 0.3], (50, 90, 99)) == [0.3, 0.5, 0.5]
