"""A workload whose every step has a closed form: each node pulls the model towards a target of its own."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from node.aggregation import Aggregation
from node.errors import ConfigError
from node.op import Key, Op, Spec, Static, Task

_METRICS = Spec((2,), "float64", ("accuracy", "loss"))
_RISK = Spec((1,), "float64", ("risk",))
_UTILITY = Spec((1,), "float64", ("utility",))


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
        self.adapt: Op[...] = Op("quadratic:adapt", self._adapt, seeded=True)
        self.fresh: Op[...] = Op("quadratic:fresh", self._fresh, spec=lambda inputs, static: self.model_spec)
        self.evaluate: Op[...] = Op("quadratic:evaluate", self._evaluate, spec=_metrics)
        self.risk: Op[...] = Op("quadratic:risk", self._risk, spec=lambda inputs, static: _RISK, seeded=True)
        self.utility: Op[...] = Op(
            "quadratic:utility", self._utility, spec=lambda inputs, static: _UTILITY, seeded=True
        )
        self.mix: Op[...] = Op("quadratic:mix", _mix)
        self.part: Op[...] = Op("quadratic:part", _part, spec=_part_spec)
        self.join: Op[...] = Op("quadratic:join", _join, spec=_join_spec)
        self.aggregation: Aggregation | None = None
        self.unify: None = None
        self.oneshot: None = None
        self.draw: Op[...] = Op("quadratic:draw", self._draw, seeded=True)
        self.regrow: Op[...] = Op("quadratic:regrow", self._regrow, seeded=True)

    def _train(self, task: Task) -> NDArray[np.float64]:
        return self._descend(task, task.static["steps"], task.inputs[0])

    def _adapt(self, task: Task) -> NDArray[np.float64]:
        """As training, with the guides of :mod:`node.learn`; its layers are its elements."""
        guides: dict[str, NDArray[np.float64]] = dict(zip(task.static["guides"], task.inputs[1:], strict=True))
        moving = np.array(guides.get("mask", np.ones(self.model_spec.shape)))
        if task.static["part"] != "all":
            frozen = slice(task.static["cut"], None) if task.static["part"] == "core" else slice(task.static["cut"])
            moving[frozen] = 0.0
        steps = task.static["steps"] * task.static["repeats"]
        anchor = guides["toward"] if "toward" in guides else task.inputs[0]
        return self._descend(task, steps, anchor, moving, guides.get("correction", 0.0))

    def _fresh(self, task: Task) -> NDArray[np.float64]:
        return Key(0, 0, task.static["draw"]).rng().normal(size=self.model_spec.shape)

    def _draw(self, task: Task) -> NDArray[np.float64]:
        mask = np.zeros(self.model_spec.shape)
        mask[task.key.rng().permutation(len(mask))[: self.kept(task.static["density"])]] = 1.0
        return mask

    def _regrow(self, task: Task) -> NDArray[np.float64]:
        """Its gradient has no batches; otherwise as :mod:`node.learn.sparse` does, in one layer."""
        model, mask = task.inputs
        grown, gradient = mask.copy(), model - self.targets[task.key.node]
        kept = np.flatnonzero(mask)
        count = round(task.static["share"] * len(kept))
        grown[kept[np.argsort(np.abs(model[kept]), kind="stable")[:count]]] = 0.0
        free = np.flatnonzero(grown == 0)
        grown[free[np.argsort(-np.abs(gradient[free]), kind="stable")[:count]]] = 1.0
        return np.asarray(grown)

    def _descend(
        self,
        task: Task,
        steps: int,
        anchor: NDArray[np.float64],
        moving: NDArray[np.float64] | float = 1.0,
        correction: NDArray[np.float64] | float = 0.0,
    ) -> NDArray[np.float64]:
        model = task.inputs[0]
        target = self.targets[task.key.node]
        for _ in range(steps):
            pull = (model - target) + task.static["proximal"] * (model - anchor) + correction
            model = model - task.static["lr"] * pull * moving
        if self._noise:
            model = model + self._noise * task.key.rng().normal(size=model.shape)
        return np.asarray(model)

    def _evaluate(self, task: Task) -> dict[str, float]:
        (model,) = task.inputs
        distance = float(np.linalg.norm(model - self.optimum))
        loss = float(((model - self.targets) ** 2).sum(axis=1).mean() / 2)
        return {"accuracy": 1 / (1 + distance), "loss": loss}

    def _risk(self, task: Task) -> dict[str, float]:
        """The nearer to the node's own target, the higher: up to 0.5 there."""
        return {"risk": 0.5 / (1 + float(np.linalg.norm(task.inputs[0] - self.targets[task.key.node])))}

    def _utility(self, task: Task) -> dict[str, float]:
        """The node's own loss: it has one sample."""
        return {"utility": float(((task.inputs[0] - self.targets[task.key.node]) ** 2).sum() / 2)}

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

    @property
    def sparse(self) -> Quadratic:
        """It knows its masks itself."""
        return self

    def kept(self, density: float) -> int:
        """Elements that a mask of some density keeps, at least one."""
        return max(1, round(density * self.model_spec.shape[0]))

    @property
    def groups(self) -> int:
        """One."""
        return 1

    def group_of(self, node: int) -> int:
        """One for all."""
        return 0

    def cut(self, layers: int) -> int:
        """Every element is a layer. Raises ConfigError where there are not more than these."""
        size = self.model_spec.shape[0]
        if not 0 < layers < size:
            raise ConfigError(f"private layers: {layers} of {size}; allowed: 1 to {size - 1}")
        return size - layers


def _part(task: Task) -> NDArray[np.float64]:
    return np.array(task.inputs[0][task.static["start"] : task.static["stop"]])


def _part_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return Spec((static["stop"] - static["start"],), inputs[0].dtype)


def _join(task: Task) -> NDArray[np.float64]:
    return np.concatenate(task.inputs)


def _join_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return Spec((sum(spec.shape[0] for spec in inputs),), inputs[0].dtype)


def _metrics(inputs: Sequence[Spec], static: Static) -> Spec:
    return _METRICS


def _mix(task: Task) -> NDArray[np.float64]:
    weights = task.static["weights"]
    total = task.inputs[0] * weights[0]
    for model, weight in zip(task.inputs[1:], weights[1:], strict=True):
        total = total + model * weight
    return np.asarray(total)
