"""What a run has given away, node by node: exact figures by distance in the graph of who received from whom."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from node.errors import ConfigError
from node.privacy import gaussian
from node.privacy.budget import View
from node.privacy.eavesdropper import eavesdropped_mus
from node.privacy.from_run import Told
from node.privacy.network import NetworkAccountant, mu_matrix
from node.privacy.pld import Adjacency

SENSITIVITY = {"add_remove": 1.0, "replace_one": 2.0}
"""How far two contributions of one node can be apart, in units of the norm that they are clipped to."""


class Pair(NamedTuple):
    """What one view tells of one node."""

    victim: int
    distance: float
    """Hops from the victim to the nearest attacker; infinite where nothing leads there, 0 for an eavesdropper."""
    mu: float
    epsilon: float
    published_mu: float | None
    """Sum over messages of what each gives away by itself; None where nodes contribute more than once, or all messages
    are overheard."""
    attackers: tuple[int, ...]
    """None of the nodes, where it is an eavesdropper."""


class Ring(NamedTuple):
    """All pairs at one distance."""

    distance: float
    pairs: int
    mu_mean: float
    mu_max: float
    epsilon_mean: float
    epsilon_max: float
    published_mu_max: float | None


@dataclass(frozen=True)
class Exposure:
    """Every victim towards every attacker, with all that these figures mean nothing without."""

    pairs: tuple[Pair, ...]
    delta: float
    adjacency: Adjacency
    view: View
    is_clipped: bool
    """Whether every contribution was clipped; if not, figures are for updates 1 apart, or 2, and guarantee nothing."""
    is_averaging: bool
    """Whether every node contributed once. If not, mu is an upper bound on what all its contributions cost."""

    @property
    def worst(self) -> Pair:
        """Whom who knows best."""
        return max(self.pairs, key=lambda pair: pair.mu)

    def rings(self) -> list[Ring]:
        """The pairs by distance, nearest first."""
        distances = sorted({pair.distance for pair in self.pairs})
        return [_ring(distance, [pair for pair in self.pairs if pair.distance == distance]) for distance in distances]


def of_each(told: Told, delta: float, adjacency: Adjacency, victim: int | None = None) -> Exposure:
    """What each node by itself learns of each other one, or of one victim alone.

    Raises:
        ConfigError: delta is no probability, nobody received anything, or there is no such victim.
    """
    nodes = told.lineage.nodes
    victims = _victims(told, victim)
    mus = mu_matrix(told.lineage, SENSITIVITY[adjacency], "all")
    published = _published(told, SENSITIVITY[adjacency])
    hops = _hops(told)
    epsilons = _epsilons(mus, delta)
    pairs = [
        Pair(
            nodes[u],
            hops[nodes[u]].get(nodes[v], math.inf),
            float(mus[u, v]),
            float(epsilons[u, v]),
            None if published is None else float(published[u, v]),
            (nodes[v],),
        )
        for u in range(len(nodes))
        for v in range(len(nodes))
        if u != v and nodes[u] in victims
    ]
    return Exposure(tuple(pairs), delta, adjacency, "T1", told.is_clipped, _is_averaging(told))


def of_set(
    told: Told, attackers: Collection[int], delta: float, adjacency: Adjacency, victim: int | None = None
) -> Exposure:
    """What some nodes learn of each other one, or of one victim alone, if they put together all they know.

    Raises:
        ConfigError: as :func:`of_each`, or there are no such attackers, or nobody is left.
    """
    sensitivity, is_averaging, together = SENSITIVITY[adjacency], _is_averaging(told), tuple(sorted(attackers))
    victims = [node for node in _victims(told, victim) if node not in together]
    # For matrices as small as these, a second thread makes more time where another process wants the core.
    with threadpool_limits(1, user_api="blas"):
        accountant = NetworkAccountant(told.lineage, together)
        mus = [accountant.mu(node, sensitivity, "all") for node in victims]
        published = [accountant.published_mu(node, sensitivity) if is_averaging else None for node in victims]
    hops = _hops_to(told, together)
    pairs = [
        Pair(node, hops.get(node, math.inf), mu, gaussian.epsilon_of(mu, delta), sum, together)
        for node, mu, sum in zip(victims, mus, published, strict=True)
    ]
    if not pairs:
        raise ConfigError("--collude: nobody is left whom these nodes could learn of; name fewer of them")
    view: View = "T2" if len(attackers) > 1 else "T1"
    return Exposure(tuple(pairs), delta, adjacency, view, told.is_clipped, is_averaging)


def of_eavesdropper(told: Told, delta: float, adjacency: Adjacency, victim: int | None = None) -> Exposure:
    """What somebody learns of each node, or of one victim alone, who reads all messages and takes part in nothing.

    Raises:
        ConfigError: as :func:`of_each`.
    """
    victims = _victims(told, victim)
    with threadpool_limits(1, user_api="blas"):
        found = eavesdropped_mus(told.lineage, SENSITIVITY[adjacency]).tolist()
    mus = dict(zip(told.lineage.nodes, found, strict=True))
    pairs = [Pair(node, 0.0, mus[node], gaussian.epsilon_of(mus[node], delta), None, ()) for node in victims]
    return Exposure(tuple(pairs), delta, adjacency, "T3", told.is_clipped, _is_averaging(told))


def _ring(distance: float, pairs: Sequence[Pair]) -> Ring:
    mus, epsilons = np.array([pair.mu for pair in pairs]), np.array([pair.epsilon for pair in pairs])
    published = [pair.published_mu for pair in pairs if pair.published_mu is not None]
    return Ring(
        distance,
        len(pairs),
        float(mus.mean()),
        float(mus.max()),
        float(epsilons.mean()),
        float(epsilons.max()),
        max(published, default=None),
    )


def _victims(told: Told, victim: int | None) -> tuple[int, ...]:
    nodes = told.lineage.nodes
    if len(nodes) < 2:
        raise ConfigError("the run's log: nobody has received what another node has made; nothing is to be told")
    if victim is not None and victim not in nodes:
        raise ConfigError(f"--victim {victim}: is not in the log; allowed: {', '.join(map(str, nodes))}")
    return nodes if victim is None else (victim,)


def _hops(told: Told) -> dict[int, dict[int, int]]:
    """How far a node's messages go to come to another: by the one, by the other, in hops."""
    import networkx  # only now: it takes a node's start a second

    graph = networkx.DiGraph()
    graph.add_nodes_from(told.lineage.nodes)
    graph.add_edges_from(sorted(told.links))
    return dict(networkx.all_pairs_shortest_path_length(graph))


def _hops_to(told: Told, attackers: Collection[int]) -> dict[int, int]:
    """How far each node is from the nearest attacker that can hear of it."""
    near = {node: [to[attacker] for attacker in attackers if attacker in to] for node, to in _hops(told).items()}
    return {node: min(found) for node, found in near.items() if found}


def _is_averaging(told: Told) -> bool:
    """Whether every node contributes once: the figure of the literature is for that."""
    return all(input.round == 0 for input in told.lineage.sources)


def _published(told: Told, sensitivity: float) -> np.ndarray | None:
    """The published bound as mu, of each node towards each other one, shape (nodes, nodes)."""
    if not _is_averaging(told):
        return None
    nodes = told.lineage.nodes
    found = np.full((len(nodes),) * 2, np.nan)
    rows = told.lineage.rows(told.lineage.known_to(nodes))
    for v, attacker in enumerate(nodes):
        accountant = NetworkAccountant(told.lineage, {attacker}, rows=rows)
        found[:, v] = [accountant.published_mu(victim, sensitivity) for victim in nodes]
    return found


def _epsilons(mus: np.ndarray, delta: float) -> np.ndarray:
    """The epsilon of each mu; the diagonal is none."""
    known, where = np.unique(np.nan_to_num(mus, nan=0.0, posinf=math.inf), return_inverse=True)
    return np.array([gaussian.epsilon_of(float(mu), delta) for mu in known])[where].reshape(mus.shape)
