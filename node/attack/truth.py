"""What really was a member, and what was not: the evaluator's knowledge, which no message carries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from torch import Tensor

from node.attack.references import label_marginal, matching_rows
from node.learn.data import Dataset, Federation


class Labelled(NamedTuple):
    """Some samples."""

    features: Tensor
    """float32 [samples, *shape]."""
    labels: Tensor
    """int64 [samples]."""


class _Split(NamedTuple):
    """A test set in three disjoint parts: rows, int64."""

    non_members: np.ndarray
    pool: np.ndarray
    population: np.ndarray


class Truth:
    """Members and non-members of every node's training data, all from the node's own distribution.

    A node's test set serves three ends that must not meet: one half are non-members, a quarter is the pool that an
    attacker trains its reference models on, and a quarter the population that it compares with.

    Args:
        federation: who holds what.
        seed: of the parts.
        matched: give non-members and pool the label marginal of the node, as where labels are skewed; a classifier
            would otherwise tell members by their labels alone.
    """

    def __init__(self, federation: Federation, seed: int, *, matched: bool) -> None:
        self._federation = federation
        self._seed = seed
        self._matched = matched
        self._splits: dict[int, _Split] = {}

    def has_data(self, node: int) -> bool:
        """Whether a node trains on anything; a server does not."""
        return self._federation.shards.size(node) > 0

    def members(self, node: int) -> Labelled:
        """What a node trains on."""
        return _rows(self._federation.train, self._federation.shards.of(node))

    def non_members(self, node: int) -> Labelled:
        """Samples of the node's own distribution that no node trains on."""
        return self._part(node, self._split(node).non_members, b"non-members")

    def pool(self, node: int) -> Labelled:
        """Samples of that distribution for an attacker's reference models; disjoint from the above."""
        return self._part(node, self._split(node).pool, b"pool")

    def population(self, node: int) -> Labelled:
        """Samples of that distribution that nothing at all is trained on; disjoint from the above."""
        return _rows(self._federation.own_test(node), self._split(node).population)

    def group_of(self, node: int) -> int:
        """The group of a node."""
        return self._federation.group_of(node)

    def _split(self, node: int) -> _Split:
        group = self._federation.group_of(node)
        if group not in self._splits:
            rows = len(self._federation.own_test(node).labels)
            order = np.random.default_rng([self._seed, group + 1, *b"audit"]).permutation(rows)
            half, quarter = rows // 2, rows // 4
            self._splits[group] = _Split(order[:half], order[half : half + quarter], order[half + quarter :])
        return self._splits[group]

    def _part(self, node: int, rows: np.ndarray, purpose: bytes) -> Labelled:
        test = self._federation.own_test(node)
        if not self._matched:
            return _rows(test, rows)
        labels = test.labels.numpy()[rows]
        marginal = label_marginal(self.members(node).labels.numpy(), test.classes)
        marginal[np.bincount(labels, minlength=test.classes) == 0] = 0
        if not marginal.any():
            return _rows(test, rows)
        rng = np.random.default_rng([self._seed, node, *purpose])
        return _rows(test, rows[matching_rows(labels, marginal / marginal.sum(), rng)])


def _rows(data: Dataset, rows: np.ndarray) -> Labelled:
    return Labelled(data.features[rows], data.labels[rows])
