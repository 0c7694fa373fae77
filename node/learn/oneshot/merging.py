"""Merging where each parameter of a model counts as much as what the model says depends on it.

Fisher merging: Matena and Raffel: Merging Models with Fisher-Weighted Averaging, NeurIPS 2022. FedFisher: Jhunjhunwala,
Wang, Joshi: FedFisher: Leveraging Fisher Information for One-Shot Federated Learning, AISTATS 2024.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import training_flops
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Streaming, Task, Upload
from node.learn.unify.fisher import LEAST_INFORMATION, diagonal
from node.op import Spec

_MOMENTUM = 0.9
_SQUARES = 0.99
_STEP = 0.01
_FLOOR = 0.01


class Fisher(Measuring, Streaming):
    """The mean of all models, parameter by parameter, by samples and Fisher information.

    What nobody has information of is the mean by samples alone.
    """

    declares = Assumptions(reveals="statistics", shared_start=True)

    class Config(Section):
        """Options."""

        samples: int = Field(128, ge=1)
        """How many of a client's samples its Fisher information is a mean over, at most."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """The diagonal of the Fisher information."""
        return {"fisher": task.model.spec}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """The expectation over the client's samples and over the classes that its own model gives them."""
        return diagonal(client.task.model, trained, some(client, self.config.samples))

    def measuring_flops(self, task: Task, samples: int) -> float:
        """A pass forward and back for each class, of so many samples."""
        return task.classes * min(samples, self.config.samples) * training_flops(task.model, task.shape)

    def state(self, task: Task) -> Spec:
        """Sums of models, of Fisher information and of their products; then of samples, by which each counts."""
        return Spec((3 * task.model.dimension + 1,), "float64")

    def add(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """One more model."""
        model, fisher = upload.model.double(), upload.part("fisher").double()
        return state.add(torch.cat([model, fisher, fisher * model, model.new_ones(1)]), alpha=upload.samples)

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """Model [dimension]."""
        mean, curvature, pull = self.means(state)
        is_known = curvature >= LEAST_INFORMATION
        return torch.where(is_known, pull / torch.where(is_known, curvature, 1.0), mean)

    def means(self, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The means of models, of Fisher information and of their products, each [dimension]."""
        mean, curvature, pull = (state[:-1] / state[-1]).chunk(3)
        return mean, curvature, pull

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """Three sums and a product."""
        return 7.0 * uploads * task.model.dimension


class FedFisher(Fisher):
    """From the mean, downhill to where Fisher information says that all clients lose least, by adaptive steps.

    What nobody has information of stays at the mean, and where little is known steps are short.
    """

    class Config(Fisher.Config):
        """Options."""

        steps: int = Field(2000, ge=1)
        """Steps downhill."""

    config: Config

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """Model [dimension]."""
        mean, curvature, pull = self.means(state)
        return descended(mean, lambda point: curvature * point - pull, self.config.steps)

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """The sums, and about a dozen operations a parameter each step."""
        return (
            super().aggregation_flops(task, uploads, public_samples) + 12.0 * self.config.steps * task.model.dimension
        )


def some(client: Client, most: int) -> Tensor:
    """So many of a client's samples at most, drawn by the client: [samples, *shape]."""
    count = min(most, len(client.features))
    return client.features[torch.from_numpy(client.rng.choice(len(client.features), count, replace=False))]


def descended(point: Tensor, slope: Callable[[Tensor], Tensor], steps: int) -> Tensor:
    """Where so many adaptive steps lead from a point of any shape, downhill by ``slope``, its gradient anywhere."""
    momentum, squares = torch.zeros_like(point), torch.zeros_like(point)
    for _ in range(steps):
        gradient = slope(point)
        momentum = _MOMENTUM * momentum + gradient
        squares = _SQUARES * squares + gradient**2
        point = point - _STEP * momentum / (squares.sqrt() + _FLOOR)
    return point
