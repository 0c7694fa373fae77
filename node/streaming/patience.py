"""When a chunk that has not come is asked for again."""

from __future__ import annotations

import math
from collections import deque

_RECENT = 64
_FEWEST = 8
"""Times that make a percentile."""
_SHARE = 0.95
_SLACK = 1.05
"""A chunk that takes exactly as long as the others is not late."""
_GENEROUS = 4.0
"""Times as long as a chunk should take, where it may just be slow."""
_LEAST_S = 1e-3


class Patience:
    """Where somebody else can be asked, it ends at the 95th percentile of recent chunk times.

    Hedged requests: Dean and Barroso, CACM 2013. Otherwise, or while there are few times, it is a multiple of what a
    chunk should take, since asking a slow source again makes it slower. It doubles with each repetition.
    """

    def __init__(self) -> None:
        self._times_s: deque[float] = deque(maxlen=_RECENT)
        self._percentile_s = 0.0

    def add(self, time_s: float) -> None:
        """A chunk has come, so long after it was asked for."""
        self._times_s.append(time_s)
        in_order = sorted(self._times_s)
        self._percentile_s = in_order[math.ceil(_SHARE * len(in_order)) - 1]

    def wait_s(self, expected_s: float, repetitions: int, elsewhere: bool) -> float:
        """How long to wait for a chunk that was asked for again so many times, before it is again."""
        hedges = elsewhere and len(self._times_s) >= _FEWEST
        first_s = _SLACK * self._percentile_s if hedges else _GENEROUS * expected_s
        return max(_LEAST_S, first_s) * 2.0 ** min(repetitions, 30)
