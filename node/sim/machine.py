"""One computer that several simulated nodes share: who trains at the same time trains more slowly."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any

from node.clock import Priority, VirtualClock
from node.errors import SimulationError


class Machine:
    """Cores under egalitarian processor sharing: each of n jobs gets ``min(1, cores / n)`` of one core.

    All jobs progress alike, so the work that one has received since any instant is the same for all. A running sum of
    it ("virtual work") turns each job's end into a fixed number, and a heap of these numbers needs O(log n) per start
    or end, however often the speed changes. After the virtual time of Parekh and Gallager, IEEE/ACM ToN 1993; processor
    sharing: Kleinrock, J. ACM 1967.
    """

    def __init__(self, clock: VirtualClock, cores: float) -> None:
        """``cores`` is above 0, and may be a fraction."""
        self._clock = clock
        self._cores = cores
        self._jobs: dict[int, tuple[Callable[[Any], object], Any]] = {}
        self._ends: list[tuple[float, int]] = []
        self._started = 0
        self._work_s = 0.0
        self._counted_s = 0.0
        self._version = 0

    def run(self, core_s: float, fn: Callable[[Any], object], arg: Any) -> int:
        """Begin a job of ``core_s`` core-seconds, and call ``fn(arg)`` when it is done; gives the job's number."""
        if not 0 <= core_s < float("inf"):
            raise SimulationError(f"cannot run a job of {core_s} core-seconds; it is at least 0, and finite")
        self._count()
        self._started += 1
        self._jobs[self._started] = fn, arg
        heapq.heappush(self._ends, (self._work_s + core_s, self._started))
        self._foresee()
        return self._started

    def cancel(self, job: int) -> None:
        """End a job without a call; the others get its share. One that is done stays done."""
        self._count()
        if self._jobs.pop(job, None) is not None:
            self._foresee()

    def _speed(self) -> float:
        """Core-seconds that each job receives per second."""
        return min(1.0, self._cores / len(self._jobs))

    def _count(self) -> None:
        """Add up the virtual work until now."""
        now_s = self._clock.now
        if self._jobs:
            self._work_s += (now_s - self._counted_s) * self._speed()
        else:
            self._work_s = 0.0  # small numbers are precise ones
            self._ends.clear()
        self._counted_s = now_s

    def _foresee(self) -> None:
        """Schedule the next end; what was scheduled before is void."""
        self._version += 1
        while self._ends and self._ends[0][1] not in self._jobs:
            heapq.heappop(self._ends)
        if self._ends:
            delay_s = max(self._ends[0][0] - self._work_s, 0.0) / self._speed()
            self._clock.post(delay_s, self._end, self._version, Priority.TIMER)

    def _end(self, version: int) -> None:
        if version != self._version:
            return
        self._counted_s = self._clock.now
        self._work_s = self._ends[0][0]  # by definition; the sum of the parts may differ in its last bit
        done = []
        while self._ends and self._ends[0][0] <= self._work_s:
            job = heapq.heappop(self._ends)[1]
            if job in self._jobs:
                done.append(self._jobs.pop(job))
        self._foresee()
        for fn, arg in done:
            fn(arg)
