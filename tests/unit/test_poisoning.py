"""Flipped labels and backdoors: what changes in the data, for whom, and how success is measured."""

import numpy as np
import pytest
import torch

from node.attack.poisoning import Trigger, flip_labels, success_rate, with_backdoor, with_flipped_labels
from node.config import DataSection, ModelSection, TrainingSection
from node.errors import ConfigError
from node.learn.data import federate
from node.learn.models import build
from node.learn.training import Trainer
from node.learn.workload import prepare_torch
from node.op import Key, Task
from node.testing import check_op

NODES = 6
CLEAN = federate(DataSection(partition="dirichlet", local_test_fraction=0.2), NODES, 0)
TABLE = federate(DataSection(name="breast_cancer"), NODES, 0)
MODEL = build(ModelSection(name="mlp", hidden=(32,)), (1, 8, 8), 10)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def rows_of(nodes):
    return np.concatenate([CLEAN.shards.of(node) for node in nodes])


def others(nodes):
    return np.setdiff1d(np.arange(len(CLEAN.train.labels)), rows_of(nodes))


# Flipped labels


def test_labels_are_mirrored():
    assert flip_labels(torch.tensor([0, 3, 9]), 10).tolist() == [9, 6, 0]


def test_only_the_training_labels_of_some_nodes_are_flipped():
    before = CLEAN.train.labels.clone()
    flipped = with_flipped_labels(CLEAN, (1, 4))
    mine, theirs = rows_of((1, 4)), others((1, 4))
    assert torch.equal(flipped.train.labels[mine], 9 - CLEAN.train.labels[mine])
    assert torch.equal(flipped.train.labels[theirs], CLEAN.train.labels[theirs])
    assert torch.equal(CLEAN.train.labels, before), "the federation that it was made from is as it was"
    assert flipped.train.features is CLEAN.train.features
    assert flipped.test is CLEAN.test


def test_flipping_twice_is_not_flipping():
    twice = with_flipped_labels(with_flipped_labels(CLEAN, (0, 2)), (0, 2))
    assert torch.equal(twice.train.labels, CLEAN.train.labels)
    assert torch.equal(with_flipped_labels(CLEAN, ()).train.labels, CLEAN.train.labels)


# The trigger


def test_the_trigger_is_a_square_in_the_lower_right_corner():
    images = torch.zeros(2, 3, 8, 6)
    stamped = Trigger(size=2, value=0.5).stamp(images)
    assert (stamped[:, :, 6:, 4:] == 0.5).all()
    assert stamped.sum() == 2 * 3 * 4 * 0.5
    assert images.sum() == 0


@pytest.mark.parametrize("shape", [(4, 30), (4, 1, 2, 8), (4, 8, 8)])
def test_what_is_no_image_of_its_size_has_no_trigger(shape):
    with pytest.raises(ConfigError, match="a trigger of 3x3 pixels does not fit samples of shape"):
        Trigger().stamp(torch.zeros(shape))


def test_success_is_measured_on_stamped_images_of_other_classes():
    triggered = Trigger(target=4).test_set(CLEAN.test)
    assert len(triggered.labels) == int((CLEAN.test.labels != 4).sum())
    assert (triggered.labels == 4).all()
    assert (triggered.features[:, :, -3:, -3:] == 1).all()


@pytest.mark.parametrize("target", [-1, 10])
def test_the_target_is_one_of_the_classes(target):
    with pytest.raises(ConfigError, match=f"backdoor.target: {target}"):
        Trigger(target=target).test_set(CLEAN.test)
    with pytest.raises(ConfigError, match=f"backdoor.target: no class {target}; there are 0 to 9"):
        with_backdoor(CLEAN, (0,), Trigger(target=target), 0.5, 0)


# The poisoned data


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_a_fraction_of_each_attacker_s_samples_is_poisoned(fraction):
    poisoned = with_backdoor(CLEAN, (1, 4), Trigger(), fraction, 0)
    for node in (1, 4):
        held = CLEAN.shards.of(node)
        stamped = (poisoned.train.features[held][:, :, -3:, -3:] == 1).all(dim=3).all(dim=2).all(dim=1)
        assert int(stamped.sum()) == max(1, round(fraction * len(held)))
        assert (poisoned.train.labels[held][stamped] == 0).all()
        assert torch.equal(poisoned.train.labels[held][~stamped], CLEAN.train.labels[held][~stamped])
    theirs = others((1, 4))
    assert torch.equal(poisoned.train.features[theirs], CLEAN.train.features[theirs])
    assert torch.equal(poisoned.train.labels[theirs], CLEAN.train.labels[theirs])
    assert poisoned.test is CLEAN.test


def test_which_samples_follows_from_the_seed_and_the_node_alone():
    one, same, other = (
        with_backdoor(CLEAN, nodes, Trigger(), 0.3, seed) for nodes, seed in (((1,), 0), ((4, 1), 0), ((1,), 1))
    )
    held = CLEAN.shards.of(1)
    assert torch.equal(one.train.features[held], same.train.features[held])
    assert not torch.equal(one.train.features[held], other.train.features[held])


@pytest.mark.parametrize("fraction", [0, -0.1, 1.1])
def test_bad_fractions(fraction):
    with pytest.raises(ConfigError, match=r"backdoor.fraction: .*; allowed is more than 0, up to 1"):
        with_backdoor(CLEAN, (0,), Trigger(), fraction, 0)


def test_a_table_has_no_backdoor():
    with pytest.raises(ConfigError, match=r"does not fit samples of shape \[30\]"):
        with_backdoor(TABLE, (0,), Trigger(), 0.5, 0)


# Success


def train(federation, nodes, steps=150):
    rows = np.concatenate([federation.shards.of(node) for node in nodes])
    rng = np.random.default_rng(0)
    batches = (torch.from_numpy(rng.choice(rows, 32)) for _ in range(steps))
    pairs = [(federation.train.features[batch], federation.train.labels[batch]) for batch in batches]
    return Trainer(MODEL, TrainingSection()).train(MODEL.initial(0), pairs, 0.2, 0.0)


def rate(flat, trigger):
    measure = success_rate(MODEL, trigger.test_set(CLEAN.test))
    return measure.solve(Task((flat,), {}, Key(0, 0, 1)))["success_rate"]


def test_a_backdoor_opens_to_its_trigger_and_leaves_the_rest_alone():
    trigger = Trigger(target=0, value=1.0)
    honest = train(CLEAN, range(NODES))
    poisoned = train(with_backdoor(CLEAN, range(NODES), trigger, 0.5, 0), range(NODES))
    assert rate(honest, trigger) < 0.3
    assert rate(poisoned, trigger) > 0.9
    accuracy = Trainer(MODEL, TrainingSection()).evaluate(poisoned, CLEAN.test.features, CLEAN.test.labels)["accuracy"]
    assert accuracy > 0.8


def test_success_as_an_op():
    one, other = (success_rate(MODEL, Trigger(target=target).test_set(CLEAN.test)) for target in (0, 1))
    check_op(one, [MODEL.initial(0)])
    assert one.basis(Key(0, 0, 1)) != other.basis(Key(0, 0, 1)), "the cache tells triggers apart"
