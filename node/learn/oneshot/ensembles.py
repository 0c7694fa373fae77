"""All models together: means of what they say, votes, and weights by the labels that each has seen.

An ensemble keeps every model, so that its answer costs as many passes as there are clients. Selections: Guha,
Talwalkar, Smith: One-Shot Federated Learning, 2019.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from node.assumptions import Assumptions
from node.config import Section
from node.errors import ConfigError
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.op import Spec

_TIE = 1e-6
"""What a mean probability counts against one vote: only between equals."""


class Ensemble(Algorithm):
    """Base of ensembles: the result is all models, one after another, each with its weight for each class."""

    def result(self, task: Task, uploads: int) -> Spec:
        """Flat: models, then weights [uploads, classes]."""
        return Spec((uploads * (task.model.dimension + task.classes),))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Models [uploads, dimension] and their weights [uploads, classes], flat."""
        weights = self.weights(uploads, assets.task.classes).float()
        return torch.cat([torch.stack([upload.model for upload in uploads]).flatten(), weights.flatten()])

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes]."""
        task = assets.task
        members = len(state) // (task.model.dimension + task.classes)
        cut = members * task.model.dimension
        models, weights = state[:cut].view(members, -1), state[cut:].view(members, 1, -1)
        return self.together(torch.stack([task.logits(model, features) for model in models]), weights)

    def weights(self, uploads: Sequence[Upload], classes: int) -> Tensor:
        """How much each model counts for each class, [uploads, classes]; columns sum to 1."""
        return torch.full((len(uploads), classes), 1 / len(uploads))

    @abstractmethod
    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes] of logits [models, samples, classes] and weights [models, 1, classes]."""


class LogitEnsemble(Ensemble):
    """The mean of logits: whoever speaks loudest decides."""

    declares = Assumptions(mixed_architectures=True, result="ensemble")

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes]."""
        return (weights * logits).sum(0).softmax(1)


class ProbabilityEnsemble(Ensemble):
    """The mean of probabilities."""

    declares = Assumptions(mixed_architectures=True, result="ensemble")

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes]."""
        mean = (weights * logits.softmax(2)).sum(0)
        return mean / mean.sum(1, keepdim=True)


class VoteEnsemble(Ensemble):
    """A vote of each model for one class; the mean of probabilities between equals."""

    declares = Assumptions(mixed_architectures=True, result="ensemble")

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Shares of votes [samples, classes]."""
        votes = one_hot(logits.argmax(2), logits.shape[2]).float().mean(0)
        return (votes + _TIE * logits.softmax(2).mean(0)) / (1 + _TIE)


def label_weights(uploads: Sequence[Upload]) -> Tensor:
    """The share of each class that each client has, [uploads, classes]; all alike for a class that nobody has."""
    counts = torch.stack([upload.counts for upload in uploads])
    totals = counts.sum(0)
    return torch.where(totals > 0, counts / totals.clamp_min(1), 1 / len(uploads))


class LabelWeightedProbabilities(ProbabilityEnsemble):
    """Probabilities, where a model counts for a class as much as it has seen of it."""

    declares = Assumptions(reveals="histogram", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], classes: int) -> Tensor:
        """By label counts."""
        return label_weights(uploads)


class LabelWeightedLogits(LogitEnsemble):
    """The same of logits."""

    declares = Assumptions(reveals="histogram", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], classes: int) -> Tensor:
        """By label counts."""
        return label_weights(uploads)


class SelectedEnsemble(ProbabilityEnsemble):
    """The mean of the probabilities of some models only (Guha et al., 2019)."""

    declares = Assumptions(reveals="scalars", mixed_architectures=True, result="ensemble", selection="clients")

    class Config(Section):
        """Options."""

        by: Literal["score", "samples"] = "score"
        """What counts: accuracy on what clients hold out, or how much they have."""
        members: int = Field(5, ge=1)
        """How many models; all, where there are fewer."""

    config: Config

    def weights(self, uploads: Sequence[Upload], classes: int) -> Tensor:
        """1 / members for those that are chosen, 0 for the others."""
        figures = [upload.score if self.config.by == "score" else upload.samples for upload in uploads]
        if not all(figure == figure for figure in figures):
            raise ConfigError("selected-ensemble: a client's score is no number")
        best = sorted(range(len(uploads)), key=lambda i: (-figures[i], uploads[i].client))[: self.config.members]
        chosen = torch.zeros(len(uploads), classes)
        chosen[sorted(best)] = 1 / len(best)
        return chosen
