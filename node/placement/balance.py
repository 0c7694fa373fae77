"""Whom to ask of those who could, when some have more to do than others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from node.errors import Missing
from node.placement.rendezvous import Node

SLACK = 0.25
"""How much more than its share a node may have to do: the epsilon of bounded loads."""


def bounded(preferred: Sequence[Node], loads: Mapping[Node, float], slack: float = SLACK) -> Node:
    """The first whose load, before one more, is under ``(1 + slack) * (total + 1) / nodes``; somebody's always is.

    So no node ever has more than that rounded up. Mirrokni, Thorup and Zadimoghaddam, SODA 2018.

    Raises:
        Missing: there is no node.
    """
    if not preferred:
        raise Missing("no node to ask: none holds it, or none is left")
    total = sum(loads.get(node, 0) for node in preferred)
    bound = (1 + slack) * (total + 1) / len(preferred)
    return next(node for node in preferred if loads.get(node, 0) < bound)


def two_choices(holders: Sequence[Node], loads: Mapping[Node, float], rng: np.random.Generator | None = None) -> Node:
    """The less loaded of two: the first two, or two at random; the first where they are equal.

    Mitzenmacher, IEEE Transactions on Parallel and Distributed Systems 2001.

    Raises:
        Missing: there is no holder.
    """
    if not holders:
        raise Missing("no node to ask: none holds it, or none is left")
    pair = list(holders[:2])
    if rng is not None and len(holders) > 2:
        pair = [holders[index] for index in rng.choice(len(holders), 2, replace=False)]
    return min(pair, key=lambda node: loads.get(node, 0))
