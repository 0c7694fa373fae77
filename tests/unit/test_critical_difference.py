"""Ranks of methods over settings against scipy, against published quantiles, and against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from node.errors import ConfigError
from node.experiment.ranking import cliques, critical_difference, indistinguishable, ranked, studentised

BLOCKS = [[0.90, 0.85, 0.80], [0.70, 0.75, 0.60], [0.88, 0.80, 0.81], [0.65, 0.60, 0.50], [0.92, 0.90, 0.91]]
QUANTILES = """1.960 2.344 2.569 2.728 2.850 2.948 3.031 3.102 3.164 3.219 3.268 3.313 3.354 3.391 3.426 3.458 3.489
3.517 3.544"""


# Golden


def test_ranks_and_tests_of_five_blocks():
    found = ranked(BLOCKS)
    assert found.ranks == pytest.approx([1.2, 2.2, 2.6])
    assert found.friedman == pytest.approx(5.2)
    assert found.iman_davenport == pytest.approx(4.3333, abs=5e-5)
    assert found.p_value == pytest.approx(stats.f.sf(4.33333333, 2, 8))


@pytest.mark.parametrize(("methods", "blocks", "difference"), [(4, 14, 1.2535), (10, 20, 3.0293)])
def test_critical_differences(methods, blocks, difference):
    assert critical_difference(methods, blocks) == pytest.approx(difference, abs=1e-3)


@pytest.mark.parametrize(("methods", "quantile"), [*enumerate(map(float, QUANTILES.split()), 2)])
def test_nemenyis_quantiles(methods, quantile):
    assert studentised(methods) == pytest.approx(quantile, abs=1e-3)


# Ranks


@given(arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(3, 6)), elements=st.floats(0, 1)))
def test_friedman_is_scipys_without_ties(scores):
    if any(len(np.unique(row)) < len(row) for row in scores):
        return  # scipy corrects for ties, and the formula of the paper does not
    assert ranked(scores).friedman == pytest.approx(stats.friedmanchisquare(*scores.T).statistic)


@given(arrays(np.float64, st.tuples(st.integers(2, 8), st.integers(2, 6)), elements=st.sampled_from([0.1, 0.5, 0.9])))
def test_ranks_sum_up_whatever_is_tied(scores):
    methods = scores.shape[1]
    found = ranked(scores)
    assert found.ranks.sum() == pytest.approx(methods * (methods + 1) / 2)
    assert found.friedman >= 0


def test_equal_methods_share_their_rank():
    found = ranked([[0.5, 0.5, 0.5], [0.2, 0.2, 0.2]])
    assert found.ranks.tolist() == [2.0, 2.0, 2.0]
    assert found.friedman == 0
    assert found.p_value == 1


def test_blocks_that_all_agree_are_as_sure_as_can_be():
    found = ranked([[0.9, 0.5], [0.8, 0.4], [0.7, 0.3]])
    assert math.isinf(found.iman_davenport)
    assert found.p_value == 0


@pytest.mark.parametrize("scores", [[[0.5, 0.6]], [[0.5], [0.6]], [[0.5, math.nan], [0.1, 0.2]], [0.5, 0.6]])
def test_too_few_scores_are_refused(scores):
    with pytest.raises(ConfigError, match="two methods and two blocks"):
        ranked(scores)


# Who does not differ


def test_bars_join_those_within_the_difference():
    assert cliques([1.0, 1.5, 3.0, 3.4], 1.0) == [(0, 1), (2, 3)]
    assert cliques([3.0, 1.0, 2.0], 1.0) == [(0, 1), (1, 2)]
    assert cliques([1.0, 2.0, 3.0], 5.0) == [(0, 2)]


def test_nobody_is_joined_with_himself():
    assert cliques([1.0, 3.0, 5.0], 1.0) == []


@given(st.lists(st.floats(1, 20), min_size=2, max_size=12), st.floats(0, 10))
def test_bars_hold_each_pair_that_does_not_differ(ranks, difference):
    ordered, bars = sorted(ranks), cliques(ranks, difference)
    for first in range(len(ordered)):
        for last in range(first + 1, len(ordered)):
            within = any(start <= first and last <= end for start, end in bars)
            assert within == (ordered[last] - ordered[first] <= difference)
    assert all(not (a != b and a[0] <= b[0] and b[1] <= a[1]) for a in bars for b in bars)


def test_what_loses_everywhere_is_worse():
    rng = np.random.default_rng(3)
    best = rng.uniform(0.8, 0.9, 12)
    scores = np.stack([best, best - 0.001 * rng.choice([-1, 1], 12), best - rng.uniform(0.1, 0.2, 12)], axis=1)
    assert indistinguishable(scores, 0) == [True, True, False]


def test_few_blocks_tell_nothing():
    assert indistinguishable([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], 0) == [True, True]


def test_equal_scores_do_not_differ():
    assert indistinguishable([[0.5, 0.5]] * 10, 0) == [True, True]


def test_holms_correction_stops_at_the_first_that_may_be_chance():
    """Five blocks give 1/32 at best: enough for one comparison at 5 %, too little for two."""
    one = np.tile([0.9, 0.1], (5, 1)) + np.arange(5)[:, None] * [0.01, 0.0]
    assert indistinguishable(one, 0) == [True, False]
    assert indistinguishable(np.hstack([one, one[:, 1:]]), 0) == [True, True, True]
