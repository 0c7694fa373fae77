"""All models together: means of what they say, votes, and weights by the labels that each has seen.

An ensemble keeps every model, so that its answer costs as many passes as there are clients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from node.assumptions import Assumptions
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.op import Spec

_TIE = 1e-6
"""What a mean probability counts against one vote: only between equals."""
_NEVER = -1e30
"""A logit of what cannot be; where nothing can be, all are alike."""


class Ensemble(Algorithm):
    """Base of ensembles: the result is all models, one after another, each with its weight for each class."""

    def result(self, task: Task, uploads: int) -> Spec:
        """Flat: models, then weights [uploads, classes]."""
        return Spec((uploads * (task.model.dimension + task.classes),))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Models [uploads, dimension] and their weights [uploads, classes], flat."""
        weights = self.weights(uploads, assets).float()
        return torch.cat([torch.stack([upload.model for upload in uploads]).flatten(), weights.flatten()])

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes]."""
        task = assets.task
        members = len(state) // (task.model.dimension + task.classes)
        cut = members * task.model.dimension
        models, weights = state[:cut].view(members, -1), state[cut:].view(members, 1, -1)
        said = torch.stack([task.logits(model, features) for model in models])
        return self.together(said.nan_to_num(), weights)  # a model too large for its logits must not silence all others

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """How much each model counts for each class, [uploads, classes]; columns sum to 1."""
        return torch.full((len(uploads), assets.task.classes), 1 / len(uploads))

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
        votes = (weights * one_hot(logits.argmax(2), logits.shape[2])).sum(0)
        return (votes + _TIE * (weights * logits.softmax(2)).sum(0)) / (1 + _TIE)


class SizeWeightedProbabilities(ProbabilityEnsemble):
    """The mean of probabilities, where a model counts as much as its client has samples."""

    declares = Assumptions(reveals="scalars", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """By samples."""
        return size_weights(uploads, assets)


class SizeWeightedLogits(LogitEnsemble):
    """The mean of logits, where a model counts as much as its client has samples."""

    declares = Assumptions(reveals="scalars", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """By samples."""
        return size_weights(uploads, assets)


def size_weights(uploads: Sequence[Upload], assets: Assets) -> Tensor:
    """The share of all samples that each client has, for each class: [uploads, classes]."""
    samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float64)
    return (samples / samples.sum()).unsqueeze(1).expand(-1, assets.task.classes)


def label_weights(uploads: Sequence[Upload]) -> Tensor:
    """The share of each class that each client has, [uploads, classes]; all alike for a class that nobody has."""
    counts = torch.stack([upload.counts for upload in uploads])
    totals = counts.sum(0)
    return torch.where(totals > 0, counts / totals.clamp_min(1), 1 / len(uploads))


class LabelWeightedProbabilities(ProbabilityEnsemble):
    """Probabilities, where a model counts for a class as much as it has seen of it."""

    declares = Assumptions(reveals="histogram", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """By label counts."""
        return label_weights(uploads)


class MaskedProbabilities(LabelWeightedProbabilities):
    """Label-weighted probabilities, where a model chooses among the classes that its client has seen alone."""

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes]."""
        return super().together(logits.masked_fill(weights == 0, _NEVER), weights)


class LabelWeightedLogits(LogitEnsemble):
    """Logits, where a model counts for a class as much as it has seen of it."""

    declares = Assumptions(reveals="histogram", mixed_architectures=True, result="ensemble")

    def weights(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """By label counts."""
        return label_weights(uploads)
