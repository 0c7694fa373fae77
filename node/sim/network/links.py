"""Fluid flows over shared links: what is left of each at a certain time, and which ends next."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Iterable, Sequence

from node.sim.network.maxmin import MaxMin

_NEVER = float("inf")


class FairLinks:
    """Flows that share links max-min fairly. A state machine that is told the time, and neither sleeps nor calls back.

    Use: any number of changes (``start``, ``end``, ``set_capacity``) at one instant, then one ``settle`` for all of
    them; at ``next_end_s()`` ask ``take_ended`` for the flows that have ended, and settle again. A link may be
    anything with a capacity: an uplink, a region's cable, the private limit of one flow, the cores of a machine.

    Args:
        capacities: of each link, in units per second (bytes, core-seconds); links are numbered from 0.
        tolerance: relative difference below which rates count as equal; 0 where all numbers are
            :class:`fractions.Fraction`, whose results are exact.
    """

    def __init__(self, capacities: Iterable[float], tolerance: float = 1e-9) -> None:
        self._sharing = MaxMin(capacities, tolerance)
        self._left: dict[int, float] = {}
        self._since_s: dict[int, float] = {}
        self._end_s: dict[int, float] = {}
        self._queued_s: dict[int, float] = {}
        self._queue: list[tuple[float, int]] = []

    def start(self, path: Sequence[int], size: float) -> int:
        """Let ``size`` units begin to flow over some links, each named once; gives the flow's number, which ascends."""
        flow = self._sharing.start(path)
        self._left[flow] = size
        return flow

    def end(self, flow: int) -> None:
        """Take a flow away before its end."""
        self._sharing.end(flow)
        del self._left[flow]
        for times in (self._since_s, self._end_s, self._queued_s):
            times.pop(flow, None)

    def set_capacity(self, link: int, capacity: float) -> None:
        """Change what a link carries; flows over one of capacity 0 stall."""
        self._sharing.set_capacity(link, capacity)

    def settle(self, now_s: float) -> None:
        """Share the links anew after the changes of this instant."""
        rates, lefts, since_s = self._sharing.rates, self._left, self._since_s
        for flow, rate_before in self._sharing.solve().items():
            rate = rates[flow]
            if rate != rate_before or flow not in since_s:
                left = lefts[flow] - rate_before * (now_s - since_s.get(flow, now_s))
                lefts[flow] = left = max(left, 0)
                since_s[flow] = now_s
                self._expect(flow, now_s + left / rate if rate else _NEVER if left else now_s)

    def _expect(self, flow: int, end_s: float) -> None:
        """Note when a flow ends. One that now ends later than its entry in the queue says is put off when that is due:
        the many that start at one instant, each making the others slower, need no entry for each change."""
        self._end_s[flow] = end_s
        if end_s < self._queued_s.get(flow, _NEVER):
            self._enqueue(flow, end_s)

    def _enqueue(self, flow: int, end_s: float) -> None:
        self._queued_s[flow] = end_s
        heapq.heappush(self._queue, (end_s, flow))
        if len(self._queue) > 100 + 2 * len(self._queued_s):
            self._queue = [(due_s, flow) for flow, due_s in self._queued_s.items()]
            heapq.heapify(self._queue)

    def next_end_s(self) -> float:
        """When the next flow ends if nothing changes; infinity where none does."""
        while self._queue:
            due_s, flow = self._queue[0]
            end_s = self._end_s.get(flow, _NEVER)
            if end_s == due_s:
                return due_s
            heapq.heappop(self._queue)
            if self._queued_s.get(flow) == due_s:
                del self._queued_s[flow]
                if end_s < _NEVER:
                    self._enqueue(flow, end_s)
        return _NEVER

    def take_ended(self, now_s: float) -> list[int]:
        """Take away the flows that have ended by now; gives them by time, then number."""
        ended = []
        while self.next_end_s() <= now_s:
            flow = self._queue[0][1]
            self.end(flow)
            ended.append(flow)
        return ended

    def rate(self, flow: int) -> float:
        """Units per second since the last :meth:`settle`."""
        return self._sharing.rates[flow]

    def remaining(self, flow: int, now_s: float) -> float:
        """Units that have yet to flow; at an instant with changes, asked for before or after :meth:`settle` alike."""
        return self._left[flow] - self._sharing.rates[flow] * (now_s - self._since_s.get(flow, now_s))

    def capacity(self, link: int) -> float:
        """What a link carries."""
        return self._sharing.capacities[link]

    def flows(self, link: int) -> Collection[int]:
        """The flows over a link, in the order of starting."""
        return self._sharing.flows(link)

    def stalled(self) -> dict[int, int]:
        """The flows that do not advance, each with the link that stops it."""
        return {flow: self._sharing.bottlenecks[flow] for flow, end_s in self._end_s.items() if end_s == _NEVER}
