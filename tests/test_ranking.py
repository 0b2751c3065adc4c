"""The ranking's promises, as properties over any servers, scores and settings, and as examples."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicloud import ranking
from multicloud.runtime import DOWN, DRAIN, MAINT, UP, Server

Scores = dict[tuple[str, str], float]

servers = st.lists(
    st.tuples(st.sampled_from([UP, UP, DOWN, MAINT, DRAIN]), st.sampled_from([0, 1, 1, 100, 256])), max_size=8
).map(lambda rows: [Server("upstream", f"s{i}", state, weight) for i, (state, weight) in enumerate(rows)])
scores = st.dictionaries(
    st.integers(0, 7).map(lambda i: ("upstream", f"s{i}")),
    st.one_of(st.sampled_from([0.02, 0.021, 0.02]), st.floats(1e-6, 3600)),
    max_size=8,
)
percent = st.floats(0, 100)
milliseconds = st.sampled_from([0.0, 1.0, 5.0, 1000.0])


def rank(members: list[Server], scored: Scores, **settings: float) -> list[tuple[Server, int]]:
    """The weights that are to change, in the order in which they are sent."""
    decisions = ranking.rank(members, scored, **settings)  # type: ignore[arg-type]
    return [(change.server, change.weight) for change in ranking.changes(decisions)]


def ranked(members: list[Server], scored: Scores, **settings: float) -> dict[str, int]:
    """The weights after the changes."""
    changes = rank(members, scored, **settings)
    return {server.name: server.weight for server in members} | {server.name: weight for server, weight in changes}


def servers_of(states: str, values: list[float | None], current: list[int]) -> tuple[list[Server], Scores]:
    """Servers a, b, c … and their scores; `states` has a letter for each.

    U, B (UP, and HAProxy's own `backup`), D, M, N (no address) or R (drain).
    """
    state = {"U": UP, "B": UP, "D": DOWN, "M": MAINT, "N": MAINT, "R": DRAIN}
    members = [Server("b", chr(97 + i), state[letter], current[i]) for i, letter in enumerate(states)]
    for server, letter in zip(members, states, strict=True):
        server.unresolved = server.unresolved or letter == "N"
        server.reserve = letter == "B"
    return members, {("b", chr(97 + i)): value for i, value in enumerate(values) if value is not None}


def weights(states: str, values: list[float | None], current: list[int], **settings: float) -> list[int]:
    """New weights of the servers a, b, c … of `servers_of`."""
    members, scored = servers_of(states, values, current)
    return list(ranked(members, scored, **settings).values())


@given(servers, scores, percent)
def test_there_is_one_favourite_one_backup_and_the_others_get_nothing(
    members: list[Server], scored: Scores, hysteresis: float
) -> None:
    up = [server for server in members if server.state == UP]
    after = ranked(members, scored, hysteresis=hysteresis)
    if any(server.key in scored for server in members):
        got = sorted((after[server.name] for server in up), reverse=True)
        assert got == [256, 1, *[0] * (len(up) - 2)][: len(up)]
    else:
        assert after == {server.name: server.weight for server in members}


@given(servers, scores, percent, milliseconds)
def test_maintenance_and_drain_are_never_touched_and_down_servers_get_nothing(
    members: list[Server], scored: Scores, hysteresis: float, tolerance: float
) -> None:
    changes = rank(members, scored, hysteresis=hysteresis, tolerance=tolerance)
    assert not [server for server, _ in changes if server.state in (MAINT, DRAIN)]
    assert all(weight == 0 for server, weight in changes if server.state == DOWN)


@given(servers, scores, percent, milliseconds)
def test_only_weights_that_differ_are_changed_and_a_second_time_none(
    members: list[Server], scored: Scores, hysteresis: float, tolerance: float
) -> None:
    changes = rank(members, scored, hysteresis=hysteresis, tolerance=tolerance)
    assert all(server.weight != weight for server, weight in changes)
    for server, weight in changes:
        server.weight = weight
    assert rank(members, scored, hysteresis=hysteresis, tolerance=tolerance) == []


@given(servers, scores, percent, milliseconds)
def test_on_the_way_to_the_new_weights_no_backend_is_without_any(
    members: list[Server], scored: Scores, hysteresis: float, tolerance: float
) -> None:
    up = [server for server in members if server.state == UP]
    if not any(server.weight for server in up):
        return
    for server, weight in rank(members, scored, hysteresis=hysteresis, tolerance=tolerance):
        server.weight = weight
        assert any(server.weight for server in up)


@given(servers, scores, percent)
def test_the_sitting_favourite_is_beaten_only_by_more_than_the_hysteresis(
    members: list[Server], scored: Scores, hysteresis: float
) -> None:
    for server in members[1:]:
        server.weight = 0
    if not members or members[0].state != UP or members[0].key not in scored:
        return
    sitting = members[0]
    sitting.weight = 256
    best = min(scored[server.key] for server in members if server.state == UP and server.key in scored)
    keeps = ranked(members, scored, hysteresis=hysteresis)[sitting.name] == 256
    assert keeps == (best >= scored[sitting.key] * (1 - hysteresis / 100))


@given(servers, scores, st.floats(0.1, 10))
def test_it_is_relative_so_that_all_slow_at_once_changes_nothing(
    members: list[Server], scored: Scores, factor: float
) -> None:
    scaled = {key: round(value, 3) * 2.0 ** round(factor) for key, value in scored.items()}
    rounded = {key: round(value, 3) for key, value in scored.items()}
    assert ranked(members, scaled) == ranked(members, rounded)


@given(servers, scores, percent, milliseconds.filter(bool))
def test_a_server_enters_the_band_at_the_tolerance_and_leaves_it_beyond_the_hysteresis(
    members: list[Server], scored: Scores, hysteresis: float, tolerance: float
) -> None:
    up = [server for server in members if server.state == UP and server.key in scored]
    sitting = {server.name for server in up if server.weight == 256}
    after = ranked(members, scored, tolerance=tolerance, hysteresis=hysteresis)
    for server in up:
        limit = min(scored[other.key] for other in up) + tolerance / 1000
        score = scored[server.key] * (1 - hysteresis / 100 if server.name in sitting else 1)
        assert (after[server.name] == 256) == (score <= limit)


@given(servers, scores, percent, milliseconds)
def test_the_fastest_outside_the_band_is_the_backup_and_the_others_get_nothing(
    members: list[Server], scored: Scores, hysteresis: float, tolerance: float
) -> None:
    after = ranked(members, scored, tolerance=tolerance, hysteresis=hysteresis)
    if not any(server.key in scored for server in members):
        return
    outside = [server for server in members if server.state == UP and after[server.name] != 256]
    assert sorted((after[server.name] for server in outside), reverse=True) == [1, *[0] * len(outside)][: len(outside)]
    for backup in outside:
        if after[backup.name] == 1:
            assert scored.get(backup.key, inf) == min(scored.get(server.key, inf) for server in outside)


@given(servers, scores, percent, st.floats(0.1, 1000), st.floats(0.1, 1000))
def test_a_wider_tolerance_takes_nobody_out_of_the_band(
    members: list[Server], scored: Scores, hysteresis: float, one: float, other: float
) -> None:
    narrow, wide = sorted((one, other))
    inside = ranked(members, scored, tolerance=narrow, hysteresis=hysteresis)
    after = ranked(members, scored, tolerance=wide, hysteresis=hysteresis)
    assert all(after[name] == 256 for name, weight in inside.items() if weight == 256)


@pytest.mark.parametrize(
    ("states", "values", "current", "settings", "expected"),
    [
        ("UUUU", [0.03, 0.02, 0.05, 0.04], [1, 1, 1, 1], {}, [1, 256, 0, 0]),
        ("UUU", [0.04, 0.03, 0.02], [1, 1, 1], {}, [0, 1, 256]),
        ("UUU", [0.02, 0.02, 0.02], [1, 1, 1], {}, [256, 1, 0]),
        ("UU", [0.02, 0.019], [256, 1], {}, [256, 1]),
        ("UU", [0.02, 0.01801], [256, 1], {}, [256, 1]),
        ("UU", [0.02, 0.0179], [256, 1], {}, [1, 256]),
        ("UU", [None, 0.02], [256, 1], {"hysteresis": 100}, [1, 256]),
        ("UU", [0.02, 0.019], [256, 1], {"hysteresis": 0}, [1, 256]),
        ("UU", [0.02, 0.02], [1, 256], {"hysteresis": 0}, [1, 256]),
        ("UU", [0.02, 0.02], [256, 256], {}, [256, 1]),
        ("DUU", [0.01, 0.02, 0.03], [256, 1, 0], {}, [0, 256, 1]),
        ("MUU", [0.01, 0.02, 0.03], [256, 1, 0], {}, [256, 256, 1]),
        ("RUU", [0.01, 0.02, 0.03], [7, 1, 0], {}, [7, 256, 1]),
        ("UUU", [None, 0.02, None], [256, 0, 0], {}, [1, 256, 0]),
        ("UUU", [None, None, None], [1, 1, 1], {}, [1, 1, 1]),
        ("DDD", [0.01, 0.02, 0.03], [256, 1, 0], {}, [256, 1, 0]),
        ("DUU", [0.01, None, None], [256, 0, 1], {}, [0, 256, 1]),
        ("DUU", [0.01, None, None], [0, 1, 256], {}, [0, 1, 256]),
        ("U", [0.5], [1], {}, [256]),
        ("BUU", [0.01, 0.03, 0.02], [1, 1, 1], {}, [1, 1, 256]),  # HAProxy uses its own backups while no other is UP
        ("BUB", [0.02, 0.03, 0.01], [256, 0, 0], {}, [0, 256, 1]),
        ("BDB", [0.02, 0.03, 0.01], [1, 256, 1], {}, [1, 0, 256]),
        ("BU", [0.01, None], [1, 1], {}, [1, 256]),
        ("UUU", [0.02, 0.03, 0.04], [1, 1, 1], {"favorite": 100, "backup": 10}, [100, 10, 0]),
        ("UUUU", [0.020, 0.024, 0.026, 0.03], [1, 1, 1, 1], {"tolerance": 5}, [256, 256, 1, 0]),
        ("UUUU", [0.020, 0.024, 0.026, 0.03], [256, 256, 256, 0], {"tolerance": 5}, [256, 256, 256, 1]),
        ("UUUU", [0.020, 0.024, 0.029, 0.03], [256, 256, 256, 0], {"tolerance": 5}, [256, 256, 1, 0]),
    ],
)
def test_examples(
    states: str, values: list[float | None], current: list[int], settings: dict[str, float], expected: list[int]
) -> None:
    assert weights(states, values, current, **settings) == expected


@pytest.mark.parametrize(
    ("states", "values", "current", "settings", "expected"),
    [
        ("UUU", [0.02, 0.03, 0.04], [1, 1, 1], {}, ["FASTEST", "BACKUP", "SLOWER"]),
        ("UU", [0.02, 0.01], [256, 1], {}, ["BACKUP", "OVERTOOK a 50 %"]),
        ("UU", [0.02, 0.019], [256, 1], {}, ["KEPT b 5 %", "BACKUP"]),
        ("UU", [0.02, 0.04], [256, 256], {}, ["FASTEST", "BACKUP"]),
        ("UU", [0.02, 0.04], [0, 1], {"favorite": 1, "backup": 1}, ["FASTEST", "BACKUP"]),
        ("UU", [0.02, 0.04], [1, 256], {"tolerance": 5}, ["FASTEST", "BACKUP"]),
        ("UU", [0.5, 0.75], [1, 1], {"tolerance": 250}, ["FASTEST", "WITHIN_TOLERANCE a 33 %"]),
        ("UUU", [0.020, 0.026, 0.03], [256, 256, 0], {"tolerance": 5}, ["FASTEST", "KEPT a 23 %", "BACKUP"]),
        ("UU", [0.02, None], [1, 256], {}, ["FASTEST", "NO_SAMPLES"]),
        ("DUU", [0.01, None, None], [0, 1, 256], {}, ["DOWN", "NO_SAMPLES", "NO_SAMPLES"]),
        (
            "DUMNR",
            [0.01, 0.02, None, None, None],
            [0, 1, 1, 1, 1],
            {},
            ["DOWN", "FASTEST", "MAINTENANCE", "UNRESOLVED", "DRAIN"],
        ),
        ("DD", [0.01, 0.02], [256, 1], {}, ["NONE_UP", "NONE_UP"]),
        ("UM", [None, None], [256, 1], {}, ["NONE_MEASURED", "NONE_MEASURED"]),
    ],
)
def test_a_decision_has_its_reason_the_other_server_and_by_how_many_percent_it_is_faster(
    states: str, values: list[float | None], current: list[int], settings: dict[str, float], expected: list[str]
) -> None:
    members, scored = servers_of(states, values, current)
    decisions = ranking.rank(members, scored, **settings)  # type: ignore[arg-type]
    beaten = [f" {each.other.name} {each.percent:.0f} %" if each.other else "" for each in decisions]
    assert [each.reason.name + other for each, other in zip(decisions, beaten, strict=True)] == expected
    assert all(each.other or not each.percent for each in decisions)
