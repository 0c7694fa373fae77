"""W-TinyLFU: who has just come must be wanted more often than who would have to go. Einziger et al., ACM ToS 2017."""

from __future__ import annotations

from collections import Counter

from node.caching.policy import IsPinned, Key, Policy
from node.caching.segment import Segment

_SAMPLE = 10
"""After so many times the capacity in accesses, what was counted before counts half."""


class WTinyLFU(Policy):
    """A window, a tenth of the capacity, in order of use, in front of a main part in two: on probation, and protected.

    What has to leave the window is compared, by how often it was wanted lately, with what the main part would evict;
    the loser goes. Hits move entries from probation to the protected, four fifths of the main part. The window has
    room for one entry at least. Counts are exact, and halved in time, so that they are of no more keys than the
    accesses between two halvings.
    """

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._window = Segment()
        self._probation = Segment()
        self._protected = Segment()
        self._counts: Counter[Key] = Counter()
        self._counted_bytes = 0
        self._window_bytes = max(1, capacity_bytes // 10)
        self._protected_bytes = (capacity_bytes - self._window_bytes) * 4 // 5
        self._incoming_bytes = 1

    def on_access(self, key: Key, size_bytes: int) -> None:
        """One more, hit or miss; then all are halved if it is time."""
        self._counts[key] += 1
        self._counted_bytes += size_bytes
        if self._counted_bytes >= _SAMPLE * self.capacity_bytes:
            self._counts = Counter({key: count // 2 for key, count in self._counts.items() if count > 1})
            self._counted_bytes = 0

    def on_hit(self, key: Key) -> None:
        """To the newest end of its part, or from probation to the protected; what is too much there goes back."""
        if key in self._window:
            self._window.renew(key)
        elif key in self._protected:
            self._protected.renew(key)
        else:
            self._protected.push(key, self._probation.pop(key))
            while self._protected.size_bytes > self._protected_bytes and len(self._protected) > 1:
                self._move_oldest(self._protected)

    def on_miss(self, key: Key, size_bytes: int) -> None:
        """How much is about to come into the window."""
        self._incoming_bytes = size_bytes

    def evict(self, is_pinned: IsPinned) -> Key:
        """The less wanted of the window's oldest entry and of the main part's; the latter among equals."""
        candidate = self._window.oldest(is_pinned)
        segment = self._probation
        victim = segment.oldest(is_pinned)
        if victim is None:
            segment = self._protected
            victim = segment.oldest(is_pinned)
        if victim is None or (candidate is not None and self._window_overflows()):
            if victim is None or self._counts[candidate] <= self._counts[victim]:
                self._window.pop(candidate)
                return candidate
            self._probation.push(candidate, self._window.pop(candidate))
        segment.pop(victim)
        return victim

    def insert(self, key: Key, size_bytes: int) -> None:
        """Into the window; there is room in the main part for what that pushes out."""
        self._window.push(key, size_bytes)
        while self._window.size_bytes > self._window_bytes and len(self._window) > 1:
            self._move_oldest(self._window)

    def remove(self, key: Key) -> None:
        """Out of its part, but still counted."""
        next(part for part in (self._window, self._probation, self._protected) if key in part).pop(key)

    def score(self, key: Key) -> float:
        """How often it was wanted lately."""
        return self._counts[key]

    def _window_overflows(self) -> bool:
        return self._window.size_bytes + self._incoming_bytes > self._window_bytes

    def _move_oldest(self, source: Segment) -> None:
        key = next(iter(source))
        self._probation.push(key, source.pop(key))
