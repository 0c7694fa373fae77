"""Updates of nodes that the attacker never hears from, by linear algebra over rounds.

El Mrini, Cyffers and Bellet, "Privacy attacks in decentralized learning", ICML 2024; the algebra is
:mod:`node.attack.linear`'s. The attacker knows the topology and its weights, takes every node's update for the same in
all rounds, and subtracts what follows from the common start and from its own models.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import networkx
import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from node.attack import linear, metrics, references
from node.attack.attacker import Attack, Scene
from node.attack.sampling import record, seen_in
from node.attack.scores import loss
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.message import Message
from node.mods import Observer
from node.op import Ref, Spec, Task, Value

if TYPE_CHECKING:
    from node.context import Context

_MOST_NODES = 256


class Reconstruction(Attack):
    """Each attacker by itself reconstructs the update of every other node."""

    class Config(Attack.Config):
        """Options of the attack."""

        rounds: int = Field(5, ge=1)
        """Rounds from the first on whose messages are used."""

    config: Config
    metrics = ("reconstruction_recovered", "reconstruction_auc")

    def __init__(self, config: Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        if scene.topology.fresh:
            raise ConfigError("attackers.kind: reconstruction needs a topology that is the same in every round")
        self._mixing = scene.topology.matrix()
        updates = Spec((len(self._mixing) - 1, scene.model.dimension))
        self.solving = self.op("reconstruction", self._solve, updates)
        self.judging = self.op("reconstructed", self._judged, Spec((len(self.metrics),), "float64", self.metrics))

    @classmethod
    def check(cls, config: Config, nodes: tuple[int, ...], experiment: ExperimentConfig) -> None:
        """Raise ConfigError for a protocol that mixes otherwise, or too many nodes for dense algebra."""
        if experiment.protocol.use != "dpsgd":
            raise ConfigError(f"attackers.kind: reconstruction is of 'dpsgd', not {experiment.protocol.use!r}")
        if experiment.aggregation.is_robust:
            raise ConfigError(
                "attackers.kind: reconstruction solves for weighted means; allowed with it: aggregation.rule = 'mean'"
            )
        if experiment.privacy.mechanism != "none":
            raise ConfigError(
                "attackers.kind: reconstruction takes a node's update for the same in all rounds, which noise makes "
                "another in each; allowed with it: privacy.mechanism = 'none'"
            )
        if any(table.identities for table in experiment.attackers if table.kind == "reconstruction"):
            raise ConfigError(
                "attackers.identities: reconstruction solves for what one peer has heard; leave identities out"
            )
        if experiment.nodes > _MOST_NODES:
            raise ConfigError(f"attackers.kind: reconstruction among {experiment.nodes} nodes; at most {_MOST_NODES}")

    def wrapping(self, node: int) -> Sequence[Observer]:
        """The observer that keeps the first rounds, on attackers."""
        return (Historian(self, node),) if node in self.nodes else ()

    def judge(self, models: Mapping[int, Value]) -> dict[str, Any]:
        """What share of the nodes at each distance from the first attacker the topology gives away."""
        attacker = self.nodes[:1]
        graph = networkx.from_numpy_array(self._mixing)
        others = np.delete(np.arange(len(self._mixing)), attacker)
        found = others[linear.recoverable(linear.gradient_view(self._mixing, attacker, self.config.rounds))]
        shares = linear.recovered_by_distance(graph, attacker, found)
        return {"reconstruction": {f"recovered_at_{distance}": share for distance, share in shares.items()}}

    def _view(self, attacker: int, heard: Sequence[tuple[int, int]], rounds: int) -> np.ndarray:
        """The rows of the view that belong to messages (round, sender) that have come."""
        targets = np.delete(np.arange(len(self._mixing)), attacker)
        senders = targets[self._mixing[attacker, targets] != 0]
        places = {(round, int(sender)): i for i, (round, sender) in enumerate(_pairs(rounds, senders))}
        return linear.gradient_view(self._mixing, (attacker,), rounds)[[places[place] for place in heard]]

    def _solve(self, task: Task) -> Tensor:
        """The update of every other node, float32 [others, dimension]; inputs: start, own models, heard models.

        Not a number where any of these is not finite: every update is told by all of them.
        """
        attacker, heard, rounds = (task.static[name] for name in ("attacker", "heard", "rounds"))
        start, *models = (model.cpu().double().numpy() for model in task.inputs)
        own, received = models[:rounds], models[rounds:]
        targets = np.delete(np.arange(len(self._mixing)), attacker)
        if not all(np.isfinite(model).all() for model in (start, *models)):
            return torch.full((len(targets), len(start)), math.nan)
        among, from_attacker = self._mixing[np.ix_(targets, targets)], self._mixing[targets, attacker]
        known = [np.tile(start, (len(targets), 1))]
        for model in own[:-1]:
            known.append(among @ known[-1] + np.outer(from_attacker, model))
        place = {int(target): i for i, target in enumerate(targets)}
        pairs = zip(heard, received, strict=True)
        seen = np.stack([model - known[round][place[sender]] for (round, sender), model in pairs])
        found = linear.reconstruct(self._view(attacker, heard, rounds), seen)
        return torch.from_numpy(found.astype(np.float32))

    def _judged(self, task: Task) -> dict[str, float]:
        """Whether a victim's update follows from what was seen, and what the update tells of the victim's data."""
        attacker, victim = task.static["attacker"], task.static["victim"]
        place = victim - (victim > attacker)
        lever = linear.leverage(self._view(attacker, task.static["heard"], task.static["rounds"]))[place]
        model = task.inputs[0].cpu() + task.inputs[1][place].cpu()
        inside, outside = self.scene.truth.members(victim), self.scene.truth.non_members(victim)
        labels = torch.cat([inside.labels, outside.labels]).numpy()
        said = references.logits(self.scene.model, model[None], torch.cat([inside.features, outside.features]))[0]
        members, scores = np.arange(len(labels)) < len(inside.labels), loss(said, labels)
        if not np.isfinite(scores).all():
            return dict.fromkeys(self.metrics, math.nan)
        return dict(zip(self.metrics, (float(lever > 1 - 1e-6), metrics.auc(scores, members)), strict=True))


class Historian(Observer):
    """Keeps what an attacker has had and heard in the first rounds."""

    def __init__(self, attack: Reconstruction, me: int) -> None:
        super().__init__()
        self._attack = attack
        self._me = me
        self._start: Ref | None = None
        self._own: list[Ref] = []
        self._heard: dict[tuple[int, int], Ref] = {}
        self._is_restored = False

    def restored(self, ctx: Context, trainings: int) -> None:
        """Without the common start and the first rounds, nothing follows from all others."""
        self._is_restored = True
        ctx.log.warning("attacker started again", lost="the first rounds: it reconstructs nothing")

    def trained(self, ctx: Context, before: Ref, after: Ref) -> None:
        """The first training starts from what all have in common."""
        if self._start is None:
            self._start = before
        if len(self._own) < self._attack.config.rounds:
            self._own.append(after)

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """Keep the first rounds."""
        round = int(getattr(message, "round", self._attack.config.rounds))
        seen = seen_in(ctx, sender, message, self._attack.scene, None)
        if seen and round < self._attack.config.rounds:
            self._heard[round, sender] = seen[0].model

    def ended(self, ctx: Context) -> None:
        """Solve for everything at once."""
        rounds = len(self._own)
        heard = tuple(sorted(place for place in self._heard if place[0] < rounds))
        if self._start is None or not heard or self._is_restored:
            return
        static: dict[str, Any] = {"attacker": self._me, "heard": heard, "rounds": rounds}
        models = [self._heard[place] for place in heard]
        updates = ctx.apply(self._attack.solving, self._start, *self._own, *models, **static)
        victims = [node for node in range(self._attack.scene.config.nodes) if node != self._me]
        judging = self._attack.judging
        leaks = [ctx.apply(judging, self._start, updates, victim=victim, **static) for victim in victims]
        record(ctx, rounds - 1, victims, leaks, self._attack.metrics)


def _pairs(rounds: int, senders: np.ndarray) -> list[tuple[int, int]]:
    return [(round, int(sender)) for round in range(rounds) for sender in senders]
