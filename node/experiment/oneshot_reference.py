"""The divisions of digits that the known figures of one-shot algorithms are of: seeds draw them in these very lines.

With five seeds, spreads of ten points and more between divisions are usual where clients are skewed: who wants to know
whether an algorithm is right compares on the same ones.
"""

from __future__ import annotations

import numpy as np

from node.config import DataSection
from node.learn.division import Division

TESTS, PUBLIC = 400, 200
_LEAST = 10
"""Samples of the client that has fewest; it is drawn anew until then."""
_FIRST = 1000
"""Of the seeds of the test set."""

Rows = list[np.ndarray]


def divided(section: DataSection, labels: np.ndarray, nodes: int, seed: int) -> Division:
    """Of 1,797 labels: 400 test samples, 200 public ones, and all others as ``section.partition`` says."""
    order = np.random.default_rng(_FIRST + seed).permutation(len(labels))
    own = order[TESTS + PUBLIC :]
    shares = _shares(section, labels[own], nodes, np.random.default_rng(seed))
    return Division(order[:TESTS], order[TESTS : TESTS + PUBLIC], tuple(own[rows] for rows in shares))


def _shares(section: DataSection, labels: np.ndarray, nodes: int, rng: np.random.Generator) -> Rows:
    match section.partition:
        case "dirichlet":
            return _by_dirichlet(labels, nodes, section.alpha, rng)
        case "shards":
            return _by_shards(labels, nodes, section.shards_per_node, rng)
    return np.array_split(rng.permutation(len(labels)), nodes)


def _by_dirichlet(labels: np.ndarray, nodes: int, alpha: float, rng: np.random.Generator) -> Rows:
    """Each class shuffled, then cut in proportions drawn from Dir(alpha)."""
    shares: list[list[int]] = [[]]
    while min(map(len, shares)) < _LEAST:
        shares = [[] for _ in range(nodes)]
        for label in range(labels.max() + 1):
            members = np.flatnonzero(labels == label)
            rng.shuffle(members)
            cuts = (np.cumsum(rng.dirichlet([alpha] * nodes)) * len(members)).astype(int)[:-1]
            for share, part in zip(shares, np.split(members, cuts), strict=True):
                share += part.tolist()
    return [np.array(share) for share in shares]


def _by_shards(labels: np.ndarray, nodes: int, per_node: int, rng: np.random.Generator) -> Rows:
    """Equal pieces of all samples by rising label, so many for each."""
    pieces = np.array_split(np.argsort(labels, kind="stable"), nodes * per_node)
    dealt = rng.permutation(nodes * per_node).reshape(nodes, per_node)
    return [np.concatenate([pieces[piece] for piece in own]) for own in dealt]
