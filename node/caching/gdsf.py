"""Greedy-Dual-Size-Frequency: what is used often, is small and is expensive to fetch again stays.

Cao and Irani, USITS 1997 (GreedyDual-Size); Cherkasova, HP Labs 1998 (with frequency). With a cost that is the size it
is LFU with dynamic aging (Arlitt et al., 2000).
"""

from __future__ import annotations

from node.caching.policy import IsPinned, Key, Policy
from node.caching.ranking import Ranking


class GDSF(Policy):
    """Evicts the lowest ``L + uses * cost / size``, and raises ``L``, the age of the cache, to it.

    A cost of 1 aims at hits of requests: a byte of something small is worth more.
    """

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._residents = Ranking()
        self._uses: dict[Key, int] = {}
        self._worths: dict[Key, float] = {}
        self._insertions = 0
        self._age = 0.0

    def cost(self, size_bytes: int) -> float:
        """What it costs to fetch so many bytes again, in any unit."""
        return 1.0

    def on_hit(self, key: Key) -> None:
        """One more use, and as young as the cache now is."""
        self._uses[key] += 1
        self._rank(key, self._residents[key][1])

    def evict(self, is_pinned: IsPinned) -> Key:
        """The lowest, then the earliest inserted; the cache grows as old as it."""
        key, (priority, _) = self._residents.pop_lowest(is_pinned)
        self._age = max(self._age, priority)
        self._forget(key)
        return key

    def insert(self, key: Key, size_bytes: int) -> None:
        """Used once."""
        self._insertions += 1
        self._uses[key] = 1
        self._worths[key] = self.cost(size_bytes) / size_bytes
        self._rank(key, self._insertions)

    def remove(self, key: Key) -> None:
        """Without effect on the age."""
        self._residents.remove(key)
        self._forget(key)

    def score(self, key: Key) -> float:
        """The priority: age of the cache at the last use, plus uses times worth of a byte."""
        return self._residents[key][0]

    def _rank(self, key: Key, insertion: int) -> None:
        self._residents.place(key, (self._age + self._uses[key] * self._worths[key], insertion))

    def _forget(self, key: Key) -> None:
        del self._uses[key], self._worths[key]


class LFUDA(GDSF):
    """LFU with dynamic aging: the cost is the size, which aims at hits of bytes."""

    def cost(self, size_bytes: int) -> float:
        """A byte costs the same everywhere."""
        return size_bytes


class LatencyGDSF(GDSF):
    """The cost is the time to fetch again over one link, which aims at short waits."""

    def __init__(self, capacity_bytes: int, rtt_s: float = 0.02, bandwidth_bytes_per_s: float = 125_000_000) -> None:
        super().__init__(capacity_bytes)
        self._rtt_s = rtt_s
        self._bandwidth_bytes_per_s = bandwidth_bytes_per_s

    def cost(self, size_bytes: int) -> float:
        """Seconds: a round trip, then the bytes."""
        return self._rtt_s + size_bytes / self._bandwidth_bytes_per_s
