"""Who is whose neighbour, round by round, and how much a neighbour's model weighs.

A topology follows from its section of the experiment, the number of nodes and the seed: every node of a run builds the
same one for itself, and nothing about it travels.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from node.config import TopologySection
from node.errors import ConfigError
from node.topology import edge_list, kinds, random_graphs
from node.topology.graph import Graph, Mixing

MAX_ENDS = 2**24
"""Edge ends of the largest graph, which takes a gigabyte to build: 4,096 nodes, each with all others."""

# Of all the graphs that are kept for rounds to come back to: 17 MB with degree 4.
_KEPT_ENDS = 2**20
# Keeps this randomness apart from all other that derives from the experiment's seed.
_DOMAIN = int.from_bytes(b"topology")


def build(section: TopologySection, nodes: int, seed: int) -> Topology:
    """The topology of an experiment.

    Raises:
        ConfigError: there is no such graph, or its file cannot be read.
    """
    if section.kind in ("regular", "random-regular"):
        random_graphs.check_degree(nodes, section.degree)
    _refuse_huge(section, nodes)
    return Topology(section, nodes, seed)


class Topology:
    """The graph of each round, over nodes numbered from 0, and its mixing matrix W."""

    def __init__(self, section: TopologySection, nodes: int, seed: int) -> None:
        self.nodes = nodes
        self.kind = section.kind
        self.fresh = section.kind in ("one-peer", "random-regular")
        """The graph changes with the round."""
        self.directed = section.kind in ("exponential", "one-peer")
        """A node may send to one that does not send to it."""
        first = _draw(section, nodes, seed, 0)
        # The nodes of one simulation are at different rounds: keep a few graphs, more of them where they are small.
        kept = max(4, _KEPT_ENDS // max(1, len(first.targets.others)))
        self._graph = lru_cache(kept)(lambda at: _draw(section, nodes, seed, at) if at else first)
        self._mixing = lru_cache(kept)(lambda at: Mixing(self._graph(at), section.weights))

    def __repr__(self) -> str:
        return f"<Topology {self.kind} of {self.nodes} nodes>"

    def neighbours(self, node: int, round: int = 0) -> tuple[int, ...]:
        """Whom this node sends to, in rising order."""
        return self._graph(round if self.fresh else 0).targets[node]

    def sources(self, node: int, round: int = 0) -> tuple[int, ...]:
        """Who sends to this node, in rising order; in an undirected topology, its neighbours."""
        return self._graph(round if self.fresh else 0).sources[node]

    def weights(self, node: int, round: int = 0) -> tuple[float, ...]:
        """The node's own weight, then that of each of its sources, in their order; they sum to 1."""
        return self._mixing(round if self.fresh else 0)[node]

    def weights_of(self, heard: Collection[int], node: int, round: int = 0) -> tuple[float, ...]:
        """The same for those sources alone that were heard, in their order: the others' weights are the node's own."""
        own, *rest = self.weights(node, round)
        sources = self.sources(node, round)
        if tuple(heard) == sources:
            return (own, *rest)
        by_peer = dict(zip(sources, rest, strict=True))
        chosen = [by_peer[peer] for peer in heard]
        return (own + sum(by_peer[peer] for peer in sources if peer not in heard), *chosen)

    def matrix(self, round: int = 0) -> NDArray[np.float64]:
        """W as a dense matrix, shape (nodes, nodes): row i holds the weights of node i. For small numbers of nodes."""
        matrix = np.zeros((self.nodes, self.nodes))
        for node in range(self.nodes):
            matrix[node, (node, *self.sources(node, round))] = self.weights(node, round)
        return matrix

    def edges(self, round: int = 0) -> NDArray[np.int64]:
        """Sender and receiver of each edge, sorted, shape (edges, 2); undirected: each edge once, lower node first."""
        return self._graph(round if self.fresh else 0).edges()


def spectral_gap(matrix: NDArray[np.float64]) -> float:
    """How fast mixing with W brings models together: 1 - max(|lambda_2|, |lambda_n|), from 0 (never) to 1 (at once).

    One round multiplies the distance of the models from their average by at most 1 - gap (Xiao and Boyd, Systems &
    Control Letters 2004). Computed as the spectral norm of W - 11'/n, which is the same for every normal W (symmetric
    or circulant, so for all of this module), and the right bound for any other.

    Raises:
        ConfigError: W is not doubly stochastic.
    """
    if not (np.allclose(matrix.sum(axis=0), 1) and np.allclose(matrix.sum(axis=1), 1)):
        raise ConfigError(
            "topology.weights: a spectral gap needs rows and columns that sum to 1, which uniform weights have only"
            ' where all degrees are equal; set weights = "metropolis"'
        )
    return float(1 - np.linalg.norm(matrix - 1 / len(matrix), 2))


def _refuse_huge(section: TopologySection, nodes: int) -> None:
    key, per_node = {
        "full": ("kind", nodes - 1.0),
        "erdos-renyi": ("probability", section.probability * (nodes - 1)),
        "regular": ("degree", section.degree),
        "random-regular": ("degree", section.degree),
    }.get(section.kind, ("kind", 0.0))
    if nodes * per_node > MAX_ENDS:
        raise ConfigError(
            f"topology.{key}: {section.kind} would give each of {nodes} nodes about {per_node:.0f} neighbours; for so"
            f' many nodes at most {MAX_ENDS // nodes} are possible; have fewer of either, or set kind = "exponential"'
        )


def _draw(section: TopologySection, nodes: int, seed: int, round: int) -> Graph:
    """The graph of one round; the same again for the same arguments."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_DOMAIN, round)))
    hops = kinds.hops(nodes)
    match section.kind:
        case "ring":
            return Graph(nodes, kinds.circulant(nodes, hops[:1]))
        case "torus":
            return Graph(nodes, kinds.torus(nodes))
        case "star":
            return Graph(nodes, kinds.star(nodes))
        case "full":
            return Graph(nodes, kinds.full(nodes))
        case "exponential":
            return Graph(nodes, kinds.circulant(nodes, hops), directed=True)
        case "one-peer":
            turn = round % max(1, len(hops))
            return Graph(nodes, kinds.circulant(nodes, hops[turn : turn + 1]), directed=True)
        case "regular":
            return random_graphs.connected_regular(nodes, section.degree, rng)
        case "random-regular":
            return Graph(nodes, random_graphs.regular(nodes, section.degree, rng))
        case "erdos-renyi":
            return random_graphs.erdos_renyi(nodes, section.probability, rng)
        case "file":
            return edge_list.read(section.path, nodes)
