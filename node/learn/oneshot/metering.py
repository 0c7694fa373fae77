"""What one-shot work takes of memory, and the products in it, as measured while an experiment runs.

Measured are tensors, which are as large on every machine, not the resident size of a process that all nodes share.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from torch import Tensor

from node.learn.footprint import Footprint, footprint
from node.learn.workload import Workload
from node.op import Key, Op, Task, Value

_CLIENT, _AGGREGATOR = "client", "aggregator"
_OPS: Mapping[str, str] = MappingProxyType(
    {"fit": _CLIENT, "part": _CLIENT, "add": _AGGREGATOR, "finish": _AGGREGATOR, "aggregate": _AGGREGATOR}
)
"""What is measured of :class:`node.learn.oneshot.ops.OneShotOps`, and whose work it is."""
_STACKING: Mapping[str, str] = MappingProxyType({"said": _CLIENT, "step": _CLIENT})
_STEPS = 2
"""Of the experiment's training: its memory is the same in each."""


class Meter:
    """Measures the one-shot ops of an experiment as they are solved, and training by a probe.

    Of clients, the one with most samples is measured. To be made before the experiment runs.

    Args:
        attempt: unlike that of any other run: work that a cache has done would not be measured.
    """

    def __init__(self, workload: Workload, nodes: int, seed: int, attempt: str) -> None:
        self._workload = workload
        self._seed = seed
        self._client = max(range(nodes), key=workload.shard_size)
        self._found: dict[str, list[Footprint]] = {_CLIENT: [], _AGGREGATOR: []}
        self._basis = f"measured {attempt}".encode()
        ops = workload.oneshot
        for owner, names in ((ops, _OPS), (ops.stacking, _STACKING)):
            for name, whose in names.items():
                setattr(owner, name, self._measured(getattr(owner, name), self._found[whose]))

    def _measured(self, op: Op[...], found: list[Footprint]) -> Op[...]:
        of_client = found is self._found[_CLIENT]

        def is_other(key: Key) -> bool:
            return of_client and key.node != self._client

        def basis(key: Key) -> bytes:
            return op.basis(key) if op.basis is not None and is_other(key) else self._basis

        def solve(task: Task) -> Value:
            if is_other(task.key):
                return op.solve(task)
            given = [value for value in task.inputs if isinstance(value, Tensor)]
            value, taken = footprint(lambda: op.solve(task), given)
            found.append(taken)
            return value

        return replace(op, solve=solve, basis=basis)

    def figures(self, *, trains: bool) -> dict[str, float]:
        """``client_peak_bytes``, ``aggregator_peak_bytes`` and ``aggregator_counted_flops``, those that are known.

        Args:
            trains: whether clients train the experiment's own model.
        """
        clients, aggregator = self._found[_CLIENT], self._found[_AGGREGATOR]
        figures: dict[str, float] = {}
        if peaks := [each.peak_bytes for each in clients] + ([self._training_bytes()] if trains else []):
            figures["client_peak_bytes"] = float(max(peaks))
        if aggregator:
            figures["aggregator_peak_bytes"] = float(max(each.peak_bytes for each in aggregator))
            figures["aggregator_counted_flops"] = sum(each.flops for each in aggregator)
        return figures

    def _training_bytes(self) -> int:
        """Of the experiment's training, at the client with most samples."""
        workload, key = self._workload, Key(self._seed, self._client, 0)
        start: Any = workload.init.solve(Task((), {}, key))
        task = Task((start,), {"steps": _STEPS, "lr": workload.lr(0), "proximal": 0.0}, key)
        return footprint(lambda: workload.train.solve(task), [start])[1].peak_bytes
