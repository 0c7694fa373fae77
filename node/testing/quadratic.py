"""A workload whose every step has a closed form: each node pulls the model towards a target of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.op import Key, Op, Spec, Static, Task

_METRICS = Spec((2,), "float64", ("accuracy", "loss"))


class Quadratic:
    """Node i minimises ``|x - targets[i]|^2 / 2`` by gradient descent; a :class:`~node.world.Workload` without torch.

    The best common model is the mean of all targets; ``loss`` is the mean loss over all nodes, and ``accuracy`` is
    ``1 / (1 + |x - mean of targets|)``, so that it rises to 1.

    Args:
        targets: one per node, shape [nodes, dimensions]; None: drawn from the seed.
        lr: share of the way to its target that a node goes in one step; 1 jumps there, 0 stays.
        noise: standard deviation of seeded Gaussian noise on every step, 0 for none.
    """

    def __init__(
        self,
        nodes: int,
        targets: Sequence[Sequence[float]] | NDArray[np.float64] | None = None,
        *,
        lr: float = 0.1,
        noise: float = 0.0,
        seed: int = 0,
    ) -> None:
        rng = Key(seed, 0, 0).rng()
        self.targets = rng.normal(size=(nodes, 4)) if targets is None else np.asarray(targets, dtype=np.float64)
        self.optimum: NDArray[np.float64] = self.targets.mean(axis=0)
        self.model_spec = Spec(self.optimum.shape, "float64")
        self._lr = lr
        self._noise = noise
        self.init: Op[...] = Op("quadratic:init", lambda task: np.zeros_like(self.optimum))
        self.train: Op[...] = Op("quadratic:train", self._train, seeded=True)
        self.evaluate: Op[...] = Op("quadratic:evaluate", self._evaluate, spec=_metrics)
        self.mix: Op[...] = Op("quadratic:mix", _mix)

    def _train(self, task: Task) -> NDArray[np.float64]:
        (model,) = task.inputs
        target = self.targets[task.key.node]
        for _ in range(task.static["steps"]):
            pull = (model - target) + task.static["proximal"] * (model - task.inputs[0])
            model = model - task.static["lr"] * pull
        if self._noise:
            model = model + self._noise * task.key.rng().normal(size=model.shape)
        return np.asarray(model)

    def _evaluate(self, task: Task) -> dict[str, float]:
        (model,) = task.inputs
        distance = float(np.linalg.norm(model - self.optimum))
        loss = float(((model - self.targets) ** 2).sum(axis=1).mean() / 2)
        return {"accuracy": 1 / (1 + distance), "loss": loss}

    def shard_size(self, node: int) -> int:
        """Every node counts the same."""
        return 1

    def label_histogram(self, node: int) -> NDArray[np.int64]:
        """One sample of one class."""
        return np.ones(1, dtype=np.int64)

    def steps(self, node: int) -> int:
        """One step a train."""
        return 1

    def samples(self, node: int, steps: int) -> int:
        """One sample a step."""
        return steps

    def held_samples(self, node: int, on: str) -> int:
        """One."""
        return 1

    def lr(self, call: int) -> float:
        """Constant."""
        return self._lr


def _metrics(inputs: Sequence[Spec], static: Static) -> Spec:
    return _METRICS


def _mix(task: Task) -> NDArray[np.float64]:
    weights = task.static["weights"]
    total = task.inputs[0] * weights[0]
    for model, weight in zip(task.inputs[1:], weights[1:], strict=True):
        total = total + model * weight
    return np.asarray(total)
