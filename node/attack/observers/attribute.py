"""One attribute of a victim's samples, from all their other attributes, their labels and a received model.

By losses: the value with which the model does best (Yeom et al., CSF 2018). By outputs: a random forest that has learnt
from half of the samples what the model's outputs say of the attribute. Both beside the same guess without a model.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from node.attack import attribute
from node.attack.attacker import Scene
from node.attack.sampling import Curious, Own, Seen
from node.attack.scores import loss, probabilities
from node.errors import ConfigError
from node.op import Ref, Spec, Task

if TYPE_CHECKING:
    from node.context import Context


class AttributeAttack(Curious):
    """Guesses whether an attribute is above its median, or below."""

    class Config(Curious.Config):
        """Options of the attack."""

        column: int = Field(0, ge=0)
        """Number of the attribute."""
        method: Literal["losses", "outputs"] = "losses"
        """Guess by the model's losses, or by a random forest on its outputs."""

    config: Config
    metrics = ("attribute_accuracy", "attribute_baseline", "attribute_lift")

    def __init__(self, config: Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        features = scene.federation.train.features
        if features.ndim != 2 or config.column >= features.shape[1]:
            shape = list(features.shape[1:])
            instead = "tables, as data.name = 'breast_cancer'" if features.ndim != 2 else f"below {shape[0]}"
            raise ConfigError(f"attackers.column: {config.column} of samples of shape {shape}; allowed: {instead}")
        column = features[:, config.column]
        above = column > column.median()
        if not above.any():
            raise ConfigError(f"attackers.column: no value of column {config.column} is above its median")
        self._median = float(column.median())
        self._values = np.array([float(column[~above].mean()), float(column[above].mean())], dtype=np.float32)
        self._op = self.op("attribute", self._solve, Spec((len(self.metrics),), "float64", self.metrics))

    def attack(self, ctx: Context, round: int, seen: Sequence[Seen], own: Own) -> Sequence[Ref]:
        """One op for each message."""
        return [ctx.apply(self._op, message.model, victim=message.sender) for message in seen]

    def _solve(self, task: Task) -> dict[str, float]:
        """Accuracy, baseline and lift; nothing is a number where the model says nothing that is one."""
        model, victim = task.inputs[0].cpu().clone(), task.static["victim"]
        features, labels = (part.numpy() for part in self.scene.truth.members(victim))
        truth = (features[:, self.config.column] > self._median).astype(np.int64)
        changed = attribute.candidates(features, self.config.column, self._values)
        if not all(np.isfinite(self._logits(model, each)).all() for each in (features, *changed)):
            return dict.fromkeys(self.metrics, math.nan)
        lift = self._by_losses(model, changed, labels, truth)
        if self.config.method == "outputs" and len(np.unique(truth)) > 1:
            lift = self._by_outputs(model, features, labels, truth, victim)
        return dict(zip(self.metrics, (lift.accuracy, lift.baseline_accuracy, lift.accuracy_lift), strict=True))

    def _by_losses(self, model: Tensor, changed: np.ndarray, labels: np.ndarray, truth: np.ndarray) -> attribute.Lift:
        losses = np.stack([-loss(self._logits(model, each), labels) for each in changed])
        return attribute.lift_of(attribute.from_losses(losses, np.array([0, 1])), truth)

    def _by_outputs(
        self, model: Tensor, features: np.ndarray, labels: np.ndarray, truth: np.ndarray, victim: int
    ) -> attribute.Lift:
        """The forests are judged on every other sample of each value, and learn from the rest."""
        learnt = np.zeros(len(truth), dtype=np.bool_)
        for value in (0, 1):
            learnt[np.flatnonzero(truth == value)[::2]] = True
        known = np.delete(features, self.config.column, axis=1)
        said = probabilities(self._logits(model, features))
        return attribute.from_outputs(known, labels, said, truth, learnt, self.scene.config.seed + victim)

    def _logits(self, model: Tensor, features: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return self.scene.model.logits(model, torch.from_numpy(features)).double().numpy()
