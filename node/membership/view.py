"""Who is there, as one member knows it: of every peer its newest own word, and what others say of exactly that word.

Of two views that have heard the same statements, in whatever order, both hold the same: (incarnation, state) only ever
grows. An accusation of a word that is not known yet is worth nothing, so that accusers cannot invent incarnations.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from node.membership.statement import MOST_JUMP, State, Statement
from node.membership.suspicion import Suspicion

BUCKETS = 64
"""Into which peers fall by number; views are compared by one hash of each."""

_MASK = 2**64 - 1


@dataclass(frozen=True, slots=True)
class Sighting:
    """What one member knows of one peer."""

    peer: int
    state: State
    incarnation: int
    since_s: float
    """When it changed to this state, on this node's clock."""
    record: bytes
    rtt_s: float | None
    """Round trip of the last probe that it answered, in s."""


class View:
    """The peers that one member knows, itself among them, in bounded memory."""

    def __init__(self, most: int) -> None:
        self.words: dict[int, Statement] = {}
        """Newest own word, by peer."""
        self.suspicions: dict[int, Suspicion] = {}
        self.verdicts: dict[int, Statement] = {}
        """The accusation of the dead."""
        self.changed_s: dict[int, float] = {}
        """When a peer's state last changed, unless it is as it was in the beginning."""
        self.began_s = 0.0
        self.live = 0
        """Members that are neither dead nor gone, this node among them."""
        self._most = most
        self._hashes = [0] * BUCKETS

    def state(self, peer: int) -> State | None:
        """What is believed of a peer; None: it is unknown."""
        if (word := self.words.get(peer)) is None:
            return None
        if peer in self.suspicions:
            return State.SUSPECT
        return State.DEAD if peer in self.verdicts else word.state

    def is_live(self, peer: int) -> bool:
        """Whether a peer is neither dead nor gone, nor unknown."""
        word = self.words.get(peer)
        return word is not None and word.state is State.ALIVE and peer not in self.verdicts

    def since_s(self, peer: int) -> float:
        """When a peer came to the state that it is in."""
        return self.changed_s.get(peer, self.began_s)

    def is_news(self, statement: Statement) -> bool:
        """Whether a statement, if it is true, changes anything."""
        word = self.words.get(statement.peer)
        if word is None:
            return statement.state is State.ALIVE
        if statement.is_own_word:
            newer = (statement.incarnation, statement.state) > (word.incarnation, word.state)
            return newer and statement.incarnation - word.incarnation <= MOST_JUMP
        if statement.incarnation != word.incarnation or not self.is_live(statement.peer):
            return False
        if statement.state is State.DEAD:
            return True
        suspicion = self.suspicions.get(statement.peer)
        return suspicion is None or suspicion.is_open_to(statement.author)

    def has_room_for(self, peer: int) -> bool:
        """Whether a peer is known, or there is a place for one more."""
        return peer in self.words or len(self.words) < self._most

    def can_take(self, peer: int) -> bool:
        """Whether there is room for a peer, or somebody gone to be forgotten for it."""
        return self.has_room_for(peer) or next(self.gone(), None) is not None

    def longest_gone(self) -> int:
        """Who has been dead or gone for longest; there must be one."""
        return min(self.gone(), key=lambda peer: (self.since_s(peer), peer))

    def put_word(self, word: Statement, now: float) -> None:
        """Believe a peer's own word; one that is unknown needs room."""
        self._count(word.peer, -1)
        self.suspicions.pop(word.peer, None)
        self.verdicts.pop(word.peer, None)
        self.words[word.peer] = word
        if now > self.began_s:
            self.changed_s[word.peer] = now
        self._count(word.peer, +1)

    def put_suspicion(self, peer: int, suspicion: Suspicion, now: float) -> None:
        """Suspect a peer that was alive."""
        self.suspicions[peer] = suspicion
        self.changed_s[peer] = now

    def put_verdict(self, verdict: Statement, now: float) -> None:
        """Believe that a peer is dead."""
        self._count(verdict.peer, -1)
        self.suspicions.pop(verdict.peer, None)
        self.verdicts[verdict.peer] = verdict
        self.changed_s[verdict.peer] = now

    def forget(self, peer: int) -> None:
        """Know nothing of a peer any more."""
        self._count(peer, -1)
        self.suspicions.pop(peer, None)
        self.verdicts.pop(peer, None)
        self.changed_s.pop(peer, None)
        del self.words[peer]

    def gone(self) -> Iterator[int]:
        """The dead, then those that have left."""
        yield from self.verdicts
        if len(self.words) > self.live + len(self.verdicts):
            yield from [word.peer for word in self.words.values() if word.state is State.LEFT]

    def accusations(self, peer: int) -> list[Statement]:
        """What is held against a peer."""
        if (verdict := self.verdicts.get(peer)) is not None:
            return [verdict]
        suspicion = self.suspicions.get(peer)
        return list(suspicion.accusations.values()) if suspicion else []

    def next_suspicion_s(self) -> float:
        """When the first suspect's time is up."""
        return min([suspicion.deadline_s for suspicion in self.suspicions.values()], default=math.inf)

    # Comparison with another view

    def hashes(self) -> tuple[int, ...]:
        """One 64-bit hash per bucket of who is there in which incarnation.

        The dead are not in it: members forget them at different times, and would tell each other of them for ever.
        """
        return tuple(self._hashes)

    def statements(self, bucket: int) -> list[Statement]:
        """All that is known of the peers of a bucket, sorted by peer; each one's word comes before its accusations."""
        peers = sorted([peer for peer in self.words if peer % BUCKETS == bucket])
        return [statement for peer in peers for statement in (self.words[peer], *self.accusations(peer))]

    def _count(self, peer: int, by: int) -> None:
        """Take a peer out of what is counted of the living, or add it."""
        if self.is_live(peer):
            self.live += by
            self._hashes[peer % BUCKETS] ^= _mix(peer, self.words[peer].incarnation)


def _mix(peer: int, incarnation: int) -> int:
    """64 bits of two numbers, as in SplitMix64 (Steele, Lea and Flood, OOPSLA 2014)."""
    z = (peer * 0x9E3779B97F4A7C15 + incarnation * 0xD1B54A32D192ED03 + 0x9E3779B97F4A7C15) & _MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
    return z ^ (z >> 31)
