"""Simulated links and devices: what they cost, drawn once, from the seed."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from node.config import DevicesSection, Distribution, NetworkSection
from node.sim.devices import per_node, per_pair
from node.sim.network import Network

UNIFORM = Distribution(distribution="uniform", low=1.0, high=3.0)
EXPONENTIAL = Distribution(distribution="exponential", mean=0.5)
LOGNORMAL = Distribution(distribution="lognormal", median=2.0, sigma=0.8)
DRAWN = [UNIFORM, EXPONENTIAL, LOGNORMAL]


# Links


def test_a_delay_is_latency_plus_bytes_over_the_slower_end():
    network = Network(NetworkSection(latency_s=0.25, up_bps=8000, down_bps=16000), 3, 0)
    assert network.delays_s(0, (1, 2), 500) == [0.25 + 0.5, 0.25 + 0.5]
    network = Network(NetworkSection(latency_s=0.25, up_bps=16000, down_bps=8000), 3, 0)
    assert network.delays_s(0, (1,), 500) == [0.25 + 0.5]


def test_nothing_sent_costs_the_latency_and_a_message_to_oneself_nothing():
    network = Network(NetworkSection(latency_s=0.25), 3, 0)
    assert network.delays_s(1, (0, 1, 2), 0) == [0.25, 0.0, 0.25]
    assert network.delays_s(1, (1,), 10**9) == [0.0]
    assert network.delays_s(1, (), 10**9) == []


def test_bits_per_second_are_bits():
    """346,000 bytes over 12,000 kilobits per second."""
    network = Network(NetworkSection(latency_s=0, up_bps=12_000e3, down_bps=1e12), 2, 0)
    assert network.delays_s(0, (1,), 346_000)[0] == pytest.approx(0.230667, abs=1e-6)


def test_every_node_has_its_own_links():
    section = NetworkSection(
        latency_s=0, up_bps=LOGNORMAL, down_bps=Distribution(distribution="uniform", low=1, high=9)
    )
    network = Network(section, 50, 7)
    delays = np.array([network.delays_s(sender, range(50), 1000) for sender in range(50)])
    up = 8000 / np.array(per_node(LOGNORMAL, 50, 7, "up_bps"))
    down = 8000 / np.array(per_node(section.down_bps, 50, 7, "down_bps"))
    expected = np.maximum(up[:, None], down[None, :])
    np.fill_diagonal(expected, 0)
    assert np.allclose(delays, expected, rtol=1e-12)
    assert len(set(up.tolist())) == 50


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 2**63 - 1), st.sampled_from(DRAWN))
def test_the_latency_of_a_pair_is_the_same_both_ways(a, b, seed, distribution):
    network = Network(NetworkSection(latency_s=distribution), 100, seed)
    assert network.delays_s(a, (b,), 0) == network.delays_s(b, (a,), 0)
    assert network.delays_s(a, (b,), 0)[0] == (per_pair(distribution, a, b, seed) if a != b else 0)


# Distributions


@pytest.mark.parametrize("distribution", DRAWN, ids=lambda distribution: distribution.distribution)
def test_draws_follow_their_distribution_over_nodes_and_pairs(distribution):
    """Kolmogorov-Smirnov against the exact distribution: 1.95 / sqrt(n) is exceeded once in a thousand."""
    count = 4000
    pairs = [per_pair(distribution, a, b, 11) for a in range(90) for b in range(a)][:count]
    for drawn in (per_node(distribution, count, 11, "speed"), pairs):
        assert np.abs(_cumulative(distribution, np.sort(drawn)) - np.arange(count) / count).max() < 1.95 / count**0.5


def _cumulative(quantity, x):
    if quantity.distribution == "uniform":
        return (x - quantity.low) / (quantity.high - quantity.low)
    if quantity.distribution == "exponential":
        return 1 - np.exp(-x / quantity.mean)
    return np.array([0.5 * (1 + math.erf(math.log(v / quantity.median) / quantity.sigma / 2**0.5)) for v in x])


@given(st.sampled_from(DRAWN), st.integers(0, 2**63 - 1), st.integers(1, 20))
def test_draws_are_finite_not_negative_and_the_same_again(distribution, seed, nodes):
    drawn = per_node(distribution, nodes, seed, "up_bps")
    assert drawn == per_node(distribution, nodes, seed, "up_bps")
    assert all(0 <= value < math.inf for value in drawn)


def test_more_nodes_do_not_change_the_first_ones():
    assert per_node(LOGNORMAL, 100, 3, "speed")[:10] == per_node(LOGNORMAL, 10, 3, "speed")


def test_quantities_and_seeds_are_independent():
    streams = [per_node(UNIFORM, 2000, seed, name) for seed in (1, 2) for name in ("up_bps", "down_bps", "seconds_per")]
    correlations = np.corrcoef(streams) - np.eye(6)
    assert np.abs(correlations).max() < 0.1


def test_latencies_of_neighbouring_pairs_are_independent():
    drawn = np.array([[per_pair(UNIFORM, a, b, 5) if a != b else 2.0 for b in range(100)] for a in range(100)])
    lower = drawn[np.tril_indices(100, -1)]
    assert len(set(lower.tolist())) == len(lower)
    assert abs(np.corrcoef(lower[:-1], lower[1:])[0, 1]) < 0.05
    assert abs(np.corrcoef([per_pair(UNIFORM, 0, b, 5) for b in range(1, 2000)], range(1, 2000))[0, 1]) < 0.1


def test_a_number_is_itself():
    assert per_node(0.5, 3, 0, "speed") == [0.5, 0.5, 0.5]
    assert per_pair(0.5, 1, 2, 0) == 0.5


# Bad input


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"distribution": "uniform"}, "needs 'high'"),
        ({"distribution": "uniform", "low": 3, "high": 2}, "'high' must be at least 'low'"),
        ({"distribution": "exponential"}, "needs 'mean'"),
        ({"distribution": "exponential", "mean": 0}, "greater than 0"),
        ({"distribution": "lognormal", "sigma": 1}, "needs 'median'"),
        ({"distribution": "lognormal", "median": 1, "sigma": -1}, "greater than or equal to 0"),
        ({"distribution": "gamma", "mean": 1}, "uniform"),
        ({"distribution": "exponential", "mean": 1, "mode": 2}, "mode"),
    ],
)
def test_a_distribution_that_is_none(keys, message):
    with pytest.raises(ValidationError, match=message):
        Distribution(**keys)


@pytest.mark.parametrize(
    "make",
    [
        lambda: NetworkSection(latency_s=-1),
        lambda: NetworkSection(latency_s=math.inf),
        lambda: NetworkSection(up_bps=0),
        lambda: NetworkSection(down_bps=math.nan),
        lambda: DevicesSection(seconds_per_sample=0),
    ],
)
def test_impossible_links_and_devices(make):
    with pytest.raises(ValidationError):
        make()
