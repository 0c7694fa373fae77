"""ARC: recency and frequency share the cache as their ghosts say. Megiddo and Modha, FAST 2003."""

from __future__ import annotations

from node.caching.policy import IsPinned, Key, Policy
from node.caching.segment import Segment


class ARC(Policy):
    """Keeps what was used once lately (``T1``) and more often (``T2``), with ghosts of what left each (``B1``, ``B2``).

    A miss that one of the ghosts knows says that its list should have been longer, and moves the target of ``T1``. The
    paper's cases differ in which ghost they drop before an eviction; dropping afterwards what is too much is the same.
    """

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._recent = Segment()
        self._frequent = Segment()
        self._recent_ghost = Segment()
        self._frequent_ghost = Segment()
        self._target_bytes = 0.0
        self._is_known = self._was_frequent = False
        self._place_bytes = 1

    def on_hit(self, key: Key) -> None:
        """To the newest end of what is used more often."""
        source = self._recent if key in self._recent else self._frequent
        self._frequent.push(key, source.pop(key))

    def on_miss(self, key: Key, size_bytes: int) -> None:
        """A ghost moves the target of the recent, by more the shorter its own list is."""
        recent_bytes, frequent_bytes = self._recent_ghost.size_bytes, self._frequent_ghost.size_bytes
        is_recent, self._was_frequent = key in self._recent_ghost, key in self._frequent_ghost
        self._is_known = is_recent or self._was_frequent
        self._place_bytes = size_bytes
        if is_recent:
            step = size_bytes * max(1.0, frequent_bytes / recent_bytes)
            self._target_bytes = min(self.capacity_bytes, self._target_bytes + step)
            self._recent_ghost.pop(key)
        elif self._was_frequent:
            step = size_bytes * max(1.0, recent_bytes / frequent_bytes)
            self._target_bytes = max(0, self._target_bytes - step)
            self._frequent_ghost.pop(key)

    def evict(self, is_pinned: IsPinned) -> Key:
        """The oldest of the recent where these are more than their target, else of the frequent."""
        recent, frequent = self._recent.oldest(is_pinned), self._frequent.oldest(is_pinned)
        if recent is not None and (frequent is None or self._recent_is_long()):
            self._recent_ghost.push(recent, self._recent.pop(recent))
            return recent
        self._frequent_ghost.push(frequent, self._frequent.pop(frequent))
        return frequent

    def insert(self, key: Key, size_bytes: int) -> None:
        """To the frequent where a ghost knew it, else to the recent; ghosts that are too many go."""
        (self._frequent if self._is_known else self._recent).push(key, size_bytes)
        self._is_known = self._was_frequent = False
        self._recent_ghost.trim(max(0, self.capacity_bytes - self._recent.size_bytes))
        first_three = self._recent.size_bytes + self._frequent.size_bytes + self._recent_ghost.size_bytes
        self._frequent_ghost.trim(max(0, 2 * self.capacity_bytes - first_three))

    def remove(self, key: Key) -> None:
        """Without a ghost."""
        (self._recent if key in self._recent else self._frequent).pop(key)

    def score(self, key: Key) -> float:
        """1 where it was used once, 2 where more often."""
        return 1.0 if key in self._recent else 2.0

    def _recent_is_long(self) -> bool:
        if self._was_frequent:
            whole_places_bytes = self._target_bytes - self._target_bytes % self._place_bytes
            return self._recent.size_bytes >= whole_places_bytes
        return self._recent.size_bytes > self._target_bytes
