"""Whose data was this model trained on? The strong attacker of Shatter (Biswas et al., PoPETs 2025).

It holds every candidate's training set, and takes a message for that of the node on whose data its model does best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from node.attack.attacker import Scene
from node.attack.linkability import candidate_losses, linked
from node.attack.sampling import Curious, Own, Seen
from node.errors import ConfigError
from node.op import Ref, Spec, Task, Value

if TYPE_CHECKING:
    from node.context import Context


class Linkability(Curious):
    """Guesses the sender of each message, without looking at who it says it is from."""

    metrics = ("linkability_accuracy", "linkability_rank")

    def __init__(self, config: Curious.Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        self._candidates = [node for node in range(scene.config.nodes) if scene.truth.has_data(node)]
        if len(self._candidates) < 3:
            raise ConfigError(f"attackers.kind: {len(self._candidates)} nodes hold data; linkability needs 3 to tell")
        self._op = self.op("linkability", self._solve, Spec((len(self.metrics),), "float64", self.metrics))

    def attack(self, ctx: Context, round: int, seen: Sequence[Seen], own: Own) -> Sequence[Ref]:
        """One op for each message."""
        attacker = self.scene.participants.device(ctx.me)
        return [ctx.apply(self._op, message.model, victim=message.sender, attacker=attacker) for message in seen]

    def judge(self, models: Mapping[int, Value]) -> dict[str, Any]:
        """What guessing would achieve."""
        return {"linkability": {"chance": linked(np.zeros(1), np.zeros(1), len(self._candidates)).chance}}

    def _solve(self, task: Task) -> dict[str, float]:
        """Whether the sender is the first guess, and which guess it is, counted from 1; ties are shared out."""
        others = [node for node in self._candidates if node != task.static["attacker"]]
        samples = [self.scene.truth.members(node) for node in others]
        model = task.inputs[0].cpu().clone()
        found = candidate_losses(self.scene.model.logits, [model], [(part.features, part.labels) for part in samples])
        losses = np.where(np.isnan(found[0]), np.inf, found[0])
        own = losses[others.index(task.static["victim"])]
        equal = int(np.sum(losses == own))
        is_best = own == losses.min()
        return dict(zip(self.metrics, (is_best / equal, np.sum(losses < own) + (equal + 1) / 2), strict=True))
