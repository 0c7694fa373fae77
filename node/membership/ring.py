"""In which order a member probes the others.

Round robin over a shuffled list, as in SWIM (Das, Gupta and Motivala, DSN 2002, section 4.3): between two probes of one
peer lie fewer than 2 n others, so that time to detect has a bound.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


class Ring:
    """Peers in random order, each once."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._order: list[int] = []
        self._next = 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)

    def fill(self, peers: Iterable[int]) -> None:
        """Begin with some peers, shuffled."""
        self._order = self._rng.permutation(sorted(peers)).tolist()
        self._next = 0

    def add(self, peer: int) -> None:
        """Insert a peer that is not there at a random place."""
        index = int(self._rng.random() * (len(self._order) + 1))
        self._order.insert(index, peer)
        self._next += index < self._next

    def remove(self, peer: int) -> None:
        """Take a peer out."""
        index = self._order.index(peer)
        del self._order[index]
        self._next -= index < self._next

    def turn(self) -> int | None:
        """Whose turn it is; None: there is nobody."""
        if not self._order:
            return None
        if self._next >= len(self._order):
            self._order = self._rng.permutation(self._order).tolist()
            self._next = 0
        self._next += 1
        return self._order[self._next - 1]

    def sample(self, count: int, without: Collection[int] = ()) -> tuple[int, ...]:
        """Up to ``count`` different peers at random."""
        order, random = self._order, self._rng.random
        if len(order) <= 2 * (count + len(without)):
            rest = [peer for peer in order if peer not in without]
            return tuple([rest.pop(int(random() * len(rest))) for _ in range(min(count, len(rest)))])
        chosen: dict[int, None] = {}
        while len(chosen) < count:
            peer = order[int(random() * len(order))]
            if peer not in without:
                chosen[peer] = None
        return tuple(chosen)
