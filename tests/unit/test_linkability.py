"""Linking messages to senders."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from node.attack import linkability, references
from node.config import TrainingSection
from node.errors import ConfigError
from node.learn.models import Dense
from node.learn.workload import prepare_torch

NODES = 6
SOFTMAX = Dense("softmax", (20, NODES))


@pytest.fixture(autouse=True, scope="module")
def _deterministic():
    prepare_torch()


def data_of(node, count=40):
    """A node's samples: mostly of its own label."""
    rng = np.random.default_rng(node)
    labels = np.where(rng.random(count) < 0.8, node, rng.integers(0, NODES, count))
    features = rng.normal(size=(count, 20)) + 2 * np.eye(20)[labels]
    return torch.from_numpy(features.astype(np.float32)), torch.from_numpy(labels)


DATA = [data_of(node) for node in range(NODES)]


def models():
    """What each node's own training makes of a common start."""
    features, labels = (torch.cat([data[part] for data in DATA]) for part in (0, 1))
    inside = np.repeat(np.eye(NODES, dtype=bool), 40, axis=1)
    return references.train(SOFTMAX, TrainingSection(lr=0.1, batch_size=8), features, labels, inside, 5, 0)


# Completing


def test_a_chunk_is_completed_with_the_attackers_own_model():
    own = torch.arange(6.0)
    completed = linkability.completed(torch.tensor([10.0, 20.0]), torch.tensor([4, 1]), own)
    assert completed.tolist() == [0, 20, 2, 3, 10, 5]
    assert own.tolist() == [0, 1, 2, 3, 4, 5]


# Losses


def test_losses_are_the_mean_losses_of_every_message_on_every_candidate():
    flats = models()[:2]
    losses = linkability.candidate_losses(SOFTMAX.logits, flats, DATA[:3])
    assert losses.shape == (2, 3)
    for row, flat in zip(losses, flats, strict=True):
        for loss, (features, labels) in zip(row, DATA, strict=False):
            expected = cross_entropy(SOFTMAX.logits(flat, features).double(), labels)
            assert loss == pytest.approx(expected.item())


def test_no_messages_have_no_losses():
    assert linkability.candidate_losses(SOFTMAX.logits, [], DATA).shape == (0, NODES)


# Guesses


def test_models_of_skewed_nodes_are_linked():
    flats = models()
    attackers = (np.arange(NODES) + 1) % NODES
    guesses = linkability.guess_senders(linkability.candidate_losses(SOFTMAX.logits, flats, DATA), attackers)
    found = linkability.linked(guesses, np.arange(NODES), NODES)
    assert found.accuracy == 1
    assert found.chance == 0.2
    assert found.messages == NODES


def test_smaller_chunks_are_linked_less_often():
    flats = models()
    own = flats.mean(0)
    rng = np.random.default_rng(0)

    def accuracy(share):
        guesses = []
        for _ in range(4):
            places = torch.from_numpy(rng.permutation(SOFTMAX.dimension)[: int(share * SOFTMAX.dimension)])
            parts = [linkability.completed(flat[places], places, own) for flat in flats]
            losses = linkability.candidate_losses(SOFTMAX.logits, parts, DATA)
            guesses.append(linkability.guess_senders(losses, (np.arange(NODES) + 1) % NODES))
        return np.mean([linkability.linked(guess, np.arange(NODES), NODES).accuracy for guess in guesses])

    whole, nothing = accuracy(1.0), accuracy(0.0)
    assert whole == 1
    assert nothing < 0.5
    assert nothing <= accuracy(0.1) <= whole


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n - 1), st.integers(0, 1000))))
def test_the_attacker_never_guesses_itself(case):
    nodes, attacker, seed = case
    losses = np.random.default_rng(seed).random((5, nodes))
    losses[:, attacker] = -1
    guesses = linkability.guess_senders(losses, np.full(5, attacker))
    assert (guesses != attacker).all()
    others = np.delete(np.arange(nodes), attacker)
    assert guesses.tolist() == others[losses[:, others].argmin(1)].tolist()


def test_losses_that_are_no_numbers_are_no_guesses_and_stay_as_they_were():
    losses = np.array([[np.nan, 2.0, 3.0], [1.0, np.nan, 0.5]])
    before = losses.copy()
    assert linkability.guess_senders(losses, np.array([2, 0])).tolist() == [1, 2]
    np.testing.assert_array_equal(losses, before)


def test_guessing_at_random_is_as_good_as_chance():
    rng = np.random.default_rng(1)
    senders, attackers = rng.integers(1, 16, 4000), np.zeros(4000, dtype=int)
    found = linkability.linked(linkability.guess_senders(rng.random((4000, 16)), attackers), senders, 16)
    assert found.accuracy == pytest.approx(found.chance, abs=0.015)


# Directions


def test_changes_of_one_origin_point_the_same_way():
    rng = np.random.default_rng(2)
    origins = rng.normal(size=(5, 40))
    order = rng.permutation(5)
    later = 0.01 * (origins[order] + 0.3 * rng.normal(size=(5, 40)))
    assert linkability.reidentify(origins, later).tolist() == order.tolist()


@given(st.integers(0, 1000), st.floats(0.001, 1000))
def test_similarity_is_a_cosine(seed, scale):
    rng = np.random.default_rng(seed)
    changes, later = rng.normal(size=(3, 7)), rng.normal(size=(4, 7))
    found = linkability.similarities(changes, later)
    assert found.shape == (4, 3)
    assert (np.abs(found) <= 1 + 1e-12).all()
    expected = changes[1] @ later[2] / np.linalg.norm(changes[1]) / np.linalg.norm(later[2])
    assert found[2, 1] == pytest.approx(expected)
    np.testing.assert_allclose(linkability.similarities(changes * scale, later), found, rtol=1e-9, atol=1e-12)


def test_a_change_of_nothing_is_like_no_other():
    assert linkability.similarities(np.ones((2, 3)), np.zeros((1, 3))).tolist() == [[0, 0]]


# Bad input


def test_there_must_be_candidates():
    for losses in (np.zeros((3, 1)), np.zeros(3)):
        with pytest.raises(ConfigError, match=r"losses: .*two candidates or more"):
            linkability.guess_senders(losses, np.zeros(3, dtype=int))


@pytest.mark.parametrize(("guesses", "senders", "nodes"), [(2, 3, 5), (0, 0, 5), (2, 2, 1)])
def test_every_guess_has_a_sender(guesses, senders, nodes):
    with pytest.raises(ConfigError, match="senders"):
        linkability.linked(np.zeros(guesses), np.zeros(senders), nodes)
