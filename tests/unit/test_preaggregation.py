"""What is done to models before a rule, and the ops that record all of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ComputeError
from node.learn import robust
from node.learn.robust import aggregate, bucketed_mix, centered_clipping_from, judged_mix, nonfinite, robust_mix
from node.learn.robust.preaggregation import adaptive_clipping, bucketing, nearest_neighbour_mixing, static_clipping
from node.learn.workers import find
from node.op import Key, Task
from node.testing import check_op

X = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1], [100, -100, 50]], dtype=torch.float32)


def models(seed, n=9, d=5):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(n, d))).float()


def seeded(seed=0):
    return np.random.default_rng(seed)


APPLIED = {
    "nnm": lambda rows: nearest_neighbour_mixing(rows, 2),
    "bucketing": lambda rows: bucketing(rows, seeded()),
    "static-clipping": lambda rows: static_clipping(rows, 1.5),
    "arc": lambda rows: adaptive_clipping(rows, 2),
}


# Golden values


def test_static_clipping():
    clipped = static_clipping(X, 2.0)
    assert clipped[0].tolist() == pytest.approx([0.5345, 1.0690, 1.6036], abs=1e-4)
    assert torch.equal(clipped[3], X[3]), "of norm 1.7: left as it is"


def test_adaptive_clipping():
    clipped = adaptive_clipping(X, 1)
    assert clipped[4].tolist() == pytest.approx([9.2856, -9.2856, 4.6428], abs=1e-4)
    assert torch.equal(clipped[:4], X[:4])


def test_adaptive_clipping_clips_floor_of_2_f_m_minus_f_over_m():
    rows = torch.arange(1.0, 10.0)[:, None]
    assert adaptive_clipping(rows, 2).squeeze().tolist() == [1, 2, 3, 4, 5, 6, 6, 6, 6], "floor(28 / 9) = 3"
    assert torch.equal(adaptive_clipping(rows, 0), rows)


def test_nearest_neighbour_mixing():
    rows = torch.tensor([[0.0], [1.0], [3.0], [100.0]])
    assert nearest_neighbour_mixing(rows, 2).squeeze().tolist() == [0.5, 0.5, 2.0, 51.5]
    assert nearest_neighbour_mixing(rows, 0).squeeze().tolist() == [26.0] * 4


@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 5))
def test_each_model_is_in_one_bucket(seed, n, size):
    """With one coordinate of its own for each model, a bucket's row says who is in it."""
    rows = torch.eye(n)
    buckets = bucketing(rows, seeded(seed), size)
    members = (buckets > 0).sum(1).tolist()
    assert (buckets > 0).sum(0).tolist() == [1] * n
    assert members == [size] * (n // size) + ([n % size] if n % size else [])
    assert torch.allclose(buckets.sum(1), torch.ones(len(members)))


def test_buckets_are_drawn_anew_from_every_generator():
    assert len({tuple(bucketing(X, seeded(seed)).flatten().tolist()) for seed in range(8)}) > 1


# What holds for all of them


@settings(max_examples=20)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("name", ["nnm", "static-clipping", "arc"])
def test_rows_follow_their_order(name, seed):
    rows = models(seed)
    order = torch.from_numpy(seeded(seed).permutation(9))
    assert torch.allclose(APPLIED[name](rows[order]), APPLIED[name](rows)[order], atol=1e-6)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
def test_bucketing_under_one_seed_does_not_depend_on_who_was_heard_first(seed):
    rows = models(seed)
    order = torch.tensor([0, *(1 + seeded(seed).permutation(8))])
    first, second = (aggregate(each, "median", 1, ("bucketing",), rng=seeded(5)) for each in (rows, rows[order]))
    assert torch.equal(first, second)


@settings(max_examples=20)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("name", ["nnm", "bucketing"])
def test_mixing_moves_with_the_models(name, seed):
    rows, shift = models(seed), models(seed + 1, 1)
    assert torch.allclose(APPLIED[name](rows + shift), APPLIED[name](rows) + shift, atol=1e-5)


@pytest.mark.parametrize("name", APPLIED)
def test_inputs_are_left_alone_and_not_shared(name):
    rows = models(0)
    before = rows.clone()
    APPLIED[name](rows).fill_(99.0)
    assert torch.equal(rows, before)


@pytest.mark.parametrize("name", ["nnm", "bucketing", "arc"])
def test_identical_models_come_back_unchanged(name):
    rows = models(1, 1).repeat(9, 1)
    after = APPLIED[name](rows)
    assert torch.equal(after, rows[: len(after)])


@pytest.mark.parametrize("name", APPLIED)
def test_huge_numbers_never_become_infinite(name):
    rows = models(0)
    rows[-2:] = 3e38
    assert APPLIED[name](rows).isfinite().all()


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.floats(0.1, 3))
def test_no_norm_is_left_above_the_limit(seed, norm):
    assert torch.linalg.vector_norm(static_clipping(models(seed), norm), dim=1).max() <= norm * (1 + 1e-6)


def test_without_liars_mixing_then_mean_is_the_mean():
    rows = models(2)
    assert torch.allclose(aggregate(rows, "mean", 0, ("nnm",)), rows.mean(0), atol=1e-6)


def test_they_are_applied_in_the_order_given():
    one, other = (aggregate(X, "mean", 1, pre) for pre in (("arc", "nnm"), ("nnm", "arc")))
    expected = nearest_neighbour_mixing(adaptive_clipping(X, 1), 1).mean(0)
    assert torch.allclose(one, expected, atol=1e-5)
    assert not torch.allclose(one, other)


def test_each_function_gets_the_options_that_it_names():
    clipped = aggregate(X, "multi-krum", 1, ("static-clipping",), norm=2.0, selected=1)
    assert any(torch.allclose(clipped, row) for row in static_clipping(X, 2.0))


def test_a_liar_beyond_all_bounds_is_tamed_by_mixing():
    rows = models(3)
    rows[-2:] = 3e38
    assert torch.linalg.vector_norm(aggregate(rows, "trimmed-mean", 2, ("nnm",))) < 4


# As ops


@pytest.mark.parametrize("rule", sorted(set(robust.RULES) - {"ubar"}))
def test_robust_mix_is_a_pure_op(rule):
    check_op(robust_mix, list(models(0)), rule=rule, f=2)


def test_robust_mix_takes_pre_aggregations_and_options():
    check_op(robust_mix, list(X), rule="multi-krum", f=1, pre=("nnm", "static-clipping"), norm=3.0, selected=2)


def test_bucketed_mix_is_a_seeded_op():
    check_op(bucketed_mix, list(models(0, 12)), rule="median", f=1)
    check_op(bucketed_mix, list(models(0, 12)), rule="krum", f=0, pre=("bucketing", "static-clipping"), bucket_size=3)


def test_the_other_ops_are_pure():
    check_op(centered_clipping_from, [torch.zeros(3), *X], tau=5.0)
    check_op(nonfinite, list(X))


def solve(op, *inputs, **static):
    return op.solve(Task(inputs, static, Key(0, 0, 1)))


def test_centered_clipping_from_a_previous_aggregate():
    moved = solve(centered_clipping_from, torch.zeros(3), *X, tau=5.0)
    assert moved.tolist() == pytest.approx([2.0251, 1.0775, 2.4633], abs=1e-4)


def test_judged_mix_takes_models_and_then_their_metrics():
    rows = torch.tensor([[0.0], [1.0], [2.0]])
    metrics = [{"accuracy": 0.0, "loss": loss} for loss in (1.0, 2.0, 0.5)]
    assert solve(judged_mix, *rows, *metrics).item() == 1.0
    with pytest.raises(ComputeError, match="1 losses for 2 models"):
        solve(judged_mix, *rows[:2], metrics[0])


def test_nonfinite_counts_what_is_dropped():
    rows = X.clone()
    rows[1, 0], rows[3, 2] = math.nan, math.inf
    assert solve(nonfinite, *rows) == {"refused_models": 2.0}
    assert solve(nonfinite, *X) == {"refused_models": 0.0}


@pytest.mark.parametrize("op", [robust_mix, bucketed_mix, judged_mix, centered_clipping_from, nonfinite])
def test_other_processes_and_the_cache_find_the_op(op):
    assert find(op.name) is op
    assert op.basis(Key(0, 0, 1)) == robust.code_digest()
