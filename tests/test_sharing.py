"""What part of the traffic each server gets: as properties and examples, without HAProxy."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multicloud import sharing
from multicloud.history import Sample
from multicloud.ranking import Decision, Reason, rank
from multicloud.reweigh import EVERY
from multicloud.runtime import Server
from multicloud.sharing import Load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

USUAL = {"a": 0.1, "b": 0.15, "c": 0.2}
"""The usual seconds of the servers here."""

CALM, FULL = Load(2, 20, 0.1), Load(41, 60, 0.2)


NOW = 1763870000.0

Look = dict[str, Load]


def servers(**weights: int) -> list[Server]:
    return [Server("app", name, "UP", weight) for name, weight in weights.items()]


def measured(newest: Mapping[str, Sequence[float]]) -> dict[tuple[str, str], list[Sample]]:
    """A minute and more of samples of the usual time each, before which stand the `newest` ones."""
    series = {}
    for name, usual in USUAL.items():
        seconds = [*newest.get(name, ()), *[usual] * 97]
        series["app", name] = [Sample(each, NOW - 0.5 - 2 * place) for place, each in enumerate(seconds)]
    return series


def shared(
    decisions: Sequence[Decision],
    users: Look | None = None,
    newest: Mapping[str, Sequence[float]] | None = None,
    *,
    again: Look | Callable[[], Look] | None = None,
    samples: Mapping[tuple[str, str], Sequence[Sample]] | None = None,
    connect: float = 0.05,
    elapsed: float = EVERY,
    favorite: int = 256,
    backup: int = 1,
) -> list[Decision]:
    """What becomes of these decisions of the ranking; `connect` is what a connection takes to any of the servers."""

    def loads(look: Look) -> dict[tuple[str, str], Load]:
        return {("app", name): load for name, load in look.items()}

    decided = sharing.share(
        decisions,
        samples=samples or measured(newest or {}),
        users=loads(users or {}),
        again=lambda: loads(again() if callable(again) else again or users or {}),
        connect=lambda _: connect,
        now=NOW,
        elapsed=elapsed,
        favorite=favorite,
        backup=backup,
    )
    return [*decided]


def share(
    members: list[Server],
    users: Look | None = None,
    again: Look | None = None,
    newest: Mapping[str, float] | None = None,
    **others: float,
) -> list[Decision]:
    """What the servers get that ranking knows by their usual times; the newest 3 samples may be other ones, and the
    newest one of who is FULL has waited."""
    waited = {name: [3 * USUAL[name]] for name, load in (users or {}).items() if load == FULL}
    threes = {name: [seconds] * 3 for name, seconds in (newest or {}).items()}
    return shared(ranked(members, **others), users, waited | threes, again=again, **others)  # type: ignore[arg-type]


def ranked(members: list[Server], **others: float) -> list[Decision]:
    """The ranking by the servers' usual times."""
    weights = {name: int(others[name]) for name in ("favorite", "backup") if name in others}
    return rank(members, {server.key: USUAL[server.name] for server in members}, **weights)


def weights(decisions: list[Decision]) -> list[int]:
    return [decision.weight for decision in decisions]


@pytest.mark.parametrize("users", [{}, {"a": CALM}, {"a": Load(5, 20, 0.1), "b": Load(1, 1, 0.1)}])
def test_as_long_as_the_favourite_is_not_full_nothing_is_shared(users: dict[str, Load]) -> None:
    assert weights(share(servers(a=256, b=1, c=0), users)) == [256, 1, 0]


def test_with_a_crowd_at_the_favourite_others_get_a_part_with_figures() -> None:
    decisions = share(servers(a=256, b=1, c=0), {"a": FULL})
    a, b, c = weights(decisions)
    assert a > 1
    assert b > c > 1
    assert {decision.reason for decision in decisions} == {Reason.SHARES}
    assert [(each.in_flight, each.expected) for each in decisions] == [(41, 12), (0, 0), (0, 0)]


def test_who_has_no_samples_that_count_gets_no_part_by_older_ones() -> None:
    members = servers(a=256, b=1, c=0)
    decisions = rank(members, {server.key: USUAL[server.name] for server in members if server.name != "b"})
    assert {each.server.name: each.reason for each in decisions}["b"] is Reason.NO_SAMPLES
    reasons = [each.reason for each in shared(decisions, {"a": FULL}, {"a": [3 * USUAL["a"]]})]
    assert reasons == [Reason.SHARES, Reason.NO_SAMPLES, Reason.SHARES]


def test_where_who_has_most_is_measured_no_more_the_others_share_its_part() -> None:
    members = servers(a=256, b=200, c=150)
    decisions = rank(members, {server.key: USUAL[server.name] for server in members if server.name != "a"})
    a, b, c = weights(shared(decisions, {"a": FULL, "b": FULL, "c": FULL}))
    assert (a, b) == (0, 256)
    assert 128 < c < 256


def test_a_burst_that_is_gone_a_moment_later_changes_nothing() -> None:
    assert weights(share(servers(a=256, b=1, c=0), {"a": FULL}, {"a": CALM})) == [256, 1, 0]


def test_nobody_looks_again_where_there_is_no_crowd() -> None:
    def never() -> Look:
        raise AssertionError

    shared(ranked(servers(a=256, b=1)), {"a": CALM}, again=never)


def test_more_requests_than_have_come_since_a_quick_check_are_in_no_line() -> None:
    """Slow uploads, on purpose or not: a check has just passed them by."""
    decisions = ranked(servers(a=256, b=1))
    for in_flight, shares in ((41, True), (90, False)):
        look, later = ({"a": Load(in_flight, 60, 0.2, answers, mean)} for answers, mean in ((900, 0.2), (918, 0.21)))
        reasons = {decision.reason for decision in shared(decisions, look, again=later)}
        assert (Reason.SHARES in reasons) == shares


def test_a_favourite_that_is_far_is_not_full_and_left_at_once() -> None:
    far, nearer, _ = shared(ranked(servers(a=256, b=1, c=0)), {"a": FULL}, connect=0.25)  # no sample knows yet
    assert (far.weight, far.reason) == (1, Reason.FAR)
    assert (nearer.weight, nearer.reason, nearer.other) == (256, Reason.NEARER, far.server)


def test_who_is_far_does_not_come_to_lead_by_samples_of_before() -> None:
    assert weights(share(servers(a=0, b=256, c=1), {"b": CALM}, connect=0.25)) == [1, 256, 0]
    assert weights(share(servers(a=0, b=256, c=1), {"b": CALM}, connect=0.0)) == [256, 1, 0]  # nobody knows


def left() -> list[Decision]:
    """The ranking leaves `a` for `b`."""
    return [
        Decision(server, weight, Reason.FASTEST) for server, weight in zip(servers(a=256, b=1), (1, 256), strict=True)
    ]


@pytest.mark.parametrize(
    ("rate", "newest", "stays"),
    [
        (40, [0.4, 0.2], True),  # many use it, and its line grows
        (40, [0.2, 0.4], True),  # or shrinks
        (40, [0.4, 0.4], False),  # it is slow, and steadily so
        (40, [0.16, 0.16], True),  # by chance, perhaps
        (40, [0.16, 0.16, 0.16], False),
        (5, [0.4, 0.2], False),  # few use it
    ],
)
def test_a_favourite_is_left_at_once_unless_its_users_make_it_slow(rate: int, newest: list[float], stays: bool) -> None:
    a, b = weights(shared(left(), {"a": Load(3, rate, 0.1)}, {"a": newest}))
    assert (min(a, b) > 1) if stays else (a, b) == (1, 256)


@pytest.mark.parametrize("in_flight", [12, 41, 100, 5000])
def test_requests_that_stay_beside_quick_checks_are_no_line(in_flight: int) -> None:
    """Such as WebSockets, or downloads that somebody makes slow on purpose."""
    users = {"a": Load(in_flight, 40, 0.1)}
    assert weights(share(servers(a=256, b=1, c=0), users)) == [256, 1, 0]
    assert weights(share(servers(a=256, b=80, c=40), users))[0] == 256


@pytest.mark.parametrize(
    ("answers", "mean", "begins"),
    [
        (18, 0.201, False),  # HAProxy's figures are in whole milliseconds
        (18, 0.202, False),  # they took 230 ms, which is nothing special
        (18, 0.210, True),  # they took 460 ms
        (300, 0.210, False),  # they took 220 ms
        (0, 0.210, False),
        (-890, 0.210, False),  # HAProxy counts anew
    ],
)
def test_who_waited_and_was_answered_shows_a_line_that_no_check_has_seen_yet(
    answers: int, mean: float, *, begins: bool
) -> None:
    looks = [{"a": Load(41, 60, 0.2, 900, 0.2)}, {"a": Load(41, 60, 0.2, 900 + answers, mean)}]
    decisions = shared(ranked(servers(a=256, b=1, c=0)), looks[0], again=looks[1])
    assert (weights(decisions) != [256, 1, 0]) == begins


@pytest.mark.parametrize(("later", "begins"), [(41, False), (55, False), (56, True)])
def test_more_requests_in_flight_than_by_chance_are_a_line_that_no_check_has_seen_yet(
    later: int, *, begins: bool
) -> None:
    looks = [{"a": Load(in_flight, 60, 0.2)} for in_flight in (41, later)]
    decisions = shared(ranked(servers(a=256, b=1, c=0)), looks[0], again=looks[1])
    assert (weights(decisions) != [256, 1, 0]) == begins


@pytest.mark.parametrize(
    ("look", "later"),
    [
        (sharing.NOBODY, Load(8, 3, 0.2, 5_000_000, 0.2)),  # nobody came in the second before
        (Load(41, 60, 0.1), Load(41, 61, 0.1, 5_000_000, 0.2)),  # only to those that track it
        (Load(41, 60, 0.115, 900, 1.0), Load(41, 60, 0.115, 901, 1.002)),  # its own requests are rare, and slow as ever
        (Load(41, 60, 0.1, -30, 0.2), Load(41, 60, 0.1, 20, 0.2)),  # `clear counters all`, a moment before
    ],
)
def test_what_was_not_counted_before_is_no_line(look: Load, later: Load) -> None:
    before, after = (servers(a=256, b=120, c=60) for _ in range(2))
    assert weights(share(before, {"a": look}, {"a": later})) == weights(share(after, {"a": CALM}))


@pytest.mark.parametrize(
    ("look", "later", "newest", "shares"),
    [
        (Load(1364, 969, 0.96, 9000, 0.96), Load(1508, 983, 1.1, 9150, 1.1), 0.99, True),
        (
            Load(960, 969, 0.96, 9000, 0.96),
            Load(970, 983, 0.97, 9300, 0.97),
            0.99,
            False,
        ),  # it is slow, and steadily so
        (Load(1364, 969, 0.96, 9000, 0.96), Load(1364, 983, 0.96, 9300, 0.96), 0.99, False),  # some requests stay, too
        (Load(1364, 969, 0.96, 9000, 0.96), Load(1508, 983, 1.1, 9150, 1.1), 0.10, False),  # it is no check's
    ],
)
def test_of_many_requests_a_line_shows_that_their_mean_time_has_caught_up_with(
    look: Load, later: Load, newest: float, *, shares: bool
) -> None:
    decisions = shared(ranked(servers(a=256, b=1, c=0)), {"a": look}, {"a": [newest]}, again={"a": later})
    assert (Reason.SHARES in {decision.reason for decision in decisions}) == shares


def test_a_sample_that_was_slow_by_chance_makes_no_long_line_of_requests_that_stay() -> None:
    a, b, c = weights(shared(ranked(servers(a=256, b=1, c=0)), {"a": Load(5000, 40, 0.1)}, {"a": [0.14]}))
    assert a == 256 > 2 * b > 2 * c


def test_while_they_share_the_traffic_goes_back_step_by_step_and_at_last_all_at_once() -> None:
    members = servers(a=256, b=120, c=60)
    seen = []
    while [server.weight for server in members] != [256, 1, 0]:
        for server, weight in zip(members, weights(share(members, {"a": CALM})), strict=True):
            server.weight = weight
        seen.append([server.weight for server in members])
        assert len(seen) < 40
    assert all(later[1] <= earlier[1] and later[2] <= earlier[2] for earlier, later in itertools.pairwise(seen))
    assert seen[-2][1] > 1


def test_who_has_a_line_by_the_newest_samples_loses_and_the_cheapest_gain() -> None:
    before, after = (256, 256 * 2 // 3, 0), weights(share(servers(a=256, b=170, c=0), newest={"a": 0.4}))
    assert after[0] / sum(after) < before[0] / sum(before)
    assert after[1] / sum(after) > before[1] / sum(before)


@pytest.mark.parametrize(("newest", "waits"), [([0.1, 0.9, 0.1], True), ([0.1, 0.1, 0.9], False)])
def test_after_two_quick_samples_nobody_waits(newest: list[float], *, waits: bool) -> None:
    decisions = shared(ranked(servers(a=256, b=170, c=0)), newest={"a": newest})
    part = 256 / (256 + 170)
    a, *_ = weights(decisions)
    assert (a / sum(weights(decisions)) < part) == waits


def test_where_no_time_is_gone_the_weights_stay() -> None:
    assert weights(share(servers(a=256, b=120, c=60), {"a": FULL}, elapsed=0.0)) == [256, 120, 60]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (servers(a=1, b=1, c=1), [256, 1, 0]),  # nobody has led yet
        (servers(a=256, b=256, c=1), [256, 1, 0]),  # one is back from maintenance
        (servers(a=100, b=100, c=100), [256, 1, 0]),  # no reweigh's weights
    ],
)
def test_weights_that_are_no_parts_are_ranked_as_ever(members: list[Server], expected: list[int]) -> None:
    assert weights(share(members, {"a": FULL, "b": FULL, "c": FULL})) == expected


def test_those_that_are_left_go_on_sharing_when_the_favourite_dies_or_is_drained() -> None:
    for state, weight in (("DOWN", 0), ("DRAIN", 256)):
        members = servers(a=256, b=120, c=60)
        members[0].state = state
        a, b, c = weights(share(members))
        assert (a, b) == (weight, 256)
        assert 64 < c < 128


@pytest.mark.parametrize(
    ("favorite", "backup", "shared"), [(256, 7, True), (256, 8, False), (100, 1, True), (20, 1, False)]
)
def test_nobody_shares_where_the_weights_cannot_tell_a_part_from_a_backup(
    favorite: int, backup: int, shared: bool
) -> None:
    decisions = share(servers(a=favorite, b=backup, c=0), {"a": FULL}, favorite=favorite, backup=backup)
    assert any(decision.reason is Reason.SHARES for decision in decisions) == shared


@given(
    st.lists(st.integers(0, 256), min_size=3, max_size=3),
    st.lists(st.sampled_from(["UP", "UP", "DOWN", "MAINT", "DRAIN"]), min_size=3, max_size=3),
    st.lists(st.builds(Load, st.integers(0, 500), st.integers(0, 500), st.floats(0, 5)), min_size=3, max_size=3),
    st.lists(st.floats(0.001, 5), min_size=3, max_size=3),
    st.sampled_from([0.0, 0.1, 1.0, 3.0, 60.0]),
)
def test_whatever_there_is_one_server_that_is_up_has_the_favourites_weight_and_the_others_keep_to_their_state(
    before: list[int], states: list[str], users: list[Load], newest: list[float], elapsed: float
) -> None:
    members = servers(**dict(zip("abc", before, strict=True)))
    for server, state in zip(members, states, strict=True):
        server.state = state
    decisions = share(
        members, dict(zip("abc", users, strict=True)), newest=dict(zip("abc", newest, strict=True)), elapsed=elapsed
    )
    up = [decision.weight for decision in decisions if decision.server.state == "UP"]
    assert up.count(256) == bool(up)
    assert all(0 <= weight <= 256 for weight in up)
    for decision in decisions:
        if decision.server.state in ("MAINT", "DRAIN"):
            assert decision.weight == decision.server.weight
        elif decision.server.state == "DOWN":
            assert decision.weight in (0, decision.server.weight)


def test_requests_count_with_those_of_the_servers_that_track_and_in_tcp_mode_by_their_rate_alone() -> None:
    own, once, tcp, idle = servers(a=256, once=256, tcp=256, idle=0)
    once.source = own.key
    tcp.mode = "tcp"
    for server, in_flight, rate, total in ((own, 3, 10, 0.5), (once, 9, 30, 1.5), (tcp, 99, 1, 9.0)):
        server.in_flight, server.rate, server.total_time, server.answers = in_flight, rate, total, 100 * rate
    users = sharing.loads([own, once, tcp, idle])
    assert users == {own.key: Load(12, 40, 1.25, 1000, 0.5), tcp.key: Load(0, 1, answers=100)}
    assert sharing.loads([once, own])[own.key] == users[own.key]


def test_the_first_step_is_for_some_seconds_however_soon_it_comes_and_the_next_for_those_that_are_gone() -> None:
    first = [weights(share(servers(a=256, b=1, c=0), {"a": FULL}, elapsed=elapsed)) for elapsed in (0.5, 6.0)]
    assert first[0] == first[1]
    second = [weights(share(servers(a=256, b=80, c=40), {"a": FULL}, elapsed=elapsed)) for elapsed in (0.5, 6.0)]
    assert second[0][0] / sum(second[0]) > second[1][0] / sum(second[1])


def test_rounds_that_are_far_apart_make_no_larger_steps() -> None:
    steps = [weights(share(servers(a=256, b=1, c=0), {"a": FULL}, elapsed=elapsed)) for elapsed in (15.0, 3600.0)]
    assert steps[0] == steps[1]


def test_a_favourite_keeps_all_where_no_other_is_cheaper() -> None:
    assert weights(shared(left(), {"a": Load(4, 40, 0.1)}, {"a": [0.1, 0.116]})) == [256, 1]


def test_haproxys_own_backups_have_no_part() -> None:
    members = servers(a=1, b=256, c=1)
    members[0].reserve = True
    a, b, c = weights(share(members, {"b": Load(41, 60, 0.2)}))
    assert a == 1
    assert min(b, c) > 1


def test_any_number_of_servers_can_share() -> None:
    members = [Server("app", str(number), "UP", 256 if not number else 250) for number in range(60)]
    samples = {server.key: [Sample(0.1 + number / 1e5)] for number, server in enumerate(members)}
    for _ in range(20):
        by_time = rank(members, {key: found[0].seconds for key, found in samples.items()})
        for server, decision in zip(members, shared(by_time, samples=samples), strict=True):
            server.weight = decision.weight
        assert sum(server.weight > 1 for server in members) == 60
        assert max(server.weight for server in members) == 256
