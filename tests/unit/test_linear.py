"""What linear algebra tells of nodes that are out of reach."""

import networkx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from node.attack import linear
from node.errors import ConfigError


def metropolis(graph):
    degrees = dict(graph.degree)
    mixing = np.zeros((len(graph), len(graph)))
    for a, b in graph.edges:
        mixing[a, b] = mixing[b, a] = 1 / (1 + max(degrees[a], degrees[b]))
    return mixing + np.diag(1 - mixing.sum(1))


RING = networkx.cycle_graph(8)
GRAPHS = st.builds(
    lambda nodes, p, seed: networkx.compose(networkx.path_graph(nodes), networkx.gnp_random_graph(nodes, p, seed=seed)),
    st.integers(3, 9),
    st.floats(0, 0.5),
    st.integers(0, 1000),
)


def test_two_rounds_on_a_ring_reach_two_steps_and_no_further():
    view = linear.averaging_view(metropolis(RING), [0], 2)
    recovered = linear.recoverable(view)
    assert recovered.tolist() == [0, 1, 2, 6, 7]
    assert linear.recovered_by_distance(RING, [0], recovered) == {1: 1.0, 2: 1.0, 3: 0.0, 4: 0.0}


def test_one_round_reaches_the_neighbours():
    assert linear.recoverable(linear.averaging_view(metropolis(RING), [3], 1)).tolist() == [2, 3, 4]


@settings(max_examples=30)
@given(GRAPHS, st.integers(1, 4))
def test_leverages_are_shares_that_sum_to_the_rank(graph, rounds):
    view = linear.averaging_view(metropolis(graph), [0], rounds)
    leverage = linear.leverage(view)
    assert ((leverage >= 0) & (leverage <= 1)).all()
    assert leverage.sum() == pytest.approx(np.linalg.matrix_rank(view, tol=1e-9 * np.linalg.norm(view, 2)))
    assert leverage[[0, *graph[0]]] == pytest.approx(1)


@settings(max_examples=30)
@given(GRAPHS, st.integers(1, 3))
def test_more_rounds_and_more_attackers_never_see_less(graph, rounds):
    mixing = metropolis(graph)
    seen = linear.leverage(linear.averaging_view(mixing, [0], rounds))
    assert (linear.leverage(linear.averaging_view(mixing, [0], rounds + 1)) >= seen - 1e-6).all()
    assert (linear.leverage(linear.averaging_view(mixing, [0, 1], rounds)) >= seen - 1e-6).all()


@settings(max_examples=30)
@given(GRAPHS, st.integers(1, 4), st.integers(0, 1000))
def test_what_is_recoverable_is_recovered_and_the_rest_is_not(graph, rounds, seed):
    values = np.random.default_rng(seed).normal(size=(len(graph), 3))
    view = linear.averaging_view(metropolis(graph), [0], rounds)
    recovered = linear.recoverable(view)
    found = linear.reconstruct(view, view @ values)
    np.testing.assert_allclose(found[recovered], values[recovered], atol=1e-5)
    hidden = np.setdiff1d(np.arange(len(graph)), recovered)
    assert (np.abs(found[hidden] - values[hidden]).max(initial=1, axis=1) > 1e-6).all()


def test_gossip_is_what_the_view_says():
    mixing, values = metropolis(RING), np.random.default_rng(0).normal(size=(8, 2))
    seen, sent = [values[0]], values
    for _ in range(3):
        seen += [sent[1], sent[7]]
        sent = mixing @ sent
    np.testing.assert_allclose(linear.averaging_view(mixing, [0], 3) @ values, seen)


def test_gradient_descent_is_what_the_view_says():
    """Constant gradients, a common start of 0; the attackers' own models are known and subtracted: here they stay 0."""
    mixing = metropolis(networkx.random_regular_graph(3, 10, seed=1))
    gradients = np.random.default_rng(1).normal(size=(10, 2))
    gradients[4] = 0
    models, seen = np.zeros((10, 2)), []
    neighbours = [node for node in np.flatnonzero(mixing[4]) if node != 4]
    for _ in range(5):
        models = models + gradients
        models[4] = 0
        seen += [models[node] for node in neighbours]
        models = mixing @ models
    view = linear.gradient_view(mixing, [4], 5)
    targets = [node for node in range(10) if node != 4]
    np.testing.assert_allclose(view @ gradients[targets], seen)
    recovered = linear.recoverable(view)
    assert {targets[column] for column in recovered} >= set(neighbours)
    np.testing.assert_allclose(
        linear.reconstruct(view, np.array(seen))[recovered], gradients[targets][recovered], atol=1e-6
    )


def test_sparse_views_are_views():
    view = linear.averaging_view(metropolis(RING), [0], 2)
    for matrix in (sparse.csr_array(view), sparse.coo_matrix(view)):
        np.testing.assert_array_equal(linear.leverage(matrix), linear.leverage(view))


def test_a_sum_hides_each_of_its_parts():
    view = np.ones((1, 5))
    assert linear.leverage(view) == pytest.approx([0.2] * 5)
    assert linear.recoverable(view).tolist() == []


def test_nothing_seen_is_nothing_known():
    assert linear.leverage(np.zeros((0, 4))).tolist() == [0] * 4
    assert linear.leverage(np.zeros((2, 4))).tolist() == [0] * 4


def test_small_singular_values_count():
    assert linear.recoverable(np.diag([1.0, 1e-6])).tolist() == [0, 1]
    assert linear.recoverable(np.diag([1.0, 1e-12])).tolist() == [0]


def test_generalised_least_squares_trusts_the_better_message():
    view = np.array([[1.0], [1.0]])
    found = linear.reconstruct(view, np.array([[0.0], [1.0]]), np.diag([1.0, 3.0]))
    assert found == pytest.approx(np.array([[0.25]]))
    plain = linear.reconstruct(view, np.array([[0.0], [1.0]]), np.eye(2))
    assert plain == pytest.approx(linear.reconstruct(view, np.array([[0.0], [1.0]])))


def test_correlated_errors_cancel():
    """Two messages with one common error: a third that carries the error alone takes it away."""
    view = np.array([[1.0], [0.0]])
    covariance = np.array([[1.0, 0.999], [0.999, 1.0]])
    assert linear.reconstruct(view, np.array([[2.5], [0.5]]), covariance)[0, 0] == pytest.approx(2, abs=0.01)


# Bad input


@pytest.mark.parametrize("attackers", [[], [8], [-1]])
def test_attackers_are_nodes(attackers):
    for view in (linear.averaging_view, linear.gradient_view):
        with pytest.raises(ConfigError, match=r"attackers: .*nodes 0 to 7"):
            view(metropolis(RING), attackers, 1)


def test_each_row_of_a_view_is_a_message():
    with pytest.raises(ConfigError, match="seen: 2 messages for a view of 3 rows"):
        linear.reconstruct(np.eye(3), np.zeros((2, 1)))


def test_a_covariance_is_positive_definite():
    with pytest.raises(ConfigError, match="covariance: not positive definite"):
        linear.reconstruct(np.eye(2), np.zeros((2, 1)), np.zeros((2, 2)))
