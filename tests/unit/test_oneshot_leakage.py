"""What uploads give away: who is attacked and how, as the attack suite has it, and that looking changes nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.attack import metrics
from node.attack.observers.membership import Membership
from node.attack.observers.uploads import ATTACK, FIGURES, resampled, unattacked
from node.learn.oneshot.catalogue import configured
from oneshots import Run

LEARNED = {"training": {"local_steps": 150}, "data": {"partition": "iid"}}
CURIOUS = {"attackers": [dict(ATTACK)]}


def attacked(**tables):
    run = Run(**{**LEARNED, **CURIOUS, **tables})
    found = {row.metric: row.value for row in run.result.recorder.rows() if row.metric.startswith("leakage.")}
    return run, {name.removeprefix("leakage."): value for name, value in found.items()}


@pytest.fixture(scope="module")
def average():
    return attacked()


def test_every_figure_has_its_interval(average):
    _, found = average
    assert set(found) == set(FIGURES)
    assert found["auc_low"] < found["auc"] < found["auc_high"]
    assert found["tpr_low"] <= found["tpr"] <= found["tpr_high"]
    assert found["auc_low"] > 0.5  # models that have learned by heart


def test_a_model_is_attacked_as_the_suite_does_it(average):
    run, found = average
    suite = Membership(Membership.Config(scores=("loss",)), (0,), run.setup.attacks[0].scene)
    scored = [suite.scored(run.result.models[client], client) for client in range(1, run.setup.config.nodes)]
    scores = np.concatenate([each.scores["loss"] for each in scored])
    members = np.concatenate([each.members for each in scored])
    assert found["auc"] == metrics.auc(scores, members)
    assert found["tpr"] == metrics.curve(scores, members).tpr_at(0.01)


def test_who_looks_changes_no_bit(average):
    run, _ = average
    plain = Run(**LEARNED)
    assert run.models == plain.models
    assert run.verdict == plain.verdict
    assert run.summary["bytes_sent"] == plain.summary["bytes_sent"]
    assert run.summary["time_s"] == plain.summary["time_s"]


def test_equal_uploads_give_away_the_same_whatever_becomes_of_them(average):
    _, mean = average
    _, vote = attacked(protocol={"algorithm": "ensemble-vote"})
    assert vote == mean


def test_fewer_bits_are_attacked_as_they_cross(average):
    _, whole = average
    for precision in ("float16", "int8"):
        _, found = attacked(protocol={"upload": precision})
        assert found != whole
        assert found["auc"] == pytest.approx(whole["auc"], abs=0.02)


def test_samples_are_attacked_by_distance(average):
    run, found = attacked(protocol={"algorithm": "centroids"})
    assert found["auc_low"] > 0.5
    _, model = average
    assert found["auc"] != model["auc"]
    assert run.summary["status"] == "finished"


def test_noise_that_hides_records_is_seen():
    noisy = {"privacy": {"mechanism": "record", "noise_multiplier": 8.0}}
    _, found = attacked(**noisy)
    assert abs(found["auc"] - 0.5) < 0.1
    assert found["auc_low"] < 0.53


def test_too_few_others_have_no_rate_at_one_percent():
    small = {"name": "breast_cancer", "partition": "iid", "test_fraction": 0.2}
    run, found = attacked(nodes=3, data=small)
    assert np.isnan([found[name] for name in ("tpr", "tpr_low", "tpr_high")]).all()
    assert np.isfinite(found["auc"])
    assert run.metric("accuracy") > 0.5


@pytest.mark.parametrize(
    ("algorithm", "says"),
    [
        ("average", ""),
        ("fisher", ""),
        ("ensemble-label-probabilities", ""),
        ("centroids", ""),
        ("fedcvae", ""),
        ("dosfl", ""),
        ("ridge", "statistics alone"),
        ("fedpft", "statistics alone"),
        ("fedov", "a network of the algorithm's own"),
        ("predictions", "predictions on public samples alone"),
    ],
)
def test_why_some_are_not_attacked(algorithm, says):
    reason = unattacked(configured(algorithm, "{}"))
    assert reason.startswith(says)
    assert bool(reason) == bool(says)
    assert "\n" not in reason


@given(st.integers(0, 2**32), st.integers(1, 6), st.integers(2, 12))
def test_resamples_take_all_scores_of_a_record_together(seed, copies, others):
    """``others`` records that are no members, each scored by several models; members are scored once."""
    members = np.array([True] * 5 + [False] * copies * others)
    same = np.array([*range(5), *(5 + i for i in range(others) for _ in range(copies))])
    scores = same.astype(float)
    drawn, inside = next(resampled(scores, members, same, np.random.default_rng(seed)))
    assert np.count_nonzero(inside) == 5
    assert np.count_nonzero(~inside) == copies * others
    _, counts = np.unique(drawn[~inside], return_counts=True)
    assert (counts % copies == 0).all()


def test_records_that_several_models_score_widen_the_interval():
    """Ten scores of one record are no ten records."""
    rng = np.random.default_rng(1)
    once = rng.normal(size=200)
    members = np.arange(200) < 100
    scores, inside = np.tile(once, 10), np.tile(members, 10)

    def width(same):
        draws = resampled(scores, inside, same, np.random.default_rng(2))
        low, high = np.quantile([metrics.auc(*draw) for draw in draws], [0.025, 0.975])
        return high - low

    assert width(np.tile(np.arange(200), 10)) > 2 * width(np.arange(2000))


def test_scores_that_are_no_numbers_leave_nothing_known():
    run = Run(**LEARNED, **CURIOUS, nodes=3)
    attack = run.setup.attacks[0]
    found = attack._figures(np.array([0.1, np.inf, 0.2]), np.array([True, False, False]), np.arange(3))
    assert np.isnan(list(found.values())).all()
    assert torch.isfinite(torch.tensor(run.metric("accuracy")))
