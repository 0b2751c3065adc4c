"""What the decisions promise over time, on streams of samples that are the same in every run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from multicloud import samplefile
from tests.bench import lines
from tests.bench.replay import DEFAULTS, PHASES, fixed_window, recorded, replay, synthetic

if TYPE_CHECKING:
    from pathlib import Path

SEEDS = range(3)


@pytest.mark.parametrize("name", ["slows", "recovers", "blips", "dies"])
def test_the_right_favourite_leads_within_12_s_of_a_step(name: str) -> None:
    assert all(replay(synthetic(PHASES[name], 2.0, seed), DEFAULTS).wait <= 12 for seed in SEEDS)


def test_nearly_equal_servers_change_places_at_most_6_times_an_hour() -> None:
    switches = [replay(synthetic(PHASES["near tie"], 2.0, seed), DEFAULTS).switches for seed in SEEDS]
    assert sum(switches) / len(switches) <= 6


@pytest.mark.parametrize("name", ["steady", "slows", "recovers", "blips", "drift", "10 % tail"])
def test_no_phase_costs_more_than_with_a_fixed_window(name: str) -> None:
    for seed in SEEDS:
        stream = synthetic(PHASES[name], 2.0, seed)
        assert replay(stream, DEFAULTS).ratio <= replay(stream, DEFAULTS, fixed_window).ratio + 0.01


def test_a_recorded_file_is_replayed(tmp_path: Path) -> None:
    path = str(tmp_path / "times.txt")
    drawn = synthetic(PHASES["dies"], 2.0, 0)
    for when, row in zip(drawn.times, drawn.samples.T, strict=True):
        for server, seconds in enumerate(row):
            if np.isfinite(seconds):
                samplefile.append(path, "upstream", f"s{server}", float(seconds), 1.7e9 + when)
    [(backend, stream)] = recorded(path).items()
    assert backend == "upstream"
    assert replay(stream, DEFAULTS).wait <= 12
    assert 1 <= replay(stream, DEFAULTS).ratio < 1.1


@pytest.mark.parametrize("edges", [1, 3, 10])
@pytest.mark.parametrize("load", lines.SPLITS)
def test_at_any_load_users_wait_little_longer_than_under_the_best_split(load: float, edges: int) -> None:
    shared, best = lines.step(load, edges), lines.step(load, edges, share=None)
    assert lines.mean(shared, 120, 180) <= 1.15 * lines.mean(best, 120, 180)
    if load == lines.LOW:
        assert not [weights for when, weights in shared.changes if when > 20]
        assert [[server.weight for server in edge.servers] for edge in shared.edges] == [[256, 1, 0, 0]] * edges


@pytest.mark.parametrize(("rate", "far"), [(12, 1.02), (25, 0.95), (50, 0.85), (100, 0.85)])
def test_where_no_region_is_full_users_wait_as_without_sharing_or_less(rate: int, far: float) -> None:
    """A crowd shows that a region is far before two checks have."""
    shared, alone = (
        [lines.course(rate, seed=seed, share=share) for seed in SEEDS] for share in (lines.SHARE, lines.alone)
    )
    for name, limit in {"far": far, "back": 1.02, "slow": 1.02}.items():
        assert sum(each[name] for each in shared) <= limit * sum(each[name] for each in alone)
