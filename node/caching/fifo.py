"""First in, first out."""

from __future__ import annotations

from collections import OrderedDict

from node.caching.policy import IsPinned, Key, Policy


class FIFO(Policy):
    """Evicts what was inserted first."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._queue: OrderedDict[Key, int] = OrderedDict()
        self._clock = 0

    def evict(self, is_pinned: IsPinned) -> Key:
        """The earliest inserted."""
        key = next(key for key in self._queue if not is_pinned(key))
        del self._queue[key]
        return key

    def insert(self, key: Key, size_bytes: int) -> None:
        """At the newest end."""
        self._clock += 1
        self._queue[key] = self._clock

    def remove(self, key: Key) -> None:
        """Out of the queue."""
        del self._queue[key]

    def score(self, key: Key) -> float:
        """When it came to the newest end, in steps."""
        return self._queue[key]
