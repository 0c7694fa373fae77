"""One model that has learned what models drawn around the clients' say together.

FedBE: Chen and Chao: FedBE: Making Bayesian Model Ensemble Applicable to Federated Learning, ICLR 2021. Its student
takes steps of SGD; here they are Adam's, as of all students.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.learn.cost import inference_flops
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.distilling import Lessons, drawn_key, lesson_flops
from node.learn.unify.combining import combined
from node.learn.unify.distillation import lessons, objective

_CYCLE = 25
"""Steps in which the rate falls once from the highest to the least."""


class FedBE(Algorithm):
    """A student, from the average on, of models drawn from a distribution over models, all clients, and their mean."""

    declares = Assumptions(reveals="scalars", public="unlabelled", shared_start=True)

    class Config(Lessons):
        """Options."""

        draws: int = Field(10, ge=1)
        """Models that are drawn."""
        distribution: Literal["gaussian", "dirichlet"] = "gaussian"
        """Around the mean with the variance of each parameter over clients, or random mixtures of clients."""
        least_lr: float = Field(4e-4, gt=0)
        """What the rate falls to, again and again, while students are averaged."""
        averages_from: int = Field(250, ge=0)
        """Step from which on the students at the ends of these falls are averaged."""

        def rate(self, step: int) -> float:
            """Of one step, counted from 0."""
            if step < self.averages_from:
                return super().rate(step)
            return self.lr + (self.least_lr - self.lr) * ((step - self.averages_from) % _CYCLE) / (_CYCLE - 1)

    config: Config

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All teachers' answers, and the student's steps."""
        answers = (uploads + self.config.draws + 1) * public_samples * inference_flops(task.model, task.shape)
        return answers + lesson_flops(self.config, task, public_samples)

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        models = torch.stack([upload.model for upload in uploads])
        samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float32)
        shares = samples / samples.sum()
        mean = shares @ models
        teachers = [*models, mean, *self._drawn(models, shares, mean, assets.rng)]
        said = combined([assets.task.logits(flat, assets.public) for flat in teachers], "probabilities")
        return self._student(mean, said, assets)

    def _drawn(self, models: Tensor, shares: Tensor, mean: Tensor, rng: np.random.Generator) -> Tensor:
        """Models [draws, dimension]."""
        draws = self.config.draws
        if self.config.distribution == "gaussian":
            deviation = (shares @ (models - mean) ** 2).sqrt()
            return mean + deviation * torch.from_numpy(rng.standard_normal((draws, len(mean)), dtype=np.float32))
        mixtures = torch.from_numpy(rng.dirichlet(np.ones(len(models)), draws)).float() * shares
        return (mixtures / mixtures.sum(1, keepdim=True)) @ models

    def _student(self, start: Tensor, said: Tensor, assets: Assets) -> Tensor:
        """The mean of students at the ends of cycles (Izmailov et al., UAI 2018); the last one, where there is none."""
        how = self.config
        loss = objective(how.loss, "probabilities", said, how.temperature)
        course = {"steps": how.steps, "batch_size": how.batch_size}
        total, count, last = torch.zeros_like(start), 0, start
        taught = lessons(assets.task.model, start, assets.public, loss, drawn_key(assets), **course, lr=how.rate)
        for step, last in enumerate(taught, start=1):
            if step > how.averages_from and (step - how.averages_from) % _CYCLE == 0:
                total, count = total + last, count + 1
        return total / count if count else last
