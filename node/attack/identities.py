"""Which nodes lie: drawn, multiplied by Sybil identities, and counted among the neighbours of the honest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from node.errors import ConfigError


def draw_byzantine(nodes: int, byzantine: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Which of ``nodes`` nodes lie, sorted."""
    if not 0 <= byzantine < nodes:
        raise ConfigError(f"attackers: {byzantine} of {nodes} nodes; at least one must be honest")
    return tuple(sorted(rng.choice(nodes, byzantine, replace=False).tolist()))


def sybil_identities(nodes: int, attackers: Sequence[int], each: int) -> dict[int, tuple[int, ...]]:
    """The numbers that each attacker goes by, its own first: ``each`` more, counted on from ``nodes``.

    Raises ConfigError for an attacker that is not among the nodes, or is named twice.
    """
    if len(set(attackers)) < len(attackers) or any(not 0 <= attacker < nodes for attacker in attackers):
        raise ConfigError(f"attackers: {list(attackers)}; need different numbers from 0 to {nodes - 1}")
    return {
        attacker: (attacker, *range(nodes + i * each, nodes + (i + 1) * each)) for i, attacker in enumerate(attackers)
    }


def byzantine_neighbours(sources: Mapping[int, Sequence[int]], byzantine: Sequence[int]) -> dict[int, int]:
    """How many honest nodes hear how many liars, by rising number of liars; ``sources`` says whom each node hears."""
    liars = set(byzantine)
    heard = Counter(sum(peer in liars for peer in peers) for node, peers in sources.items() if node not in liars)
    return dict(sorted(heard.items()))
