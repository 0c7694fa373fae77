"""What befalls clients of the benchmark: who is hit, what it is, and what is none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.experiment.oneshot_cell import solve
from node.experiment.oneshot_damage import damaged, in_time, is_of_uploads, owners
from node.experiment.oneshot_grid import Cell, Entrant, Setting, held

QUICK = {"training": {"local_epochs": 1}}
HELD = np.array([[10, 0, 30], [30, 20, 0], [0, 20, 0], [5, 5, 5]])


def tables(damage, clients=10, seed=0):
    return damaged(damage, clients, seed, lambda: HELD)


def hit_by(damage, **more):
    return {event["node"] for event in tables(damage, **more)["churn"]["schedule"]}


def run(tmp_path: Path, damage: str, algorithm: str = "weighted-average"):
    entrant = Entrant(algorithm, algorithm, sets=QUICK)
    return solve(Cell(entrant, Setting("digits", "dirichlet(0.1)", damage=damage)), tmp_path)["figures"]


def test_who_is_hit_follows_from_the_seed_and_grows():
    assert hit_by("drop 1") < hit_by("drop 3")
    assert any(hit_by("drop 1", seed=seed) != hit_by("drop 1") for seed in range(6))


def test_liars_are_attackers():
    (section,) = tables("sign-flip 2")["attackers"]
    assert (section["kind"], section["attack"], len(section["nodes"])) == ("byzantine", "sign-flip", 2)


@pytest.mark.parametrize("damage", ["drop", "drop 0", "drop 10", "3 drop", "drop -1", "deadline 100", "owner 10", " "])
def test_other_damage_is_refused(damage):
    with pytest.raises(ConfigError, match=r"damage: .* allowed: drop N.*N below 10; or deadline P, P below 100"):
        tables(damage)


def test_owners_come_by_their_largest_share_of_any_class():
    """Shares of the first three: 30/35 of the last class, 30/45 and 20/45."""
    assert owners(HELD) == [1, 2, 3, 4]
    assert hit_by("owner 2", clients=4) == {1, 2}


def test_a_class_that_nobody_has_has_no_owner():
    assert owners(np.array([[1, 0], [3, 0]])) == [2, 1]


def test_an_owner_leaves_a_class_with_least():
    setting = Setting("digits", "dirichlet(0.1)")
    shares = held(setting) / held(setting).sum(0)
    (event,) = (
        Cell(Entrant("it", "average"), Setting("digits", "dirichlet(0.1)", damage="owner 1")).config().churn.schedule
    )
    assert shares[event.node - 1].max() == shares.max()


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=60, unique=True), st.integers(1, 99))
def test_arrivals_in_time_are_those_up_to_the_percentile(times, percentile):
    count = in_time(len(times), percentile)
    ordered = sorted(times)
    deadline = np.percentile(ordered, percentile)
    assert 1 <= count < len(times)
    assert ordered[count - 1] <= deadline * (1 + 1e-12)
    assert ordered[count] >= deadline * (1 - 1e-12)


def test_ten_arrivals_at_the_usual_percentiles():
    assert [in_time(10, percentile) for percentile in (50, 80, 95)] == [5, 8, 9]


def test_claims_are_capped_at_three_times_what_is_fair():
    capped = tables("capped 1", clients=4)
    assert capped["mods"] == tables("over-claim 1", clients=4)["mods"]
    assert capped["protocol"] == {"most_samples": 3 * HELD.sum() // 4}


def test_what_only_uploads_can_have():
    assert [is_of_uploads(damage) for damage in ("", "drop 1", "owner 1", "nonfinite 2", "sign-flip 1")] == [False] * 5
    assert all(map(is_of_uploads, ("deadline 50", "over-claim 1", "capped 1")))


# Whole runs


def test_an_aggregator_that_waits_for_half_hears_half(tmp_path):
    assert run(tmp_path, "deadline 50")["uploads"] == 5
    assert run(tmp_path, "deadline 95")["uploads"] == 9


def test_uploads_that_are_no_numbers_count_as_lost(tmp_path):
    lied, lost = (run(tmp_path, damage) for damage in ("nonfinite 2", "drop 2"))
    assert lied["uploads"] == lost["uploads"] == 8
    assert lied["accuracy"] == lost["accuracy"]


def test_a_claim_of_more_samples_weighs_more_and_is_capped(tmp_path):
    """With a hundred times its samples, a client alone decides a weighted mean, and nothing else changes."""
    honest, claimed, capped = (run(tmp_path, damage)["loss"] for damage in ("", "over-claim 1", "capped 1"))
    assert len({honest, claimed, capped}) == 3
    alike = [run(tmp_path, damage, "average")["loss"] for damage in ("", "over-claim 1")]
    assert alike[0] == alike[1]
