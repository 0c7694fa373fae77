"""Robust rules: their golden values, what holds for all of them, and what they refuse."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ComputeError, ConfigError
from node.learn.robust import RULES, aggregate, check_rule, geometry
from node.learn.robust.aggregation import is_finite, order_of
from node.learn.robust.anchored import balance_factor, centered_clipping, clipped_gossip
from node.learn.robust.rules import MOST_SUBSETS
from node.learn.robust.selection import krum_scores
from node.learn.workload import prepare_torch

X = torch.tensor([[1, 2, 3], [4, 5, 6], [7, 8, 9], [1, 1, 1], [100, -100, 50]], dtype=torch.float32)

TIED_TO_THE_ORIGIN_OR_DATA = {"balance", "ubar"}
ROBUST = sorted(set(RULES) - {"mean", "balance", "ubar", "clipped-gossip", "centered-clipping"})


@pytest.fixture(autouse=True, scope="module")
def _deterministic():
    prepare_torch()


def models(seed, n=9, d=5, scale=1.0):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, scale, (n, d))).float()


def losses_of(rows):
    """A loss that follows from the model alone."""
    return [float(row.nan_to_num().double().sin().sum()) for row in rows]


def run(rule, rows, f=0, **options):
    if RULES[rule].needs_losses:
        options.setdefault("losses", losses_of(rows))
    return aggregate(rows, rule, f, **options)


# Golden values


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("mean", [22.6, -16.8, 13.8]),
        ("median", [4, 2, 6]),
        ("trimmed-mean", [4, 2.6667, 6]),
        ("geometric-median", [3.8844, 3.6536, 5.3256]),
        ("krum", [1, 2, 3]),
        ("mda", [3.25, 4, 4.75]),
        ("monna", [3.25, 4, 4.75]),
        ("meamed", [3.25, 4, 4.75]),
        ("smea", [3.25, 4, 4.75]),
    ],
)
def test_golden_value(rule, expected):
    assert run(rule, X, 1).tolist() == pytest.approx(expected, abs=1e-4)


def test_median_of_an_even_count_is_the_mean_of_both_middle_values():
    assert run("median", X[:4], 1).tolist() == [2.5, 3.5, 4.5]


def test_krum_counts_the_m_minus_f_minus_2_nearest_others():
    assert krum_scores(X, 1).tolist() == pytest.approx([32, 54, 135, 55, 44171], abs=1e-6)
    assert krum_scores(X, 0).argmin() == 1, "with one more neighbour another row wins"


def test_centered_clipping_starts_where_it_is_told():
    moved = centered_clipping(X, tau=5.0, previous=torch.zeros(3))
    assert moved.tolist() == pytest.approx([2.0251, 1.0775, 2.4633], abs=1e-4)
    assert torch.equal(aggregate(X, "centered-clipping", tau=5.0, previous=torch.zeros(3)), moved)
    assert not torch.allclose(centered_clipping(X, tau=5.0), moved), "without a previous aggregate: at the own model"


def test_centered_clipping_in_more_passes_comes_closer_to_a_far_centre():
    rows = torch.cat([torch.zeros(1, 2), torch.full((8, 2), 10.0)])
    once, twice = (centered_clipping(rows, tau=1.0, passes=passes).norm() for passes in (1, 2))
    assert once == pytest.approx(8 / 9)
    assert twice == pytest.approx(8 / 9 + (8 - 8 / 9) / 9), "the node's own row pulls back as far as it has moved"


def test_clipped_gossip():
    rows = torch.tensor([[0, 0], [3, 4], [0.3, 0.4]])
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    assert clipped_gossip(rows, 0, weights, tau=1.0).tolist() == pytest.approx([0.3, 0.4])


def test_clipped_gossip_clips_at_the_distance_behind_the_f_largest():
    rows = torch.tensor([[0.0], [1.0], [2.0], [100.0]])
    assert run("clipped-gossip", rows, 1).item() == pytest.approx((1 + 2 + 2) / 4)
    assert run("clipped-gossip", rows, 0).item() == pytest.approx((1 + 2 + 100) / 4)
    assert run("clipped-gossip", rows, 3).item() == 0, "nobody is left to set a distance"


def test_clipped_gossip_uses_the_weights_of_those_that_they_belong_to():
    rows = torch.tensor([[0.0], [3.0], [1.0], [2.0]])
    weights = (0.4, 0.3, 0.2, 0.1)
    assert run("clipped-gossip", rows, 0, weights=weights, tau=9.0).item() == pytest.approx(0.9 + 0.2 + 0.2)
    rows[1] = math.nan
    assert run("clipped-gossip", rows, 0, weights=weights, tau=9.0).item() == pytest.approx(0.2 + 0.2)


@pytest.mark.parametrize(("progress", "factor"), [(0, 0.3), (0.1, 0.271451), (0.5, 0.181959), (1, 0.110364)])
def test_balance_factor(progress, factor):
    assert balance_factor(progress, 0.3, 1.0) == pytest.approx(factor, abs=1e-6)


def test_balance_averages_with_what_is_near_enough_for_the_time():
    rows = torch.tensor([[10.0, 0.0], [12.0, 0.0], [10.0, 40.0]])
    assert run("balance", rows, progress=0.0).tolist() == [11, 0]
    assert run("balance", rows, progress=0.0, own_weight=0.75).tolist() == [10.5, 0]
    assert run("balance", rows, progress=1.0).tolist() == [10, 0], "none accepted: the own model stays"
    assert run("balance", rows, gamma=5.0).tolist() == [10.5, 10]


def test_ubar_takes_the_nearest_that_are_no_worse_than_the_own():
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    assert run("ubar", rows, 1, losses=[1.0, 0.5, 2.0, 1.0, 0.0]).item() == pytest.approx(0.5 * (1 + 3) / 2)


def test_ubar_takes_the_best_of_the_nearest_where_all_are_worse():
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [100.0]])
    assert run("ubar", rows, 1, losses=[1.0, 3.0, 2.0, 4.0, 0.0]).item() == 1.0


def test_ubar_by_share_keeps_that_share_of_the_received():
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]])
    assert run("ubar", rows, nearest_share=0.4, losses=[1.0] * 6).item() == pytest.approx(0.5 * 1.5)
    assert run("ubar", rows, nearest_share=0.01, losses=[1.0] * 6).item() == pytest.approx(0.5), "never fewer than one"


def test_ubar_trusts_no_loss_that_is_not_a_number():
    rows = torch.tensor([[5.0], [6.0], [7.0]])
    assert run("ubar", rows, losses=[1.0, math.nan, 0.5]).item() == 6.0
    assert run("ubar", rows, losses=[math.nan, math.inf, math.nan]).item() == 5.0
    assert run("ubar", torch.tensor([[5.0]]), losses=[1.0]).item() == 5.0


def test_multi_krum_is_the_mean_of_as_many_as_selected():
    assert torch.equal(run("multi-krum", X, 1, selected=1), run("krum", X, 1))
    assert run("multi-krum", X, 1, selected=2).tolist() == [2.5, 3.5, 4.5]
    assert torch.equal(run("multi-krum", X, 1), run("multi-krum", X, 1, selected=4))


def test_caf_gives_an_outlier_hardly_any_weight():
    rows = torch.cat([models(0, 8), torch.full((2, 5), 1e4)])
    assert torch.linalg.vector_norm(run("caf", rows, 2) - rows[:8].mean(0)) < 0.5


@given(st.integers(0, 2**32), st.integers(1, 3))
def test_smea_by_inner_products_is_smea_by_covariances(seed, f):
    rows = models(seed, 8, 4)

    def largest(some):
        return np.linalg.eigvalsh(np.cov(rows[list(some)].double().numpy().T, bias=True))[-1]

    best = min(itertools.combinations(range(8), 8 - f), key=largest)
    assert torch.allclose(run("smea", rows, f), rows[list(best)].mean(0), atol=1e-5)


@given(st.integers(0, 2**32))
def test_the_geometric_median_has_the_smallest_sum_of_distances(seed):
    rows = models(seed)
    point = run("geometric-median", rows).double()

    def total(point):
        return float(torch.linalg.vector_norm(rows.double() - point, dim=1).sum())

    steps = torch.from_numpy(np.random.default_rng(seed).normal(0, 1e-2, (20, 5)))
    assert all(total(point) <= total(point + step) + 1e-6 for step in steps)


# What holds for all of them


@settings(max_examples=15)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("rule", RULES)
def test_the_order_of_what_was_received_changes_nothing(rule, seed):
    """Bit for bit: also where scores are equal, as they are between small whole numbers."""
    rows = models(seed, 9, 3).round()
    order = torch.tensor([0, *(1 + np.random.default_rng(seed).permutation(8))])
    assert torch.equal(run(rule, rows, 2), run(rule, rows[order], 2))


@settings(max_examples=15)
@given(st.integers(0, 2**32))
@pytest.mark.parametrize("rule", sorted(set(RULES) - TIED_TO_THE_ORIGIN_OR_DATA))
def test_it_moves_with_the_models(rule, seed):
    rows, shift = models(seed), models(seed + 1, 1, scale=3.0)
    assert torch.allclose(run(rule, rows + shift, 2), run(rule, rows, 2) + shift, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_sender_that_is_not_finite_is_as_if_not_there(rule, bad, seed):
    rows = models(seed)
    poisoned = torch.cat([rows, models(seed + 9, 1)])
    poisoned[-1, seed] = bad
    weights = {"weights": (0.1,) * 9} if rule == "clipped-gossip" else {}
    longer = {"weights": (0.1,) * 10} if rule == "clipped-gossip" else {}
    assert torch.equal(run(rule, poisoned, 3, **longer), run(rule, rows, 2, **weights))
    assert run(rule, poisoned, 3).isfinite().all()


@pytest.mark.parametrize("rule", RULES)
def test_huge_numbers_never_become_infinite(rule):
    rows = models(0)
    rows[-2:] = torch.tensor([[3e38], [-3e38]])
    assert run(rule, rows, 2).isfinite().all()


@pytest.mark.parametrize("rule", ROBUST)
def test_robust_rules_stay_among_the_honest_however_large_the_lie(rule):
    rows = models(0)
    rows[-2:] = 3e38
    assert torch.linalg.vector_norm(run(rule, rows, 2)) < 4


def test_the_mean_goes_wherever_one_liar_wants():
    rows = models(0)
    rows[-1] = 1e6
    assert run("mean", rows, 1).min() > 1e5


@pytest.mark.parametrize("rule", RULES)
def test_inputs_are_left_alone_and_not_shared(rule):
    rows = models(3)
    before = rows.clone()
    run(rule, rows, 2).fill_(99.0)
    assert torch.equal(rows, before)


@settings(max_examples=15)
@given(st.integers(0, 2**32), st.integers(7, 12))
@pytest.mark.parametrize("rule", RULES)
def test_identical_models_come_back_unchanged(rule, seed, n):
    row = models(seed, 1, scale=100.0)
    assert torch.equal(run(rule, row.repeat(n, 1), 2), row[0])


@pytest.mark.parametrize("rule", RULES)
def test_it_is_the_same_every_time(rule):
    rows = models(4)
    assert torch.equal(run(rule, rows, 2), run(rule, rows.clone(), 2))


@given(st.integers(0, 2**32))
@pytest.mark.parametrize("rule", ["trimmed-mean", "multi-krum", "monna", "mda", "smea", "meamed", "caf"])
def test_without_liars_it_is_the_mean(rule, seed):
    rows = models(seed)
    assert torch.allclose(run(rule, rows), rows.mean(0), atol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_memory_is_bounded_by_blocks_that_do_not_show(rule, monkeypatch):
    rows = models(5, 9, 40)
    whole = run(rule, rows, 2)
    monkeypatch.setattr(geometry, "_BLOCK_ELEMENTS", 9 * 7)
    assert torch.allclose(run(rule, rows, 2), whole, atol=1e-6)


@pytest.mark.parametrize("rule", sorted(set(RULES) - {"krum", "multi-krum"}))
def test_a_node_that_has_heard_nobody_keeps_its_model(rule):
    assert torch.equal(run(rule, X[:1]), X[0])


def test_a_node_that_has_diverged_keeps_what_it_has():
    rows = X.clone()
    rows[0, 1] = math.nan
    assert run("median", rows, 1).isnan().tolist() == [False, True, False]


def test_dropping_a_liar_leaves_fewer_to_tolerate():
    """Nine models are as few as Krum takes for f = 3; with two liars gone, seven are enough for the last one."""
    rows = models(1)
    rows[-2:] = math.nan
    assert torch.equal(run("krum", rows, 3), run("krum", rows[:7], 1))
    rows[-5:] = math.nan
    assert torch.equal(run("median", rows, 3), run("median", rows[:4], 0)), "never fewer than none"


def test_which_models_are_finite_and_in_which_order_they_count():
    rows = torch.tensor([[5.0], [3.0], [math.nan], [1.0], [math.inf]])
    assert is_finite(rows).tolist() == [True, True, False, True, False]
    order = order_of(rows).tolist()
    assert order[0] == 0
    assert sorted(order) == [0, 1, 3]
    assert order_of(rows[2:]).tolist() == []


# What they need


@pytest.mark.parametrize(
    ("rule", "f", "least"),
    [
        ("mean", 3, 1),
        ("median", 3, 7),
        ("trimmed-mean", 3, 7),
        ("krum", 3, 9),
        ("krum", 0, 3),
        ("multi-krum", 2, 7),
        ("mda", 2, 5),
        ("smea", 2, 5),
        ("caf", 1, 3),
        ("monna", 3, 4),
        ("ubar", 3, 4),
        ("balance", 3, 1),
    ],
)
def test_least_number_of_models(rule, f, least):
    assert RULES[rule].requires(least, f) == ""
    assert RULES[rule].requires(least - 1, f) != ""
    assert str(least - 1) in RULES[rule].requires(least - 1, f)


def test_subsets_are_tried_up_to_a_bound():
    assert RULES["mda"].requires(16, 7) == ""
    assert (
        RULES["mda"].requires(40, 10)
        == f"40 models and f = 10 make 847660528 subsets to try; at most {MOST_SUBSETS} are allowed"
    )
    assert RULES["mda"].requires(10_000, 1) == ""
    assert RULES["krum"].requires(40, 10) == ""


def test_anchored_rules_run_with_any_majority_and_say_so():
    assert "no minority" in RULES["monna"].warns(5, 3)
    assert RULES["monna"].warns(5, 2) == ""
    assert RULES["monna"].requires(5, 3) == ""
    assert RULES["krum"].warns(5, 3) == "", "it refuses instead"


def test_what_excludes_secure_aggregation_and_what_reads_losses():
    assert {name for name, rule in RULES.items() if not rule.needs_individual_models} == {"mean"}
    assert {name for name, rule in RULES.items() if rule.needs_losses} == {"ubar"}


KRUM_NEEDS = "'krum': 8 models, the own one included, are too few for f = 3: it takes at least 2 f + 3 = 9"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rule": "krumm"}, "no rule 'krumm'; did you mean 'krum'? (there are mean, median,"),
        ({"rule": "krum", "n": 8, "f": 3}, KRUM_NEEDS),
        ({"rule": "median", "f": -1}, "'median': f is -1; it cannot be negative"),
        ({"rule": "median", "tau": 1.0}, "'median' has no option 'tau' (there are none)"),
        ({"rule": "balance", "tau": 1.0}, "'balance' has no option 'tau' (there are progress, gamma, kappa,"),
        ({"rule": "balance", "own_weight": 1.5}, "'balance': own_weight is 1.5; allowed: 0 to 1"),
        ({"rule": "geometric-median", "passes": 0}, "'geometric-median': passes is 0; allowed: at least 1"),
        ({"rule": "clipped-gossip", "tau": math.nan}, "'clipped-gossip': tau is nan; allowed: at least 0"),
        ({"rule": "multi-krum", "f": 2, "selected": 8}, "'multi-krum': selected is 8; 9 models and f = 2 allow"),
        ({"rule": "median", "pre": ["nm"]}, "no pre-aggregation 'nm'; did you mean 'nnm'? (there are nnm, bucketing,"),
        ({"rule": "median", "pre": ["nnm", "nnm"]}, "a pre-aggregation is named twice: nnm, nnm"),
        ({"rule": "monna", "pre": ["bucketing"]}, "'monna' judges by the own model, which 'bucketing' mixes"),
        ({"rule": "ubar", "pre": ["nnm"]}, "'ubar' judges models by their losses"),
        ({"rule": "median", "f": 3, "pre": ["bucketing"]}, "'median': 5 models, the own one included, are too few"),
    ],
)
def test_bad_input_gets_one_line(arguments, message):
    with pytest.raises(ConfigError) as caught:
        check_rule(**{"n": 9, "f": 0, **arguments})
    assert str(caught.value).startswith(f"aggregation.rule: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("rule", RULES)
def test_good_input_passes(rule):
    check_rule(rule, 9, 2)
    check_rule(rule, 9, 2, **({"tau": 2.0} if rule == "clipped-gossip" else {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rule": "krum", "f": 2}, "too few for f = 2"),
        ({"rule": "ubar"}, "'ubar' needs the loss of every model"),
        ({"rule": "ubar", "losses": [1.0]}, "1 losses for 5 models"),
        ({"rule": "clipped-gossip", "weights": (0.5, 0.5)}, "2 weights for 5 models"),
        ({"rule": "median", "pre": ("bucketing",)}, "'bucketing' needs a generator"),
    ],
)
def test_what_cannot_be_aggregated_is_an_error(options, message):
    with pytest.raises(ComputeError, match=message):
        aggregate(X, **options)
