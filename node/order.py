"""The order in which a plan's tasks are solved, in batches of one op. It changes no value, only speed and memory.

Both orders are decided before anything is solved, from ids and sizes alone, so that they are the same in every run.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence

from node.graph import Graph
from node.op import Op, Ref

MOST_TASKS = 1_024
"""Tasks handed out at once: enough to fill every kernel, few enough that inputs are freed along the way."""
MOST_FUSED_TASKS = 128
"""The same where consumers follow at once: a few calls of every kernel."""
_MANY = 16
"""Inputs of a sum that is worth a call of its own as soon as they are there."""
_MOST_OF_BUDGET = 0.75
"""Share of a budget that one batch may take: the rest keeps what the next batches read."""
_USUAL_OF_BUDGET = 0.125
"""The same for a batch of more than :data:`_ENOUGH_TASKS`: what it takes, other models have to leave memory for."""
_ENOUGH_TASKS = 8
"""Models too large for the cache are trained by so many at once: a larger batch of them is no faster."""


class Work:
    """The tasks that some wanted values need, inputs before consumers; each one's inputs and consumers.

    Tasks of an op that reads no key, with one call on the same inputs, are one: the others are its ``twins``.
    """

    def __init__(self, graph: Graph, wanted: Iterable[Ref], deduplicate: bool) -> None:
        self.graph = graph
        self.ids = _needed(graph, wanted)
        """All tasks, twins too."""
        self.inputs: dict[int, list[int]] = {}
        """What each task reads, once each, by the task that stands for it; without the twins."""
        self.consumers: dict[int, list[int]] = {}
        """The tasks that read a value, solved ones included."""
        self.twins: dict[int, list[int]] = {}
        self.missing: dict[int, int] = {}
        """How many inputs of each task have to be solved first."""
        self.depths: dict[int, int] = {}
        """How many tasks each task waits for, one after the other."""
        self._stands_for: dict[int, int] = {}
        seen: dict[tuple[int, ...], int] = {}
        for id in self.ids:
            inputs: Sequence[int] = graph.inputs(id)
            if self._stands_for:
                inputs = [self._stands_for.get(i, i) for i in inputs]
            if deduplicate and not graph.op_of(id).seeded:
                first = seen.setdefault((graph.call_of(id), *inputs), id)
                if first != id:
                    self._stands_for[id] = first
                    self.twins.setdefault(first, []).append(id)
                    continue
            self._add(id, list(dict.fromkeys(inputs)))

    def _add(self, id: int, inputs: list[int]) -> None:
        missing = depth = 0
        for i in inputs:
            self.consumers.setdefault(i, []).append(id)
            if i in self.depths:
                missing += 1
                depth = max(depth, self.depths[i])
        self.inputs[id] = inputs
        self.missing[id] = missing
        self.depths[id] = depth + 1

    def kept(self) -> set[int]:
        """The values that somebody has a use for after the last of these tasks."""
        uses: Counter[int] = Counter()
        for id in {*self.ids, *self.consumers}:
            uses[self._stands_for.get(id, id)] += self.graph.uses(id)
        for id in self.ids:
            for i in self.graph.inputs(id):
                uses[self._stands_for.get(i, i)] -= 1
        return {id for id, count in uses.items() if count}


def _needed(graph: Graph, wanted: Iterable[Ref]) -> list[int]:
    found: set[int] = set()
    stack = [ref.id for ref in wanted]
    while stack:
        id = stack.pop()
        if id not in found and not graph.is_solved(id):
            found.add(id)
            stack.extend(graph.inputs(id))
    return sorted(found)  # a task is recorded after its inputs


def by_size(work: Work, most_tasks: int) -> Iterator[list[int]]:
    """Batches as large as they get, so that executors have much to share out.

    Metrics first, because they let models go, and sums of models that nobody else reads. Among ops with ready tasks for
    ``most_tasks`` the deepest, so that what was just mixed is trained before more is mixed; else the op with the most.
    What nothing else waits for goes in batches of up to :data:`MOST_TASKS`.
    """
    graph, missing, depths = work.graph, work.missing, work.depths
    ready: dict[Op[...], deque[int]] = {}
    for id, count in missing.items():
        if not count:
            ready.setdefault(graph.op_of(id), deque()).append(id)

    def rank(op: Op[...]) -> tuple[bool, bool, int, int]:
        tasks = ready[op]
        first = tasks[0]
        return bool(graph.spec_of(first).names), gathers(first), min(len(tasks), most_tasks), depths[first]

    def gathers(id: int) -> bool:
        inputs = work.inputs[id]
        return len(inputs) >= _MANY and all(len(work.consumers[i]) == 1 for i in inputs)

    while ready:
        op = max(ready, key=rank)
        tasks = ready[op]
        most = most_tasks if tasks[0] in work.consumers else MOST_TASKS
        batch = [tasks.popleft() for _ in range(min(len(tasks), most))]
        if not tasks:
            del ready[op]
        yield batch
        for id in batch:
            for consumer in work.consumers.get(id, ()):
                missing[consumer] -= 1
                if not missing[consumer]:
                    ready.setdefault(graph.op_of(consumer), deque()).append(consumer)


def by_memory(work: Work, budget_bytes: int, most_tasks: int) -> Iterator[list[int]]:
    """Batches that fit into a budget, those first that leave the fewest bytes behind in memory.

    A greedy form of the orders that need few registers (Sethi and Ullman, JACM 1970), on graphs: a task costs what it
    reads that is not in memory, and its output; it earns the inputs that it reads for the last time. Equal tasks go the
    deeper first, then the older. So a model is trained as soon as it is mixed, and neighbours are mixed one after the
    other while their models are in memory.
    """
    return _ByMemory(work, budget_bytes, most_tasks).batches()


def needed_bytes(work: Work, tasks: Iterable[int]) -> int:
    """Bytes in memory while a batch is solved. The outputs of several tasks are copied (:meth:`Values.apart`)."""
    tasks = list(tasks)
    inputs = dict.fromkeys(i for id in tasks for i in work.inputs[id])
    outputs = sum(work.graph.size_bytes(id) for id in tasks)
    return sum(work.graph.size_bytes(i) for i in inputs) + outputs * (2 if len(tasks) > 1 else 1)


class _ByMemory:
    """Plays the plan through with the least recently read values leaving memory, and notes the order."""

    def __init__(self, work: Work, budget_bytes: int, most_tasks: int) -> None:
        self._work = work
        self._budget_bytes = budget_bytes
        self._most_tasks = most_tasks
        self._depths = work.depths
        self._missing = work.missing
        self._size = {id: work.graph.size_bytes(id) for id in [*work.inputs, *work.consumers]}
        self._reads = {id: len(consumers) for id, consumers in work.consumers.items()}
        self._kept = work.kept()
        self._here: dict[int, None] = {}
        self._here_bytes = 0
        self._ready: set[int] = set()
        self._heaps: dict[Op[...], list[tuple[int, int, int]]] = {}

    def batches(self) -> Iterator[list[int]]:
        for id in self._work.consumers:
            if id not in self._missing and self._work.graph.values.is_resident(id):
                self._come(id)
        for id, count in self._missing.items():
            if not count:
                self._make_ready(id)
        while heap := self._best_heap():
            batch = self._fill(heap)
            yield batch
            for id in batch:
                self._solve(id)

    def _make_ready(self, id: int) -> None:
        self._ready.add(id)
        self._push(id)

    def _push(self, id: int) -> None:
        heap = self._heaps.setdefault(self._work.graph.op_of(id), [])
        heapq.heappush(heap, (self._growth(id), -self._depths[id], id))

    def _growth(self, id: int) -> int:
        """Bytes by which solving a task makes memory grow."""
        growth = self._size[id]
        for i in self._work.inputs[id]:
            if i not in self._here:
                growth += self._size[i]
            if self._reads[i] == 1 and i not in self._kept:
                growth -= self._size[i]
        return growth

    def _best_heap(self) -> list[tuple[int, int, int]] | None:
        heaps = [heap for heap in self._heaps.values() if self._is_current(heap)]
        return min(heaps, key=lambda heap: heap[0], default=None)

    def _is_current(self, heap: list[tuple[int, int, int]]) -> bool:
        """Bring the best task to the top, with what it costs by now; False: there is none left."""
        while heap:
            growth, depth, id = heap[0]
            if id not in self._ready:
                heapq.heappop(heap)
            elif growth != (now := self._growth(id)):
                heapq.heapreplace(heap, (now, depth, id))
            else:
                return True
        return False

    def _fill(self, heap: list[tuple[int, int, int]]) -> list[int]:
        """The best tasks of one op that fit together, at least one."""
        batch: list[int] = []
        inputs: set[int] = set()
        read_bytes = written_bytes = 0
        while len(batch) < self._most_tasks and self._is_current(heap):
            id = heap[0][2]
            new = [i for i in self._work.inputs[id] if i not in inputs]
            read_bytes += sum([self._size[i] for i in new])
            written_bytes += self._size[id]
            share = _MOST_OF_BUDGET if len(batch) < _ENOUGH_TASKS else _USUAL_OF_BUDGET
            if batch and read_bytes + 2 * written_bytes > share * self._budget_bytes:
                break
            heapq.heappop(heap)
            self._ready.remove(id)
            batch.append(id)
            inputs.update(new)
            self._read(id)
        return batch

    def _read(self, id: int) -> None:
        for i in self._work.inputs[id]:
            self._come(i)
            self._reads[i] -= 1
            if self._reads[i] == 1 and i not in self._kept:
                self._push_consumers(i)
        for i in self._work.inputs[id]:
            if not self._reads[i] and i not in self._kept:
                self._go(i)

    def _solve(self, id: int) -> None:
        if id in self._kept or self._reads.get(id):
            self._come(id)
        for consumer in self._work.consumers.get(id, ()):
            self._missing[consumer] -= 1
            if not self._missing[consumer]:
                self._make_ready(consumer)

    def _come(self, id: int) -> None:
        if id in self._here:
            self._here[id] = self._here.pop(id)  # the most recently read one is last
            return
        self._here[id] = None
        self._here_bytes += self._size[id]
        while self._here_bytes > self._budget_bytes:
            self._go(next(iter(self._here)))
        self._push_consumers(id)

    def _go(self, id: int) -> None:
        if id in self._here:
            del self._here[id]
            self._here_bytes -= self._size[id]

    def _push_consumers(self, id: int) -> None:
        """Let the tasks that a change makes cheaper rise; the ones that get dearer sink when they come to the top."""
        for consumer in self._work.consumers.get(id, ()):
            if consumer in self._ready:
                self._push(consumer)
