"""Reference models, and the membership attacks that stand on them, on real data."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from node.attack import lira, metrics, references, rmia, scores
from node.config import ModelSection, TrainingSection
from node.errors import ConfigError
from node.learn.models import Dense, build
from node.learn.training import Trainer
from node.learn.workload import prepare_torch

POOL = 1200
MODELS = 34
TARGETS = range(0, 10, 2)


@pytest.fixture(autouse=True, scope="module")
def _deterministic():
    prepare_torch()


def rng(seed=0):
    return np.random.default_rng(seed)


# Halves


@given(st.integers(2, 50), st.integers(1, 5), st.integers(0, 1000))
def test_every_sample_is_inside_half_of_the_models(pool, pairs, seed):
    inside = references.complementary_halves(pool, pairs, rng(seed))
    assert inside.shape == (2 * pairs, pool)
    assert (inside.sum(0) == pairs).all()
    assert (inside[::2].sum(1) == pool // 2).all()
    assert (inside[::2] ^ inside[1::2]).all()


def test_halves_differ_from_pair_to_pair_and_follow_the_seed():
    inside = references.complementary_halves(100, 5, rng(1))
    assert len({row.tobytes() for row in inside}) == 10
    np.testing.assert_array_equal(inside, references.complementary_halves(100, 5, rng(1)))


@pytest.mark.parametrize(("pool", "pairs"), [(1, 3), (10, 0)])
def test_a_pair_needs_something_to_share(pool, pairs):
    with pytest.raises(ConfigError, match="references"):
        references.complementary_halves(pool, pairs, rng())


def test_the_target_and_its_complement_are_no_references():
    assert references.without_pair(6, 2).tolist() == [0, 1, 4, 5]
    assert references.without_pair(6, 3).tolist() == [0, 1, 4, 5]
    assert references.without_pair(6, 5).tolist() == [0, 1, 2, 3]


# Label marginals


LABELS = np.repeat(np.arange(4), [40, 30, 20, 10])


def test_a_marginal_is_the_share_of_each_label():
    assert references.label_marginal(LABELS, 5).tolist() == [0.4, 0.3, 0.2, 0.1, 0]


@given(st.lists(st.integers(0, 9), min_size=4, max_size=4).filter(any), st.integers(0, 100))
def test_matching_rows_follow_the_marginal(weights, seed):
    marginal = np.array(weights) / sum(weights)
    most = int(np.floor(min(c / m for c, m in zip([40, 30, 20, 10], marginal, strict=True) if m) + 1e-9))
    rows = references.matching_rows(LABELS, marginal, rng(seed))
    assert len(rows) == most == len(set(rows.tolist()))
    counts = np.bincount(LABELS[rows], minlength=4)
    assert (np.abs(counts - marginal * most) < 1).all()


def test_matching_rows_of_the_pools_own_marginal_are_all_of_it():
    rows = references.matching_rows(LABELS, references.label_marginal(LABELS, 4), rng())
    assert sorted(rows.tolist()) == list(range(100))
    assert rows.tolist() != sorted(rows.tolist())


def test_fewer_rows_may_be_asked_for_but_not_more():
    marginal = np.array([0, 0, 0.5, 0.5])
    rows = references.matching_rows(LABELS, marginal, rng(), 7)
    assert np.bincount(LABELS[rows], minlength=4).tolist() == [0, 0, 4, 3]
    for size in (0, 21):
        with pytest.raises(ConfigError, match=f"{size} rows with this label marginal; the pool allows 1 to 20"):
            references.matching_rows(LABELS, marginal, rng(), size)


@given(st.lists(st.integers(0, 99), min_size=1, max_size=12).filter(any), st.integers(0, 1000))
def test_apportioned_numbers_are_whole_and_near(weights, total):
    shares = np.array(weights) / sum(weights)
    counts = references.apportioned(shares, total)
    assert counts.sum() == total
    assert (np.abs(counts - shares * total) < 1 + 1e-6).all()
    assert (counts[shares == 0] == 0).all()


# Training


def small(shape, classes):
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(64, classes))


FEATURES = torch.randn(60, 1, 4, 4, generator=torch.Generator().manual_seed(0))
TARGET_LABELS = torch.arange(60) % 3
TRAINING = TrainingSection(lr=0.05, momentum=0.9, batch_size=8)


def model_of(name):
    return build(ModelSection(name=name, hidden=(16,)), (1, 4, 4), 3)


@pytest.mark.parametrize("name", ["mlp", f"{__name__}:small"])
def test_models_learn_their_own_half(name):
    model = model_of(name)
    inside = references.complementary_halves(60, 3, rng(2))
    trained = references.train(model, TRAINING, FEATURES, TARGET_LABELS, inside, 25, 0)
    assert trained.shape == (6, model.dimension)
    losses = -scores.loss(references.logits(model, trained, FEATURES), TARGET_LABELS.numpy())
    assert losses[inside].mean() < 0.5 * losses[~inside].mean()


@pytest.mark.parametrize("name", ["mlp", f"{__name__}:small"])
def test_a_model_does_not_depend_on_those_trained_beside_it(name):
    model, inside = model_of(name), references.complementary_halves(60, 3, rng(3))
    together = references.train(model, TRAINING, FEATURES, TARGET_LABELS, inside, 3, 5)
    alone = references.train(model, TRAINING, FEATURES, TARGET_LABELS, inside[:1], 3, 5)
    assert torch.equal(together[0], alone[0])
    assert not torch.equal(together[0], together[1])


def test_models_are_what_one_by_one_training_gives():
    """One batch that holds everything: whatever the order, plain gradient descent."""
    model, training = model_of("mlp"), TrainingSection(lr=0.05, momentum=0.9, batch_size=30)
    inside = references.complementary_halves(60, 2, rng(4))
    trained = references.train(model, training, FEATURES, TARGET_LABELS, inside, 5, 7)
    trainer = Trainer(model, training)
    for number, row in enumerate(inside):
        batch = (FEATURES[row], TARGET_LABELS[row])
        expected = trainer.train(model.initial(7 + number), [batch] * 5, 0.05)
        torch.testing.assert_close(trained[number], expected, rtol=1e-4, atol=1e-5)


def test_halves_of_an_odd_pool_are_trained_through_as_many_passes():
    inside = references.complementary_halves(17, 2, rng(5))  # 8 samples in one half, 9 in the other: one batch, or two
    trained = references.train(model_of("mlp"), TRAINING, FEATURES[:17], TARGET_LABELS[:17], inside, 2, 0)
    assert trained.isfinite().all()


def test_no_epochs_leave_the_initialisations():
    model, inside = model_of("mlp"), references.complementary_halves(60, 2, rng())
    untrained = references.train(model, TRAINING, FEATURES, TARGET_LABELS, inside, 0, 3)
    assert torch.equal(untrained, torch.stack([model.initial(3 + number) for number in range(4)]))


def test_a_model_without_samples_is_refused():
    inside = np.array([[True] * 60, [False] * 60])
    with pytest.raises(ConfigError, match="inside: model 1 has no samples"):
        references.train(model_of("mlp"), TRAINING, FEATURES, TARGET_LABELS, inside, 1, 0)


def test_logits_are_the_models_own():
    model = model_of("mlp")
    flats = torch.stack([model.initial(1), model.initial(2)])
    found = references.logits(model, flats, FEATURES)
    assert found.dtype == np.float64
    np.testing.assert_array_equal(found[1], model.logits(flats[1], FEATURES).double().numpy())
    expected = float(cross_entropy(model.logits(flats[0], FEATURES), TARGET_LABELS))
    assert -scores.loss(found, TARGET_LABELS.numpy())[0].mean() == pytest.approx(expected, rel=1e-5)


# The attacks on scikit-learn's digits with a fifth of the labels redrawn: slow, two seconds together


class Noisy:
    """34 models trained on halves of 1,200 digits, for so many epochs; the other 597 are the population."""

    def __init__(self, epochs):
        features, labels = load_digits(return_X_y=True)
        order = rng(1).permutation(len(labels))
        features, labels = features[order] / 16, labels[order]
        redrawn = rng(2).permutation(len(labels))[: len(labels) // 5]
        labels[redrawn] = rng(3).integers(0, 10, len(redrawn))
        samples, self.labels = torch.from_numpy(features.astype(np.float32)), labels
        self.inside = references.complementary_halves(POOL, MODELS // 2, rng(4))
        model, training = Dense("mlp", (64, 256, 10)), TrainingSection(lr=0.1, momentum=0.9, batch_size=32)
        pool = samples[:POOL], torch.from_numpy(labels[:POOL])
        flats = references.train(model, training, *pool, self.inside, epochs, 0)
        self.pool = references.logits(model, flats, samples[:POOL])
        self.population = references.logits(model, flats, samples[POOL:])

    def attacks(self, target):
        """Scores of every attack on one model."""
        labels, others = self.labels[:POOL], references.without_pair(MODELS, target)
        found = {name: score(self.pool[target], labels) for name, score in scores.SCORES.items()}
        inside = self.inside[others]
        phi = scores.phi(self.pool, labels)
        found["lira online"] = lira.online(phi[target], phi[others], inside)
        found["lira offline"] = lira.offline(phi[target], phi[others], inside)
        p = scores.label_probability(self.pool, labels)
        z = scores.label_probability(self.population, self.labels[POOL:])
        population = rmia.Population(z[target], z[others])
        found["rmia online"] = rmia.online(p[target], p[others], inside, population)
        found["rmia offline"] = rmia.offline(p[target], p[others], inside, population)
        return found

    def leakage(self, targets=TARGETS):
        """Mean AUC and TPR at 1% of every attack over some targets."""
        rows = []
        for target in targets:
            measured = {name: metrics.measure(s, self.inside[target]) for name, s in self.attacks(target).items()}
            rows.append({name: (leak.auc, leak.tpr_at_1_percent) for name, leak in measured.items()})
        return {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}


@pytest.fixture(scope="module")
def memorised():
    return Noisy(epochs=40)


def test_reference_bands(memorised):
    leakage = memorised.leakage()
    auc = {name: found[0] for name, found in leakage.items()}
    assert 0.74 <= auc["lira online"] <= 0.83
    assert 0.62 <= auc["loss"] <= 0.71
    assert auc["lira online"] - auc["loss"] >= 0.06
    assert leakage["lira online"][1] >= 4 * leakage["loss"][1]
    assert auc["lira offline"] == pytest.approx(0.728, abs=0.04)
    assert auc["rmia online"] == pytest.approx(0.781, abs=0.04)
    assert auc["rmia offline"] == pytest.approx(0.770, abs=0.04)
    assert 0.5 < auc["entropy"] < 0.6


def test_train_and_test_accuracy_are_those_of_the_reference(memorised):
    right = memorised.pool.argmax(-1) == memorised.labels[:POOL]
    assert 0.9 < right[memorised.inside].mean() < 1
    assert (memorised.population.argmax(-1) == memorised.labels[POOL:]).mean() == pytest.approx(0.654, abs=0.05)


def test_shuffled_members_cannot_be_told(memorised):
    for name, found in memorised.attacks(0).items():
        shuffled = np.mean([metrics.shuffled_auc(found, memorised.inside[0], rng(seed)) for seed in range(5)])
        assert 0.45 <= shuffled <= 0.55, name


def test_members_replaced_by_a_holdout_copy_cannot_be_told(memorised):
    outside = np.flatnonzero(~memorised.inside[0])
    copies = np.arange(len(outside)) % 2 == 0
    for name, found in memorised.attacks(0).items():
        assert 0.44 <= metrics.auc(found[outside], copies) <= 0.56, name


def test_untrained_models_tell_nothing():
    for name, (auc, _) in Noisy(epochs=0).leakage().items():
        assert 0.45 <= auc <= 0.55, name
