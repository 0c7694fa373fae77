"""Gossip matrices: reference values, what mixing preserves, and graphs that cannot mix."""

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import TopologySection
from node.errors import ConfigError
from node.privacy import gossip
from node.topology import build
from node.topology import spectral_gap as two_sided_gap

GRAPHS = {
    "ring8": nx.cycle_graph(8),
    "path4": nx.path_graph(4),
    "star5": nx.star_graph(4),
    "hypercube8": nx.hypercube_graph(3),
    "ring16": nx.cycle_graph(16),
}


def adjacency(graph):
    return nx.to_numpy_array(graph, nodelist=sorted(graph)) > 0


def weights(name):
    return gossip.metropolis(adjacency(GRAPHS[name]))


@st.composite
def connected(draw):
    nodes = draw(st.integers(2, 12))
    tree = nx.from_edgelist((draw(st.integers(0, node - 1)), node) for node in range(1, nodes))
    extra = draw(st.lists(st.tuples(st.integers(0, nodes - 1), st.integers(0, nodes - 1)), max_size=20))
    tree.add_edges_from((a, b) for a, b in extra if a != b)
    return adjacency(tree)


@pytest.mark.parametrize(
    ("name", "gap", "gamma"),
    [
        ("ring8", 0.1952621459, 1.3976588036),
        ("path4", 0.1952621459, 1.3976588036),
        ("star5", 0.2, 1.3928644584),
        ("hypercube8", 0.5, 1.2037766124),
        ("ring16", 0.0507469783, 1.6342040724),
    ],
)
def test_gap_and_acceleration(name, gap, gamma):
    found = gossip.spectral_gap(weights(name))
    assert found == pytest.approx(gap, abs=1e-10)
    assert gossip.chebyshev_gamma(found) == pytest.approx(gamma, abs=1e-10)


def test_metropolis_rows():
    path = weights("path4")
    assert path[:2] == pytest.approx(np.array([[2 / 3, 1 / 3, 0, 0], [1 / 3, 1 / 3, 1 / 3, 0]]))
    assert path[::-1, ::-1] == pytest.approx(path)
    star = weights("star5")
    assert star.diagonal() == pytest.approx([0.2, 0.8, 0.8, 0.8, 0.8])


def test_the_same_weights_as_a_topology_has():
    topology = build(TopologySection(kind="erdos-renyi", probability=0.4), 12, 3)
    matrix = topology.matrix()
    assert gossip.metropolis((matrix > 0) & ~np.eye(12, dtype=bool)) == pytest.approx(matrix)


@pytest.mark.parametrize(
    ("rounds", "accelerated", "plain"), [(5, 0.1417, 0.8210), (10, 0.0244, 0.2750), (20, 2.13e-4, 0.0313)]
)
def test_what_is_left_of_disagreement(rounds, accelerated, plain):
    ring, values = weights("ring8"), np.arange(8.0)
    gamma = gossip.chebyshev_gamma(gossip.spectral_gap(ring))
    assert np.abs(gossip.mix(ring, values, rounds, gamma) - 3.5).max() == pytest.approx(accelerated, rel=5e-3)
    assert np.abs(gossip.mix(ring, values, rounds) - 3.5).max() == pytest.approx(plain, rel=2e-3)


def test_a_recursion_from_zero_would_scale_the_mean():
    ring = weights("ring8")
    gamma = gossip.chebyshev_gamma(gossip.spectral_gap(ring))
    before, now = np.zeros(8), np.ones(8)
    for _ in range(60):
        before, now = now, gamma * ring @ now + (1 - gamma) * before
    assert now.mean() == pytest.approx(1 / (2 - gamma), rel=1e-3)
    assert 1 / (2 - gamma) == pytest.approx(1.660, abs=1e-3)
    assert gossip.mix(ring, np.ones(8), 60, gamma).mean() == pytest.approx(1)


@settings(max_examples=50)
@given(connected())
def test_metropolis_is_symmetric_and_stochastic(graph):
    matrix = gossip.metropolis(graph)
    assert (matrix == matrix.T).all()
    assert (matrix >= 0).all()
    assert matrix.sum(axis=1) == pytest.approx(np.ones(len(graph)))


@settings(max_examples=50)
@given(connected(), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_gossip_keeps_the_mean_and_contracts(graph, rounds, seed):
    matrix = gossip.metropolis(graph)
    values = np.random.default_rng(seed).normal(size=(len(graph), 3))
    gap = gossip.spectral_gap(matrix)
    for gamma in (1.0, gossip.chebyshev_gamma(gap)):
        assert gossip.mix(matrix, values, rounds, gamma).mean(axis=0) == pytest.approx(values.mean(axis=0), abs=1e-5)
    spread = [np.square(mixed - values.mean(axis=0)).sum() for mixed in (values, matrix @ values)]
    assert spread[1] <= spread[0] * (1 - two_sided_gap(matrix)) ** 2 + 1e-9


@settings(max_examples=50)
@given(connected())
def test_a_laplacian_has_rows_that_vanish(graph):
    matrix = gossip.laplacian(graph)
    assert (matrix.sum(axis=1) == 0).all()
    assert (matrix.diagonal() == graph.sum(axis=1)).all()
    assert np.linalg.eigvalsh(matrix)[0] == pytest.approx(0, abs=1e-9)


def test_how_many_rounds_are_enough():
    # gap 0.25: half of ln(100 / 0.01 * 1/4), and 4 ln(...) without acceleration.
    assert gossip.muffliato_rounds(0.25, 100, 0.1) == int(np.ceil(2 * np.log(2500)))
    assert gossip.muffliato_rounds(0.25, 100, 0.1, accelerated=False) == int(np.ceil(4 * np.log(2500)))
    assert gossip.muffliato_rounds(0.25, 100, 3.0) == int(np.ceil(2 * np.log(100)))
    assert gossip.muffliato_rounds(1.0, 1, 1.0) == 1


@pytest.mark.parametrize("nodes", [1, 2, 5])
def test_a_full_mesh_agrees_at_once(nodes):
    matrix = gossip.metropolis(~np.eye(nodes, dtype=bool))
    gap = gossip.spectral_gap(matrix)
    assert gap == pytest.approx(1)
    values = np.arange(nodes, dtype=float)
    assert gossip.mix(matrix, values, 1) == pytest.approx(np.full(nodes, values.mean()))
    assert gossip.chebyshev_gamma(gap) == pytest.approx(8 * (1 - np.sqrt(0.75)))


def test_no_rounds_change_nothing():
    assert (gossip.mix(weights("ring8"), np.arange(8.0), 0, 1.4) == np.arange(8)).all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gossip.metropolis(np.ones((2, 2), bool)), "no node being its own neighbour"),
        (lambda: gossip.metropolis(np.zeros((2, 3), bool)), "square symmetric"),
        (lambda: gossip.laplacian(np.array([[False, True], [False, False]])), "square symmetric"),
        (lambda: gossip.metropolis(np.zeros((2, 2))), "booleans"),
        (lambda: gossip.spectral_gap(np.array([[0.5, 0.5], [0.4, 0.6]])), "symmetric"),
        (lambda: gossip.spectral_gap(np.array([[0.5, 0.4], [0.4, 0.5]])), "sum to 1"),
        (lambda: gossip.spectral_gap(np.eye(3)), "connect the graph"),
        (lambda: gossip.chebyshev_gamma(0.0), "gap: 0.0"),
        (lambda: gossip.chebyshev_gamma(2.0), "gap: 2.0"),
        (lambda: gossip.muffliato_rounds(0.0, 5, 1), "gap: 0.0"),
        (lambda: gossip.muffliato_rounds(0.5, 5, 0), "sigma: 0"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
