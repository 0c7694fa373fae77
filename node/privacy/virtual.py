"""Shatter's graph of virtual nodes: to whom each of them passes its chunk (Biswas et al., PoPETs 2025).

It is drawn anew in every round from a public beacon, over the virtual nodes' numbers alone: whoever knows it all knows
nothing of who owns which of them.
"""

from __future__ import annotations

import hashlib

from node.config import TopologySection
from node.topology import build


class VirtualGraph:
    """A random regular graph of each round, over numbers ``first``, ``first + 1``, ...; a
    :class:`~node.private.VirtualGraph`.
    """

    def __init__(self, first: int, count: int, degree: int, beacon: str) -> None:
        """Raises ConfigError where there is no graph of ``count`` virtual nodes with so many neighbours each."""
        seed = int.from_bytes(hashlib.blake2b(beacon.encode(), digest_size=8, person=b"virtual").digest())
        self._first = first
        self._graph = build(TopologySection(kind="random-regular", degree=degree), count, seed)

    def neighbours(self, number: int, round: int) -> tuple[int, ...]:
        """The virtual nodes that one passes its chunk to in a round, and hears from, sorted."""
        return tuple([self._first + other for other in self._graph.neighbours(number - self._first, round)])
