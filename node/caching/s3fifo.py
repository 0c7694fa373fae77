"""S3-FIFO: a small queue filters out what is wanted once. Yang et al., SOSP 2023."""

from __future__ import annotations

from node.caching.policy import IsPinned, Key, Policy
from node.caching.segment import Segment

_MOST_USES = 3
_WANTED_USES = 2
"""Uses in the small queue that move an entry to the main one."""


class S3FIFO(Policy):
    """New keys go through a small queue, a tenth of the capacity; the main one is for those used there, or missed."""

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._small = Segment()
        self._main = Segment()
        self._ghost = Segment()
        self._uses: dict[Key, int] = {}
        self._small_bytes = max(1, capacity_bytes // 10)
        self._ghost_bytes = capacity_bytes - self._small_bytes
        self._was_missed = False

    def on_hit(self, key: Key) -> None:
        """One more use, up to three."""
        self._uses[key] = min(_MOST_USES, self._uses[key] + 1)

    def on_miss(self, key: Key, size_bytes: int) -> None:
        """Whether it was evicted lately, which the evictions that follow may forget."""
        self._was_missed = key in self._ghost

    def evict(self, is_pinned: IsPinned) -> Key:
        """From the small queue once it has its share, else from the main one; used entries get another round."""
        while True:
            small, main = self._small.oldest(is_pinned), self._main.oldest(is_pinned)
            if small is not None and (self._small.size_bytes >= self._small_bytes or main is None):
                size_bytes = self._small.pop(small)
                if self._uses[small] < _WANTED_USES:
                    self._remember(small, size_bytes)
                    return small
                self._main.push(small, size_bytes)
                self._uses[small] = 0
            elif self._uses[main]:
                self._uses[main] -= 1
                self._main.renew(main)
            else:
                self._main.pop(main)
                del self._uses[main]
                return main

    def insert(self, key: Key, size_bytes: int) -> None:
        """Into the main queue where it was evicted lately, else into the small one."""
        if key in self._ghost:
            self._ghost.pop(key)
        (self._main if self._was_missed else self._small).push(key, size_bytes)
        self._was_missed = False
        self._uses[key] = 0

    def remove(self, key: Key) -> None:
        """Without a ghost."""
        (self._small if key in self._small else self._main).pop(key)
        del self._uses[key]

    def score(self, key: Key) -> float:
        """Uses, 0 to 3, since it was inserted or last spared."""
        return self._uses[key]

    def _remember(self, key: Key, size_bytes: int) -> None:
        del self._uses[key]
        self._ghost.push(key, size_bytes)
        self._ghost.trim(self._ghost_bytes)
