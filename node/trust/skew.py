"""How far this machine's clock is from those of its peers. Nobody is refused for it: who is wrong is not known."""

from __future__ import annotations

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
        """By how much the peers' clocks are ahead of ours, by the median of them and ours; a minority may lie.

        Of two in the middle it is the one nearer to ours: half of the clocks do not put the other half in the wrong.
        """
        if len(self._offsets_s) == 1:
            return next(iter(self._offsets_s.values()))
        clocks = sorted([0.0, *self._offsets_s.values()])
        return min(clocks[(len(clocks) - 1) // 2], clocks[len(clocks) // 2], key=abs)

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
