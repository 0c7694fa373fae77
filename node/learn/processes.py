"""Solving in several processes of this machine, forked from this one; bit for bit what solving in it gives.

A worker solves the tasks that it is told of one by one, and writes their values into memory that it shares with its
parent; through the pipe go only numbers. Whatever a worker cannot do, the parent does itself: an op that only it
knows, a value that is no plain tensor, a task that failed, the rest of a worker that has died.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from multiprocessing.connection import wait
from typing import Any, NamedTuple

import structlog
import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from node.learn import forked, workers
from node.learn.arenas import Arenas, Held, can_share
from node.learn.forked import Filled, Forked, Job, Outcome, Piece, Plain, Shared
from node.learn.slabs import chunks
from node.op import Op, Spec, Task, Value

_LEAST_TASKS = 4
"""A batch of fewer is not worth a way through the pipe and back."""
_PIECES_PER_WORKER = 4
"""So that a slow worker, or one with the larger shards, does not keep the others waiting for long."""


class ProcessExecutor:
    """Solves the tasks of a batch side by side in forked processes.

    The processes start at the first batch that is worth it, with everything that this process has loaded until then.
    Counts ``lost_workers``.

    Args:
        workers: how many; 0: one for each core.
        ops: those that cannot be imported by their name, as a workload's. Any other that cannot is solved in this
            process.
    """

    def __init__(self, workers: int = 0, ops: Iterable[Op[...]] = ()) -> None:
        self._workers = workers
        self._ops = {op.name: op for op in ops}
        self._told: dict[Op[...], bool] = {}
        self._pool: _Pool | None = None
        self.lost_workers = 0

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve the tasks; an error is that of the first one that fails, as if they had been solved in order."""
        if len(tasks) < _LEAST_TASKS or not self._can_tell(op):
            return [op.solve(task) for task in tasks]
        solved, is_shareable = self._solve_elsewhere(op, tasks)
        values = [solved[i] if i in solved else op.solve(task) for i, task in enumerate(tasks)]
        self._told[op] = is_shareable
        return values

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """They are here: this process sees the shared memory."""
        return list(values)

    def close(self) -> None:
        """End the processes. Values live on; another batch would start new processes."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None

    def _can_tell(self, op: Op[...]) -> bool:
        if op not in self._told:
            self._told[op] = self._ops.get(op.name) is op or workers.is_importable(op)
        return self._told[op]

    def _solve_elsewhere(self, op: Op[...], tasks: Sequence[Task]) -> tuple[dict[int, Value], bool]:
        """What the workers can solve of a batch, by task; and whether that is all that they were told of."""
        if self._pool is None:
            self._pool = _Pool(workers.count(self._workers), self._ops)
        pool = self._pool
        try:
            requests = pool.requests(op, tasks)
            outcomes = pool.solve(op.name, {i: request.job for i, request in requests.items()})
        except BaseException:  # an interrupt, say: workers may still write into slots that nobody holds any more
            self.close()
            raise
        self.lost_workers += pool.bury()
        solved = {i: requests[i].value(outcome) for i, outcome in outcomes.items() if outcome is not None}
        return solved, len(solved) == len(outcomes)


class _Request(NamedTuple):
    """A task on its way, and the room for its value."""

    job: Job
    room: Held | None

    def value(self, outcome: Filled | Plain) -> Value:
        if isinstance(outcome, Plain):
            return outcome.value
        assert self.room is not None
        return self.room.tensor(outcome.layout)


class _Pool:
    """The workers, and the memory that they share."""

    def __init__(self, count: int, ops: Mapping[str, Op[...]]) -> None:
        self._arenas = Arenas()
        self._copies = WeakTensorKeyDictionary()
        self._living: list[Forked] = []
        self._dead: list[Forked] = []
        try:
            for _ in range(count):
                self._living.append(Forked(ops, self._arenas.file, self._living))
        except BaseException:
            self.close()
            raise

    def requests(self, op: Op[...], tasks: Sequence[Task]) -> dict[int, _Request]:
        """The tasks that workers can be told of, by their place in the batch."""
        requests: dict[int, _Request] = {}
        statics = {id(task.static): task.static for task in tasks}  # the tasks of one call have one mapping
        told = {number: all(map(forked.can_tell_static, static.values())) for number, static in statics.items()}
        for i, task in enumerate(tasks):
            inputs = [told_of for value in task.inputs if (told_of := self._input(value)) is not None]
            if told[id(task.static)] and len(inputs) == len(task.inputs):
                room = self._room(op, task)
                requests[i] = _Request(Job(inputs, task.static, task.key, None if room is None else room.slot), room)
        return requests

    def _input(self, value: Value) -> Shared | Plain | None:
        """How a worker is told of an input; None: it cannot be."""
        if not isinstance(value, Tensor):
            return Plain(value) if forked.can_tell(value) else None
        if not can_share(value):
            return None
        place = self._arenas.place(value)
        if place is None:
            if value not in self._copies:
                self._copies[value] = self._arenas.copy(value)
            place = self._arenas.place(self._copies[value])
        return place and Shared(place)

    def _room(self, op: Op[...], task: Task) -> Held | None:
        spec = op.spec([_spec_of(value) for value in task.inputs], task.static)
        if spec.names:
            return None
        return self._arenas.reserve(math.prod(spec.shape) * getattr(torch, spec.dtype).itemsize)

    def solve(self, op: str, jobs: Mapping[int, Job]) -> dict[int, Outcome]:
        """What came of each job; those that no worker lived long enough to do are left out."""
        most = -(-len(jobs) // (_PIECES_PER_WORKER * len(self._living))) if self._living else 0
        waiting = deque(chunks(list(jobs), most) if most else ())
        working: dict[Any, tuple[Forked, Sequence[int]]] = {}
        idle = list(self._living)
        outcomes: dict[int, Outcome] = {}
        while working or (waiting and idle):
            while waiting and idle:
                worker, piece = idle.pop(), waiting.popleft()
                worker.tell(Piece(op, [jobs[i] for i in piece]))
                working[worker.connection] = worker, piece
            for connection in wait(list(working)):
                worker, piece = working.pop(connection)
                heard = worker.hear()
                if heard is not None:
                    outcomes.update(zip(piece, heard, strict=True))
                    idle.append(worker)
                else:
                    waiting.appendleft(piece)
                    self._living.remove(worker)
                    self._dead.append(worker)
        return outcomes

    def bury(self) -> int:
        """Take leave of the workers that have died; says how many they were."""
        count = len(self._dead)
        for worker in self._dead:
            structlog.get_logger().warning("worker lost", pid=worker.pid, how=worker.end(), left=len(self._living))
        self._dead.clear()
        return count

    def close(self) -> None:
        """End all workers."""
        for worker in [*self._living, *self._dead]:
            worker.end()
        self._living.clear()
        self._dead.clear()
        self._arenas.close()


def _spec_of(value: Value) -> Spec:
    if isinstance(value, Tensor):
        return Spec(tuple(value.shape), str(value.dtype).removeprefix("torch."))
    if isinstance(value, Mapping):
        return Spec((len(value),), "float64", tuple(value))
    return Spec((), "float64")
