"""A node's own clock where it runs fast or slow: what the node is told of time, and how long its waits last."""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from node.clock import Clock, Priority


class Drift(NamedTuple):
    """From when until when (seconds of the run) a clock gains ``gain`` seconds in each; one that loses: below 0."""

    start_s: float
    end_s: float
    gain: float


class DriftingClock:
    """A :class:`~node.clock.Clock` that drifts away from another: it keeps what it has gained, and never goes back."""

    def __init__(self, clock: Clock, drifts: Sequence[Drift]) -> None:
        """``drifts`` do not overlap, and none gains -1 or less."""
        self._clock = clock
        self._true_s, self._own_s, self._rates = [0.0], [0.0], [1.0]
        for drift in sorted(drifts):
            self._turn(drift.start_s, 1.0 + drift.gain)
            self._turn(drift.end_s, 1.0)

    def _turn(self, at_s: float, rate: float) -> None:
        own_s = self._own_s[-1] + (at_s - self._true_s[-1]) * self._rates[-1]
        self._true_s.append(at_s)
        self._own_s.append(own_s)
        self._rates.append(rate)

    def time(self) -> float:
        """Seconds since the run began, by this clock."""
        return self._own(self._clock.time())

    def post(self, delay_s: float, fn: Callable[[Any], object], arg: Any, priority: int = Priority.DELIVERY) -> None:
        """Call ``fn(arg)`` after a delay, by this clock."""
        now_s = self._clock.time()
        self._clock.post(max(0.0, self._true(self._own(now_s) + delay_s) - now_s), fn, arg, priority)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the clock's loop."""
        return self._clock.create_future()

    def _own(self, true_s: float) -> float:
        i = bisect_right(self._true_s, true_s) - 1
        return self._own_s[i] + (true_s - self._true_s[i]) * self._rates[i]

    def _true(self, own_s: float) -> float:
        i = bisect_right(self._own_s, own_s) - 1
        return self._true_s[i] + (own_s - self._own_s[i]) / self._rates[i]
