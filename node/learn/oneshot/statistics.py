"""Heads on frozen features from sums over all samples: the result is the same however samples are divided.

Ridge regression: He, Zhang, et al.: AFL: A Single-Round Analytic Approach for Federated Learning with Pre-trained
Models, CVPR 2025; the sum of the clients' equations gives what its pairwise form does. Gaussian head: FedCGS:
Capture Global Feature Statistics for One-Shot Federated Learning, AAAI 2025. Prototypes: Snell, Swersky, Zemel:
Prototypical Networks for Few-shot Learning, NIPS 2017.

An aggregator keeps sums in float64 and no upload. What a client tells are the first and second moments of its features
and its samples of each class: of few samples with few features, moments give the samples away; of one sample of a
class, its sum is its feature vector.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from node.learn.oneshot.algorithm import Assets, Client, Streaming, Task, Upload
from node.learn.oneshot.features import FeatureHead
from node.learn.oneshot.grams import symmetric, upper
from node.op import Spec

_SHARPNESS = 5.0


class SummedStatistics(FeatureHead, Streaming):
    """Base of those that need no more than sums over all samples of all clients."""

    class Config(FeatureHead.Config):
        """Options."""

        numbers: Literal["float32", "float64"] = "float32"
        """In which numbers clients upload their sums. All sums are formed, added and solved in float64."""

    config: Config

    @abstractmethod
    def sums(self, task: Task) -> Mapping[str, tuple[int, ...]]:
        """What a client sums up over its samples, and the shape of each."""

    @abstractmethod
    def sum(self, name: str, features: Tensor, members: Tensor) -> Tensor:
        """One of them, float64, of features [samples, units] and labels as 0 and 1 [samples, classes]."""

    @abstractmethod
    def head(self, sums: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """Weights and constants [classes, units + 1] of the sums, and samples of each class, over all clients."""

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """All sums."""
        return {name: Spec(shape, self.config.numbers) for name, shape in self.sums(task).items()}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of the sums."""
        members = one_hot(client.labels, client.task.classes).double()
        found = self.sum(name, self.features(client.features, client), members)
        return found.to(getattr(torch, self.config.numbers))

    def state(self, task: Task) -> Spec:
        """All sums one after another, then samples of each class."""
        return Spec((sum(map(math.prod, self.sums(task).values())) + task.classes,), "float64")

    def add(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """One more client."""
        return state + self._told(upload, assets.task)

    def remove(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """One client less, as if it had never been added, but for rounding."""
        return state - self._told(upload, assets.task)

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """The head, flat."""
        shapes = self.sums(assets.task)
        *sums, counts = torch.split(state, [*map(math.prod, shapes.values()), assets.task.classes])
        named = {name: each.view(shape) for (name, shape), each in zip(shapes.items(), sums, strict=True)}
        return self.head(named, counts).flatten()

    def _told(self, upload: Upload, task: Task) -> Tensor:
        return torch.cat([*(upload.part(name).double().flatten() for name in self.sums(task)), upload.counts])


class SecondMoments(SummedStatistics):
    """Base of those that solve an equation with the second moments of all features."""

    def measuring_flops(self, task: Task, samples: int) -> float:
        """Features, and their products with each other."""
        return super().measuring_flops(task, samples) + samples * self.config.units**2

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The sums, and one factorisation."""
        return uploads * self.state(task).shape[0] + self.config.units**3 / 3


class Ridge(SecondMoments):
    """Least squares from features, and a constant, to labels as 0 and 1, with a penalty on large weights (AFL)."""

    class Config(SecondMoments.Config):
        """Options."""

        penalty: float = Field(1.0, gt=0)
        """On the squares of the weights."""

    config: Config

    def sums(self, task: Task) -> Mapping[str, tuple[int, ...]]:
        """Products of all features with each other, as an upper triangle, and with labels; one feature is constant."""
        width = self.config.units + 1
        return {"moments": (width * (width + 1) // 2,), "products": (width, task.classes)}

    def sum(self, name: str, features: Tensor, members: Tensor) -> Tensor:
        """One of them."""
        inputs = torch.cat([features, features.new_ones(len(features), 1)], 1)
        return upper(inputs.mT @ inputs) if name == "moments" else inputs.mT @ members

    def head(self, sums: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """The weights of least squares."""
        moments = symmetric(sums["moments"], self.config.units + 1)
        return _solved(moments, self.config.penalty, sums["products"]).mT

    def confidence(self, scores: Tensor) -> Tensor:
        """Their softmax, after what makes a score of 1 among zeros count as 94 % of ten classes."""
        return (_SHARPNESS * scores).softmax(1)


class GaussianHead(SecondMoments):
    """Classes as Gaussians of one covariance: linear discriminant analysis (FedCGS)."""

    class Config(SecondMoments.Config):
        """Options."""

        covariance: Literal["total", "within"] = "total"
        """Around the mean of all samples, as in FedCGS's code, or of each class, as in discriminant analysis."""
        shrinkage: float = Field(0.01, gt=0)
        """Variance that is added to each feature."""

    config: Config

    def sums(self, task: Task) -> Mapping[str, tuple[int, ...]]:
        """Products of all features with each other, as an upper triangle, and the features of each class."""
        units = self.config.units
        return {"moments": (units * (units + 1) // 2,), "classes": (task.classes, units)}

    def sum(self, name: str, features: Tensor, members: Tensor) -> Tensor:
        """One of them."""
        return upper(features.mT @ features) if name == "moments" else members.mT @ features

    def head(self, sums: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """The logarithms of the classes' densities, but for what they have in common; no class that nobody has."""
        means = _means(sums["classes"], counts)
        samples = counts.sum()
        if self.config.covariance == "within":
            explained = (means * counts.unsqueeze(1)).mT @ means
        else:
            total = sums["classes"].sum(0)
            explained = torch.outer(total, total) / samples
        spread = (symmetric(sums["moments"], self.config.units) - explained) / samples
        weights = _solved(spread, self.config.shrinkage, means.mT).mT
        constants = (counts / samples).log() - (weights * means).sum(1) / 2
        return torch.cat([weights, constants.unsqueeze(1)], 1)


class Prototypes(SummedStatistics):
    """The class whose mean features are nearest."""

    def sums(self, task: Task) -> Mapping[str, tuple[int, ...]]:
        """The features of each class."""
        return {"classes": (task.classes, self.config.units)}

    def sum(self, name: str, features: Tensor, members: Tensor) -> Tensor:
        """The only one."""
        return members.mT @ features

    def head(self, sums: Mapping[str, Tensor], counts: Tensor) -> Tensor:
        """Half of the negative squared distances, but for what they have in common; no class that nobody has."""
        means = _means(sums["classes"], counts)
        nearness = torch.where(counts > 0, -(means**2).sum(1) / 2, -torch.inf)
        return torch.cat([means, nearness.unsqueeze(1)], 1)


def _means(sums: Tensor, counts: Tensor) -> Tensor:
    """Of each class [classes, units]; zeros for one that nobody has."""
    return sums / counts.clamp_min(1).unsqueeze(1)


def _solved(moments: Tensor, ridge: float, right: Tensor) -> Tensor:
    """``(moments + ridge I)^-1 right``."""
    solved: Tensor = torch.linalg.solve(moments + ridge * torch.eye(len(moments), dtype=moments.dtype), right)
    return solved
