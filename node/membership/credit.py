"""How often a member may call another gone, and be wrong, before it is not believed any more.

Whoever is accused has to object, and everybody hears of it. So a member that goes on accusing one who is there could
keep it, and the network, busy for ever, or even out of it, with words that are properly signed. What an accuser loses
by being refuted is its word about this one peer, for a while; what it says of others still counts, and so does what
others say of the peer.
"""

from __future__ import annotations

from collections import deque

ALLOWED = 3
"""Times that an accuser may be refuted by one and the same peer,"""
WITHIN_S = 600.0
"""in such a time."""
_MOST_PAIRS = 4_096


class Credit:
    """What is left of it, by accuser and accused. In bounded memory: of the oldest pairs nothing is remembered."""

    def __init__(self) -> None:
        self._refuted_s: dict[tuple[int, int], deque[float]] = {}

    def refuted(self, accuser: int, accused: int, now: float) -> None:
        """One who was accused has shown that it is there."""
        pair = (accuser, accused)
        times_s = self._refuted_s.pop(pair, None) or deque(maxlen=ALLOWED)
        times_s.append(now)
        self._refuted_s[pair] = times_s  # at the end: refuted last
        if len(self._refuted_s) > _MOST_PAIRS:
            del self._refuted_s[next(iter(self._refuted_s))]

    def is_spent(self, accuser: int, accused: int, now: float) -> bool:
        """Whether an accuser is not believed about a peer for now."""
        times_s = self._refuted_s.get((accuser, accused))
        return times_s is not None and len(times_s) == ALLOWED and now - times_s[0] < WITHIN_S

    def idle_s(self, accuser: int, accused: int, now: float) -> float:
        """For how long an accuser has not been refuted by a peer, once it has been."""
        return now - self._refuted_s[accuser, accused][-1]
