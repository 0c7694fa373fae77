"""Values that nodes wait for: what all of them want at one instant is solved together, while time stands still."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from node.clock import Priority, VirtualClock
from node.errors import StarlingError
from node.op import Ref, Value
from node.solver import Solver
from node.world import Done


class Forcing:
    """Solves what is waited for once no node can go on at this instant without it.

    Args:
        stopwatch: real seconds, to tell what solving costs.
    """

    def __init__(self, clock: VirtualClock, solver: Solver, stopwatch: Callable[[], float]) -> None:
        self.solves = 0
        """Values that were not there when a node asked for them."""
        self.seconds = 0.0
        """What solving them has cost, real."""
        self._clock = clock
        self._solver = solver
        self._stopwatch = stopwatch
        self._waiting: list[tuple[Sequence[Ref], asyncio.Future[None]]] = []

    async def value(self, ref: Ref) -> Value:
        """One value."""
        await self.solved((ref,))
        return self._solver.value(ref)

    def solved(self, refs: Sequence[Ref]) -> Awaitable[None]:
        """Wait until some values are there."""
        missing = [ref for ref in refs if not self._solver.graph.is_solved(ref.id)]
        if not missing:
            return Done(None)
        self.solves += len(missing)
        if not self._waiting:
            self._clock.post(0.0, self._solve, None, Priority.SOLVE)
        future = self._clock.create_future()
        self._waiting.append((missing, future))
        return future

    def _solve(self, nothing: None) -> None:
        began_s = self._stopwatch()
        waiting, self._waiting = self._waiting, []
        waiting = [(refs, future) for refs, future in waiting if not future.done()]
        try:
            self._solver.solve([ref for refs, _ in waiting for ref in refs])
        except StarlingError:
            for refs, future in waiting:  # one by one, so that a failure is that of the node whose value it is
                self._solve_alone(refs, future)
        for _, future in waiting:
            if not future.done():
                future.set_result(None)
        self.seconds += self._stopwatch() - began_s

    def _solve_alone(self, refs: Sequence[Ref], future: asyncio.Future[None]) -> None:
        try:
            self._solver.solve(refs)
        except StarlingError as error:
            future.set_exception(error)
