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
from collections.abc import Hashable, Sequence
from typing import NamedTuple

from node.op import Key, Op, Ref, Spec, Static, Task, Value

RECORDED, SOLVED, FREED = 0, 1, 2
_RETIRE = 65_536
"""Finished tasks at the front after which their columns are given back."""


class Call(NamedTuple):
    """An op with its static arguments and the spec of what it yields: what many tasks have in common."""

    op: Op[...]
    static: Static
    spec: Spec


class Graph:
    """The tasks and values of one process.

    Args:
        seed: the experiment's seed, part of every task's key.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.calls: list[Call] = []
        self.values: dict[int, Value] = {}
        self._call_ids: dict[Hashable, int] = {}
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
            self.calls.append(Call(op, static, op.spec([ref.spec for ref in inputs], static)))
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
        self._constants -= 1
        self.values[self._constants] = value
        self._constant_uses[self._constants] = 1
        return Ref(self._constants, spec, self._released)

    def is_solved(self, id: int) -> bool:
        """Whether a task or constant has its value."""
        return id in self.values

    def inputs(self, id: int) -> array[int]:
        """The ids that a task reads."""
        at = id - self._base
        return self._inputs[self._first_input[at] : self._first_input[at + 1]]

    def op_of(self, id: int) -> Op[...]:
        """The op of a task."""
        return self.calls[self._call[id - self._base]].op

    def spec_of(self, id: int) -> Spec:
        """The spec of a task's value."""
        return self.calls[self._call[id - self._base]].spec

    def task(self, id: int) -> Task:
        """A task with its inputs' values, ready to be solved."""
        at = id - self._base
        values = self.values
        inputs = tuple([values[i] for i in self.inputs(id)])
        static = self.calls[self._call[at]].static
        return Task(inputs, static, Key(self.seed, self._node[at], self._counter[at]))

    def node_of(self, id: int) -> int:
        """The node that recorded a task."""
        return self._node[id - self._base]

    def hold(self, id: int) -> None:
        """Keep a task alive until :meth:`release`, whatever happens to its handles."""
        if id >= 0:
            self._uses[id - self._base] += 1
        else:
            self._constant_uses[id] += 1

    def commit(self, id: int, value: Value) -> None:
        """Take in a task's value; its inputs lose a consumer."""
        self.values[id] = value
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
                pending.extend(self.inputs(id))
            self._state[at] = FREED

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
