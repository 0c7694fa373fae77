"""Uploads that give samples away: models that learn from them, and how close they come to real ones."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from node.config import Section
from node.learn.cost import training_flops
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.distilling import drawn_key, fresh
from node.learn.unify.distillation import distil


class SampleGiving(Algorithm):
    """Base of those whose uploads give samples away."""

    @abstractmethod
    def samples(self, uploads: Sequence[Upload], assets: Assets) -> tuple[Tensor, Tensor]:
        """What uploads give away [samples, *shape], and of which classes, int64 [samples]."""


class SampleTaught(SampleGiving):
    """Base of those whose aggregator trains a model of its own on these samples."""

    class Config(Section):
        """Options."""

        steps: int = Field(1500, ge=1)
        """Of the model."""
        batch_size: int = Field(32, ge=1)
        """Samples a step."""
        lr: float = Field(1e-3, gt=0)
        """Of Adam."""

    config: Config

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        features, labels = self.samples(uploads, assets)
        config = self.config
        return distil(
            assets.task.model,
            fresh(assets),
            features,
            lambda logits, rows: cross_entropy(logits, labels[rows]),
            drawn_key(assets),
            steps=config.steps,
            batch_size=config.batch_size,
            lr=config.lr,
        )

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The model's steps."""
        return self.config.steps * self.config.batch_size * training_flops(task.model, task.shape)


def nearest_distances(samples: Tensor, others: Tensor) -> Tensor:
    """The Euclidean distance of each sample to the nearest of others, float64 [samples].

    Of samples that uploads give away, to those that clients have trained on: how much is a copy. The same of real
    samples that nobody has trained on says what is near.

    Args:
        samples: [samples, *shape].
        others: [others, *shape], at least one.
    """
    return torch.cdist(samples.flatten(1).double(), others.flatten(1).double()).min(1).values


def shuffled(samples: int, batch_size: int, steps: int, rng: np.random.Generator) -> Iterator[Tensor]:
    """Rows of so many batches, in passes over all samples, each in a new order."""
    passes = (torch.split(torch.from_numpy(rng.permutation(samples)), batch_size) for _ in itertools.count())
    return itertools.islice(itertools.chain.from_iterable(passes), steps)
