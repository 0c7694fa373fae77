"""Nodes that lie: in what they send (:mod:`node.attack.liar`), or in the data that they train on.

The lies are those of :data:`node.attack.byzantine.ATTACKS`, and ``label-flip`` and ``backdoor`` of
:mod:`node.attack.poisoning`, which name their sources.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import ConfigDict, Field

from node.attack.attacker import Attack, Scene
from node.attack.byzantine import ATTACKS
from node.attack.identities import byzantine_neighbours
from node.attack.liar import Board, Boost, Byzantine, Witness
from node.attack.poisoning import Trigger, with_backdoor, with_flipped_labels
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.learn.data import Dataset, Federation
from node.mods import Mod, Observer
from node.op import Value

_IN_DATA = ("label-flip", "backdoor")


class ByzantineNodes(Attack):
    """Some nodes lie together."""

    class Config(Attack.Config):
        """Options of the attack; every other key is an option of the lie that ``attack`` names."""

        model_config = ConfigDict(frozen=True, extra="allow", use_attribute_docstrings=True)

        attack: str = "sign-flip"
        """Which lie: a name in ``node.attack.byzantine.ATTACKS``, or ``label-flip`` or ``backdoor``."""
        omniscient: bool = False
        """Know all honest models, not only those that were heard: simulation only."""
        per_receiver: bool = False
        """Lie anew to each receiver, where the attack is random."""
        fraction: float = Field(0.5, gt=0, le=1)
        """Share of an attacker's samples that ``backdoor`` changes."""
        target: int = Field(0, ge=0)
        """The class that the backdoor opens."""
        boost: float = Field(0.0, ge=0, le=1)
        """Scale up what is trained on bad data, to survive being mixed with this weight; 0: do not."""

    config: Config
    is_lie = True

    def __init__(self, config: Config, nodes: tuple[int, ...], scene: Scene) -> None:
        super().__init__(config, nodes, scene)
        self._board = Board()
        self._trigger = Trigger(config.target)

    @classmethod
    def check(cls, config: Config, nodes: tuple[int, ...], experiment: ExperimentConfig) -> None:
        """Raise ConfigError for a lie or option that there is not, and for omniscience among real processes."""
        if len(nodes) >= experiment.nodes:
            raise ConfigError(f"attackers.nodes: all {experiment.nodes} nodes lie; at least one must be honest")
        if config.omniscient and experiment.clock == "real":
            raise ConfigError(
                "attackers.omniscient: a real node knows only what it has heard; allowed with clock = 'virtual' only"
            )
        if config.attack in _IN_DATA:
            if odd := sorted(config.model_extra or {}):
                known = "fraction, target, boost" if config.attack == "backdoor" else "boost"
                raise ConfigError(f"attackers.{odd[0]}: no option of {config.attack!r}; allowed: {known}")
            return
        if experiment.protocol.use == "secagg" or experiment.protocol.options.get("secure"):
            raise ConfigError(
                f"attackers.attack: {experiment.protocol.use!r} sends masked whole numbers, which are no weights to lie"
                f" about; allowed with it: {', '.join(_IN_DATA)}"
            )
        if config.attack not in ATTACKS:
            known = ", ".join((*ATTACKS, *_IN_DATA))
            raise ConfigError(f"attackers.attack: no attack is called {config.attack!r}; known: {known}")
        _byzantine(config, nodes, Board())

    @classmethod
    def poisoned(cls, config: Config, nodes: tuple[int, ...], federation: Federation, seed: int) -> Federation:
        """What the attackers train on, where the lie is in the data."""
        if config.attack == "label-flip":
            return with_flipped_labels(federation, nodes)
        if config.attack == "backdoor":
            return with_backdoor(federation, nodes, Trigger(config.target), config.fraction, seed)
        return federation

    def wrapping(self, node: int) -> Sequence[Mod | Observer]:
        """The lying mod on attackers; where they know everything, a witness on everybody else."""
        config = self.config
        if node not in self.nodes:
            return (Witness(self._board),) if config.omniscient else ()
        if config.attack not in _IN_DATA:
            return (_byzantine(config, self.nodes, self._board),)
        return (Boost(Boost.Config(byzantine=self.nodes, weight=config.boost)),) if config.boost else ()

    def judge(self, models: Mapping[int, Value]) -> dict[str, Any]:
        """How honest nodes have fared, and how many of them hear how many liars in the first round."""
        honest = [node for node in sorted(models) if node not in self.nodes]
        sources = {peer: self.scene.topology.sources(peer, 0) for peer in range(self.scene.participants.peers)}
        heard = {str(liars): count for liars, count in byzantine_neighbours(sources, self.nodes).items()}
        found: dict[str, Any] = {"attack": self.config.attack, "nodes": list(self.nodes), "liars_heard": heard}
        if honest:
            test = self.scene.federation.test
            found["honest_accuracy"] = self._accuracy(models, honest, test)
            if self.config.attack == "backdoor":
                found["success_rate"] = self._accuracy(models, honest, self._trigger.test_set(test))
        return {"byzantine": found}

    def _accuracy(self, models: Mapping[int, Value], nodes: Sequence[int], data: Dataset) -> float:
        """Mean accuracy of some nodes' models."""
        logits = self.scene.model.logits
        with torch.no_grad():
            right = [(logits(models[n].cpu(), data.features).argmax(1) == data.labels).double().mean() for n in nodes]
        return float(np.mean(right))


def _byzantine(config: ByzantineNodes.Config, nodes: tuple[int, ...], board: Board) -> Byzantine:
    options = {"omniscient": config.omniscient, "per_receiver": config.per_receiver, **(config.model_extra or {})}
    try:
        return Byzantine(Byzantine.Config(attack=config.attack, byzantine=nodes, **options), board)
    except ConfigError as error:
        raise ConfigError(str(error).replace("mods.", "attackers.", 1)) from None
