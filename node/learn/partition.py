"""How training samples are divided among nodes, and what each node holds out for itself.

Every partitioner assigns each sample to one node; then every node that got nothing takes one sample from the largest.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from node.config import DataSection
from node.errors import ConfigError

if TYPE_CHECKING:
    from node.learn.data import Dataset

_MOST_DRAWS = 1_000


@dataclass(frozen=True, slots=True, eq=False)
class Shards:
    """Which samples are whose: those of node ``i`` are ``indices[offsets[i]:offsets[i + 1]]``, in rising order."""

    offsets: np.ndarray
    """int64 [nodes + 1]."""
    indices: np.ndarray
    """int64 [samples]: rows of the training set."""

    @classmethod
    def grouped(cls, samples: np.ndarray, node_of: np.ndarray, nodes: int) -> Self:
        """From rising sample numbers and the node of each, both int64 [samples]."""
        offsets = np.zeros(nodes + 1, np.int64)
        np.cumsum(np.bincount(node_of, minlength=nodes), out=offsets[1:])
        return cls(offsets, samples[np.argsort(node_of, kind="stable")])

    def of(self, node: int) -> np.ndarray:
        """The samples of one node, int64 [size]."""
        return self.indices[self.offsets[node] : self.offsets[node + 1]]

    def size(self, node: int) -> int:
        """How many samples one node has."""
        return int(self.offsets[node + 1] - self.offsets[node])

    @property
    def sizes(self) -> np.ndarray:
        """How many samples each node has, int64 [nodes]."""
        return np.diff(self.offsets)


def partition(section: DataSection, dataset: Dataset, nodes: int, seed: int) -> Shards:
    """Divide a data set among nodes: each sample exactly once, at least one sample for each node.

    Raises ConfigError where there are too few samples, shards or owners, naming both numbers.
    """
    samples = len(dataset.labels)
    if nodes > samples:
        raise ConfigError(
            f"nodes: {nodes} nodes for {samples} training samples; every node needs one: "
            f"lower nodes, or use more samples"
        )
    rng = np.random.default_rng([seed, *b"partition"])
    node_of = _assign(section, dataset, nodes, rng)
    if section.least_samples:
        node_of = _redrawn(node_of, section, dataset, nodes, rng)
    return Shards.grouped(np.arange(samples), _fill_empty(node_of, nodes, rng), nodes)


def _redrawn(
    node_of: np.ndarray, section: DataSection, dataset: Dataset, nodes: int, rng: np.random.Generator
) -> np.ndarray:
    """The first division, from this one on, in which each node has enough; int64 [samples]."""
    if section.partition not in ("dirichlet", "quantity"):
        raise ConfigError(
            f"data.least_samples: nothing to draw anew for partition = {section.partition!r}; allowed: 0, or "
            "'dirichlet' or 'quantity'"
        )
    for _ in range(_MOST_DRAWS):
        if np.bincount(node_of, minlength=nodes).min() >= section.least_samples:
            return node_of
        node_of = _assign(section, dataset, nodes, rng)
    raise ConfigError(
        f"data.least_samples: none of {_MOST_DRAWS} divisions gives each of {nodes} nodes {section.least_samples} of "
        f"{len(dataset.labels)} samples; lower it, or raise data.alpha ({section.alpha:g})"
    )


def _assign(section: DataSection, dataset: Dataset, nodes: int, rng: np.random.Generator) -> np.ndarray:
    """The node of each sample, int64 [samples]; some nodes may get none."""
    labels = dataset.labels.numpy()
    match section.partition:
        case "iid":
            return rng.permutation(len(labels)) % nodes
        case "dirichlet":
            return _by_dirichlet(labels, nodes, section.alpha, rng)
        case "quantity":
            return _by_dirichlet(np.zeros_like(labels), nodes, section.alpha, rng)
        case "shards":
            return _by_shards(labels, nodes, section.shards_per_node, rng)
        case "natural":
            return _by_owner(section, dataset, nodes)


def _by_dirichlet(classes: np.ndarray, nodes: int, alpha: float, rng: np.random.Generator) -> np.ndarray:
    """Cut each shuffled class in proportions over nodes, drawn from Dir(alpha): Yurochkin et al., ICML 2019.

    With a single class that holds all samples, it is the amounts that are skewed, and labels stay as in the whole.
    """
    order = np.lexsort((rng.permutation(len(classes)), classes))
    node_of = np.empty(len(classes), np.int64)
    for members in np.split(order, np.cumsum(np.bincount(classes))[:-1]):
        # Beyond this concentration shares are equal to within rounding, and the sampler would overflow.
        shares = rng.dirichlet(np.full(nodes, min(alpha, 1e12)))
        # The random offset rounds every node's share up or down without bias, however small it is.
        cuts = np.floor(np.cumsum(shares[:-1]) * len(members) + rng.random())
        node_of[members] = np.searchsorted(cuts, np.arange(len(members)), side="right")
    return node_of


def _by_shards(labels: np.ndarray, nodes: int, per_node: int, rng: np.random.Generator) -> np.ndarray:
    """Sort by label, cut into equal shards, deal ``per_node`` of them to each node: McMahan et al., AISTATS 2017."""
    samples, shards = len(labels), nodes * per_node
    if shards > samples:
        raise ConfigError(
            f"data.shards_per_node: {per_node} for each of {nodes} nodes makes {shards} shards, "
            f"more than the {samples} training samples; allowed here: at most {samples // nodes}"
        )
    order = np.lexsort((rng.permutation(samples), labels))
    node_of = np.empty(samples, np.int64)
    node_of[order] = rng.permutation(shards)[np.arange(samples) * shards // samples] // per_node
    return node_of


def _by_owner(section: DataSection, dataset: Dataset, nodes: int) -> np.ndarray:
    """Whole owners to nodes: the i-th to node i, or grouped, largest first to the smallest node (Graham, 1969)."""
    if dataset.owners is None:
        raise ConfigError(
            f"data.partition: 'natural' needs samples with owners, and {section.name} names none; "
            f"set data.column to the column of a file that does"
        )
    owners, owner_of, sizes = np.unique(dataset.owners, return_inverse=True, return_counts=True)
    if len(owners) < nodes:
        raise ConfigError(
            f"data.partition: 'natural' finds {len(owners)} owners in {section.column!r} of {section.name}, "
            f"too few for {nodes} nodes; make nodes at most {len(owners)}"
        )
    if len(owners) == nodes:
        return owner_of
    loads = [(0, node) for node in range(nodes)]
    node_of = np.empty(len(owners), np.int64)
    for owner in np.argsort(-sizes, kind="stable"):
        load, node = loads[0]
        node_of[owner] = node
        heapq.heapreplace(loads, (load + int(sizes[owner]), node))
    return node_of[owner_of]


def _fill_empty(node_of: np.ndarray, nodes: int, rng: np.random.Generator) -> np.ndarray:
    """Give each empty node a random sample of the node that is the largest at that moment."""
    sizes = np.bincount(node_of, minlength=nodes)
    empty = np.flatnonzero(sizes == 0)
    if not len(empty):
        return node_of
    order = np.lexsort((rng.permutation(len(node_of)), node_of))
    ends = np.cumsum(sizes)
    heap = [(-int(size), node) for node, size in enumerate(sizes)]
    heapq.heapify(heap)
    moved = np.empty(len(empty), np.int64)
    for i in range(len(empty)):
        size, node = heap[0]
        # What a node has given so far lies behind what it still has.
        moved[i] = ends[node] - sizes[node] - size - 1
        heapq.heapreplace(heap, (size + 1, node))
    filled = node_of.copy()
    filled[order[moved]] = empty
    return filled


def hold_out(shards: Shards, labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> tuple[Shards, Shards]:
    """Take ``counts[i]`` samples from node i, each label in proportion to within one sample: (kept, held out).

    Systematic sampling with a random start in label order (Madow and Madow, Annals of Mathematical Statistics, 1944).
    """
    nodes, sizes = len(counts), shards.sizes
    node_of = np.arange(nodes).repeat(sizes)
    order = np.lexsort((rng.permutation(len(node_of)), labels[shards.indices], node_of))
    position = np.arange(len(node_of)) - shards.offsets[:-1].repeat(sizes)
    start, step, size = (per.repeat(sizes) for per in (rng.integers(np.maximum(sizes, 1)), counts, sizes))
    held = np.empty(len(node_of), bool)
    held[order] = ((position + 1) * step + start) // size > (position * step + start) // size
    kept, taken = (Shards.grouped(shards.indices[rows], node_of[rows], nodes) for rows in (~held, held))
    return kept, taken
