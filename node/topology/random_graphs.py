"""Random graphs, drawn from a generator that the caller seeds."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError
from node.topology.graph import Edges, Graph
from node.topology.kinds import full

Numbers: TypeAlias = NDArray[np.int64]
Flags: TypeAlias = NDArray[np.bool_]

DRAWS = 100
"""How often a graph that must be connected is drawn before giving up."""

_PASSES = 100


def connected_regular(nodes: int, degree: int, rng: np.random.Generator) -> Graph:
    """A connected graph in which every node has exactly ``degree`` neighbours, a degree that passed ``check_degree``.

    Raises:
        ConfigError: the degree is 1, and there are more than two nodes.
    """
    if degree == 2 or nodes == 2:
        # Few random graphs of degree 2 are connected, and those that are, are rings.
        order = rng.permutation(nodes)
        return Graph(nodes, np.stack((order, np.roll(order, 1))))
    if degree == 1:
        raise ConfigError(
            "topology.degree: 1 neighbour each makes pairs that never meet others;"
            ' set at least 2, or kind = "random-regular"'
        )
    while True:  # A random graph of degree 3 or more is connected with high probability.
        graph = Graph(nodes, regular(nodes, degree, rng))
        if graph.unreached() is None:
            return graph


def check_degree(nodes: int, degree: int) -> None:
    """Refuse a degree that no simple graph of this many nodes can have.

    Raises:
        ConfigError: the degree is not below the number of nodes, or the number of edge ends is odd.
    """
    if nodes == 1:
        raise ConfigError(
            f'topology.degree: a single node cannot have {degree} neighbours; set kind = "full", or nodes'
        )
    if degree >= nodes:
        raise ConfigError(
            f"topology.degree: {degree} neighbours for each of {nodes} nodes; lower degree to at most {nodes - 1}"
            f" or raise nodes to at least {degree + 1}"
        )
    if degree * nodes % 2:
        raise ConfigError(
            f"topology.degree: {degree} neighbours for {nodes} nodes gives an odd number of edge ends;"
            " make nodes or degree even"
        )


def regular(nodes: int, degree: int, rng: np.random.Generator) -> Edges:
    """A random graph, connected or not, in which every node has exactly ``degree`` neighbours.

    The pairing model (Bollobas, European Journal of Combinatorics 1980): edge ends are paired at random, and the few
    loops and double edges are switched away, each with a random sound edge. Almost uniform over such graphs.
    """
    if 2 * degree >= nodes:
        # Switches find no room in a dense graph: draw what is missing from the full one.
        everything, missing = full(nodes), regular(nodes, nodes - 1 - degree, rng)
        return everything[:, ~_among(_names(everything, nodes), np.sort(_names(missing, nodes)))]
    ends = np.repeat(np.arange(nodes), degree)
    while True:
        edges = rng.permutation(ends).reshape(2, -1)
        for _ in range(_PASSES):
            names = _names(edges, nodes)
            in_order = np.sort(names)
            faulty = _faulty(edges, names, in_order)
            if not faulty.any():
                return edges
            _switch(edges, in_order, faulty, nodes, rng)


def _names(edges: Edges, nodes: int) -> Numbers:
    """One number for each edge, the same for both its directions."""
    return np.asarray(np.minimum(*edges) * nodes + np.maximum(*edges))


def _among(numbers: Numbers, in_order: Numbers) -> Flags:
    """Which numbers are in a sorted array (many times faster here than ``numpy.isin``)."""
    return np.asarray(np.searchsorted(in_order, numbers, "left") != np.searchsorted(in_order, numbers, "right"))


def _faulty(edges: Edges, names: Numbers, in_order: Numbers) -> Flags:
    """Which edges are loops, or are there more than once."""
    repeated = in_order[1:][in_order[1:] == in_order[:-1]]
    return np.asarray((edges[0] == edges[1]) | _among(names, repeated))


def _switch(edges: Edges, in_order: Numbers, faulty: Flags, nodes: int, rng: np.random.Generator) -> None:
    """Let faulty edges a-b and random sound ones c-d become a-c and b-d where both are new: no degree changes."""
    bad, sound = np.flatnonzero(faulty), np.flatnonzero(~faulty)
    count = min(len(bad), len(sound))
    pairs = np.stack((rng.permutation(bad)[:count], rng.permutation(sound)[:count]))
    (a, b), (c, d) = edges[:, pairs[0]], rng.permuted(edges[:, pairs[1]], axis=0)
    made = np.array([[a, b], [c, d]])
    keep = ~_among(_names(made, nodes), in_order).any(axis=0)
    edges[:, pairs[:, keep]] = made[:, :, keep]


def erdos_renyi(nodes: int, probability: float, rng: np.random.Generator) -> Graph:
    """A connected graph in which each edge exists with the given probability, independently of the others.

    Raises:
        ConfigError: none of 100 draws was connected.
    """
    for _ in range(DRAWS):
        graph = Graph(nodes, _independent(nodes, probability, rng))
        isolated = nodes > 1 and bool((graph.targets.degrees == 0).any())
        if not isolated and graph.unreached() is None:
            return graph
    raise ConfigError(
        f"topology.probability: {probability:g} left the graph of {nodes} nodes in pieces in each of {DRAWS} draws;"
        f" set at least {min(1.0, 1.5 * np.log(nodes) / nodes):.2g}"
    )


def _independent(nodes: int, probability: float, rng: np.random.Generator) -> Edges:
    """Walk over all pairs in jumps of geometric length (Batagelj and Brandes, Physical Review E 2005)."""
    firsts = np.cumsum(np.arange(nodes)[::-1])  # Past which pair each node's own pairs with later nodes end.
    pairs = int(firsts[-1])
    size = int(pairs * probability + 10 * np.sqrt(pairs * probability)) + 10
    chosen = np.array([-1])
    while chosen[-1] < pairs:
        jumps = np.minimum(rng.geometric(probability, size), pairs + 1)
        chosen = np.append(chosen, chosen[-1] + np.cumsum(jumps))
    chosen = chosen[1 : np.searchsorted(chosen, pairs)]
    low = np.searchsorted(firsts, chosen, side="right")
    return np.stack((low, nodes - (firsts[low] - chosen)))
