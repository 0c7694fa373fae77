"""Students that learn from samples which a generator makes up."""

import numpy as np
import pytest
import torch

from node.config import ModelSection, TrainingSection
from node.learn.models import build
from node.learn.training import Trainer
from node.learn.unify import Teachers, generated
from node.learn.unify.generation import Generator
from node.learn.workload import prepare_torch
from node.op import Key
from node.unifiers import Generation

MLP = build(ModelSection(hidden=(16,)), (6,), 3)
LENET = build(ModelSection(name="lenet"), (1, 8, 8), 10)
KEY = Key(1, 2, 3)
QUICK = Generation(epochs=3, steps=4, batch_size=32)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def blobs(count=300, seed=0):
    """Three classes around centres of their own, standardised."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=count)
    centres = np.random.default_rng(1).normal(size=(3, 6)) * 2
    features = (centres[labels] + rng.normal(size=(count, 6)) * 0.5).astype(np.float32)
    return torch.from_numpy(features - features.mean(0)), torch.from_numpy(labels)


def taught(seed, labels_seen=(0, 1, 2)):
    features, labels = blobs(seed=seed)
    chosen = torch.isin(labels, torch.tensor(labels_seen))
    batches = [(features[chosen][i::20], labels[chosen][i::20]) for _ in range(10) for i in range(20)]
    return Trainer(MLP, TrainingSection(momentum=0.9)).train(MLP.initial(0), iter(batches), 0.05, 0.0)


def student(teachers, key=KEY, how=QUICK, is_standardised=True):
    return generated(MLP, MLP.initial(9), Teachers(MLP, teachers), (6,), 3, is_standardised, key, how)


def accuracy(flat):
    features, labels = blobs(seed=5)
    return float((MLP.logits(flat, features).argmax(1) == labels).double().mean())


def test_a_student_learns_what_its_teachers_know_without_a_single_sample():
    teachers = [taught(1, (0, 1)), taught(2, (1, 2)), taught(3, (0, 2))]
    how = Generation(epochs=12, steps=20, batch_size=64, student_lr=0.05)
    before, after = accuracy(MLP.initial(9)), accuracy(student(teachers, how=how))
    assert after > 0.8
    assert after > before + 0.2


def test_it_follows_from_its_key_and_leaves_what_it_was_given():
    teachers, start = [taught(1), taught(2)], MLP.initial(9)
    copies = [flat.clone() for flat in (*teachers, start)]
    one, again = student(teachers), student(teachers)
    other = student(teachers, key=Key(1, 2, 4))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert all(torch.equal(flat, copy) for flat, copy in zip((*teachers, start), copies, strict=True))
    assert not one.requires_grad


def test_the_global_generator_is_not_touched():
    state = torch.get_rng_state()
    student([taught(1)])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("is_standardised", [True, False])
def test_made_up_samples_are_where_real_ones_are(is_standardised):
    draws = torch.Generator().manual_seed(3)
    generator = Generator((1, 8, 8), is_standardised, draws)
    samples = generator.samples(torch.randn(64, 256, generator=draws), generator.parameters)
    assert samples.shape == (64, 1, 8, 8)
    if is_standardised:
        assert samples.mean(0).abs().max() < 1e-5
        assert samples.std(0).mean() == pytest.approx(1, abs=0.05)
    else:
        assert 0 < samples.min() < 0.4
        assert 0.6 < samples.max() < 1


def test_teachers_may_be_of_another_architecture_than_the_student():
    small = build(ModelSection(name="softmax"), (1, 8, 8), 10)
    teachers = Teachers(LENET, [LENET.initial(seed) for seed in range(2)])
    learned = generated(small, small.initial(0), teachers, (1, 8, 8), 10, False, Key(0, 0, 1), QUICK)
    assert learned.shape == small.initial(0).shape
    assert torch.isfinite(learned).all()
    assert not torch.equal(learned, small.initial(0))


def test_a_mean_of_teachers_is_what_is_learned():
    one, other = MLP.initial(1), MLP.initial(2)
    features = blobs()[0]
    both = Teachers(MLP, [one, other]).logits(features)
    assert both.numpy() == pytest.approx(((MLP.logits(one, features) + MLP.logits(other, features)) / 2).numpy())
