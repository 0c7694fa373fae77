"""How samples are divided: each exactly once, by the rule that was asked for, and the same from the same seed."""

import time
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from node.config import DataSection
from node.errors import ConfigError
from node.learn.data import Dataset
from node.learn.partition import Shards, hold_out, partition

KINDS = ("iid", "dirichlet", "shards", "quantity", "natural")


def dataset(labels, owners=None):
    labels = torch.as_tensor(np.asarray(labels), dtype=torch.int64)
    owners = None if owners is None else np.asarray(owners, dtype=np.int64)
    return Dataset(torch.zeros(len(labels), 1), labels, int(labels.max()) + 1, owners)


def balanced(samples, classes=10):
    return dataset(np.arange(samples) % classes)


def histograms(data, shards, nodes):
    """Samples of each label at each node, [nodes, classes]."""
    return np.stack([np.bincount(data.labels[shards.of(node)], minlength=data.classes) for node in range(nodes)])


def skew(data, shards, nodes):
    """Mean total variation between a node's labels and those of the whole."""
    shares = histograms(data, shards, nodes) / shards.sizes[:, None]
    whole = np.bincount(data.labels) / len(data.labels)
    return float(np.abs(shares - whole).sum(axis=1).mean() / 2)


def assert_each_once(shards, nodes, samples):
    assert len(shards.offsets) == nodes + 1
    assert sorted(shards.indices.tolist()) == list(range(samples))
    assert shards.sizes.min() >= 1
    assert shards.offsets.dtype == shards.indices.dtype == np.int64


def test_shards_are_slices_of_one_array():
    shards = Shards.grouped(np.array([3, 5, 8, 9]), np.array([2, 0, 2, 0]), 4)
    assert [shards.of(node).tolist() for node in range(4)] == [[5, 9], [], [3, 8], []]
    assert [shards.size(node) for node in range(4)] == [2, 0, 2, 0] == shards.sizes.tolist()
    assert isinstance(shards.size(0), int)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_every_partition_gives_each_sample_to_one_node_and_each_node_a_sample(data):
    labels = data.draw(st.lists(st.integers(0, 6), min_size=1, max_size=120))
    nodes = data.draw(st.integers(1, len(labels)))
    owners = data.draw(st.permutations([i % nodes if i < nodes else (i * 7) % (nodes + 3) for i in range(len(labels))]))
    kind = data.draw(st.sampled_from(KINDS))
    section = DataSection(
        partition=kind,
        alpha=data.draw(st.floats(1e-300, 1e300)),
        shards_per_node=data.draw(st.integers(1, len(labels) // nodes)),
    )
    shards = partition(section, dataset(labels, owners), nodes, data.draw(st.integers(0, 2**63 - 1)))
    assert_each_once(shards, nodes, len(labels))
    assert all(np.all(np.diff(shards.of(node)) > 0) for node in range(nodes))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shards", "quantity"])
def test_the_seed_decides(kind):
    data, section = balanced(500), DataSection(partition=kind)
    first, again, other = (partition(section, data, 10, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.offsets, again.offsets)
    assert np.array_equal(first.indices, again.indices)
    assert not np.array_equal(first.indices, other.indices)


@pytest.mark.parametrize(("samples", "nodes"), [(100, 10), (103, 10), (7, 7), (5, 1)])
def test_iid_sizes_differ_by_at_most_one(samples, nodes):
    shards = partition(DataSection(), balanced(samples), nodes, 0)
    assert sorted(shards.sizes) == sorted([samples // nodes + (node < samples % nodes) for node in range(nodes)])


def test_iid_nodes_see_every_label_in_proportion():
    data = balanced(20_000)
    counts = histograms(data, partition(DataSection(), data, 10, 0), 10)
    # 200 expected of each; five standard deviations of a hypergeometric draw.
    assert np.abs(counts - 200).max() < 5 * np.sqrt(200 * 0.9 * 0.9)


def test_label_skew_grows_as_alpha_falls():
    data = balanced(5_000)
    skews = [
        skew(data, partition(DataSection(partition="dirichlet", alpha=alpha), data, 20, 0), 20)
        for alpha in (1000.0, 10.0, 1.0, 0.1, 0.01)
    ]
    assert all(milder < stronger for milder, stronger in pairwise(skews))
    assert skews[0] < 0.05
    assert skews[-1] > 0.7


def test_dirichlet_shares_follow_their_distribution():
    """Variance of a node's share of a class under a symmetric Dirichlet: (1/n)(1 - 1/n) / (n alpha + 1)."""
    nodes, classes, alpha = 10, 400, 0.5
    data = dataset(np.repeat(np.arange(classes), 200))
    shares = histograms(data, partition(DataSection(partition="dirichlet", alpha=alpha), data, nodes, 3), nodes) / 200
    assert shares.mean() == pytest.approx(0.1)
    assert shares.var() == pytest.approx(0.1 * 0.9 / (nodes * alpha + 1), rel=0.1)


def test_no_place_among_the_nodes_is_favoured():
    """Rounding must not take from the first node nor give to the last one, even where shares are below one sample."""
    data, section = dataset(np.repeat(np.arange(40), 50)), DataSection(partition="dirichlet", alpha=100.0)
    sizes = sum(partition(section, data, 100, seed).sizes for seed in range(20)) / 20
    assert abs(sizes[0] - 20) < 4
    assert abs(sizes[-1] - 20) < 4


def test_quantity_skews_amounts_and_not_labels():
    data = balanced(20_000)
    shards = partition(DataSection(partition="quantity", alpha=0.5), data, 20, 0)
    even = partition(DataSection(partition="quantity", alpha=1000.0), data, 20, 0)
    assert shards.sizes.max() > 3 * 1000
    assert even.sizes.max() < 1.2 * 1000
    assert partition(DataSection(partition="quantity", alpha=1e308), data, 20, 0).sizes.max() <= 1001
    large = shards.sizes > 500
    shares = histograms(data, shards, 20)[large] / shards.sizes[large, None]
    assert np.abs(shares - 0.1).max() < 0.07


@pytest.mark.parametrize("per_node", [1, 2, 5])
def test_a_node_of_label_sorted_shards_sees_few_labels(per_node):
    data = balanced(1_000)
    shards = partition(DataSection(partition="shards", shards_per_node=per_node), data, 20, 0)
    assert shards.sizes.tolist() == [50] * 20
    # Shards tile the classes exactly here, so that no shard holds two labels.
    assert (histograms(data, shards, 20) > 0).sum(axis=1).max() <= per_node


def test_shards_of_uneven_length_differ_by_at_most_one():
    sizes = partition(DataSection(partition="shards", shards_per_node=1), balanced(107), 10, 0).sizes
    assert sorted(sizes) == [10] * 3 + [11] * 7


def test_as_many_owners_as_nodes_is_one_owner_a_node_in_order():
    owners = [2, 0, 1, 2, 2, 0]
    shards = partition(DataSection(partition="natural"), dataset([0, 1, 0, 1, 0, 1], owners), 3, 9)
    assert [shards.of(node).tolist() for node in range(3)] == [[1, 5], [2], [0, 3, 4]]


def test_owners_absent_from_the_training_set_do_not_count():
    shards = partition(DataSection(partition="natural"), dataset([0, 1, 0], [4, 9, 4]), 2, 0)
    assert [shards.of(node).tolist() for node in range(2)] == [[0, 2], [1]]


def test_more_owners_than_nodes_are_grouped_whole_and_balanced():
    owners = np.repeat(np.arange(12), [30, 1, 9, 9, 10, 2, 8, 11, 10, 10, 10, 10])
    shards = partition(DataSection(partition="natural"), dataset(np.arange(120) % 2, owners), 4, 0)
    homes = [set(owners[shards.of(node)].tolist()) for node in range(4)]
    assert sum(len(home) for home in homes) == 12
    assert sorted(shards.sizes) == [29, 30, 30, 31]


def test_a_node_that_got_nothing_takes_from_the_largest():
    """Ten samples that all go to one of five nodes: each other node ends with one, the sixth stays where it was."""
    shards = partition(DataSection(partition="quantity", alpha=1e-9), balanced(10), 5, 0)
    assert sorted(shards.sizes) == [1, 1, 1, 1, 6]


def test_repair_levels_the_large_nodes_only():
    data = balanced(1_437)
    shards = partition(DataSection(partition="dirichlet", alpha=0.5), data, 1_000, 0)
    assert_each_once(shards, 1_000, 1_437)
    assert shards.sizes.max() <= 4


def test_what_repair_moves_is_not_always_one_label():
    data = dataset(np.repeat(np.arange(10), 100))
    shards = partition(DataSection(partition="quantity", alpha=1e-9), data, 500, 0)
    moved = data.labels[np.concatenate([shards.of(node) for node in range(500) if shards.size(node) == 1])]
    assert np.bincount(moved, minlength=10).min() > 20


def test_a_hundred_thousand_nodes_take_seconds():
    data, start = balanced(500_000), time.process_time()
    for kind in ("dirichlet", "iid"):
        assert_each_once(partition(DataSection(partition=kind), data, 100_000, 0), 100_000, 500_000)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("kind", KINDS)
def test_more_nodes_than_samples_names_both(kind):
    with pytest.raises(ConfigError, match="nodes: 11 nodes for 10 training samples"):
        partition(DataSection(partition=kind), dataset(np.arange(10) % 2, np.arange(10)), 11, 0)


def test_more_shards_than_samples_names_both():
    with pytest.raises(
        ConfigError, match=r"3 for each of 40 nodes makes 120 shards.* 100 training samples.*at most 2$"
    ):
        partition(DataSection(partition="shards", shards_per_node=3), balanced(100), 40, 0)


def test_natural_without_owners_says_what_to_set():
    with pytest.raises(ConfigError, match=r"'natural' needs samples with owners, and digits names none; set data\.col"):
        partition(DataSection(partition="natural"), balanced(100), 4, 0)


def test_fewer_owners_than_nodes_names_both():
    section = DataSection(name="people.csv", column="person", partition="natural")
    with pytest.raises(ConfigError, match=r"finds 3 owners in 'person' of people.csv, too few for 4 nodes"):
        partition(section, dataset(np.arange(9) % 2, np.arange(9) % 3), 4, 0)


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_holding_out_takes_exactly_what_was_asked_in_proportion_to_labels(data):
    labels = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=80)))
    nodes = data.draw(st.integers(1, 5))
    node_of = np.array(data.draw(st.lists(st.integers(0, nodes - 1), min_size=len(labels), max_size=len(labels))))
    shards = Shards.grouped(np.arange(len(labels)), node_of, nodes)
    counts = np.array([data.draw(st.integers(0, shards.size(node))) for node in range(nodes)])
    kept, held = hold_out(shards, labels, counts, np.random.default_rng(data.draw(st.integers(0, 2**32))))
    assert held.sizes.tolist() == counts.tolist()
    for node in range(nodes):
        both = np.concatenate([kept.of(node), held.of(node)])
        assert np.array_equal(np.sort(both), shards.of(node))
        all_labels, taken = (np.bincount(labels[rows], minlength=5) for rows in (shards.of(node), held.of(node)))
        assert np.all(np.abs(taken - all_labels * counts[node] / max(1, shards.size(node))) < 1)


def test_a_single_held_out_sample_may_have_any_label():
    """One of ten labels from each of many nodes: no label is preferred for its place in the order."""
    nodes = 2_000
    shards = Shards.grouped(np.arange(nodes * 10), np.repeat(np.arange(nodes), 10), nodes)
    labels = np.tile(np.arange(10), nodes)
    held = hold_out(shards, labels, np.ones(nodes, np.int64), np.random.default_rng(5))[1]
    assert np.abs(np.bincount(labels[held.indices]) - 200).max() < 5 * np.sqrt(200)


# Enough for everybody


def test_divisions_are_drawn_until_everybody_has_enough():
    data = balanced(1200)
    plain, enough = (DataSection(partition="dirichlet", alpha=0.1, least_samples=least) for least in (0, 10))
    drawn = [(partition(plain, data, 10, seed).sizes, partition(enough, data, 10, seed).sizes) for seed in range(20)]
    assert any(before.min() < 10 for before, _ in drawn)
    assert all(after.min() >= 10 and after.sum() == 1200 for _, after in drawn)
    assert all(np.array_equal(*sizes) for sizes in drawn if sizes[0].min() >= 10)  # the first that does is taken


def test_amounts_are_drawn_anew_too():
    section = DataSection(partition="quantity", alpha=0.5, least_samples=5)
    assert partition(section, balanced(400), 10, 3).sizes.min() >= 5


def test_what_no_draw_can_give_is_refused_with_all_numbers():
    section = DataSection(partition="dirichlet", alpha=0.01, least_samples=100)
    with pytest.raises(ConfigError, match=r"1000 divisions gives each of 10 nodes 100 of 1000 samples; .* \(0\.01\)"):
        partition(section, balanced(1000), 10, 0)


def test_rules_that_draw_nothing_have_nothing_to_draw_anew():
    with pytest.raises(ConfigError, match=r"data\.least_samples: nothing to draw anew for partition = 'iid'"):
        partition(DataSection(partition="iid", least_samples=3), balanced(100), 4, 0)
