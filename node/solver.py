"""Solving the compute graph: only what is wanted, in batches of one op, inputs before consumers.

A :class:`Plan` is made for some wanted values and handed out batch by batch, so that one loop serves both worlds: a
simulation solves in place, a live node solves each batch in its worker thread while the event loop goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple
from typing import Protocol as Interface

from node.errors import ComputeError, StarlingError
from node.graph import Graph
from node.op import Op, Ref, Task, Value

_MOST_TASKS = 1_024
"""Tasks handed out at once: enough to fill every kernel, few enough that inputs are freed along the way."""


class Executor(Interface):
    """What computes: tasks of one op in, their values out, in order. May run in another thread than the graph's.

    A value may be a handle on one that lives elsewhere; :meth:`fetch` brings it here.
    """

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve independent tasks of one op."""
        ...

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """The values themselves, in this process."""
        ...

    def close(self) -> None:
        """Give back what the executor holds: processes, memory, connections. Safe to call twice."""
        ...


class InlineExecutor:
    """One task at a time: the reference that every other executor is measured against."""

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve the tasks one by one, in order."""
        return [op.solve(task) for task in tasks]

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """They are here."""
        return list(values)

    def close(self) -> None:
        """Nothing is held."""


class BatchedExecutor(InlineExecutor):
    """Many tasks in one call where the op has a stacked form; equal to the inline executor within rounding."""

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve the tasks with the op's stacked form, or one by one."""
        if op.solve_batch is None:
            return super().solve(op, tasks)
        return op.solve_batch(tasks)


class Batch(NamedTuple):
    """Tasks of one op whose inputs are all solved."""

    op: Op[...]
    ids: Sequence[int]
    tasks: list[Task]


class Plan:
    """What has to be solved, and in which order, to know some values.

    Hand out batches with :meth:`next_batch`, give each one's values back with :meth:`commit`, until there is none left.
    A planned task stays alive until it is committed, whatever happens to its handles; :meth:`abandon` ends that early.
    """

    def __init__(self, graph: Graph, wanted: Iterable[Ref]) -> None:
        graph.drain()
        self._graph = graph
        self._missing: dict[int, int] = {}
        self._consumers: dict[int, list[int]] = {}
        self._ready: dict[Op[...], list[int]] = {}
        stack = sorted({ref.id for ref in wanted if not graph.is_solved(ref.id)}, reverse=True)
        while stack:
            id = stack.pop()
            if id in self._missing:
                continue
            graph.hold(id)
            unsolved = [i for i in graph.inputs(id) if not graph.is_solved(i)]
            self._missing[id] = len(unsolved)
            for i in unsolved:
                self._consumers.setdefault(i, []).append(id)
                if i not in self._missing:
                    stack.append(i)
        for id in sorted(id for id, missing in self._missing.items() if not missing):
            self._ready.setdefault(graph.op_of(id), []).append(id)

    def next_batch(self) -> Batch | None:
        """The largest group of ready tasks of one op; metrics first, because they let models go. None: all is done."""
        if not self._ready:
            return None
        op = max(self._ready, key=lambda op: (bool(self._spec_names(op)), len(self._ready[op])))
        ids = self._ready.pop(op)
        if len(ids) > _MOST_TASKS:
            self._ready[op] = ids[_MOST_TASKS:]
            ids = ids[:_MOST_TASKS]
        return Batch(op, ids, [self._graph.task(id) for id in ids])

    def _spec_names(self, op: Op[...]) -> tuple[str, ...]:
        return self._graph.spec_of(self._ready[op][0]).names

    def commit(self, batch: Batch, values: Sequence[Value]) -> None:
        """Take in a batch's values, which may make further tasks ready and free what was read for the last time."""
        graph = self._graph
        if len(values) != len(batch.ids):
            raise ComputeError(f"{batch.op.name} solved {len(values)} values for {len(batch.ids)} tasks")
        for id, value in zip(batch.ids, values, strict=True):
            graph.commit(id, value)
            del self._missing[id]
            for consumer in self._consumers.pop(id, ()):
                self._missing[consumer] -= 1
                if not self._missing[consumer]:
                    self._ready.setdefault(graph.op_of(consumer), []).append(consumer)
            graph.release(id)

    def abandon(self) -> None:
        """Let go of everything that has not been solved."""
        for id in self._missing:
            self._graph.release(id)
        self._missing.clear()
        self._ready.clear()


def explain(batch: Batch, graph: Graph, error: Exception) -> StarlingError:
    """The error of an op as one of our own, naming the op and the nodes it was solved for."""
    if isinstance(error, StarlingError):
        return error
    nodes = sorted({graph.node_of(id) for id in batch.ids})
    shown = ", ".join(map(str, nodes[:5])) + ("…" if len(nodes) > 5 else "")
    return ComputeError(f"{batch.op.name} failed for node {shown}: {type(error).__name__}: {error}")


class Solver:
    """Solves a graph in place: what a simulation uses.

    Counts ``batches``, and ``solved`` tasks.
    """

    def __init__(self, graph: Graph, executor: Executor) -> None:
        self.graph = graph
        self.executor = executor
        self.batches = 0
        self.solved = 0

    def solve(self, wanted: Iterable[Ref]) -> None:
        """Solve everything that ``wanted`` needs. Raises ComputeError, naming op and node."""
        plan = Plan(self.graph, wanted)
        try:
            while batch := plan.next_batch():
                try:
                    values = self.executor.solve(batch.op, batch.tasks)
                except Exception as error:
                    raise explain(batch, self.graph, error) from error
                self.batches += 1
                self.solved += len(values)
                plan.commit(batch, values)
        finally:
            plan.abandon()
        self.graph.retire()

    def value(self, ref: Ref) -> Value:
        """Solve one value and return it."""
        if not self.graph.is_solved(ref.id):
            self.solve([ref])
        return self.graph.values[ref.id]
