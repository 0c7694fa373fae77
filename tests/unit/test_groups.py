"""Groups of nodes whose data differ in kind: who is given what, what each is tested on, and what is refused."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import DataSection, ExperimentConfig
from node.errors import ConfigError
from node.experiment.setup import prepare
from node.learn.data import federate, load

KINDS = {
    "rotation": {},
    "labels": {"group_by": "labels"},
    "features": {"name": "breast_cancer", "group_by": "features", "group_column": 3},
}


def made(groups, seed=0, **keys):
    return federate(DataSection(groups=groups, **keys), sum(groups), seed)


def refusal(groups=(3, 1), nodes=4, **keys) -> str:
    with pytest.raises(ConfigError) as refused:
        federate(DataSection(groups=groups, **keys), nodes, 0)
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture
def archive(tmp_path):
    """Writes an .npz file and returns its name."""

    def write(**arrays):
        np.savez(tmp_path / "samples.npz", **arrays)
        return str(tmp_path / "samples.npz")

    return write


def turned(images, degrees):
    return torch.from_numpy(np.rot90(images.numpy(), degrees // 90, (2, 3)).copy())


# Who is in which group


@pytest.mark.parametrize("kind", KINDS)
def test_nodes_are_assigned_to_groups_in_order(kind):
    federation = made([5, 2], **KINDS[kind])
    assert [federation.group_of(node) for node in range(7)] == [0] * 5 + [1] * 2
    assert federation.groups == 2


def test_without_groups_there_is_one():
    federation = federate(DataSection(), 4, 0)
    assert (federation.groups, [federation.group_of(node) for node in range(4)]) == (1, [0] * 4)
    assert federation.own_test(3) is federation.test


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards", "quantity"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_partition_uses_each_sample_once(kind, partition):
    federation = made([4, 3], partition=partition, **KINDS[kind])
    assert sorted(federation.shards.indices) == list(range(len(federation.train.labels)))
    assert federation.shards.sizes.min() >= 1
    for node in range(7):
        shard = federation.shards.of(node)
        assert np.all(np.diff(shard) > 0)
        assert set(federation.train.groups.of_sample[shard]) == {federation.group_of(node)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_local_test_set_comes_from_a_nodes_own_group(kind):
    federation = made([4, 3], local_test_fraction=0.25, **KINDS[kind])
    for node in range(7):
        held = federation.local_tests.of(node)
        assert len(held)
        assert set(federation.train.groups.of_sample[held]) == {federation.group_of(node)}


def test_groups_count_learners():
    tables = {"nodes": 5, "protocol": {"use": "fedavg"}, "model": {"name": "softmax"}}
    setup = prepare(ExperimentConfig.model_validate({**tables, "data": {"groups": [3, 1]}}))
    assert [setup.workload.group_of(node) for node in range(5)] == [-1, 0, 0, 0, 1]
    assert setup.workload.held_samples(0, "own") == setup.workload.held_samples(0, "test")
    with pytest.raises(ConfigError, match=r"^data.groups: \[3, 2\] are 5 nodes, but 4 nodes hold data"):
        prepare(ExperimentConfig.model_validate({**tables, "data": {"groups": [3, 2]}}))


def test_memory_does_not_grow_with_nodes():
    few, many = made([3, 1]), made([300, 100])
    for federation in (few, many):
        tests = {id(federation.own_test(node)) for node in range(len(federation.shards.sizes))}
        assert len(tests) == 2
        assert federation.own_test(0) is federation.test


@pytest.mark.parametrize("kind", KINDS)
def test_section_and_seed_decide(kind):
    first, again, other = (made([5, 2], seed, **KINDS[kind]) for seed in (1, 1, 2))
    assert torch.equal(first.train.features, again.train.features)
    np.testing.assert_array_equal(first.shards.indices, again.shards.indices)
    assert not np.array_equal(first.shards.indices, other.shards.indices)


def test_equal_groups_are_divided_by_draws_of_their_own():
    sizes = made([5, 5], partition="quantity").shards.sizes
    assert list(sizes[:5]) != list(sizes[5:])


# Turned images


@pytest.mark.parametrize(("groups", "angles"), [([5, 2], [0, 180]), ([2, 1, 3, 2], [0, 90, 180, 270])])
def test_each_group_sees_its_images_turned(groups, angles):
    federation = made(groups)
    train, test = load(DataSection(), 0)
    for node in range(sum(groups)):
        angle = angles[federation.group_of(node)]
        shard, own = federation.shards.of(node), federation.own_test(node)
        assert torch.equal(federation.train.features[shard], turned(train.features[shard], angle))
        assert torch.equal(own.features, turned(test.features, angle))
        assert torch.equal(own.labels, test.labels)
    assert torch.equal(federation.train.labels, train.labels)
    assert torch.equal(federation.test.features, test.features)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=2), st.integers(0, 5))
@settings(max_examples=20)
def test_samples_go_to_groups_in_proportion_to_their_nodes(groups, seed):
    of_sample = made(groups, seed).train.groups.of_sample
    expected = len(of_sample) * np.array(groups) / sum(groups)
    assert np.all(np.abs(np.bincount(of_sample) - expected) <= max(groups))


def test_turned_groups_have_the_same_mix_of_labels():
    federation = made([8, 8])
    shares = []
    for group in range(2):
        labels = federation.train.labels.numpy()[federation.train.groups.of_sample == group]
        shares.append(np.bincount(labels, minlength=10) / len(labels))
    assert np.abs(shares[0] - shares[1]).max() < 0.05


def test_owners_keep_their_samples_together(archive):
    owner = np.arange(240) % 12
    name = archive(x=np.random.default_rng(0).random((240, 1, 4, 4)), label=np.arange(240) % 3, who=owner)
    federation = made([4, 2], name=name, column="who", partition="natural")
    owners = [set(federation.train.owners[federation.shards.of(node)]) for node in range(6)]
    assert sorted(owner for own in owners for owner in own) == list(range(12))


def test_as_many_owners_as_nodes_are_nodes_in_order(archive):
    name = archive(x=np.random.default_rng(0).random((60, 1, 4, 4)), label=np.arange(60) % 3, who=np.arange(60) % 6)
    federation = made([4, 2], name=name, column="who", partition="natural")
    assert [set(federation.train.owners[federation.shards.of(node)]) for node in range(6)] == [{i} for i in range(6)]


# Labels


def test_labels_are_divided_evenly():
    federation = made([2, 3, 1], group_by="labels")
    expected = [{0, 1, 2, 3}, {4, 5, 6}, {7, 8, 9}]
    for node in range(6):
        wanted = expected[federation.group_of(node)]
        assert set(federation.train.labels[federation.shards.of(node)].tolist()) == wanted
        assert set(federation.own_test(node).labels.tolist()) == wanted


def test_own_tests_by_label_are_all_of_the_test_set():
    federation = made([2, 2], group_by="labels")
    owned = torch.cat([federation.own_test(node).features for node in (0, 2)])
    assert sorted(owned.flatten(1).tolist()) == sorted(federation.test.features.flatten(1).tolist())
    assert federation.own_test(0).groups is None


# Values of a feature


@pytest.mark.parametrize(("groups", "column"), [([6, 2], 3), ([1, 1, 1], 0), ([2, 3, 4], 29)])
def test_groups_hold_values_between_quantiles(groups, column):
    federation = made(groups, name="breast_cancer", group_by="features", group_column=column)
    train, tests = federation.train, federation.train.groups.tests
    values = [train.features[train.groups.of_sample == group, column] for group in range(len(groups))]
    for lower, upper in itertools.pairwise(values):
        assert lower.max() < upper.min()
    shares = np.array([len(part) for part in values]) / len(train.labels)
    np.testing.assert_allclose(shares, np.array(groups) / sum(groups), atol=0.02)
    cuts = [part.min() for part in values[1:]]
    for own, low, high in zip(tests, [-np.inf, *cuts], [*cuts, np.inf], strict=True):
        assert torch.all((own.features[:, column] >= low) & (own.features[:, column] < high))
    assert sum(len(own.labels) for own in tests) == len(federation.test.labels)


@pytest.mark.parametrize("zeros", [80, 100, 120])
def test_equal_values_are_in_one_group(archive, zeros):
    name = archive(x=np.repeat([0.0, 1.0], [zeros, 200 - zeros])[:, None], label=np.arange(200) % 2)
    federation = made([3, 3], name=name, group_by="features")
    assert [len(set(federation.train.features[federation.shards.of(node), 0].tolist())) for node in range(6)] == [1] * 6


# What is refused


def test_sizes_must_fit_the_nodes():
    assert refusal((3, 3)) == "data.groups: [3, 3] are 6 nodes, but 4 nodes hold data; sizes must add up"
    assert refusal((4,)) == "data.groups: [4] is one group; write the sizes of 2 or more, or leave groups out"
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        DataSection(groups=(4, 0))


def test_images_turn_by_multiples_of_90_degrees():
    told = (
        "data.groups: 3 groups would be 120 degrees apart, and images turn by multiples of 90; allowed for 'rotation': "
    )
    assert refusal((2, 1, 1)) == f"{told}2 or 4 groups"


def test_only_square_images_turn_by_90_degrees(archive):
    name = archive(x=np.random.default_rng(0).random((60, 1, 4, 6)), label=np.arange(60) % 3)
    told = refusal((1, 1, 1, 1), name=name)
    assert told == "data.groups: images [1, 4, 6] turn by 90 degrees only if they are square; allowed: 2 groups"
    assert made([2, 2], name=name).own_test(3).features.shape[1:] == (1, 4, 6)


def test_only_images_turn(archive):
    told = (
        "data.group_by: 'rotation' turns images [channels, height, width]; samples of breast_cancer have shape [30]; "
    )
    assert refusal(name="breast_cancer") == f"{told}allowed: 'labels' or 'features'"
    name = archive(x=np.random.default_rng(0).random((60, 4, 4)), label=np.arange(60) % 3)
    assert refusal(name=name).endswith("have shape [4, 4]; allowed: 'labels'")


def test_columns_must_be_there():
    assert refusal(group_by="features").startswith(
        "data.group_by: 'features' needs samples with columns; those of digits"
    )
    told = refusal(name="breast_cancer", group_by="features", group_column=30)
    assert told == "data.group_column: breast_cancer has no column 30; allowed: 0 to 29"


def test_every_group_needs_a_label_of_its_own():
    told = refusal((1, 1, 2), name="breast_cancer", group_by="labels")
    assert told == "data.groups: 3 groups for 2 labels; every group needs one of its own"


@pytest.mark.parametrize("kind", ["labels", "features"])
def test_owners_cannot_be_cut_by_labels_or_values(kind):
    told = f"data.group_by: {kind!r} would divide the samples of one owner, whom partition = 'natural' keeps whole; "
    assert refusal(group_by=kind, partition="natural") == f"{told}allowed with it: 'rotation'"


@pytest.mark.parametrize("kind", ["rotation", "labels"])
def test_a_column_that_nobody_reads_is_a_mistake(kind):
    told = f"data.group_column: {kind!r} reads no column; allowed with it: 0"
    assert refusal(group_by=kind, group_column=2) == told


@pytest.mark.parametrize(("key", "value"), [("group_by", "labels"), ("group_column", 2)])
def test_keys_of_groups_without_groups_are_a_mistake(key, value):
    assert refusal((), **{key: value}) == f"data.{key}: there are no groups; write data.groups, or leave {key} out"


def test_every_node_of_a_group_needs_a_sample(archive):
    name = archive(x=np.arange(100.0)[:, None], label=np.where(np.arange(100) < 90, 0, 1))
    told = refusal((2, 20), nodes=22, name=name, group_by="labels")
    assert told == "data.groups: group 1 has 20 nodes, but only 8 training samples; every node needs one"


def test_every_group_needs_a_test_sample(archive):
    name = archive(x=np.arange(40.0)[:, None], label=np.arange(40) % 2)
    told = refusal((9, 1), nodes=10, name=name, group_by="features", test_fraction=0.03)
    assert told == "data.groups: the test set has no samples of group 1; raise data.test_fraction"
