"""Who sends to whom in one round, and what each of the heard models weighs.

Rows are kept end to end in one array (compressed sparse rows, 4 bytes an entry): a hundred thousand nodes with four
neighbours each take 2.4 MB, and a row is cut out in a third of a microsecond, which a tuple kept for each would not
repay.
"""

from __future__ import annotations

from typing import Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

Edges: TypeAlias = NDArray[np.int64]
"""The senders, then the receivers, shape (2, edges). Undirected: an edge may be given in either direction, or both."""


class Rows:
    """For each node the sorted others that it is paired with; a pair that is given twice counts once."""

    __slots__ = ("others", "starts")

    def __init__(self, nodes: int, owners: NDArray[np.int64], others: NDArray[np.int64]) -> None:
        pairs = np.sort(owners * nodes + others)
        # Seventy times faster here than numpy.unique, which hashes.
        pairs = pairs[np.diff(pairs, prepend=-1) > 0]
        self.starts = np.searchsorted(pairs, np.arange(nodes + 1) * nodes).data
        self.others = (pairs % nodes).astype(np.int32).data

    def __getitem__(self, node: int) -> tuple[int, ...]:
        return tuple(self.others[self.starts[node] : self.starts[node + 1]])

    @property
    def degrees(self) -> NDArray[np.int64]:
        """Length of each row, shape (nodes,)."""
        return np.diff(np.asarray(self.starts))

    @property
    def owners(self) -> NDArray[np.int64]:
        """The node whose row each entry is in, shape (entries,)."""
        return np.repeat(np.arange(len(self.starts) - 1), self.degrees)


class Graph:
    """The edges of one round."""

    __slots__ = ("directed", "nodes", "sources", "targets")

    def __init__(self, nodes: int, edges: Edges, directed: bool = False) -> None:
        senders, receivers = edges
        self.nodes = nodes
        self.directed = directed
        if directed:
            self.targets = Rows(nodes, senders, receivers)
            self.sources = Rows(nodes, receivers, senders)
        else:
            self.targets = Rows(nodes, np.concatenate((senders, receivers)), np.concatenate((receivers, senders)))
            self.sources = self.targets

    def edges(self) -> NDArray[np.int64]:
        """Sender and receiver of each edge, sorted, shape (edges, 2); undirected: each edge once, lower node first."""
        pairs = np.stack((self.targets.owners, np.asarray(self.targets.others)), axis=1)
        return pairs if self.directed else pairs[pairs[:, 0] < pairs[:, 1]]

    def unreached(self) -> int | None:
        """The lowest node to which no path leads from node 0, or None where there is none."""
        seen = bytearray(self.nodes)
        seen[0] = 1
        queue = [0]
        for node in queue:
            for other in self.targets[node]:
                if not seen[other]:
                    seen[other] = 1
                    queue.append(other)
        return None if len(queue) == self.nodes else seen.index(0)


class Mixing:
    """The mixing matrix W of one round, by rows: what a node's own model and each heard one weigh in its next model.

    ``metropolis`` (Xiao, Boyd and Lall, IPSN 2005): W[i,j] = 1 / (1 + max(d_i, d_j)) for each source j
    of i, the rest stays with i itself. Symmetric, so doubly stochastic, on every undirected graph. The directed kinds
    are circulant: all nodes have as many sources as targets, and the same formula gives 1 / (1 + d) throughout, which
    is doubly stochastic too.

    ``uniform``: 1 / (1 + d_i) for itself and each source. Every row sums to 1, but columns only where all degrees are
    equal: elsewhere the average of all models drifts towards the well connected.
    """

    __slots__ = ("heard", "own", "starts")

    def __init__(self, graph: Graph, rule: Literal["metropolis", "uniform"]) -> None:
        rows = graph.sources
        degrees, owners = rows.degrees, rows.owners
        share = 1.0 / (1 + degrees)
        heard = share[owners]
        own = share
        if rule == "metropolis":
            heard = np.minimum(heard, share[np.asarray(rows.others)])
            # Not 1 - sum: where all degrees are equal the own weight is then exactly that of each source.
            own = share + np.bincount(owners, share[owners] - heard, graph.nodes)
        self.starts = rows.starts
        self.own = cast("memoryview[float]", own.data)
        self.heard = cast("memoryview[float]", heard.data)

    def __getitem__(self, node: int) -> tuple[float, ...]:
        return (self.own[node], *self.heard[self.starts[node] : self.starts[node + 1]])
