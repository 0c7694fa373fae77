"""Graphs that follow from the number of nodes alone."""

from __future__ import annotations

import math

import numpy as np

from node.errors import ConfigError
from node.topology.graph import Edges


def hops(nodes: int) -> list[int]:
    """The powers of two below the number of nodes: ceil(log2(nodes)) of them."""
    return [1 << power for power in range((nodes - 1).bit_length())]


def circulant(nodes: int, hops: list[int]) -> Edges:
    """An edge from each node i to (i + hop) modulo the number of nodes, for each hop."""
    node = np.arange(nodes)
    receivers = [(node + hop) % nodes for hop in hops]
    return np.stack((np.tile(node, len(hops)), np.concatenate((node[:0], *receivers))))


def torus(nodes: int) -> Edges:
    """A grid, as square as the number of nodes allows, whose opposite borders are joined.

    Raises:
        ConfigError: the nodes fill no grid of two rows or more.
    """
    rows = next(rows for rows in range(math.isqrt(nodes), 0, -1) if nodes % rows == 0)
    if rows < 2:
        # An even number of at least 4 always fills a grid of two rows.
        advice = f"{nodes - 1} or {nodes + 1}" if nodes > 4 else "4"
        raise ConfigError(
            f'topology.kind: "torus" needs nodes = rows x columns with at least two of each, and {nodes} is no such'
            f' product; set nodes = {advice}, or kind = "ring"'
        )
    columns = nodes // rows
    row, column = np.divmod(np.arange(nodes), columns)
    right = row * columns + (column + 1) % columns
    below = (row + 1) % rows * columns + column
    node = np.arange(nodes)
    return np.stack((np.concatenate((node, node)), np.concatenate((right, below))))


def star(nodes: int) -> Edges:
    """Node 0 with everybody."""
    others = np.arange(1, nodes)
    return np.stack((np.zeros_like(others), others))


def full(nodes: int) -> Edges:
    """Everybody with everybody."""
    return np.stack(np.triu_indices(nodes, 1))
