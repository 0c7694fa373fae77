"""What a workload knows of stacks: small models whose input is what other models say. Ops for ``ctx.stacking``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.errors import ComputeError
from node.learn.cost import inference_flops, training_flops
from node.learn.data import Federation
from node.learn.models import Dense, Model
from node.learn.oneshot import judging
from node.learn.oneshot.algorithm import Task
from node.op import Op, Spec, Static
from node.op import Task as Solved

_MOMENTS = Spec((2,), "float64", ("sum", "squares"))


class StackingOps:
    """The ops of :class:`node.stacking.StackingOps` for one experiment."""

    def __init__(self, federation: Federation, task: Task, seed: int, make: Callable[..., Op[...]]) -> None:
        """``make`` gives an op of a name, what solves it, and what tells its spec."""
        self._federation = federation
        self._task = task
        self._seed = seed
        self.said: Op[...] = make("stack-said", self._said, self._spoken)
        self.moments: Op[...] = make("stack-moments", _moments, lambda inputs, static: _MOMENTS)
        self.fresh: Op[...] = make("stack-fresh", self._fresh, self._flat)
        self.step: Op[...] = make("stack-step", self._step, self._flat)
        self.judge: Op[...] = make("stack-judge", self._judge, lambda inputs, static: judging.names(task.classes))

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """All of them."""
        return self.said, self.moments, self.fresh, self.step, self.judge

    @property
    def classes(self) -> int:
        """How many there are."""
        return self._task.classes

    def said_samples(self, node: int, members: int) -> float:
        """Samples that the experiment's model could be trained on while so many models speak of a node's samples."""
        spoken = members * self._federation.local_tests.size(node) * inference_flops(self._task.model, self._task.shape)
        return spoken / self._flops

    def step_samples(self, members: int, hidden: int, batch_size: int) -> float:
        """The same for one step."""
        stack = self._stack(members, hidden)
        return batch_size * _training_flops(stack, (members * self.classes,)) / self._flops

    def _stack(self, members: int, hidden: int) -> Model:
        return _dense((members * self.classes, hidden, self.classes))

    @cached_property
    def _flops(self) -> float:
        return training_flops(self._task.model, self._task.shape)

    # Specs

    def _spoken(self, inputs: Sequence[Spec], static: Static) -> Spec:
        return Spec((static["samples"], len(inputs) * self.classes))

    def _flat(self, inputs: Sequence[Spec], static: Static) -> Spec:
        return self._stack(static["members"], static["hidden"]).spec

    # One task

    def _said(self, solved: Solved) -> Tensor:
        rows = self._rows(solved.key.node)
        return self._inputs(solved.inputs, self._federation.train.features[rows])

    def _inputs(self, models: Sequence[Tensor], features: Tensor) -> Tensor:
        """Logits of all models side by side, [samples, models x classes]."""
        return torch.cat([self._task.logits(flat, features) for flat in models], 1)

    def _fresh(self, solved: Solved) -> Tensor:
        drawn = np.random.default_rng([self._seed, *b"stack"]).integers(2**63)
        return self._stack(solved.static["members"], solved.static["hidden"]).initial(int(drawn))

    def _step(self, solved: Solved) -> Tensor:
        flat, said = solved.inputs
        static = solved.static
        stack = self._stack(static["members"], static["hidden"])
        labels = self._federation.train.labels[self._rows(solved.key.node)]
        batch = torch.from_numpy(solved.key.rng().permutation(len(labels))[: static["batch_size"]])
        leaf = flat.clone().requires_grad_()
        with torch.enable_grad():
            loss = cross_entropy(stack.logits(leaf, said[batch] / static["scale"]), labels[batch])
            (gradient,) = torch.autograd.grad(loss, leaf)
        stepped: Tensor = flat - static["lr"] * gradient
        return stepped

    @torch.no_grad()
    def _judge(self, solved: Solved) -> dict[str, float]:
        flat, *models = solved.inputs
        test, static = self._federation.test, solved.static
        stack = self._stack(len(models), static["hidden"])
        logits = stack.logits(flat, self._inputs(models, test.features) / static["scale"])
        return judging.judged(logits.softmax(1), test.labels)

    def _rows(self, node: int) -> np.ndarray:
        rows = self._federation.local_tests.of(node)
        if not len(rows):
            raise ComputeError(f"stacking: node {node} holds out no samples; raise data.local_test_fraction")
        return rows


_training_flops = lru_cache(maxsize=8)(training_flops)


@lru_cache(maxsize=8)
def _dense(widths: tuple[int, ...]) -> Model:
    """A step takes less time than to build one."""
    return Dense("stack", widths)


def _moments(solved: Solved) -> dict[str, float]:
    (said,) = (tensor.double() for tensor in solved.inputs)
    return {"sum": float(said.sum()), "squares": float((said**2).sum())}
