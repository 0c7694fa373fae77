"""What training costs in virtual time: each device's seconds, on a machine of its own or on one that nodes share."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass

from node.clock import Priority, VirtualClock
from node.context import Context
from node.graph import Graph
from node.op import Ref
from node.participants import Participants
from node.sim.machine import Machine
from node.sim.presence import Presence
from node.sim.surroundings import Surroundings
from node.tape import EventKind, Tape
from node.usage import Usage
from node.world import Workload

_TRAINED = int(EventKind.TRAINED)
_KEPT = 1024
"""Finished trainings that are remembered before the first look for those whose task is solved."""


@dataclass(slots=True, eq=False)
class _Training:
    """A training under way."""

    future: asyncio.Future[Ref]
    task: Ref
    """What was recorded; kept until the end, so that it is skipped only when its cost is known."""
    model: Ref
    """What the node's mods have made of it."""
    node: int
    since_s: float
    """When it began, or went on after a pause."""
    counted_s: float
    """Until when its share of the device's time is in ``spent_s``."""
    spent_s: float = 0.0
    job: int = 0
    """Its number on the shared machine."""


class Labour:
    """Lets the time of every training pass, and accounts for it: done, cut short, or done for nothing.

    A training costs the seconds of its device from its beginning to its end, without pauses; on shared cores these are
    more than its core-seconds. Where a device trains several models at once, each second counts once, in equal parts.
    """

    def __init__(
        self,
        clock: VirtualClock,
        graph: Graph,
        workload: Workload,
        surroundings: Surroundings,
        presence: Presence | None,
        tape: Tape,
        usage: Usage,
        participants: Participants,
    ) -> None:
        self.discarded = 0
        """Trainings that took their time, and whose result nobody needed: they were never computed."""
        self._clock = clock
        self._graph = graph
        graph.on_skip = self._skipped
        self._workload = workload
        self._devices = surroundings.devices
        self._speed = surroundings.speed if surroundings.slowdowns else None
        self._evaluate_time = surroundings.evaluate_time
        self._evaluating_s: dict[int, float] = {}
        self._machine = Machine(clock, surroundings.cores) if surroundings.cores else None
        self._presence = presence
        self._note = tape.note
        self._usage = usage
        self._device = participants.device
        self._under_way: dict[int, list[_Training]] = {}
        """What each node's device is training, in the order in which it began."""
        self._spent_s: dict[int, float] = {}
        """What finished trainings have cost, by task, until the task is solved or skipped."""
        self._most_kept = _KEPT

    def begin(self, ctx: Context, task: Ref, model: Ref, steps: int, samples: float | None = None) -> Awaitable[Ref]:
        """Let a node's time for so many steps, recorded as ``task``, pass; gives ``model`` then.

        ``samples`` are those that the steps take; None: as many as of the node's own training.
        """
        node, now_s = self._device(ctx.me), self._clock.now
        counter = self._graph.counter_of(task.id)
        if samples is None:
            samples = self._workload.samples(ctx.me, steps)
        seconds = self._devices.train_s(node, samples, steps, counter)
        if self._evaluate_time:
            seconds += self._evaluating_s.pop(node, 0.0)
        if self._speed is not None:
            seconds /= self._speed(node, now_s)
        training = _Training(self._clock.create_future(), task, model, node, now_s, now_s)
        others = self._under_way.get(node)
        if others is None:
            self._under_way[node] = [training]
        else:
            self._share_out(others, now_s)
            others.append(training)
        if self._machine is not None:
            training.job = self._machine.run(seconds, self._ended, training)
        elif self._presence is not None:
            self._presence.clocks[ctx.me].work(seconds, self._ended, training)
        else:
            self._clock.post(seconds, self._ended, training, Priority.TIMER)
        return training.future

    def _share_out(self, trainings: list[_Training], until_s: float) -> None:
        """Count the time of a device until now in equal parts for all that it is training."""
        for training in trainings:
            training.spent_s += max(0.0, until_s - training.counted_s) / len(trainings)
            training.counted_s = self._clock.now

    def _ended(self, training: _Training) -> None:
        node, now_s = training.node, self._clock.now
        trainings = self._under_way[node]
        self._share_out(trainings, now_s)
        trainings.remove(training)
        if not trainings:
            del self._under_way[node]
        self._note(now_s, _TRAINED, node)
        self._finished(training)
        if not training.future.done():
            training.future.set_result(training.model)

    def _finished(self, training: _Training) -> None:
        """Account for what a training has cost, and remember it until it is known whether that was for nothing."""
        self._usage.trained(training.node, training.since_s, self._clock.now)
        if not self._graph.is_pending(training.task.id):
            return
        self._spent_s[training.task.id] = training.spent_s
        if len(self._spent_s) > self._most_kept:
            self._spent_s = {id: spent_s for id, spent_s in self._spent_s.items() if self._graph.is_pending(id)}
            self._most_kept = max(_KEPT, 2 * len(self._spent_s))

    def put_off(self, node: int, since_s: float) -> None:
        """A node was paused from then until now: that is no time of training."""
        node = self._device(node)
        trainings = self._under_way.get(node, [])
        self._share_out(trainings, since_s)
        for training in trainings:
            if training.since_s < since_s:
                self._usage.trained(node, training.since_s, since_s)
            training.since_s = self._clock.now

    def cut(self, node: int) -> None:
        """A node goes: what it was training is lost, and what it was evaluating."""
        node, now_s = self._device(node), self._clock.now
        self._evaluating_s.pop(node, None)
        trainings = self._under_way.pop(node, [])
        self._share_out(trainings, now_s)
        for training in trainings:
            self._usage.lost(node, training.since_s, now_s, training.spent_s)
            if self._machine is not None:
                self._machine.cancel(training.job)

    def close(self) -> None:
        """The run is over: what is still being trained has cost its time until now, and nobody waits for it."""
        for trainings in self._under_way.values():
            self._share_out(trainings, self._clock.now)
            for training in trainings:
                self._finished(training)
        self._under_way.clear()

    def _skipped(self, id: int) -> None:
        """A task was dropped unsolved: where it was a training that had been done, its time was for nothing."""
        seconds = self._spent_s.pop(id, None)
        if seconds is not None:
            self.discarded += 1
            self._usage.discarded(self._graph.node_of(id), seconds)

    def evaluate(self, ctx: Context, on: str) -> None:
        """An evaluation was asked for: where that takes time, the node's next training begins later."""
        if self._evaluate_time:
            node = self._device(ctx.me)
            seconds = self._devices.evaluate_s(node, self._workload.held_samples(ctx.me, on))
            self._evaluating_s[node] = self._evaluating_s.get(node, 0.0) + seconds
