"""The quadratic workload with tensors for values, as the mechanisms of privacy take them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from node.op import Op, Task
from node.privacy.mechanisms import insecure
from node.testing import Quadratic

_OPS = ("init", "train", "adapt", "fresh", "evaluate", "risk", "utility", "mix", "part", "join")


class Tensorial(Quadratic):
    """As :class:`Quadratic`, in double precision."""

    def __init__(self, nodes, targets=None, **options):
        super().__init__(nodes, targets, **options)
        for name in _OPS:
            setattr(self, name, _of_tensors(getattr(self, name)))


def _of_tensors(op: Op) -> Op:
    def solve(task: Task):
        value = op.solve(task._replace(inputs=tuple(np.asarray(value) for value in task.inputs)))
        return value if isinstance(value, dict) else torch.from_numpy(np.asarray(value))

    return dataclasses.replace(op, solve=solve)


def mechanisms(dimension=4, seed=0):
    """What hides models of so many elements, the same in every run."""
    return insecure(seed, "test", (dimension,))
