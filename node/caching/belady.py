"""The most hits that any cache could have had on a sequence of accesses, knowing it all."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from math import inf

from node.caching.policy import Key


def belady_hits(keys: Sequence[Key], places: int, bypass: bool = True) -> int:
    """Hits of evicting what is needed furthest in the future, where every entry takes one place.

    With bypass, a key that is needed no sooner than all residents is not let in: no policy whatever has more hits.
    Without, every key is: this bounds only policies that do the same. Belady, IBM Systems Journal 1966.
    """
    if places < 1:
        return 0
    following = next_uses(keys)
    uses: dict[Key, float] = {}
    furthest: list[tuple[float, int]] = []
    hits = 0
    for position, key in enumerate(keys):
        is_hit = key in uses
        hits += is_hit
        if not is_hit and len(uses) == places:
            resident = _furthest(furthest, keys, uses)
            if bypass and uses[resident] <= following[position]:
                continue
            del uses[resident]
        uses[key] = following[position]
        heapq.heappush(furthest, (-following[position], position))
    return hits


def next_uses(keys: Sequence[Key]) -> list[float]:
    """For each access the position of the next one of the same key; infinite after the last."""
    following = [inf] * len(keys)
    seen: dict[Key, int] = {}
    for position in range(len(keys) - 1, -1, -1):
        following[position] = seen.get(keys[position], inf)
        seen[keys[position]] = position
    return following


def relaxed_hits(keys: Sequence[Key], sizes_bytes: Sequence[int], capacity_bytes: int) -> int:
    """No fewer hits than any policy could have had, for entries of different sizes, of which the most is NP-hard.

    A hit needs its entry's bytes from one access to the next. That all hits together fit on average, and not at every
    moment, is a weaker condition, and met best by the cheapest of them: the bound PFOO-L of Berger, Beckmann and
    Harchol-Balter, POMACS 2018.
    """
    following = next_uses(keys)
    costs = sorted(
        int(next_use - position) * size_bytes
        for position, (next_use, size_bytes) in enumerate(zip(following, sizes_bytes, strict=True))
        if next_use != inf and size_bytes <= capacity_bytes
    )
    left = capacity_bytes * max(0, len(keys) - 1)
    hits = 0
    for cost in costs:
        left -= cost
        if left < 0:
            break
        hits += 1
    return hits


def _furthest(heap: list[tuple[float, int]], keys: Sequence[Key], uses: dict[Key, float]) -> Key:
    # What lies in the heap of a resident's earlier uses is over, and of what was evicted no longer true.
    while True:
        negative, position = heap[0]
        if uses.get(keys[position]) == -negative:
            return keys[position]
        heapq.heappop(heap)
