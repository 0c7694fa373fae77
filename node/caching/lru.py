"""Least recently used."""

from __future__ import annotations

from node.caching.fifo import FIFO
from node.caching.policy import Key


class LRU(FIFO):
    """Evicts what was not used for longest: a queue to whose newest end every hit goes back."""

    def on_hit(self, key: Key) -> None:
        """Back to the newest end."""
        self.remove(key)
        self.insert(key, 0)
