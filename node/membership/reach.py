"""How many others a member asks about one that does not answer, so that a lossy network does not drown in suspicions.

A suspicion of a live member is told to everybody, and so is its objection: were each member to suspect as often as it
fails to reach somebody, what all pay for that would grow with their number. So the sum is what is fixed. As SWIM
derives its helpers from the false positives that it tolerates (Das, Gupta and Motivala, DSN 2002), of ``n`` members

    n (1 - q^2) (1 - q^4)^k <= MOST_FALSE

suspect a live one per interval, where a message arrives with probability ``q``: the way there and back fails, and so do
all ``k`` ways through helpers. Each member takes ``q^2`` from what it asks itself: live peers whether they are there,
and helpers for a report.
"""

from __future__ import annotations

import math

MOST_FALSE = 0.1
"""Live members that are suspected per probe interval, in the whole network."""
MOST_HELPERS = 20
"""At the loss of a fifth of all messages, enough for some ten thousand members."""
MOST_LOOKS = 3
"""Probes of one peer in a row, where one says too little; then it is told all the same."""
_MOST_SHARE = 0.95
"""Every network may lose something at any time."""
_MEMORY = 32
"""Answers over which the share is taken."""


class Reach:
    """The share of this node's questions to live peers that are answered directly: ``q^2``."""

    def __init__(self) -> None:
        self.share = _MOST_SHARE

    def note(self, asked: int, answered: int) -> None:
        """So many peers that are there were asked something, and so many answers have come straight back."""
        self.share = min(_MOST_SHARE, self.share + (answered - asked * self.share) / (_MEMORY + asked))

    def suffices(self, members: int, helpers: int) -> bool:
        """Whether the silence of a peer, to this node and to so many helpers, says enough to tell everybody."""
        return members * (1 - self.share) * (1 - self.share**2) ** helpers <= MOST_FALSE

    def helpers(self, members: int, least: int) -> int:
        """How many to ask, so that it does; at least ``least``, none where that is 0, and not more than 20."""
        if not least or self.suffices(members, least):
            return least
        most = max(least, MOST_HELPERS)
        if (detour_lost := 1 - self.share**2) >= 1:
            return most
        wanted = math.log(members * (1 - self.share) / MOST_FALSE) / -math.log(detour_lost)
        return min(most, math.ceil(wanted))
