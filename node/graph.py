"""The compute graph: what has been asked for, and what of it is known.

Columnar and append-only. Recording a task is a few array appends and returns a :class:`~node.op.Ref`; nothing is
computed until somebody needs a value (:mod:`node.solver`). A value is freed when its last handle and its last unsolved
consumer are gone, and a task whose last handle goes before anyone needed it is never computed.

Tasks have rising ids from 0. Constants (initial models, received tensors) have falling ids from -1 and live in a table
of their own, because they outlive the tasks around them. Not thread-safe, but for handles: they may die anywhere.
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

from node.op import Key, Op, Ref, Spec, Static, Task, Value
from node.values import Values, size_bytes

RECORDED, SOLVED, FREED, SPARED = 0, 1, 2, 3
_RETIRE = 65_536
"""Finished tasks at the front after which their columns are given back."""


class Call(NamedTuple):
    """An op with its static arguments and the spec of what it yields: what many tasks have in common."""

    op: Op[...]
    static: Static
    spec: Spec


class Graph:
    """The tasks and values of one process.

    Counts ``recorded`` tasks, ``skipped`` ones, whose last handle went before they were needed, and ``reused`` ones,
    whose value, or what it was for, was known from an earlier run.

    Args:
        seed: the experiment's seed, part of every task's key.
        on_skip: called with the id of each skipped task while its columns are still there; must record nothing.
        values: where solved values are kept; without it, in memory.
    """

    def __init__(self, seed: int, on_skip: Callable[[int], None] | None = None, values: Values | None = None) -> None:
        self.seed = seed
        self.calls: list[Call] = []
        self.values = Values() if values is None else values
        self.skipped = 0
        self.reused = 0
        self.on_skip = on_skip
        self._call_ids: dict[Hashable, int] = {}
        self._sizes: list[int] = []
        self._specs: list[Spec | None] = []
        self._released: deque[int] = deque()
        self._constants = 0
        self._constant_uses: dict[int, int] = {}
        self._base = 0
        self._call = array("I")
        self._node = array("q")
        self._counter = array("I")
        self._first_input = array("I", [0])
        self._inputs = array("q")
        self._uses: list[int] = []
        self._state = bytearray()

    def call(self, op: Op[...], inputs: Sequence[Ref], static: Static) -> int:
        """Intern an op with static arguments over such inputs; the number to :meth:`record` tasks with."""
        spec = inputs[0].spec if inputs else None
        for ref in inputs:
            if ref.spec is not spec:
                return self._intern((op, *[ref.spec for ref in inputs], *static.items()), op, inputs, static)
        # The specs of most inputs are one object: its identity is quicker to look up than its contents.
        number = self._call_ids.get((op, len(inputs), id(spec), *static, *static.values()))
        if number is None:
            self._specs.append(spec)
            key = (op, len(inputs), id(spec), *static, *static.values())
            number = self._intern(key, op, inputs, static)
        return number

    def _intern(self, key: Hashable, op: Op[...], inputs: Sequence[Ref], static: Static) -> int:
        number = self._call_ids.get(key)
        if number is None:
            number = self._call_ids[key] = len(self.calls)
            call = Call(op, static, op.spec([ref.spec for ref in inputs], static))
            self.calls.append(call)
            self._sizes.append(size_bytes(call.spec))
        return number

    def record(self, call: int, inputs: Sequence[Ref], node: int, counter: int) -> Ref:
        """Append a task and return a handle on its value; computes nothing."""
        if self._released:
            self.drain()
        base, uses = self._base, self._uses
        ids = [ref.id for ref in inputs]
        for id in ids:
            if id >= 0:
                uses[id - base] += 1
            else:
                self._constant_uses[id] += 1
        self._inputs.extend(ids)
        self._first_input.append(len(self._inputs))
        self._call.append(call)
        self._node.append(node)
        self._counter.append(counter)
        id = base + len(uses)
        uses.append(1)
        self._state.append(RECORDED)
        return Ref(id, self.calls[call].spec, self._released)

    @property
    def recorded(self) -> int:
        """Tasks so far."""
        return self._base + len(self._uses)

    def constant(self, value: Value, spec: Spec) -> Ref:
        """A handle on a value that is known already."""
        self.values.put(self._constants - 1, value, spec)
        self._constants -= 1
        self._constant_uses[self._constants] = 1
        return Ref(self._constants, spec, self._released)

    def is_solved(self, id: int) -> bool:
        """Whether a task or constant has its value."""
        return id in self.values

    def is_pending(self, id: int) -> bool:
        """Whether a task may still be solved, or skipped."""
        return id >= self._base and self._state[id - self._base] == RECORDED

    def inputs(self, id: int) -> array[int]:
        """The ids that a task reads."""
        at = id - self._base
        return self._inputs[self._first_input[at] : self._first_input[at + 1]]

    def call_of(self, id: int) -> int:
        """The number of a task's call: the same for what has the op, the static arguments and the specs in common."""
        return self._call[id - self._base]

    def op_of(self, id: int) -> Op[...]:
        """The op of a task."""
        return self.calls[self._call[id - self._base]].op

    def static_of(self, id: int) -> Static:
        """The static arguments of a task."""
        return self.calls[self._call[id - self._base]].static

    def spec_of(self, id: int) -> Spec:
        """The spec of a task's or a constant's value."""
        return self.calls[self._call[id - self._base]].spec if id >= 0 else self.values.spec_of(id)

    def size_bytes(self, id: int) -> int:
        """What a task's or a constant's value counts against a budget: its elements; 0 for metrics and lone numbers."""
        return self._sizes[self._call[id - self._base]] if id >= 0 else size_bytes(self.values.spec_of(id))

    def task_key(self, id: int) -> Key:
        """A task's seed, node and counter."""
        at = id - self._base
        return Key(self.seed, self._node[at], self._counter[at])

    def counter_of(self, id: int) -> int:
        """The counter of a task's key: which of its node's ops it is."""
        return self._counter[id - self._base]

    def task(self, id: int) -> Task:
        """A task with its inputs' values, ready to be solved."""
        values = self.values
        return Task(tuple([values[i] for i in self.inputs(id)]), self.static_of(id), self.task_key(id))

    def node_of(self, id: int) -> int:
        """The node that recorded a task."""
        return self._node[id - self._base]

    def uses(self, id: int) -> int:
        """Handles on a task or constant, and unsolved reads of it."""
        return self._uses[id - self._base] if id >= 0 else self._constant_uses[id]

    def hold(self, id: int) -> None:
        """Keep a task alive until :meth:`release`, whatever happens to its handles."""
        if id >= 0:
            self._uses[id - self._base] += 1
        else:
            self._constant_uses[id] += 1

    def commit(self, id: int, value: Value) -> None:
        """Take in a task's value; its inputs lose a consumer."""
        self.values.put(id, value, self.spec_of(id))
        self._solved(id)

    def reuse(self, id: int, value: Value) -> None:
        """Take in a task's value from an earlier run: what it was to be made from is not skipped, but spared."""
        pending = [id]
        while pending:
            for i in self.inputs(pending.pop()):
                if i >= 0 and self._state[i - self._base] == RECORDED:
                    self._state[i - self._base] = SPARED
                    pending.append(i)
        self.reused += 1
        self.commit(id, value)

    def share(self, id: int, of: int) -> None:
        """Take in another task's value as a task's own."""
        self.values.share(id, of)
        self._solved(id)

    def _solved(self, id: int) -> None:
        self._state[id - self._base] = SOLVED
        for i in self.inputs(id):
            self.release(i)

    def drain(self) -> None:
        """Account for the handles that have died since the last time."""
        released, uses, base = self._released, self._uses, self._base
        while released:
            id = released.popleft()
            if id >= 0 and uses[id - base] > 1:
                uses[id - base] -= 1
            else:
                self.release(id)

    def release(self, id: int) -> None:
        """Give up one use of a task or constant: the last one frees its value, or spares its computation."""
        pending = [id]
        while pending:
            id = pending.pop()
            if id < 0:
                self._constant_uses[id] -= 1
                if not self._constant_uses[id]:
                    del self._constant_uses[id], self.values[id]
                continue
            at = id - self._base
            self._uses[at] -= 1
            if self._uses[at]:
                continue
            if self._state[at] == SOLVED:
                del self.values[id]
            else:
                self._drop(id)
                pending.extend(self.inputs(id))
            self._state[at] = FREED

    def _drop(self, id: int) -> None:
        if self._state[id - self._base] == SPARED:
            self.reused += 1
            return
        self.skipped += 1
        if self.on_skip is not None:
            self.on_skip(id)

    def retire(self) -> None:
        """Give back the columns of the finished tasks at the front, once there are many."""
        finished = len(self._state) - len(self._state.lstrip(bytes([FREED])))
        if finished < _RETIRE:
            return
        first = self._first_input[finished]
        del self._state[:finished], self._inputs[:first], self._first_input[:finished]
        del self._call[:finished], self._node[:finished], self._counter[:finished], self._uses[:finished]
        self._first_input = array("I", [at - first for at in self._first_input])
        self._base += finished

    def __len__(self) -> int:
        """Tasks whose columns are still held."""
        return len(self._state)
