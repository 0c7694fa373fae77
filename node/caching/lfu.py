"""Least frequently used, with all history, or since the insertion only."""

from __future__ import annotations

from collections import Counter

from node.caching.policy import IsPinned, Key, Policy
from node.caching.ranking import Ranking


class LFU(Policy):
    """Evicts what was wanted least often, ever; among equals, what was not wanted for longest.

    Counts survive eviction, and so grow with the number of keys. The best there is while popularity stays what it is,
    and bad once it drifts.
    """

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._counts: Counter[Key] = Counter()
        self._residents = Ranking()
        self._clock = 0

    def on_access(self, key: Key, size_bytes: int) -> None:
        """One more, hit or miss."""
        self._clock += 1
        self._counts[key] += 1

    def on_hit(self, key: Key) -> None:
        """Ranked anew."""
        self._residents.place(key, (self._counts[key], self._clock))

    def evict(self, is_pinned: IsPinned) -> Key:
        """The lowest count, then the longest ago."""
        return self._residents.pop_lowest(is_pinned)[0]

    def insert(self, key: Key, size_bytes: int) -> None:
        """With the count that it has."""
        self._residents.place(key, (self._counts[key], self._clock))

    def remove(self, key: Key) -> None:
        """Not resident, but still counted."""
        self._residents.remove(key)

    def score(self, key: Key) -> float:
        """How often it was wanted."""
        return self._counts[key]


class InCacheLFU(Policy):
    """Evicts what was used least since it was inserted; among equals, what was inserted first."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._residents = Ranking()
        self._insertions = 0

    def on_hit(self, key: Key) -> None:
        """One more."""
        count, inserted = self._residents[key]
        self._residents.place(key, (count + 1, inserted))

    def evict(self, is_pinned: IsPinned) -> Key:
        """The lowest count, then the earliest inserted; the count is forgotten."""
        return self._residents.pop_lowest(is_pinned)[0]

    def insert(self, key: Key, size_bytes: int) -> None:
        """Used once."""
        self._insertions += 1
        self._residents.place(key, (1, self._insertions))

    def remove(self, key: Key) -> None:
        """Forgotten."""
        self._residents.remove(key)

    def score(self, key: Key) -> float:
        """How often it was used since its insertion."""
        return self._residents[key][0]
