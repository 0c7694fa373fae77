"""How far a cache was from the best that was possible on the same accesses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from node.caching.belady import belady_hits, relaxed_hits
from node.caching.cache import Cache, Outcome
from node.caching.policy import Key


class Access(NamedTuple):
    """One access of a recorded sequence."""

    key: Key
    size_bytes: int = 1


@dataclass(frozen=True)
class Regret:
    """Hits of a cache beside the most that were possible."""

    accesses: int
    hits: int
    best_hits: int
    is_exact: bool
    """Whether some cache really has the best hits; else it is a bound that perhaps none reaches."""

    @property
    def hit_ratio(self) -> float:
        """Of the cache."""
        return self.hits / max(1, self.accesses)

    @property
    def best_hit_ratio(self) -> float:
        """Of the best there could be."""
        return self.best_hits / max(1, self.accesses)

    @property
    def regret(self) -> float:
        """The difference of the two: what could still be won."""
        return self.best_hit_ratio - self.hit_ratio


def replay(trace: Sequence[Access], cache: Cache) -> list[bool]:
    """Give a cache all accesses, pinning nothing; which of them were hits."""
    return [cache.access(key, size_bytes).outcome is Outcome.HIT for key, size_bytes in trace]


def regret(trace: Sequence[Access], hits: int, capacity_bytes: int) -> Regret:
    """Judge so many hits of a cache of this capacity: by Belady where all sizes are equal, else by an upper bound."""
    keys = [access.key for access in trace]
    sizes_bytes = [access.size_bytes for access in trace]
    is_exact = len(set(sizes_bytes)) <= 1
    if is_exact:
        best = belady_hits(keys, capacity_bytes // max(sizes_bytes, default=1))
    else:
        best = relaxed_hits(keys, sizes_bytes, capacity_bytes)
    return Regret(len(trace), hits, best, is_exact)
