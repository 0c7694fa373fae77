"""What training costs in virtual time: each device's seconds, on a machine of its own or on one that nodes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from node.clock import Priority, VirtualClock
from node.context import Context
from node.graph import Graph
from node.op import Ref
from node.sim.machine import Machine
from node.sim.presence import Presence
from node.sim.surroundings import Surroundings
from node.tape import EventKind, Tape
from node.usage import Usage
from node.world import Workload

_TRAINED = int(EventKind.TRAINED)
_Training = tuple[asyncio.Future[Ref], Ref, int, float]


class Labour:
    """Lets the time of every training pass, and accounts for it: done, cut short, or done for nothing."""

    def __init__(
        self,
        clock: VirtualClock,
        graph: Graph,
        workload: Workload,
        surroundings: Surroundings,
        presence: Presence | None,
        tape: Tape,
        usage: Usage,
    ) -> None:
        self.discarded = 0
        """Trainings that took their time, and whose result nobody needed: they were never computed."""
        self._clock = clock
        self._graph = graph
        graph.on_skip = self._skipped
        self._workload = workload
        self._devices = surroundings.devices
        self._evaluate_time = surroundings.evaluate_time
        self._evaluating_s: dict[int, float] = {}
        self._machine = Machine(clock, surroundings.cores) if surroundings.cores else None
        self._presence = presence
        self._note = tape.note
        self._usage = usage
        self._under_way: dict[int, tuple[float, int, int]] = {}
        """Where nodes come and go, what each is training: since when, which task, the machine's number for it."""
        self._cut: set[int] = set()

    def begin(self, ctx: Context, model: Ref, steps: int) -> Awaitable[Ref]:
        """Let a node's time for so many steps pass; gives ``model`` then."""
        node = ctx.me
        seconds = self._devices.train_s(node, self._workload.samples(node, steps), steps, ctx.counter)
        if self._evaluate_time:
            seconds += self._evaluating_s.pop(node, 0.0)
        future: asyncio.Future[Ref] = self._clock.create_future()
        arg = (future, model, node, self._clock.now)
        if self._machine is None and self._presence is None:
            self._clock.post(seconds, self._ended, arg, Priority.TIMER)
        else:
            self._begin_elsewhere(seconds, arg)
        return future

    def _begin_elsewhere(self, seconds: float, arg: _Training) -> None:
        _, model, node, now_s = arg
        job = 0
        if self._machine is not None:
            job = self._machine.run(seconds, self._ended, arg)
        else:
            assert self._presence is not None
            self._presence.clocks[node].work(seconds, self._ended, arg)
        if self._presence is not None:
            self._under_way[node] = (now_s, model.id, job)

    def _ended(self, arg: _Training) -> None:
        future, model, node, since_s = arg
        now_s = self._clock.now
        self._note(now_s, _TRAINED, node)
        self._usage.trained(node, since_s, now_s)
        if self._presence is not None:
            self._under_way.pop(node, None)
        if not future.done():
            future.set_result(model)

    def cut(self, node: int) -> None:
        """A node goes: what it was training is lost."""
        if node not in self._under_way:
            return
        since_s, id, job = self._under_way.pop(node)
        self._usage.lost(node, since_s, self._clock.now)
        self._cut.add(id)
        if self._machine is not None:
            self._machine.cancel(job)

    def _skipped(self, id: int) -> None:
        """A task was dropped unsolved: where it was a training that had been done, its time was for nothing."""
        if self._graph.op_of(id) is not self._workload.train:
            return
        if id in self._cut:
            self._cut.remove(id)
            return
        key = self._graph.task_key(id)
        steps = self._graph.static_of(id)["steps"]
        samples = self._workload.samples(key.node, steps)
        self.discarded += 1
        self._usage.discarded(key.node, self._devices.train_s(key.node, samples, steps, key.counter))

    def evaluate(self, ctx: Context, on: str) -> None:
        """An evaluation was asked for: where that takes time, the node's next training begins later."""
        if self._evaluate_time:
            seconds = self._devices.evaluate_s(ctx.me, self._workload.held_samples(ctx.me, on))
            self._evaluating_s[ctx.me] = self._evaluating_s.get(ctx.me, 0.0) + seconds
