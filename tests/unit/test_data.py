"""What a data set becomes: split, scaled, encoded and divided, the same way in every process."""

import numpy as np
import pytest
import torch

from node.config import DataSection
from node.learn.data import federate, load


@pytest.fixture
def archive(tmp_path):
    """Writes an .npz file and returns its name."""

    def write(**arrays):
        np.savez(tmp_path / "samples.npz", **arrays)
        return str(tmp_path / "samples.npz")

    return write


def test_digits_are_images_between_zero_and_one():
    train, test = load(DataSection(), 0)
    assert train.features.shape == (1437, 1, 8, 8)
    assert test.features.shape == (360, 1, 8, 8)
    assert train.features.dtype == torch.float32
    assert train.labels.dtype == torch.int64
    assert (train.features.min(), train.features.max()) == (0, 1)
    assert train.classes == test.classes == 10
    assert train.owners is None


def test_breast_cancer_is_standardised_by_its_training_part():
    train, test = load(DataSection(name="breast_cancer"), 0)
    assert train.features.shape[1:] == (30,)
    assert torch.allclose(train.features.mean(0), torch.zeros(30), atol=1e-5)
    assert torch.allclose(train.features.std(0, correction=0), torch.ones(30), atol=1e-5)
    assert not torch.allclose(test.features.mean(0), torch.zeros(30), atol=1e-3)


@pytest.mark.parametrize("name", ["digits", "breast_cancer", "synthetic"])
@pytest.mark.parametrize("fraction", [0.1, 0.2, 0.5])
def test_the_split_keeps_the_shares_of_labels(name, fraction):
    train, test = load(DataSection(name=name, test_fraction=fraction, samples=1000), 3)
    held, kept = (torch.bincount(part.labels, minlength=part.classes) for part in (test, train))
    assert abs(len(test.labels) - fraction * len(torch.cat([train.labels, test.labels]))) < 1
    assert torch.all((held - fraction * (held + kept)).abs() <= 1)


def test_the_split_uses_each_sample_once(archive):
    name = archive(x=np.arange(50.0).reshape(50, 1, 1), label=np.arange(50) % 3)
    train, test = load(DataSection(name=name), 0)
    assert sorted(torch.cat([train.features, test.features]).flatten().tolist()) == list(range(50))


def test_the_seed_decides_the_split():
    first, again, other = (load(DataSection(), seed)[1] for seed in (1, 1, 2))
    assert torch.equal(first.features, again.features)
    assert torch.equal(first.labels, again.labels)
    assert not torch.equal(first.features, other.features)


def test_synthetic_has_the_shape_that_was_asked_for():
    train, test = load(DataSection(name="synthetic", samples=500, classes=7, shape=(3, 5, 4)), 0)
    labels = torch.cat([train.labels, test.labels])
    assert train.features.shape == (400, 3, 5, 4)
    assert train.classes == 7
    assert torch.bincount(labels).tolist() == [72] * 3 + [71] * 4


def test_synthetic_classes_are_as_hard_as_their_noise():
    def nearest_centre_accuracy(noise):
        train, test = load(DataSection(name="synthetic", samples=2000, shape=(8,), noise=noise), 0)
        centres = torch.stack([train.features[train.labels == label].mean(0) for label in range(10)])
        return (torch.cdist(test.features, centres).argmin(1) == test.labels).float().mean().item()

    assert nearest_centre_accuracy(0.0) == 1.0
    assert nearest_centre_accuracy(1.0) > 0.6
    assert nearest_centre_accuracy(10.0) < 0.35


def test_labels_and_owners_are_numbered_in_their_own_order(archive):
    name = archive(x=np.zeros((40, 1, 1)), label=np.tile([10, -3, 2, 10], 10), who=np.tile([30, 4, 4, 30], 10))
    train, _ = load(DataSection(name=name, column="who"), 0)
    assert set(zip(train.labels.tolist(), train.owners.tolist(), strict=True)) == {(2, 1), (0, 0), (1, 0)}


def test_a_constant_column_becomes_zero_and_not_noise(archive):
    name = archive(label=[0, 1] * 20, x=np.stack([np.full(40, 0.1), np.arange(40)], axis=1))
    train, _ = load(DataSection(name=name), 0)
    assert train.features[:, 0].abs().max() < 1e-6
    assert train.features[:, 1].std() > 0.9


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "quantity"])
@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.9])
def test_a_federation_divides_every_training_sample(kind, fraction):
    made = federate(DataSection(partition=kind, local_test_fraction=fraction), 30, 5)
    both = np.concatenate([made.shards.indices, made.local_tests.indices])
    assert sorted(both.tolist()) == list(range(1437))
    assert made.shards.sizes.min() >= 1
    whole = made.shards.sizes + made.local_tests.sizes
    assert np.all(np.abs(made.local_tests.sizes - whole * fraction) <= np.maximum(0.5, fraction))


def test_local_tests_leave_the_partition_and_the_test_set_as_they_are():
    without, held = (federate(DataSection(local_test_fraction=fraction), 8, 1) for fraction in (0.0, 0.3))
    assert torch.equal(without.test.features, held.test.features)
    for node in range(8):
        both = np.concatenate([held.shards.of(node), held.local_tests.of(node)])
        assert np.array_equal(np.sort(both), without.shards.of(node))
        assert without.local_tests.size(node) == 0


def test_a_thousand_nodes_on_digits():
    made = federate(DataSection(partition="dirichlet", alpha=0.5, local_test_fraction=0.5), 1_000, 0)
    assert made.shards.sizes.min() == 1
    assert len(made.shards.indices) + len(made.local_tests.indices) == 1437


def test_a_federation_by_owner_gives_each_owner_its_node(archive):
    rng = np.random.default_rng(0)
    who = np.repeat(["carol", "alice", "bob"], 20)
    name = archive(x=rng.normal(size=(60, 2)), label=np.arange(60) % 2, who=who)
    made = federate(DataSection(name=name, column="who", partition="natural"), 3, 0)
    for node in range(3):
        assert set(made.train.owners[made.shards.of(node)].tolist()) == {node}


def test_the_same_section_and_seed_make_the_same_federation():
    section = DataSection(partition="dirichlet", local_test_fraction=0.2)
    first, again, other = (federate(section, 10, seed) for seed in (4, 4, 5))
    assert torch.equal(first.train.features, again.train.features)
    assert np.array_equal(first.shards.indices, again.shards.indices)
    assert np.array_equal(first.local_tests.indices, again.local_tests.indices)
    assert not np.array_equal(first.local_tests.indices, other.local_tests.indices)
