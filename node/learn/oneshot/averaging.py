"""Averages of models that have started alike, and of what they have learned since.

Federated averaging: McMahan, Moore, Ramage, Hampson, Agüera y Arcas, AISTATS 2017. Task arithmetic: Ilharco, Ribeiro,
Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi: Editing Models with Task Arithmetic, ICLR 2023. TIES: Yadav, Tam,
Choshen, Raffel, Bansal: TIES-Merging, NeurIPS 2023. DARE: Yu, Yu, Yu, Huang, Li: Language Models are Super Mario:
Absorbing Abilities from Homologous Models as a Free Lunch, ICML 2024.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.learn.oneshot.algorithm import Algorithm, Assets, Streaming, Task, Upload
from node.op import Spec


class Average(Streaming):
    """The mean of all models."""

    declares = Assumptions(shared_start=True)

    def weight(self, upload: Upload) -> float:
        """How much a model counts: all alike."""
        return 1.0

    def state(self, task: Task) -> Spec:
        """The weighted sum of models, then their weight."""
        return Spec((task.model.dimension + 1,), "float64")

    def add(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """One more model."""
        weight = self.weight(upload)
        return torch.cat([state[:-1].add(self.seen(upload, assets), alpha=weight), state[-1:] + weight])

    def seen(self, upload: Upload, assets: Assets) -> Tensor:
        """What counts of a client: its model as it is."""
        return upload.model

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """Model [dimension]."""
        return state[:-1] / state[-1]


class WeightedAverage(Average):
    """The mean, where a model counts as much as its client has samples."""

    declares = Assumptions(reveals="scalars", shared_start=True)

    def weight(self, upload: Upload) -> float:
        """Its samples."""
        return float(upload.samples)


def thinned(model: Tensor, drop: float, assets: Assets) -> Tensor:
    """A model with a random share of its movements undone, and all others larger, so that the mean is the same."""
    if not drop:
        return model
    is_kept = torch.rand(len(model), generator=assets.generator) >= drop
    return torch.where(is_kept, assets.start + (model - assets.start) / (1 - drop), assets.start)


class Dare(Average):
    """The mean of models of which most movements are undone at random, and the others the larger (DARE)."""

    class Config(Section):
        """Options."""

        drop: float = Field(0.9, ge=0, lt=1)
        """Share of each client's movements that is undone."""

    config: Config

    def seen(self, upload: Upload, assets: Assets) -> Tensor:
        """What is left of a client's model."""
        return thinned(upload.model, self.config.drop, assets)


class TaskArithmetic(Dare):
    """The common start, and a share of all that clients have moved away from it."""

    class Config(Dare.Config):
        """Options."""

        drop: float = Field(0.0, ge=0, lt=1)
        """Share of each client's movements that is undone first."""
        scale: float = Field(0.3, gt=0)
        """How much of each client's movement is added; 1 / clients is the mean."""

    config: Config

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """Model [dimension]."""
        moved = state[:-1] - state[-1] * assets.start
        return assets.start + self.config.scale * moved


class Ties(Algorithm):
    """The largest movements only, and of these for each parameter those of the sign that outweighs the other."""

    declares = Assumptions(shared_start=True)

    class Config(Section):
        """Options."""

        keep: float = Field(0.2, gt=0, le=1)
        """Share of each client's parameters that count: those that have moved most."""
        scale: float = Field(1.0, gt=0)
        """How much of the merged movement is added to the start."""
        drop: float = Field(0.0, ge=0, lt=1)
        """Share of each client's movements that is undone first."""

    config: Config

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        models = (thinned(upload.model, self.config.drop, assets.beside(upload.client)) for upload in uploads)
        moves = torch.stack([self._trimmed(model - assets.start) for model in models])
        agrees = (moves.sign() == moves.sum(0).sign()) & (moves != 0)
        merged = (moves * agrees).sum(0) / agrees.sum(0).clamp_min(1)
        return assets.start + self.config.scale * merged

    def _trimmed(self, move: Tensor) -> Tensor:
        kept = max(1, round(self.config.keep * len(move)))
        least = move.abs().kthvalue(len(move) - kept + 1).values
        return torch.where(move.abs() >= least, move, 0.0)
