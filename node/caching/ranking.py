"""Keys by a rank that changes, the lowest first."""

from __future__ import annotations

import heapq
from typing import TypeAlias

from node.caching.policy import IsPinned, Key

Rank: TypeAlias = tuple[float, int]
"""What counts, and what decides among equals: a number that no other key has."""

_SPARE = 64


class Ranking:
    """A heap of ranks. What a key was ranked before stays in it until it comes to the top, or is most of the heap."""

    def __init__(self) -> None:
        self._ranks: dict[Key, Rank] = {}
        self._heap: list[tuple[Rank, Key]] = []

    def place(self, key: Key, rank: Rank) -> None:
        """Give a key its rank, for the first time or anew."""
        self._ranks[key] = rank
        heapq.heappush(self._heap, (rank, key))
        if len(self._heap) > 2 * len(self._ranks) + _SPARE:
            self._heap = [(rank, key) for key, rank in self._ranks.items()]
            heapq.heapify(self._heap)

    def pop_lowest(self, is_pinned: IsPinned) -> tuple[Key, Rank]:
        """Take out the key of the lowest rank that is not pinned; one at least must not be."""
        passed_over = []
        while True:
            rank, key = heapq.heappop(self._heap)
            if self._ranks.get(key) != rank:
                continue
            if not is_pinned(key):
                break
            passed_over.append((rank, key))
        for entry in passed_over:
            heapq.heappush(self._heap, entry)
        del self._ranks[key]
        return key, rank

    def remove(self, key: Key) -> None:
        """Take a key out."""
        del self._ranks[key]

    def __getitem__(self, key: Key) -> Rank:
        return self._ranks[key]

    def __contains__(self, key: Key) -> bool:
        return key in self._ranks
