"""Divisions of data that somebody else has made: taken as they are, and refused where they are none."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from node.config import DataSection, PublicSection
from node.errors import ConfigError
from node.experiment.oneshot_reference import divided
from node.learn.data import federate
from node.learn.division import Division

REFERENCE = "node.experiment.oneshot_reference:divided"
KINDS = [("iid", {}), ("dirichlet", {"alpha": 0.1}), ("dirichlet", {"alpha": 0.5}), ("shards", {})]


def backwards(section, labels, nodes, seed):
    """Every sample but the first: ten tests, ten public, and the last samples first."""
    rows = np.arange(len(labels))[::-1]
    return Division(rows[:10], rows[10:20], tuple(np.array_split(rows[20:-1], nodes)))


def overlapping(section, labels, nodes, seed):
    rows = np.arange(nodes)
    return Division(rows[:1], rows[:0], tuple(rows[:, None]))


def beyond(section, labels, nodes, seed):
    rows = np.arange(nodes) + len(labels)
    return Division(np.arange(3), rows[:0], tuple(rows[:, None]))


def untested(section, labels, nodes, seed):
    rows = np.arange(nodes)
    return Division(rows[:0], rows[:0], tuple(rows[:, None]))


def uneven(section, labels, nodes, seed):
    return Division(np.arange(3), np.arange(0), (np.arange(3, 9),))


def shares(name, nodes=5, **keys):
    section = DataSection(division=name if ":" in name else f"{__name__}:{name}", **keys)
    return federate(section, nodes, 0, PublicSection(name="held-out", check_fraction=0, labelled=True))


def test_every_sample_is_where_it_was_put():
    found, (features, labels) = shares("backwards"), load_digits(return_X_y=True)
    images = torch.from_numpy(features / 16).float().view(-1, 1, 8, 8)
    assert torch.equal(found.test.features, images.flip(0)[:10])
    assert found.test.labels.tolist() == labels[::-1][:10].tolist()
    assert torch.equal(found.public.features, images.flip(0)[10:20])
    assert found.public.labels.tolist() == labels[::-1][10:20].tolist()
    expected = np.array_split(np.arange(1, len(labels) - 20)[::-1], 5)
    for node, rows in enumerate(expected):
        own = found.shards.of(node)
        assert torch.equal(found.train.features[own], images[np.sort(rows)])
        assert found.train.labels[own].tolist() == labels[np.sort(rows)].tolist()


def test_nodes_hold_out_their_own_tests_of_what_they_were_given():
    found = shares("backwards", local_test_fraction=0.1)
    own, held = found.shards.of(2), found.local_tests.of(2)
    assert not set(own.tolist()) & set(held.tolist())
    assert len(held) == round(0.1 * (len(own) + len(held)))


def test_public_samples_may_come_from_elsewhere():
    """Then those that the division sets aside are nobody's."""
    section = DataSection(division=f"{__name__}:backwards")
    found = federate(section, 5, 0, PublicSection(name="synthetic", samples=30))
    assert len(found.public.features) == 30
    assert len(found.train.labels) == 1797 - 21


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("overlapping", "each of the 1797 samples one place at most"),
        ("beyond", "each of the 1797 samples one place at most"),
        ("untested", "must give test samples"),
        ("uneven", r"gives samples \[6\] for 5 nodes; each needs at least one"),
        ("node.nowhere:divided", "cannot import 'node.nowhere:divided'"),
        ("nothing", "cannot import .*module:callable"),
    ],
)
def test_what_is_no_division(name, complaint):
    with pytest.raises(ConfigError, match=f"data.division: .*{complaint}"):
        shares(name)


def test_a_name_without_a_module_is_refused():
    with pytest.raises(ConfigError, match=r"data\.division: cannot import .plain., which must be module:callable"):
        federate(DataSection(division="plain"), 5, 0)


def test_groups_and_a_division_do_not_go_together():
    with pytest.raises(ConfigError, match=r"data.division: data.groups divides them too"):
        shares("backwards", groups=(3, 2))


# The divisions that figures are known of


@pytest.mark.parametrize(("kind", "keys"), KINDS)
def test_known_divisions(kind, keys):
    for seed in range(5):
        labels = load_digits(return_X_y=True)[1]
        found = divided(DataSection(partition=kind, **keys), labels, 10, seed)
        assert (len(found.tests), len(found.public)) == (400, 200)
        assert sorted(np.concatenate([found.tests, found.public, *found.nodes])) == list(range(1797))
        assert min(map(len, found.nodes)) >= 10


def test_known_skew():
    """Mean classes of a client, as they are known: 10, 8.7, 4.8 and 2.6, over five seeds."""
    labels = load_digits(return_X_y=True)[1]
    means = []
    for kind, keys in (KINDS[0], KINDS[2], KINDS[1], KINDS[3]):
        found = [divided(DataSection(partition=kind, **keys), labels, 10, seed).nodes for seed in range(5)]
        means.append(np.mean([len(np.unique(labels[rows])) for nodes in found for rows in nodes]))
    assert np.round(means, 1) == pytest.approx([10.0, 8.7, 4.8, 2.6], abs=0.11)


def test_tests_are_the_same_however_samples_are_divided():
    labels = load_digits(return_X_y=True)[1]
    found = [divided(DataSection(partition=kind, **keys), labels, 10, 3) for kind, keys in KINDS]
    assert all(np.array_equal(each.tests, found[0].tests) for each in found)
    assert not np.array_equal(divided(DataSection(), labels, 10, 4).tests, found[0].tests)


def test_one_place_for_all_data():
    assert len(shares(REFERENCE, nodes=1).shards.of(0)) == 1197
