"""Rendezvous hashing: every key ranks the nodes, and who knows the nodes knows the ranking.

Thaler and Ravishankar, IEEE/ACM Transactions on Networking 1998. Where a node joins, only the keys move that it wins,
one in as many as there are nodes; where one leaves, only its keys do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from hashlib import blake2b
from typing import TypeAlias

from node.errors import ConfigError

Key: TypeAlias = str | int
"""What is placed: an object's id."""
Node: TypeAlias = int
"""The number of a node."""
Weights: TypeAlias = Mapping[Node, float]
"""The nodes there are; shares of the keys are proportional to their weights."""


def hash64(key: Key, node: Node | str) -> int:
    """64 bits that follow from the pair, the same everywhere."""
    return int.from_bytes(blake2b(f"{key}|{node}".encode(), digest_size=8).digest(), "big")


def unit_interval(bits: int) -> float:
    """64 bits as a number strictly between 0 and 1, of which 52 count: rounding up to 1 would have no logarithm."""
    return ((bits >> 12) + 0.5) / 2**52


def preference(key: Key, weights: Weights) -> list[Node]:
    """The nodes in the order in which they should keep a key, by falling ``-weight / ln hash``.

    Raises:
        ConfigError: a weight is not a positive number.
    """
    for node, weight in weights.items():
        if not 0 < weight < math.inf:
            raise ConfigError(f"weight of storage node {node} is {weight}; allowed: positive numbers")

    def rank(node: Node) -> tuple[float, int, Node]:
        bits = hash64(key, node)
        return weights[node] / math.log(unit_interval(bits)), -bits, node

    return sorted(weights, key=rank)


def equally(nodes: list[Node]) -> dict[Node, float]:
    """Weights of nodes that are to have the same share."""
    return dict.fromkeys(nodes, 1.0)
