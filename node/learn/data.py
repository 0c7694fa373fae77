"""What the nodes of one experiment learn from: the data set, who holds which of its samples, and what is held out.

Everything here follows from the experiment's file and seed alone, so that a simulation and separate processes agree.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch

from node.config import DataSection, PublicSection
from node.errors import ConfigError
from node.learn.division import given
from node.learn.groups import Groups, check_idle, divide
from node.learn.partition import Shards, hold_out, partition
from node.learn.public import HELD_OUT, PublicData, checked, chosen, source_of
from node.learn.samples import Samples
from node.learn.sources import read

__all__ = ["Dataset", "Federation", "Shards", "federate", "load"]


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled samples, ready for a model."""

    features: torch.Tensor
    """float32 [samples, *shape]: one-dimensional samples have zero mean and unit variance in the training set."""
    labels: torch.Tensor
    """int64 [samples], from 0 to ``classes - 1``: the label's place among the sorted labels."""
    classes: int
    """How many labels there are."""
    owners: np.ndarray | None
    """Natural partition, int64 [samples]: the owner's place among the sorted owners of training and test samples."""
    groups: Groups | None = None
    """Of training samples: the groups of nodes that they are for, where there are groups."""

    @property
    def is_standardised(self) -> bool:
        """Whether the features were scaled by the statistics of the whole training set, whoever holds its samples."""
        return self.features.ndim == 2

    def rows(self, chosen: np.ndarray) -> Dataset:
        """Some of the samples, by number, without their groups."""
        features, labels = self.features[chosen], self.labels[chosen]
        return Dataset(features, labels, self.classes, None if self.owners is None else self.owners[chosen])


@dataclass(frozen=True, slots=True, eq=False)
class Federation:
    """Everything that the nodes of one experiment learn from."""

    train: Dataset
    test: Dataset
    """Global test set: no node trains on it."""
    shards: Shards
    """Into ``train``: what each node trains on, at least one sample."""
    local_tests: Shards
    """Into ``train``: what each node holds out for itself; a node of one sample holds out none."""
    public: PublicData | None = None
    """What everybody has besides."""

    @property
    def groups(self) -> int:
        """How many groups of nodes there are; 1 where all data are of one kind."""
        return 1 if self.train.groups is None else len(self.train.groups.tests)

    def group_of(self, node: int) -> int:
        """The group that a node belongs to; 0 where there are none, -1 for a node without data where there are some."""
        if self.train.groups is None:
            return 0
        samples = self.shards.of(node)
        return int(self.train.groups.of_sample[samples[0]]) if len(samples) else -1

    def own_test(self, node: int) -> Dataset:
        """Test samples from a node's own distribution: its group's, or the global test set where it has no group."""
        group = self.group_of(node)
        return self.test if self.train.groups is None or group < 0 else self.train.groups.tests[group]


_Divided: TypeAlias = tuple[Dataset, Dataset, Shards, PublicData | None]


def load(section: DataSection, seed: int) -> tuple[Dataset, Dataset]:
    """The training and test set that ``data.name`` means; split by label, unless it comes with a test set of its own.

    Raises ConfigError, naming file and column, for data that is not there or that no model could learn from.
    """
    return _ready(*_read(section, seed))


def _read(section: DataSection, seed: int) -> tuple[Samples, Samples, np.ndarray]:
    """Training and test samples as their source gives them, and all labels that may be learned."""
    train, test = read(section, seed)
    classes = np.unique(train.labels)
    if len(classes) < 2:
        raise ConfigError(f"{train.source}: every label is {classes[0]}; learning needs at least 2 classes")
    if test is None:
        train, test = _split(train, section.test_fraction, seed)
    return train, test, classes


def _ready(train: Samples, test: Samples, classes: np.ndarray) -> tuple[Dataset, Dataset]:
    """The same, scaled and encoded."""
    features = _scaled(train, test)
    owners = _numbered(train, test)
    labels = [_encoded(samples, classes) for samples in (train, test)]
    ready = [Dataset(*columns[:2], len(classes), columns[2]) for columns in zip(features, labels, owners, strict=True)]
    return ready[0], ready[1]


def federate(section: DataSection, nodes: int, seed: int, public: PublicSection | None = None) -> Federation:
    """Load, set public samples aside, partition (group by group), and hold out each node's own test samples.

    Raises ConfigError as :func:`load`, :func:`node.learn.groups.divide` and :func:`node.learn.partition.partition` do,
    and for public samples that are not there or do not fit.
    """
    samples = _as_given if section.division else _as_drawn
    train, test, shards, common = samples(section, nodes, seed, public)
    counts = np.minimum(np.rint(shards.sizes * section.local_test_fraction).astype(np.int64), shards.sizes - 1)
    rng = np.random.default_rng([seed, *b"local tests"])
    shards, local_tests = hold_out(shards, train.labels.numpy(), counts, rng)
    return Federation(train, test, shards, local_tests, common)


def _as_drawn(section: DataSection, nodes: int, seed: int, public: PublicSection | None) -> _Divided:
    """Training and test samples, who has which, and public samples, by the seed."""
    samples, tests, classes = _read(section, seed)
    train, test = _ready(samples, tests, classes)
    common = None
    if public is not None and public.name:
        common, train = _set_aside(public, section, samples, train, seed)
    if section.groups:
        groups, shards = divide(section, train, test, nodes, seed)
        return replace(train, groups=groups), test, shards, common
    check_idle(section)
    return train, test, partition(section, train, nodes, seed), common


def _as_given(section: DataSection, nodes: int, seed: int, public: PublicSection | None) -> _Divided:
    """The same as ``data.division`` says."""
    every, tests = read(section, seed)
    if tests is not None or section.groups:
        reason = "the data come with test samples of their own" if tests is not None else "data.groups divides them too"
        raise ConfigError(f"data.division: {reason}; leave it empty")
    classes, labels = np.unique(every.labels, return_inverse=True)
    division = given(section, labels, nodes, seed)
    held = np.sort(np.concatenate([*division.nodes, division.public]))
    train, test = _ready(every.rows(held), every.rows(division.tests), classes)
    common, places = None, [np.searchsorted(held, rows) for rows in division.nodes]
    if public is not None and public.name == HELD_OUT:
        rows = np.searchsorted(held, division.public)
        known = train.labels[rows] if public.labelled else None
        common = PublicData(HELD_OUT, train.features[rows], checked(public, len(rows)), 0, known)
    elif public is not None and public.name:
        common, _ = _set_aside(public, section, every.rows(held), train, seed)
    own = np.sort(np.concatenate(places))
    node_of = np.empty(len(held), np.int64)
    for node, rows in enumerate(places):
        node_of[rows] = node
    return train.rows(own), test, Shards.grouped(np.arange(len(own)), node_of[own], nodes), common


def _set_aside(
    public: PublicSection, section: DataSection, samples: Samples, train: Dataset, seed: int
) -> tuple[PublicData, Dataset]:
    """Public samples, and what is left to train on."""
    if public.name == HELD_OUT:
        rows = chosen(public, len(train.labels), seed)
        labels = train.labels[rows] if public.labelled else None
        held = PublicData(public.name, train.features[rows], checked(public, len(rows)), 0, labels)
        return held, train.rows(np.setdiff1d(np.arange(len(train.labels)), rows))
    other = source_of(public, section, samples, seed)
    rows = chosen(public, len(other.labels), seed)
    known = np.isin(other.labels[rows], samples.labels)
    foreign = int((~known).sum()) if public.label else None
    features = _scaled(samples, other)[1][rows]
    labels = _encoded(other.rows(rows), np.unique(samples.labels)) if public.labelled else None
    return PublicData(other.source, features, checked(public, len(rows)), foreign, labels), train


def _split(samples: Samples, fraction: float, seed: int) -> tuple[Samples, Samples]:
    """Hold out a fraction of the samples, rounded up, in proportion to their labels."""
    count = len(samples.labels)
    whole = Shards(np.array([0, count]), np.arange(count))
    wanted = np.array([min(math.ceil(count * fraction), count - 1)])
    rng = np.random.default_rng([seed, *b"test set"])
    kept, held = hold_out(whole, np.unique(samples.labels, return_inverse=True)[1], wanted, rng)
    return samples.rows(kept.indices), samples.rows(held.indices)


def _scaled(train: Samples, test: Samples) -> list[torch.Tensor]:
    """Features as float32; one-dimensional ones standardised with the statistics of the training set."""
    parts = [train.features, test.features]
    if train.features.shape[1:] != test.features.shape[1:]:
        shapes = [list(part.shape[1:]) for part in parts]
        raise ConfigError(f"{test.source}: features of shape {shapes[1]}, but the training samples have {shapes[0]}")
    if train.features.ndim == 2:
        from sklearn.preprocessing import StandardScaler  # with SciPy, 75 MB that images do without

        scaler = StandardScaler().fit(train.features)
        parts = [scaler.transform(part) for part in parts]
    return [torch.from_numpy(np.require(part, np.float32, ["C", "W"])) for part in parts]


def _encoded(samples: Samples, classes: np.ndarray) -> torch.Tensor:
    known = np.isin(samples.labels, classes)
    if not known.all():
        raise ConfigError(f"{samples.source}: label {samples.labels[~known][0]} is not among the training samples'")
    return torch.from_numpy(np.searchsorted(classes, samples.labels))


def _numbered(train: Samples, test: Samples) -> list[np.ndarray | None]:
    """Owners as numbers that mean the same in both sets."""
    if train.owners is None or test.owners is None:
        return [None, None]
    numbers = np.unique(np.concatenate([train.owners, test.owners]), return_inverse=True)[1]
    return [numbers[: len(train.owners)], numbers[len(train.owners) :]]
