"""Ensembles of some models only: the best, the largest, any, or one of each kind.

Guha, Talwalkar, Smith: One-Shot Federated Learning, 2019. DeDES: Wang, Liu, Zhang, Guo: Data-Free Diversity-Based
Ensemble Selection for One-Shot Federated Learning, TMLR 2023. All models have been uploaded here, and bytes count those
that are not chosen; the result carries them with weight 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.errors import ConfigError
from node.learn.oneshot.algorithm import Assets, Upload
from node.learn.oneshot.ensembles import ProbabilityEnsemble, VoteEnsemble


class SelectedEnsemble(ProbabilityEnsemble):
    """The mean of the probabilities of some models only (Guha et al., 2019); what is needed depends on which."""

    declares = Assumptions(reveals="scalars", mixed_architectures=True, result="ensemble", selection="clients")

    class Config(Section):
        """Options."""

        by: Literal["score", "samples", "chance"] = "score"
        """What counts: accuracy on what clients hold out, how much they have, or nothing."""
        members: int = Field(5, ge=1)
        """How many models; all, where there are fewer."""
        least: float = Field(0.0, ge=0)
        """What a model must have at least of what counts: a score, or samples."""

    config: Config

    def __init__(self, config: Section | None = None) -> None:
        super().__init__(config)
        by = self.config.by
        if by == "chance" and self.config.least:
            raise ConfigError("protocol.options.least: nothing counts where chance chooses; allowed with it: 0")
        self.declares = Assumptions(
            reveals="model" if by == "chance" else "scalars",
            mixed_architectures=True,
            result="ensemble",
            selection="clients" if by == "score" else "fixed",
        )

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """1 / members for those that are chosen, 0 for the others.

        Raises:
            ConfigError: no client has enough of what counts.
        """
        if self.config.by == "chance":
            order = assets.rng.permutation(len(uploads)).tolist()
        else:
            figures = [upload.score if self.config.by == "score" else upload.samples for upload in uploads]
            enough = [i for i, figure in enumerate(figures) if figure >= self.config.least]
            order = sorted(enough, key=lambda i: (-figures[i], uploads[i].client))
        if not order:
            raise ConfigError(f"protocol.options.least: no client has {self.config.by} of {self.config.least:g}")
        return only(order[: self.config.members], len(uploads), assets)


class DiverseEnsemble(VoteEnsemble):
    """A vote of one model of each kind, that of most samples; kinds are clusters of last layers (DeDES)."""

    declares = Assumptions(reveals="scalars", result="ensemble")

    class Config(Section):
        """Options."""

        kinds: int = Field(5, ge=1)
        """How many clusters; each model is one of its own, where there are no more."""

    config: Config

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """1 / kinds for those that vote, 0 for the others."""
        largest: dict[int, int] = {}
        for i, kind in enumerate(self._clustered(uploads, assets)):
            best = largest.setdefault(kind, i)
            if uploads[i].samples > uploads[best].samples:
                largest[kind] = i
        return only([*largest.values()], len(uploads), assets)

    def _clustered(self, uploads: Sequence[Upload], assets: Assets) -> list[int]:
        """The cluster of each model, by Ward's linkage of what it has from its last layer on: its last matrix."""
        from sklearn.cluster import AgglomerativeClustering

        if len(uploads) <= self.config.kinds:
            return list(range(len(uploads)))
        last = max(part.start for _, part, shape in assets.task.model.parts if len(shape) > 1)
        layers = torch.stack([upload.model[last:] for upload in uploads])
        found: list[int] = AgglomerativeClustering(self.config.kinds).fit_predict(layers.numpy()).tolist()
        return found


def only(chosen: Sequence[int], models: int, assets: Assets) -> Tensor:
    """Equal weights [models, classes] of those that are chosen, by their places."""
    weights = torch.zeros(models, assets.task.classes)
    weights[sorted(chosen)] = 1 / len(chosen)
    return weights
