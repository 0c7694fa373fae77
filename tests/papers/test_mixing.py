"""What papers prove about mixing: how fast averaging over each topology brings models together.

Distance below is the Euclidean distance of all models from their average, X - X̄.
"""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import TopologySection
from node.topology import build, spectral_gap

STATIC = ["ring", "torus", "regular", "exponential", "erdos-renyi", "full", "star"]
SYMMETRIC = ["ring", "torus", "regular", "erdos-renyi", "full", "star"]


def make(kind, nodes, seed=0, **keys):
    return build(TopologySection(kind=kind, **keys), nodes, seed)


def mixed(topology, models, round=0):
    """One round of mixing, as nodes do it: each from its own weights and what it hears, shape (nodes, parameters)."""
    return np.stack(
        [
            sum(
                w * models[j] for w, j in zip(topology.weights(i, round), (i, *topology.sources(i, round)), strict=True)
            )
            for i in range(topology.nodes)
        ]
    )


def distance(models):
    return np.linalg.norm(models - models.mean(axis=0))


def random_models(seed, nodes, parameters=3):
    return np.random.default_rng(seed).normal(size=(nodes, parameters))


# Xiao, Boyd and Lall, IPSN 2005, and Xiao and Boyd, Systems & Control Letters 2004


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SYMMETRIC), st.sampled_from([6, 9, 16, 20]), st.integers(0, 2**32))
def test_metropolis_weights_are_symmetric_and_doubly_stochastic(kind, nodes, seed):
    """They need the degrees of neighbours only, and give a symmetric W whose rows and columns sum to 1."""
    matrix = make(kind, nodes, seed, probability=0.5).matrix()
    assert np.array_equal(matrix, matrix.T)
    assert np.allclose(matrix.sum(axis=0), 1, atol=1e-14)
    assert (matrix >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([*STATIC, "one-peer", "random-regular"]), st.sampled_from([6, 9, 16]), st.integers(0, 2**32))
def test_mixing_preserves_the_average(kind, nodes, seed):
    """Where 1'W = 1', the average of all models never changes."""
    topology, models = make(kind, nodes, seed, probability=0.5), random_models(seed, nodes)
    average = models.mean(axis=0)
    for round in range(6):
        models = mixed(topology, models, round)
        assert np.allclose(models.mean(axis=0), average, atol=1e-12)


def test_uniform_weights_on_unequal_degrees_do_not_preserve_the_average():
    """The counterpart: rows that sum to 1 are not enough."""
    models = np.arange(5.0).reshape(5, 1)
    assert not np.isclose(mixed(make("star", 5, weights="uniform"), models).mean(), models.mean(), atol=0.1)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(STATIC), st.sampled_from([6, 9, 16]), st.integers(0, 2**32))
def test_each_round_contracts_the_squared_distance_by_the_gap(kind, nodes, seed):
    """||WX - X̄|| <= ||W - 11'/n|| ||X - X̄||, whatever the models are: a factor of (1 - gap)^2 in the squares."""
    topology, models = make(kind, nodes, seed, probability=0.5), random_models(seed, nodes)
    factor = 1 - spectral_gap(topology.matrix())
    for _ in range(5):
        after = mixed(topology, models)
        assert distance(after) ** 2 <= factor**2 * distance(models) ** 2 + 1e-12
        models = after


@pytest.mark.parametrize("kind", ["ring", "torus", "regular", "erdos-renyi", "star"])
def test_the_contraction_bound_is_tight(kind):
    """The worst case is the eigenvector of the second largest eigenvalue: there every round contracts by 1 - gap."""
    topology = make(kind, 16)
    values, vectors = np.linalg.eigh(topology.matrix())
    assert values[-1] == pytest.approx(1)
    worst = vectors[:, [np.argmax(np.abs(values[:-1]))]]
    factor = 1 - spectral_gap(topology.matrix())
    assert factor == pytest.approx(np.abs(values[:-1]).max())
    assert distance(mixed(topology, worst)) == pytest.approx(factor * distance(worst))


@pytest.mark.parametrize("kind", STATIC)
@pytest.mark.parametrize("seed", range(3))
def test_a_connected_graph_reaches_consensus(kind, seed):
    """Metropolis weights converge to the average on every connected graph: the gap is positive."""
    topology = make(kind, 16, seed)
    assert spectral_gap(topology.matrix()) > 0.01
    reached = np.linalg.matrix_power(topology.matrix(), 2000)
    assert np.allclose(reached, 1 / 16, atol=1e-9)


# Lian et al., NeurIPS 2017 (D-PSGD)


@pytest.mark.parametrize("kind", SYMMETRIC)
def test_the_bound_of_d_psgd_on_powers_of_w(kind):
    """||1/n - W^k e_i||^2 <= rho^k for each node i and round k, with rho = max(|lambda_2|, |lambda_n|)^2."""
    matrix = make(kind, 12, probability=0.4).matrix()
    rho = (1 - spectral_gap(matrix)) ** 2
    power = np.eye(12)
    for k in range(20):
        assert (((power - 1 / 12) ** 2).sum(axis=0) <= rho**k + 1e-12).all()
        power = matrix @ power


@pytest.mark.parametrize("nodes", [3, 4, 5, 8, 17, 32, 101])
def test_the_gap_of_the_ring(nodes):
    """The eigenvalues of a ring with weights of 1/3 are 1/3 + 2/3 cos(2 pi k / n): the gap falls as 1/n^2."""
    eigenvalues = 1 / 3 + 2 / 3 * np.cos(2 * np.pi * np.arange(1, nodes) / nodes)
    gap = spectral_gap(make("ring", nodes).matrix())
    assert gap == pytest.approx(1 - np.abs(eigenvalues).max(), abs=1e-12)
    if nodes >= 4:
        assert gap == pytest.approx(2 / 3 * (1 - math.cos(2 * math.pi / nodes)), abs=1e-12)


@pytest.mark.parametrize(("nodes", "rows"), [(9, 3), (12, 3), (20, 4), (49, 7), (100, 10)])
def test_the_gap_of_the_torus(nodes, rows):
    """The eigenvalues of a torus are (1 + 2 cos(2 pi i / rows) + 2 cos(2 pi j / columns)) / 5: the gap falls as 1/n."""
    along, across = (np.cos(2 * np.pi * np.arange(length) / length) for length in (rows, nodes // rows))
    eigenvalues = np.sort(((1 + 2 * along[:, None] + 2 * across) / 5).ravel())[:-1]
    assert spectral_gap(make("torus", nodes).matrix()) == pytest.approx(1 - np.abs(eigenvalues).max(), abs=1e-12)


@pytest.mark.parametrize("nodes", [3, 8, 33])
def test_the_gaps_of_the_star_and_of_the_full_graph(nodes):
    """A leaf of a star keeps all but 1/n of its model; where everybody hears everybody, one round is enough."""
    assert spectral_gap(make("star", nodes).matrix()) == pytest.approx(1 / nodes)
    full = make("full", nodes)
    assert spectral_gap(full.matrix()) == pytest.approx(1)
    assert distance(mixed(full, random_models(0, nodes))) < 1e-12


# Assran et al., ICML 2019 (stochastic gradient push), and Ying et al., NeurIPS 2021


@pytest.mark.parametrize("power", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("start", [0, 1, 7])
def test_one_peer_averages_exactly_in_log2_n_rounds(power, start):
    """Of 2^k nodes, each sending to one peer a round, all hold the exact average after k rounds, from any round on."""
    nodes = 2**power
    topology, models = make("one-peer", nodes), random_models(power, nodes)
    average = models.mean(axis=0)
    for round in range(start, start + power):
        assert distance(models) > 1e-3
        models = mixed(topology, models, round)
    assert np.allclose(models, average, atol=1e-14)


@pytest.mark.parametrize("nodes", [3, 6, 12, 20])
def test_one_peer_is_only_exact_for_powers_of_two(nodes):
    """For other numbers of nodes it converges, but in no finite number of rounds."""
    topology = make("one-peer", nodes)
    product = np.eye(nodes)
    for round in range(3 * math.ceil(math.log2(nodes))):
        product = topology.matrix(round) @ product
    assert 1e-9 < np.abs(product - 1 / nodes).max() < 0.05


@pytest.mark.parametrize("nodes", [2, 4, 6, 10, 16, 32, 50, 100])
def test_the_gap_of_the_exponential_graph(nodes):
    """For an even number of nodes it is 2 / (1 + ceil(log2 n)): it hardly falls as the network grows."""
    gap = spectral_gap(make("exponential", nodes).matrix())
    assert gap == pytest.approx(2 / (1 + math.ceil(math.log2(nodes))))


@pytest.mark.parametrize("nodes", [3, 5, 9, 33, 99])
def test_the_gap_of_the_exponential_graph_of_odd_size_is_larger(nodes):
    """For an odd number of nodes, 2 / (1 + ceil(log2 n)) is a strict lower bound."""
    assert spectral_gap(make("exponential", nodes).matrix()) > 2 / (1 + math.ceil(math.log2(nodes))) + 1e-9


def test_sparse_exponential_mixing_beats_ring_and_torus():
    """The order of the gaps: ring, torus, exponential."""
    gaps = [spectral_gap(make(kind, 64).matrix()) for kind in ("ring", "torus", "exponential")]
    assert gaps == sorted(gaps)
    assert gaps[2] > 10 * gaps[0]


# Friedman, STOC 2003; Boyd et al., IEEE Transactions on Information Theory 2006; de Vos et al., NeurIPS 2023


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("degree", [3, 4, 8])
def test_random_regular_graphs_are_almost_ramanujan(degree, seed):
    """The second eigenvalue of their adjacency is at most 2 sqrt(d - 1) + epsilon, so the gap does not fall with n."""
    gap = spectral_gap(make("regular", 200, seed, degree=degree).matrix())
    assert gap == pytest.approx(1 - (1 + 2 * math.sqrt(degree - 1)) / (1 + degree), abs=0.05)


@pytest.mark.parametrize("degree", [1, 4, 7])
def test_fresh_random_graphs_contract_by_their_expected_square(degree):
    """The squared distance falls by lambda_2(E[W'W]) a round in expectation, whatever the models are.

    A graph drawn alike for all nodes has E[W'W] = a I + b 11', and its trace n / (d + 1) gives a.
    """
    nodes, rounds = 16, 600
    topology, models = make("random-regular", nodes, degree=degree), random_models(degree, nodes)
    expected = (nodes / (degree + 1) - 1) / (nodes - 1)
    ratios = [(distance(topology.matrix(round) @ models) / distance(models)) ** 2 for round in range(rounds)]
    error = np.std(ratios) / math.sqrt(rounds)
    assert abs(np.mean(ratios) - expected) < 5 * error
    assert error < 0.04 * expected


def test_fresh_random_graphs_mix_faster_than_any_one_of_them():
    """Twelve rounds of degree 4 over 64 nodes: neighbours that change bring models closer than neighbours that stay."""
    models = {kind: random_models(0, 64) for kind in ("regular", "random-regular")}
    for kind in models:
        topology = make(kind, 64)
        for round in range(12):
            models[kind] = mixed(topology, models[kind], round)
    assert distance(models["random-regular"]) < 0.2 * distance(models["regular"])
