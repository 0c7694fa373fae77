"""How well this node itself is doing: what it may conclude from others' silence depends on it.

Local health is Lifeguard's (Dadgar, Phillips and Currey, arXiv 1707.00788, 2017): a node whose probes fail, whose
helpers do not report, or which has to defend itself is probably the slow one. Lag is how late its own timers run.
"""

from __future__ import annotations

from collections import deque

LAG_MEMORY_S = 5.0
"""How long a lag is held against one's own conclusions."""
MOST_PEER_LAG_S = 5.0
"""What a peer may claim for itself: who claims more must not become unkillable."""


class Health:
    """A score from 0, healthy, to ``ceiling - 1``, and the largest lag of the last seconds."""

    def __init__(self, ceiling: int) -> None:
        self.score = 0
        self._ceiling = ceiling
        self._lags: deque[tuple[float, float]] = deque()

    @property
    def scale(self) -> int:
        """By what probe interval and timeout are multiplied."""
        return self.score + 1

    def change(self, by: int) -> None:
        """Better (-1) or worse."""
        self.score = min(max(0, self.score + by), self._ceiling - 1)

    def note_lag(self, lag_s: float, now: float) -> None:
        """Something ran so much later than it should have."""
        lags = self._lags
        while lags and lags[-1][1] <= lag_s:
            lags.pop()
        lags.append((now, lag_s))

    def lag_s(self, now: float) -> float:
        """The largest lag of the last seconds, in s."""
        lags = self._lags
        while lags and lags[0][0] < now - LAG_MEMORY_S:
            lags.popleft()
        return lags[0][1] if lags else 0.0
