"""A model that has learned from a few means of samples of each class at each client.

Lloyd: Least Squares Quantization in PCM, 1982 (k-means), started as by Arthur and Vassilvitskii: k-means++: The
Advantages of Careful Seeding, SODA 2007. Cheap, strong, and what privacy is measured by: a mean of few samples looks
like them, and a class with fewer than two centroids' worth of samples is told as the mean of them all, a single sample
as it is.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Task, Upload
from node.learn.oneshot.given import SampleTaught
from node.op import Spec

_PASSES = 20
"""Of samples through k-means, about."""


class Centroids(SampleTaught, Measuring):
    """Centroids of each class, found by k-means at each client; the aggregator's model learns to classify them."""

    declares = Assumptions(reveals="samples", mixed_architectures=True)
    sends_model = False
    trains = False

    class Config(SampleTaught.Config):
        """Options."""

        most: int = Field(3, ge=1)
        """Centroids of a class at a client, at most."""
        share: int = Field(5, ge=1)
        """Samples to each of them, at least; of fewer samples there is one."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """The centroids of each class [centroids, inputs]."""
        inputs = math.prod(task.shape)
        return {f"class-{label}": Spec((self.centroids(count), inputs)) for label, count in enumerate(counts)}

    def centroids(self, count: int) -> int:
        """How many there are of a class with so many samples."""
        return min(self.config.most, max(1, count // self.config.share)) if count else 0

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """Those of one class."""
        own = client.features[client.labels == int(name.removeprefix("class-"))].flatten(1)
        wanted = self.centroids(len(own))
        if wanted < 2:
            return own.mean(0, keepdim=True) if wanted else own
        return centroids(own, wanted, int(client.rng.integers(2**31)))

    def measuring_flops(self, task: Task, samples: int) -> float:
        """Distances of all samples to centroids."""
        return 3.0 * _PASSES * samples * self.config.most * math.prod(task.shape)

    def samples(self, uploads: Sequence[Upload], assets: Assets) -> tuple[Tensor, Tensor]:
        """The centroids, and their classes."""
        told = [(label, upload.part(f"class-{label}")) for upload in uploads for label in range(assets.task.classes)]
        labels = torch.cat([torch.full((len(part),), label) for label, part in told])
        return torch.cat([part for _, part in told]).view(-1, *assets.task.shape), labels


def centroids(samples: Tensor, count: int, seed: int) -> Tensor:
    """So many means [count, inputs] of samples [samples, inputs], each of those that are nearest to it."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of equal samples there are fewer means than wanted
        found = KMeans(count, n_init=1, random_state=seed).fit(samples.numpy())
    return torch.from_numpy(found.cluster_centers_).to(samples.dtype)
