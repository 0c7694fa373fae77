"""Whom a node could fall back on."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NamedTuple

from node.membership.statement import Statement

if TYPE_CHECKING:
    import numpy as np

Group = Callable[[Statement], str]
"""What peers of one operator are likely to share: their subnet, say. Peers with the empty text share nothing."""


class Entry(NamedTuple):
    """A peer that is known by hearsay."""

    word: Statement
    introducer: int
    heard_s: float


class PassiveView:
    """A bounded set of peers, no more than some from one introducer or of one group (against eclipse attacks)."""

    def __init__(self, most: int, most_alike: int, group: Group, rng: np.random.Generator) -> None:
        self.entries: dict[int, Entry] = {}
        self._most = most
        self._most_alike = most_alike
        self._group = group
        self._rng = rng

    def put(self, entry: Entry, expendable: Collection[int] = ()) -> None:
        """Take a peer in, in place of an expendable or a random one where there is no room."""
        peer = entry.word.peer
        known = self.entries.get(peer)
        if known is not None:
            if entry.word.incarnation >= known.word.incarnation:
                self.entries[peer] = entry._replace(introducer=known.introducer)
            return
        if self._has_enough_like(entry):
            return
        if len(self.entries) >= self._most:
            first = [each for each in expendable if each in self.entries] or list(self.entries)
            del self.entries[self._pick(first)]
        self.entries[peer] = entry

    def take(self, without: Collection[int] = ()) -> Statement | None:
        """A random peer's word; it stays in."""
        peers = [peer for peer in self.entries if peer not in without]
        return self.entries[self._pick(peers)].word if peers else None

    def sample(self, count: int) -> list[Statement]:
        """Different peers' words, at random."""
        peers = list(self.entries)
        words: list[Statement] = []
        while peers and len(words) < count:
            peer = self._pick(peers)
            peers.remove(peer)
            words.append(self.entries[peer].word)
        return words

    def forget_before(self, heard_s: float) -> None:
        """Forget those of which nothing was heard since."""
        for peer in [peer for peer, entry in self.entries.items() if entry.heard_s < heard_s]:
            del self.entries[peer]

    def _has_enough_like(self, entry: Entry) -> bool:
        group = self._group(entry.word)
        introduced = [other for other in self.entries.values() if other.introducer == entry.introducer]
        grouped = [other for other in self.entries.values() if group and self._group(other.word) == group]
        introduces_itself = entry.introducer == entry.word.peer
        return max(0 if introduces_itself else len(introduced), len(grouped)) >= self._most_alike

    def _pick(self, peers: list[int]) -> int:
        return peers[int(self._rng.random() * len(peers))]
