"""Least frequently and recently used, for one cache per layer of experts."""

from __future__ import annotations

from node.caching.policy import IsPinned, Key, Policy

_DECAY = 0.99
"""Of a frequency, with every access to the cache."""


class LFRU(Policy):
    """Evicts the lowest decayed frequency per age, the accesses since its last; every choice looks at all entries."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._frequencies: dict[Key, float] = {}
        self._used: dict[Key, int] = {}
        self._clock = 0

    def on_access(self, key: Key, size_bytes: int) -> None:
        """Time goes by in accesses."""
        self._clock += 1

    def on_hit(self, key: Key) -> None:
        """What it was used before has decayed since."""
        self._frequencies[key] = 1 + self._decayed(key)
        self._used[key] = self._clock

    def evict(self, is_pinned: IsPinned) -> Key:
        """The lowest score, then the earliest inserted."""
        key = min((key for key in self._used if not is_pinned(key)), key=self.score)
        self.remove(key)
        return key

    def insert(self, key: Key, size_bytes: int) -> None:
        """Used once."""
        self._frequencies[key] = 1.0
        self._used[key] = self._clock

    def remove(self, key: Key) -> None:
        """Forgotten."""
        del self._frequencies[key], self._used[key]

    def score(self, key: Key) -> float:
        """Decayed frequency per access since the last one, which counts itself."""
        return self._decayed(key) / (self._clock - self._used[key] + 1)

    def _decayed(self, key: Key) -> float:
        return self._frequencies[key] * _DECAY ** (self._clock - self._used[key])
