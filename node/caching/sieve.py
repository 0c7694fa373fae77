"""SIEVE: a queue, a bit for each entry, and a hand that stays where it was. Zhang et al., NSDI 2024."""

from __future__ import annotations

from node.caching.policy import IsPinned, Key, Policy


class SIEVE(Policy):
    """Evicts the first unvisited entry that the hand finds on its way from the oldest to the newest, and round again.

    A hit only sets a bit, so that the popular are sifted out in place, and what came in since the hand went by has to
    show soon that it is wanted.
    """

    def __init__(self, capacity_bytes: int) -> None:
        super().__init__(capacity_bytes)
        self._visited: dict[Key, bool] = {}
        self._newer: dict[Key, Key] = {}
        self._older: dict[Key, Key] = {}
        self._newest: Key = None
        self._oldest: Key = None
        self._hand: Key = None

    def on_hit(self, key: Key) -> None:
        """Visited."""
        self._visited[key] = True

    def evict(self, is_pinned: IsPinned) -> Key:
        """The next that is not visited; the hand clears bits on its way, but not of what is pinned."""
        key = self._oldest if self._hand is None else self._hand
        while self._visited[key] or is_pinned(key):
            if not is_pinned(key):
                self._visited[key] = False
            newer = self._newer[key]
            key = self._oldest if newer is None else newer
        self._hand = self._newer[key]
        self._unlink(key)
        return key

    def insert(self, key: Key, size_bytes: int) -> None:
        """At the newest end, not visited."""
        self._visited[key] = False
        self._older[key], self._newer[key] = self._newest, None
        if self._newest is None:
            self._oldest = key
        else:
            self._newer[self._newest] = key
        self._newest = key

    def remove(self, key: Key) -> None:
        """The hand goes on where the key was."""
        if key == self._hand:
            self._hand = self._newer[key]
        self._unlink(key)

    def score(self, key: Key) -> float:
        """1 where it was visited since the hand went by, else 0."""
        return float(self._visited[key])

    def _unlink(self, key: Key) -> None:
        newer, older = self._newer.pop(key), self._older.pop(key)
        if newer is None:
            self._newest = older
        else:
            self._older[newer] = older
        if older is None:
            self._oldest = newer
        else:
            self._newer[older] = newer
        del self._visited[key]
