"""A head on frozen features that has learned from features drawn from each client's mixture for each class.

FedPFT: Beitollahi, Bie, Hemati, Brunswic, Li, Chen, Zhang: Parametric Feature Transfer: One-shot Federated Learning
with Foundation Models, 2024. Clients tell means and variances of the features of each class: with as many Gaussians as
samples, a mean is a sample's features. Of classes with so few, nothing but the mean is told, and how far samples of any
class are from it at that client.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from node.learn.oneshot.algorithm import Assets, Client, Task, Upload
from node.learn.oneshot.features import FeatureHead
from node.learn.oneshot.given import shuffled
from node.learn.training import Adam
from node.op import Spec

Covariance: TypeAlias = Literal["spherical", "diagonal", "full"]
Floats: TypeAlias = NDArray[np.float64]

_POOLED = "pooled"
_DECAY = 0.01
"""Of weights, in each step and times the learning rate, as AdamW has it by default."""
_LEAST_SHARE = 1e-6
_PASSES = 20
"""Of samples through an estimation of mixtures, about."""


class FedPFT(FeatureHead):
    """A Gaussian mixture for each class at each client, in half precision; the aggregator draws from all of them."""

    class Config(FeatureHead.Config):
        """Options."""

        components: int = Field(1, ge=1, le=100)
        """Gaussians of each class."""
        covariance: Covariance = "diagonal"
        """What is told of how features vary together: one variance, one of each, or all covariances."""
        steps: int = Field(500, ge=1)
        """Of the head, on features that are drawn."""
        batch_size: int = Field(64, ge=1)
        """Of them a step."""
        lr: float = Field(1e-3, gt=0)
        """Of the head; AdamW."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """A mixture for each class, or a mean, or nothing; and what means lack, where there are any."""
        config = self.config
        sizes = {
            f"class-{label}": 0 if not count else config.units if self._is_few(count) else self._layout.size
            for label, count in enumerate(counts)
        }
        lacks = any(map(self._is_few, counts))
        sizes[_POOLED] = (1 if config.covariance == "spherical" else config.units) if lacks else 0
        return {name: Spec((size,), "float16") for name, size in sizes.items()}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of them."""
        features, labels = self.features(client.features, client), client.labels
        if name == _POOLED:
            return self._pooled(features, labels, client.task.classes).half()
        own = features[labels == int(name.removeprefix("class-"))]
        if not len(own):
            return torch.zeros(0, dtype=torch.float16)
        if self._is_few(len(own)):
            return own.mean(0).half()
        return self._layout.estimated(own.numpy(), int(client.rng.integers(2**31)))

    def measuring_flops(self, task: Task, samples: int) -> float:
        """Features, and the passes of the estimation over them."""
        per_sample = self.config.units ** (2 if self.config.covariance == "full" else 1)
        return super().measuring_flops(task, samples) + _PASSES * samples * self.config.components * per_sample

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Weights and constants [classes, units + 1], flat."""
        # No more than the head learns from: whoever claims too many samples must not fill the memory.
        taken = self.config.steps * self.config.batch_size
        share = min(1.0, taken / max(1.0, sum(float(upload.counts.sum()) for upload in uploads)))
        drawn = [pair for upload in uploads for pair in self._drawn(upload, share, assets.beside(upload.client))]
        features = torch.from_numpy(np.concatenate([features for _, features in drawn]))
        labels = torch.cat([torch.full((len(features),), label) for label, features in drawn])
        members = one_hot(labels, assets.task.classes).double()
        batches = shuffled(len(labels), self.config.batch_size, self.config.steps, assets.rng)
        return linear_head(features, members, batches, self.config.lr).flatten()

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The head's steps."""
        config = self.config
        return 4.0 * config.steps * config.batch_size * config.units * task.classes

    def _drawn(self, upload: Upload, share: float, assets: Assets) -> Iterator[tuple[int, Floats]]:
        """For each class that a client has, as many feature vectors as it has samples, or a share of these."""
        spread = _numpy(upload.part(_POOLED))
        for label, claimed in enumerate(upload.counts.tolist()):
            count = math.ceil(share * claimed)
            told = _numpy(upload.part(f"class-{label}"))
            if not len(told):
                continue
            if len(told) == self.config.units:
                yield label, assets.rng.normal(told, np.sqrt(spread.clip(0)), (count, len(told)))
            else:
                yield label, self._layout.drawn(told, count, assets.rng)

    def _is_few(self, count: int) -> bool:
        """Whether a class has samples, and none to spare for variances."""
        return 0 < count <= self.config.components

    @property
    def _layout(self) -> _Layout:
        return _Layout(self.config.components, self.config.units, self.config.covariance)

    def _pooled(self, features: Tensor, labels: Tensor, classes: int) -> Tensor:
        """The variances of a client's features around the means of their classes, [units]; of ``spherical``, [1]."""
        counts = torch.bincount(labels, minlength=classes)
        if not any(map(self._is_few, counts.tolist())):
            return features.new_zeros(0)
        means = one_hot(labels, classes).double().mT @ features / counts.clamp_min(1).unsqueeze(1)
        variances = ((features - means[labels]) ** 2).mean(0)
        return variances.mean().reshape(1) if self.config.covariance == "spherical" else variances


class _Layout(NamedTuple):
    """How a mixture is told: shares [components], means [components, units], covariances; flat, float16."""

    components: int
    units: int
    covariance: Covariance

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the covariances."""
        spread = {"spherical": (), "diagonal": (self.units,), "full": (self.units, self.units)}
        return self.components, *spread[self.covariance]

    @property
    def size(self) -> int:
        return self.components * (1 + self.units) + math.prod(self.shape)

    def estimated(self, features: Floats, seed: int) -> Tensor:
        """The mixture of features [samples, units] by expectation-maximisation, from k-means on."""
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.mixture import GaussianMixture

        kind = "diag" if self.covariance == "diagonal" else self.covariance
        mixture = GaussianMixture(self.components, covariance_type=kind, random_state=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an estimate that could be better is still told
            mixture.fit(features)
        told = mixture.weights_, mixture.means_.ravel(), mixture.covariances_.ravel()
        return torch.from_numpy(np.concatenate(told)).half()

    def drawn(self, told: Floats, count: int, rng: np.random.Generator) -> Floats:
        """So many feature vectors [count, units] of a mixture that has been told."""
        ends = np.cumsum([self.components, self.components * self.units])
        shares, means, spreads = np.split(told, ends)
        shares = shares.clip(_LEAST_SHARE)  # whoever tells of none must not stop all others
        which = rng.choice(self.components, count, p=shares / shares.sum())
        noise = rng.normal(size=(count, self.units))
        spreads = spreads.reshape(self.shape)
        if self.covariance == "full":
            moved = np.einsum("nij,nj->ni", np.stack([_root(spread) for spread in spreads])[which], noise)
        else:
            moved = np.sqrt(spreads.reshape(self.components, -1).clip(0))[which] * noise
        drawn: Floats = means.reshape(-1, self.units)[which] + moved
        return drawn


def _root(covariance: Floats) -> Floats:
    """A matrix whose product with its transpose is the covariance, which half precision may have made indefinite."""
    values, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    root: Floats = vectors * np.sqrt(values.clip(0))
    return root


def _numpy(part: Tensor) -> Floats:
    told: Floats = part.double().numpy()
    return told


def linear_head(features: Tensor, members: Tensor, batches: Iterable[Tensor], lr: float) -> Tensor:
    """Logistic regression by AdamW (Loshchilov and Hutter, ICLR 2019), from zeros on: [classes, units + 1].

    Args:
        features: float64 [samples, units].
        members: labels as 0 and 1 [samples, classes].
        batches: rows of each step.
    """
    inputs = torch.cat([features, features.new_ones(len(features), 1)], 1)
    weights = inputs.new_zeros(members.shape[1], inputs.shape[1])
    rule = Adam()
    for rows in batches:
        wrong = (inputs[rows] @ weights.mT).softmax(1) - members[rows]
        weights *= 1 - lr * _DECAY
        rule.step([weights], [wrong.mT @ inputs[rows] / len(rows)], lr)
    return weights
