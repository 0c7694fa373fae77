"""Noise that cancels: DECOR's between nodes, Zip-DL's within one; golden values, conservation, dropouts."""

import math

import networkx as nx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.errors import ConfigError
from node.op import Key, Spec, Task
from node.privacy.correlated import (
    cancelling_noise,
    cancelling_residual,
    cancelling_variance,
    decorrelate,
    pairwise_noise,
    pairwise_residual,
    share,
    zip_shares,
)
from node.privacy.eavesdropper import pairwise_covariance
from node.privacy.keys import PairSecrets
from node.privacy.noise import Seeded, seeded

DRAWS = 20_000
ring = nx.cycle_graph


def laplacian(graph):
    return nx.laplacian_matrix(graph).toarray().astype(float)


def parts_of(graph, round=0, deviation=1.0, dimension=64, seed=1):
    """Every node's part of the correlated noise, [nodes, dimension]."""
    return np.stack(
        [
            pairwise_noise(PairSecrets.seeded(node, seed, b"run"), list(graph[node]), round, deviation, dimension)
            for node in sorted(graph)
        ]
    )


def metropolis(graph):
    """The mixing matrix with Metropolis weights, [nodes, nodes]."""
    weights = np.zeros((len(graph), len(graph)))
    for i, j in graph.edges:
        weights[i, j] = weights[j, i] = 1 / (1 + max(graph.degree[i], graph.degree[j]))
    return weights + np.diag(1 - weights.sum(1))


def neighbourhood(graph, node):
    """Members of a closed neighbourhood, itself first, and their weights."""
    row = metropolis(graph)[node]
    members = [node, *sorted(graph[node])]
    return members, [float(row[member]) for member in members]


# DECOR


@pytest.mark.parametrize(
    ("graph", "local", "pairwise", "bound"),
    [
        (ring(16), 1, 0, 2),
        (ring(16), 1, 1, 0.8944275583),
        (ring(16), 1, 10, 0.1504483628),
        (ring(16), 0.1, 10, 12.5265506869),
        (nx.complete_graph(16), 1, 0, 2),
        (nx.complete_graph(16), 1, 1, 0.2352941176),
        (nx.complete_graph(16), 1, 10, 0.1261711430),
        (ring(8), 1, 1, 0.8952380952),
    ],
)
def test_the_covariance_gives_the_published_bounds(graph, local, pairwise, bound):
    covariance = pairwise_covariance(laplacian(graph), local, pairwise)
    assert 2 * np.linalg.inv(covariance).diagonal().max() == pytest.approx(bound, abs=1e-9)


def test_much_correlated_noise_protects_like_a_trusted_server():
    covariance = pairwise_covariance(laplacian(ring(16)), 0.5, 1e4)
    assert 2 * np.linalg.inv(covariance).diagonal().max() == pytest.approx(2 / (16 * 0.5**2), rel=1e-4)


@given(st.integers(3, 12), st.floats(0, 1), st.integers(0, 2**31), st.floats(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_mean_of_all_nodes_is_left_as_it_was(nodes, probability, seed, deviation):
    parts = parts_of(nx.gnp_random_graph(nodes, probability, seed), seed=seed, deviation=deviation)
    assert np.abs(parts.sum(0)).max() <= 1e-12 * max(deviation, 1) * nodes


def test_samples_have_the_covariance():
    graph = nx.star_graph(4)
    parts = parts_of(graph, deviation=1.5, dimension=DRAWS)
    rng = np.random.default_rng(0)
    parts += 0.5 * rng.standard_normal(parts.shape)
    expected = pairwise_covariance(laplacian(graph), 0.5, 1.5)
    np.testing.assert_allclose(parts @ parts.T / DRAWS, expected, atol=5 * expected.max() * math.sqrt(2 / DRAWS))
    mean_variance = parts.mean(0).var()
    assert mean_variance == pytest.approx(0.5**2 / 5, rel=5 * math.sqrt(2 / DRAWS))


def test_every_round_has_noise_of_its_own():
    first, again, second = (parts_of(ring(4), round) for round in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.intersect1d(first, second).size


def test_the_order_of_peers_does_not_matter():
    secrets = PairSecrets.seeded(3, 1, b"run")
    some = [pairwise_noise(secrets, peers, 0, 2.0, 100) for peers in ([1, 5, 7, 0], (7, 0, 5, 1), {0, 1, 5, 7})]
    assert all(np.array_equal(noise, some[0]) for noise in some)
    assert not pairwise_noise(secrets, (), 0, 2.0, 5).any()


@pytest.mark.parametrize(("absent", "cut"), [((), 0), ((0,), 2), ((0, 1), 2), ((0, 2), 4), (range(8), 0)])
def test_what_remains_of_the_absent_is_the_edges_to_them(absent, cut):
    assert pairwise_residual(laplacian(ring(8)), absent, 3.0) == pytest.approx(9.0 * cut)
    left = parts_of(ring(8), deviation=3.0, dimension=DRAWS)[[i for i in range(8) if i not in absent]].sum(0)
    assert left.var() == pytest.approx(9.0 * cut, rel=5 * math.sqrt(2 / DRAWS), abs=1e-20)


def test_noise_that_leaves_the_absent_out_cancels_again():
    """Once both ends agree on who takes part."""
    graph = nx.complete_graph(6)
    graph.remove_node(2)
    assert np.abs(parts_of(graph).sum(0)).max() < 1e-12


# Zip-DL


@pytest.mark.parametrize(
    ("graph", "sender", "receiver", "variance"),
    [
        (nx.star_graph(4), 0, 1, 0.80),
        (nx.star_graph(4), 1, 0, 4.25),
        (nx.star_graph(4), 1, 1, 0.265625),
        (ring(8), 0, 1, 0.6666666667),
        (ring(8), 0, 0, 0.6666666667),
    ],
)
def test_how_noisy_each_share_is(graph, sender, receiver, variance):
    members, weights = neighbourhood(graph, sender)
    assert cancelling_variance(weights)[members.index(receiver)] == pytest.approx(variance, abs=1e-9)


@given(st.integers(2, 30))
def test_under_uniform_weights_all_shares_are_alike(members):
    found = cancelling_variance([1 / members] * members)
    np.testing.assert_allclose(found, (members - 1) / members, rtol=1e-12)


weights_of = st.lists(st.floats(0.05, 1.0), min_size=2, max_size=8)


@given(weights_of, st.floats(0, 10), st.integers(0, 20), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_the_weighted_sum_of_the_shares_is_zero(weights, deviation, dimension, seed):
    noise = cancelling_noise(weights, deviation, dimension, Seeded(Key(seed, 0, 0)))
    assert noise.shape == (len(weights), dimension)
    np.testing.assert_allclose(np.asarray(weights) @ noise, 0, atol=1e-12 * len(weights) * max(deviation, 1))


@pytest.mark.parametrize("weights", [(0.5, 0.5), (0.8, 0.2), (0.1, 0.2, 0.3, 0.4)])
def test_samples_have_the_variance(weights):
    noise = cancelling_noise(weights, 2.0, DRAWS, Seeded(Key(1, 2, 3)))
    bound = 5 * math.sqrt(2 / DRAWS)
    np.testing.assert_allclose(noise.var(1), 4 * cancelling_variance(weights), rtol=bound)
    assert np.abs(noise.mean(1) / noise.std(1)).max() < 5 / math.sqrt(DRAWS)


def test_a_whole_round_keeps_the_mean_of_all_models():
    graph = nx.star_graph(4)
    weights, models = metropolis(graph), np.arange(15.0).reshape(5, 3)
    mixed = weights @ models
    for node in range(5):
        members, row = neighbourhood(graph, node)
        noise = cancelling_noise(row, 100.0, 3, Seeded(Key(0, node, 0)))
        for member, part in zip(members, noise, strict=True):
            mixed[member] += weights[member, node] * part
    assert np.abs(mixed - weights @ models).max() > 1
    np.testing.assert_allclose(mixed.mean(0), models.mean(0), atol=1e-10)


@pytest.mark.parametrize("weights", [(1 / 3, 1 / 3, 1 / 3), (0.1, 0.2, 0.7)])
@pytest.mark.parametrize("absent", [(), (0,), (2,), (0, 1), (0, 1, 2)])
def test_what_remains_of_the_absent_has_the_stated_variance(weights, absent):
    noise = cancelling_noise(weights, 1.0, DRAWS, Seeded(Key(4, 4, 4)))
    there = [place for place in range(3) if place not in absent]
    left = np.asarray(weights)[there] @ noise[there]
    expected = cancelling_residual(weights, absent)
    assert left.var() == pytest.approx(expected, rel=5 * math.sqrt(2 / DRAWS), abs=1e-20)
    assert (expected > 1e-9) == (0 < len(absent) < 3)


@pytest.mark.parametrize("weights", [(), (1.0,), (0.5, 0.0), (0.5, -0.1), (0.5, math.nan)])
def test_weights_under_which_nothing_cancels_are_refused(weights):
    for refuse in (
        lambda: cancelling_noise(weights, 1.0, 3, Seeded(Key(0, 0, 0))),
        lambda: cancelling_variance(weights),
        lambda: cancelling_residual(weights, ()),
    ):
        with pytest.raises(ConfigError, match=r"weights: .*; noise cancels under two or more weights above 0"):
            refuse()


# Ops


def test_the_op_adds_a_nodes_part():
    model, secrets = torch.arange(40.0), PairSecrets.seeded(1, 1, b"run")
    op = decorrelate(secrets)
    static = {"peers": (0, 2), "round": 3, "deviation": 0.5}
    found = op.solve(Task((model,), static, Key(0, 1, 0)))
    expected = model.double() + torch.from_numpy(pairwise_noise(secrets, (0, 2), 3, 0.5, 40))
    assert torch.equal(found, expected.float())
    assert torch.equal(model, torch.arange(40.0))
    assert op.spec([Spec((40,))], static) == Spec((40,))


def test_the_op_gives_every_member_its_share():
    model, static = torch.arange(30.0), {"weights": (0.5, 0.3, 0.2), "deviation": 2.0}
    op = zip_shares(seeded)
    shares = op.solve(Task((model,), static, Key(5, 1, 7)))
    assert op.spec([Spec((30,))], static) == Spec((3, 30))
    assert shares.shape == (3, 30)
    noise = cancelling_noise((0.5, 0.3, 0.2), 2.0, 30, Seeded(Key(5, 1, 7)))
    torch.testing.assert_close(shares.double(), model.double() + torch.from_numpy(noise), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(torch.tensor([0.5, 0.3, 0.2]) @ shares, model, rtol=1e-5, atol=1e-5)
    assert share.spec([Spec((3, 30))], {"place": 1}) == Spec((30,))
    assert torch.equal(share.solve(Task((shares,), {"place": 1}, Key(0, 0, 0))), shares[1])
