"""How far this machine's clock is from those of its peers. Nobody is refused for it: who is wrong is not known."""

from __future__ import annotations

import statistics

WARN_S = 30.0
_FEWEST = 3
"""Peers before there is something to compare with, where there are as many."""


class Skew:
    """The differences between this node's clock and its peers', newest of each."""

    def __init__(self) -> None:
        self._offsets_s: dict[int, float] = {}
        self._warned = False

    def observe(self, peer: int, their_s: float, now_s: float) -> None:
        """A peer has said what its clock shows, in seconds since 1970, just now."""
        self._offsets_s[peer] = their_s - now_s

    def lose(self, peer: int) -> None:
        """A peer has gone; its clock counts no more."""
        self._offsets_s.pop(peer, None)

    @property
    def median_s(self) -> float:
        """By how much the peers' clocks are ahead of ours, by their median; half of them may lie."""
        return statistics.median(self._offsets_s.values()) if self._offsets_s else 0.0

    def warning(self, peers: int) -> str | None:
        """One line where the clock is off by WARN_S or more, when that is new; ``peers``: how many there are."""
        off = len(self._offsets_s) >= min(_FEWEST, max(1, peers)) and abs(self.median_s) >= WARN_S
        was, self._warned = self._warned, off
        if not off or was:
            return None
        where = "behind" if self.median_s > 0 else "ahead of"
        return (
            f"this machine's clock is {abs(self.median_s):.0f} s {where} the median of {len(self._offsets_s)} peers: "
            "set it, or certificates will end too soon or too late"
        )
