"""Solving the compute graph: only what is wanted, in batches of one op, inputs before consumers.

A :class:`Plan` is made for some wanted values and handed out batch by batch, so that one loop serves both worlds: a
simulation solves in place, a live node solves each batch in its worker thread while the event loop goes on.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple
from typing import Protocol as Interface

from node.digests import Store
from node.errors import ComputeError, StarlingError
from node.graph import Graph
from node.op import Op, Ref, Task, Value
from node.order import MOST_FUSED_TASKS, MOST_TASKS, Work, by_memory, by_size, needed_bytes
from node.values import size_bytes


class Executor(Interface):
    """What computes: tasks of one op in, their values out, in order. May run in another thread than the graph's.

    A value may be a handle on one that lives elsewhere; :meth:`fetch` brings it here.
    """

    def solve(self, op: Op[...], tasks: Sequence[Task]) -> list[Value]:
        """Solve independent tasks of one op."""
        ...

    def fetch(self, values: Sequence[Value]) -> list[Value]:
        """The values themselves, in this process; those that are here already pass as they are."""
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

    Args:
        graph: where the tasks are. Where its values have a budget, batches fit into it, and the order saves memory.
        wanted: what has to be known in the end.
        deduplicate: solve tasks of one call on the same inputs once, where the op reads no key.
        fuse: hand out fewer tasks at once, and what reads them next. A model is then trained soon after it was mixed,
            while many others are not mixed yet: fewer are alive at once, and they are still in the processor's cache.
            (Training in the mixed buffer itself would save little more: a kernel gathers its models into a slab
            anyway, and the mixed ones go when it returns.)

    Raises ConfigError where one task alone does not fit into the budget.
    """

    def __init__(self, graph: Graph, wanted: Iterable[Ref], *, deduplicate: bool = False, fuse: bool = True) -> None:
        graph.drain()
        self._graph = graph
        work = Work(graph, wanted, deduplicate)
        budget_bytes = graph.values.budget_bytes
        if budget_bytes:
            graph.values.check(max([needed_bytes(work, [id]) for id in work.inputs], default=0))
        for id in work.ids:
            graph.hold(id)
        self._twins = work.twins
        self._held = dict.fromkeys(work.ids)
        self.deduplicated = 0
        self._reads: dict[int, deque[int]] = {}
        most = MOST_FUSED_TASKS if fuse else MOST_TASKS
        if budget_bytes:
            self._batches = iter(self._foreseen(list(by_memory(work, budget_bytes, most))))
        else:
            self._batches = by_size(work, most)

    def _foreseen(self, batches: list[list[int]]) -> list[list[int]]:
        """Note which batches read a value, so that what is read last is spilled first."""
        for place, batch in enumerate(batches):
            for i in dict.fromkeys([i for id in batch for i in self._graph.inputs(id)]):
                self._reads.setdefault(i, deque()).append(place)
        for i in self._reads:
            if self._graph.is_solved(i):
                self._expect(i)
        return batches

    def next_batch(self) -> Batch | None:
        """The next tasks to solve, with their inputs in memory. None: all is done.

        Raises StoreError where there is no room for what has to leave memory.
        """
        ids = next(self._batches, None)
        if ids is None:
            return None
        graph = self._graph
        inputs = dict.fromkeys([i for id in ids for i in graph.inputs(id)])
        new_bytes = sum([graph.size_bytes(id) for id in ids])
        is_copied = graph.values.budget_bytes and len(ids) > 1
        graph.values.admit(inputs, new_bytes * 2 if is_copied else new_bytes)
        if self._reads:
            for i in inputs:
                self._reads[i].popleft()
                self._expect(i)
        return Batch(graph.op_of(ids[0]), ids, [graph.task(id) for id in ids])

    def _expect(self, id: int) -> None:
        places = self._reads.get(id)
        self._graph.values.expect(id, places[0] if places else math.inf)

    def commit(self, batch: Batch, values: Sequence[Value]) -> None:
        """Take in a batch's values, which frees what was read for the last time."""
        graph = self._graph
        if len(values) != len(batch.ids):
            raise ComputeError(f"{batch.op.name} solved {len(values)} values for {len(batch.ids)} tasks")
        for id, value in zip(batch.ids, values, strict=True):
            if len(values) > 1:
                value = graph.values.apart(value, graph.spec_of(id))
            graph.commit(id, value)
            for twin in self._twins.get(id, ()):
                graph.share(twin, id)
                self._let_go(twin)
                self.deduplicated += 1
            self._let_go(id)
        graph.values.unreserve()

    def _let_go(self, id: int) -> None:
        if self._reads.get(id):
            self._expect(id)
        del self._held[id]
        self._graph.release(id)

    def abandon(self) -> None:
        """Let go of everything that has not been solved."""
        self._batches = iter(())
        self._graph.values.unreserve()
        for id in self._reads:
            if self._graph.is_solved(id):
                self._graph.values.expect(id, math.inf)
        self._reads.clear()
        for id in self._held:
            self._graph.release(id)
        self._held.clear()


def explain(batch: Batch, graph: Graph, error: Exception) -> StarlingError:
    """The error of an op as one of our own, naming the op and the nodes it was solved for."""
    if isinstance(error, StarlingError):
        return error
    nodes = sorted({graph.node_of(id) for id in batch.ids})
    shown = ", ".join(map(str, nodes[:5])) + ("…" if len(nodes) > 5 else "")
    return ComputeError(f"{batch.op.name} failed for node {shown}: {type(error).__name__}: {error}")


class Solver:
    """Solves a graph in place: what a simulation uses.

    Counts ``batches``, ``solved`` tasks, and ``deduplicated`` ones, which got the value of an equal task. Close it, or
    its processes and files last as long as it does.

    Args:
        graph: where the tasks are; its values have the budget.
        executor: what computes.
        deduplicate: solve equal tasks on equal inputs once.
        fuse: solve what reads a batch soon after it, for memory's sake.
        store: values that earlier runs have solved, and for those that this one solves.
    """

    def __init__(
        self,
        graph: Graph,
        executor: Executor,
        *,
        deduplicate: bool = True,
        fuse: bool = True,
        store: Store | None = None,
    ) -> None:
        self.graph = graph
        self.executor = executor
        self.batches = 0
        self.solved = 0
        self.deduplicated = 0
        self._deduplicate = deduplicate
        self._fuse = fuse
        self._store = store
        self._unfetched: list[int] = []
        """Numbers that an executor could not hand over yet: asked for again before anybody reads them."""

    def solve(self, wanted: Iterable[Ref]) -> None:
        """Solve everything that ``wanted`` needs; metrics and numbers among it are fetched.

        Raises:
            ComputeError: an op failed; names it and the node.
            ConfigError: a task does not fit into the budget.
            StoreError: there is no room on disk for what does not fit into the budget.
        """
        unsolved = {ref.id: ref for ref in wanted if not self.graph.is_solved(ref.id)}
        if self._store is not None:
            self.graph.drain()
            self._store.recall(unsolved)
        plan = Plan(self.graph, unsolved.values(), deduplicate=self._deduplicate, fuse=self._fuse)
        try:
            while self._solve_batch(plan):
                pass
        finally:
            plan.abandon()
            self.deduplicated += plan.deduplicated
        kept = [id for id in self._unfetched if id in self.graph.values]
        self._unfetched = [*kept, *[ref.id for ref in unsolved.values() if not size_bytes(ref.spec)]]
        self._fetch(self._unfetched)
        numbers, self._unfetched = self._unfetched, []
        if self._store is not None:
            self._store.note(numbers)
        self.graph.retire()

    def _solve_batch(self, plan: Plan) -> bool:
        """A call of its own for each batch, so that nothing here keeps its inputs alive."""
        batch = plan.next_batch()
        if batch is None:
            return False
        try:
            values = self.executor.solve(batch.op, batch.tasks)
        except Exception as error:
            raise explain(batch, self.graph, error) from error
        self.batches += 1
        self.solved += len(values)
        plan.commit(batch, values)
        return True

    def _fetch(self, ids: Sequence[int]) -> None:
        values = self.graph.values
        if ids:
            for id, value in zip(ids, self.executor.fetch([values[id] for id in ids]), strict=True):
                values.replace(id, value)

    def value(self, ref: Ref) -> Value:
        """Solve one value and return it."""
        if not self.graph.is_solved(ref.id):
            self.solve([ref])
        [value] = self.executor.fetch([self.graph.values[ref.id]])
        return value

    def close_window(self) -> None:
        """What is alive now is what a run would go on from: keep it, where there is a cache."""
        if self._store is not None:
            self._store.close_window(self.executor.fetch)

    def keep(self) -> None:
        """The run is over: keep what is alive, where there is a cache."""
        if self._store is not None:
            self._store.keep(self.executor.fetch)

    def counters(self) -> dict[str, int | float]:
        """How much there was to do, and what it took."""
        graph, values = self.graph, self.graph.values
        graph.drain()
        return {
            "recorded": graph.recorded,
            "solved": self.solved,
            "skipped": graph.skipped,
            "reused": graph.reused,
            "deduplicated": self.deduplicated,
            "batched_calls": self.batches,
            "mean_batch": round(self.solved / self.batches, 1) if self.batches else 0.0,
            "peak_resident_bytes": values.peak_resident_bytes,
            "spilled_bytes": values.spilled_bytes,
            "unspilled_bytes": values.unspilled_bytes,
        }

    def close(self) -> None:
        """Give back processes and files."""
        self.executor.close()
        self.graph.values.close()
