"""What somebody learns who reads every message on every link, and knows no node's noise: the local view, T3.

Whatever is made of messages alone tells him nothing new. What does is what a node added to them before it sent them: a
contribution and noise. Contributions that share no noise, as those of different rounds, are then told apart one by one,
and mu squared adds up over them: that is why this view takes seconds where that of a node takes minutes.

DECOR's closed form is that of Allouah et al.: The Privacy Power of Correlated Noise in Decentralized Learning, ICML
2024.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Iterator

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError
from node.privacy.lineage import Array, Input, Lineage, Made, Received, Record
from node.privacy.network import NetworkAccountant


def eavesdropped_mus(lineage: Lineage, sensitivity: float = 1.0) -> Array:
    """mu of each node towards an eavesdropper on all links, all its contributions together, shape (nodes,).

    In the order of ``lineage.nodes``. Of several contributions that one noise hides, an upper bound.
    """
    places = {node: place for place, node in enumerate(lineage.nodes)}
    squares = np.zeros(len(places))
    for part in _parts(lineage):
        view = NetworkAccountant(part, part.nodes, known=())
        for node in part.nodes:
            squares[places[node]] += view.mu(node, sensitivity, "all") ** 2
    return np.sqrt(squares)


def _parts(lineage: Lineage) -> Iterator[Lineage]:
    """What is new in each value, divided into logs that share neither noise nor contributions."""
    from networkx.utils import UnionFind  # only now: it takes a node's start a second

    seen = set(lineage.known_to(lineage.nodes))
    joined: UnionFind[Hashable] = UnionFind()
    new: dict[int, Made] = {}
    for value, made in lineage.made.items():
        terms = tuple((term, weight) for term, weight in made.terms if term in new and term not in seen)
        noise = tuple(noise for noise in made.noise if noise.std)
        if terms or made.gradient or noise:
            new[value] = Made(value, made.node, made.round, terms, made.gradient, noise)
            own = [Input(made.node, made.round)] if made.gradient else []
            joined.union(value, *(term for term, _ in terms), *(part.variable for part in noise), *own)
    parts: dict[Hashable, list[Record]] = {}
    for value, made in new.items():
        records = parts.setdefault(joined[value], [])
        records += [made, Received(value, made.node)] if value in seen else [made]
    yield from map(Lineage, parts.values())


def decor_mu(
    adjacency: NDArray[np.bool_],
    sigma_cdp: float,
    sigma_cor: float,
    clip: float = 1.0,
    rounds: int = 1,
    corrupted: Collection[int] = (),
) -> float:
    """mu of the least protected honest node of DECOR towards an eavesdropper; a node's gradients are replaced.

    With ``S`` of :func:`pairwise_covariance`, of the edges whose secrets no corrupted node knows,
    ``mu^2 = rounds 4 clip^2 max_i [S^-1]_ii``.

    Raises:
        ConfigError: a noise is negative, or there is no honest node.
    """
    if sigma_cdp < 0 or sigma_cor < 0:
        raise ConfigError(f"sigma_cdp, sigma_cor: {sigma_cdp}, {sigma_cor}; allowed: numbers from 0")
    honest = [node for node in range(len(adjacency)) if node not in corrupted]
    if not honest:
        raise ConfigError("corrupted: nobody is left to protect; name fewer nodes")
    if sigma_cdp == 0:
        # Edge noises cancel in the sum of all, which is then in the open.
        return math.inf
    edges = adjacency[np.ix_(honest, honest)].astype(np.float64)
    covariance = pairwise_covariance(np.diag(edges.sum(axis=1)) - edges, sigma_cdp, sigma_cor)
    return float(2 * clip * math.sqrt(rounds * np.linalg.inv(covariance).diagonal().max()))


def pairwise_covariance(laplacian: Array, local: float, pairwise: float) -> Array:
    """Covariance of DECOR's noise between nodes, for every coordinate: ``local**2 I + pairwise**2 L``, [nodes, nodes].

    ``laplacian``: of the graph whose edges' secrets are safe. ``local`` and ``pairwise``: standard deviations of a
    node's own noise and of an edge's.
    """
    covariance: Array = local**2 * np.eye(len(laplacian)) + pairwise**2 * np.asarray(laplacian, np.float64)
    return covariance
