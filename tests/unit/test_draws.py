"""Draws of the simulated world: each follows its distribution, from the seed and from what it is for alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config import Distribution
from node.sim.draws import draw, draw_rows, generator, normal, per_node, per_pair, uniform

UNIFORM = Distribution(distribution="uniform", low=1.0, high=3.0)
EXPONENTIAL = Distribution(distribution="exponential", mean=0.5)
LOGNORMAL = Distribution(distribution="lognormal", median=2.0, sigma=0.8)
WEIBULL = Distribution(distribution="weibull", mean=3.0, shape=0.6)
DRAWN = [UNIFORM, EXPONENTIAL, LOGNORMAL, WEIBULL]
SEEDS = st.integers(0, 2**63 - 1)


def cumulative(quantity, x):
    """The share of a distribution below each x, by its definition."""
    match quantity.distribution:
        case "uniform":
            return (x - quantity.low) / (quantity.high - quantity.low)
        case "exponential":
            return 1 - np.exp(-x / quantity.mean)
        case "weibull":
            scale = quantity.mean / math.gamma(1 + 1 / quantity.shape)
            return 1 - np.exp(-((x / scale) ** quantity.shape))
    return np.array([0.5 * (1 + math.erf(math.log(v / quantity.median) / quantity.sigma / 2**0.5)) for v in x])


def largest_gap(drawn, quantity):
    """The Kolmogorov-Smirnov statistic times the root of n: above 1.95 once in a thousand."""
    below = cumulative(quantity, np.sort(drawn))
    return np.abs(below - np.arange(len(drawn)) / len(drawn)).max() * len(drawn) ** 0.5


# Distributions


@pytest.mark.parametrize("quantity", DRAWN, ids=lambda quantity: quantity.distribution)
def test_draws_follow_their_distribution_over_nodes_and_pairs(quantity):
    pairs = [per_pair(quantity, a, b, 11) for a in range(90) for b in range(a)][:4000]
    assert largest_gap(per_node(quantity, 4000, 11, "speed"), quantity) < 1.95
    assert largest_gap(pairs, quantity) < 1.95


@pytest.mark.parametrize("quantity", DRAWN, ids=lambda quantity: quantity.distribution)
def test_a_draw_is_the_quantile(quantity):
    u = np.array([0.01, 0.1, 0.5, 0.9, 0.99])
    assert cumulative(quantity, np.array([draw(quantity, v) for v in u.tolist()])) == pytest.approx(u, rel=1e-9)


@pytest.mark.parametrize(("shape", "mean_over_scale", "median_over_scale"), [(0.5, 2.0, 0.480), (0.6, 1.505, 0.543)])
def test_weibull_is_given_by_its_mean(shape, mean_over_scale, median_over_scale):
    quantity = Distribution(distribution="weibull", mean=100.0, shape=shape)
    assert draw(quantity, 0.5) == pytest.approx(100.0 * median_over_scale / mean_over_scale, rel=2e-3)


def test_a_weibull_of_shape_1_is_exponential():
    weibull = Distribution(distribution="weibull", mean=0.5, shape=1.0)
    assert [draw(weibull, u / 10) for u in range(1, 10)] == pytest.approx(
        [draw(EXPONENTIAL, u / 10) for u in range(1, 10)], rel=1e-12
    )


@given(
    st.sampled_from([*DRAWN, *(Distribution(distribution="weibull", mean=1e3, shape=k) for k in (0.001, 0.05, 50))]),
    st.floats(0, 1, exclude_max=True),
)
def test_no_draw_is_infinite_or_negative(quantity, u):
    assert 0 <= draw(quantity, u) < math.inf


@given(st.sampled_from(DRAWN), st.floats(0, 0.99), st.floats(0, 0.99))
def test_a_larger_u_never_draws_less(quantity, u, v):
    low, high = sorted((u, v))
    assert draw(quantity, low) <= draw(quantity, high)


def test_a_number_is_itself():
    assert per_node(0.5, 3, 0, "speed") == [0.5, 0.5, 0.5]
    assert per_node(2, 1, 0, "speed") == [2.0]
    assert per_pair(0.5, 1, 2, 0) == 0.5


# What a draw depends on


@given(st.sampled_from(DRAWN), SEEDS, st.integers(1, 20))
def test_draws_are_the_same_again(quantity, seed, nodes):
    assert per_node(quantity, nodes, seed, "up_bps") == per_node(quantity, nodes, seed, "up_bps")


@given(SEEDS, st.integers(0, 2**20), st.integers(0, 2**20))
def test_a_pair_is_the_same_both_ways(seed, a, b):
    assert per_pair(LOGNORMAL, a, b, seed) == per_pair(LOGNORMAL, b, a, seed)


def test_more_nodes_do_not_change_the_first_ones():
    assert per_node(WEIBULL, 100, 3, "speed")[:10] == per_node(WEIBULL, 10, 3, "speed")


def test_quantities_and_seeds_are_independent():
    streams = [per_node(UNIFORM, 2000, seed, name) for seed in (1, 2) for name in ("up_bps", "down_bps", "seconds_per")]
    streams += [[normal(seed, node, 0, "jitter") for node in range(2000)] for seed in (1, 2)]
    correlations = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlations).max() < 0.1


def test_neighbouring_pairs_are_independent():
    drawn = np.array([[per_pair(UNIFORM, a, b, 5) if a != b else 2.0 for b in range(100)] for a in range(100)])
    lower = drawn[np.tril_indices(100, -1)]
    assert len(set(lower.tolist())) == len(lower)
    assert abs(np.corrcoef(lower[:-1], lower[1:])[0, 1]) < 0.05


@given(SEEDS, st.integers(0, 2**40), st.integers(0, 2**40))
def test_a_hashed_number_is_between_0_and_1(seed, a, b):
    assert 0 < uniform(seed, a, b) < 1
    assert uniform(seed, a, b) == uniform(seed, a, b)


def test_normal_numbers_are_normal():
    drawn = np.array([normal(9, node, counter, "jitter") for node in range(60) for counter in range(60)])
    below = np.array([0.5 * (1 + math.erf(v / 2**0.5)) for v in np.sort(drawn)])
    assert np.abs(below - np.arange(3600) / 3600).max() < 1.95 / 60
    assert normal(9, 1, 2, "jitter") != normal(9, 2, 1, "jitter")
    assert normal(9, 1, 2, "jitter") != normal(9, 1, 2, "other")


# Rows of a trace


@given(st.integers(1, 50), st.integers(1, 50), SEEDS)
def test_rows_are_drawn_twice_only_where_there_are_too_few(rows, nodes, seed):
    drawn = draw_rows(rows, nodes, seed, "devices").tolist()
    assert len(drawn) == nodes
    assert set(drawn) <= set(range(rows))
    assert len(set(drawn)) == nodes or nodes > rows
    assert drawn == draw_rows(rows, nodes, seed, "devices").tolist()


def test_more_nodes_do_not_change_the_rows_of_the_first_ones():
    assert draw_rows(100, 90, 4, "devices")[:10].tolist() == draw_rows(100, 10, 4, "devices").tolist()
    assert draw_rows(100, 10, 4, "devices").tolist() != draw_rows(100, 10, 5, "devices").tolist()


def test_every_row_is_as_likely():
    counts = np.bincount([int(draw_rows(10, 1, seed, "devices")[0]) for seed in range(2000)], minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 27.9  # chi-square with 9 degrees of freedom: 1 in 1000


def test_generators_of_different_streams_differ():
    assert generator(1, "one").random() == generator(1, "one").random()
    assert len({generator(seed, name).random() for seed in (1, 2) for name in ("one", "two")}) == 4
