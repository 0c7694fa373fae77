"""Two older ways to make samples up, made federated by taking all models together for the teacher.

F-DAFL: Chen, Wang, Xu, Yang, Liu, Shi, Xu, Xu, Tian: Data-Free Learning of Student Networks, ICCV 2019. F-ADI: Yin,
Molchanov, Alvarez, Li, Mallya, Hoiem, Jha, Kautz: Dreaming to Distill: Data-Free Knowledge Transfer via DeepInversion,
CVPR 2020, its adaptive form. Both as in the comparison of DENSE (Zhang et al., NeurIPS 2022); like there, a student
goes through all that has been made once an epoch. No model here has running statistics, so that the second goes without
its term that compares them.
"""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from collections.abc import Callable, Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import cross_entropy, kl_div

from node.learn.models import Model
from node.learn.oneshot.algorithm import Assets, Task, Upload
from node.learn.oneshot.datafree import DataFree, is_standardised
from node.learn.oneshot.distilling import fresh
from node.learn.oneshot.grams import layers
from node.learn.training import SGD, Adam
from node.learn.unify.generation import MOMENTUM, Generator, Teachers, best_batch, learn

Loss = Callable[[Tensor, Tensor], Tensor]
"""Of samples, and the classes that they are to be of."""


class Dreaming(DataFree):
    """Base: each epoch makes a batch, and a student goes through all batches once."""

    @abstractmethod
    def maker(self, task: Task, draws: torch.Generator) -> Callable[[Loss], Tensor]:
        """What makes samples [batch_size, *shape] of a small loss, epoch after epoch."""

    @abstractmethod
    def loss(self, task: Task, models: Sequence[Tensor], teachers: Teachers, student: Tensor) -> Loss:
        """What samples are to be like, as long as the student is this one."""

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        task, config, draws = assets.task, self.config, assets.generator
        models = [upload.model for upload in uploads]
        teachers = Teachers(task.model, models)
        trained, rule = fresh(assets), SGD(MOMENTUM)
        pool: list[tuple[Tensor, Tensor]] = []
        make = self.maker(task, draws)
        for _ in range(config.epochs):
            made = make(self.loss(task, models, teachers, trained))
            with torch.no_grad():
                pool.append((made, teachers.logits(made)))
            for place in torch.randperm(len(pool), generator=draws).tolist():
                learn(task.model, trained, rule, *pool[place], temperature=config.temperature, lr=config.student_lr)
        return trained


class FDAFL(Dreaming):
    """Samples that all models together are sure of, that excite what they see, and that are of all classes (F-DAFL)."""

    class Config(Dreaming.Config):
        """Options."""

        excitement: float = Field(0.1, ge=0)
        """What the mean size of what goes into the models' last layers counts."""
        balance: float = Field(5.0, ge=0)
        """What the entropy of the mean of all probabilities counts."""

    config: Config

    def maker(self, task: Task, draws: torch.Generator) -> Callable[[Loss], Tensor]:
        """One generator, which goes on learning."""
        generator = Generator(task.shape, is_standardised(task), draws)
        return lambda loss: best_batch(generator, loss, task.classes, draws, self.generation())[0]

    def loss(self, task: Task, models: Sequence[Tensor], teachers: Teachers, student: Tensor) -> Loss:
        """One-hot, activation and information-entropy losses; no sample has a class of its own beforehand."""
        config, seen = self.config, Seeing(task.model)

        def loss(samples: Tensor, labels: Tensor) -> Tensor:
            told = [seen(flat, samples) for flat in models]
            said = torch.stack([logits for logits, _ in told]).mean(0)
            excited = torch.stack([inputs.abs().mean() for _, inputs in told]).mean()
            mean = said.softmax(1).mean(0)
            balance = (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()
            return cross_entropy(said, said.argmax(1)) - config.excitement * excited + config.balance * balance

        return loss


class Seeing:
    """A model that tells, besides its logits, what goes into its last layer."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._module = copy.deepcopy(model.module)
        self._inputs: list[Tensor] = []
        last = self._module.get_submodule(layers(model)[-1].name)
        last.register_forward_pre_hook(lambda module, given: self._inputs.append(given[0]))

    def __call__(self, flat: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [samples, classes], and inputs of the last layer [samples, width]."""
        logits: Tensor = functional_call(self._module, self._model.named(flat), (samples,))
        return logits, self._inputs.pop()


class FADI(Dreaming):
    """Samples that begin as noise, become what all models take for a class, and the student for another (F-ADI)."""

    class Config(Dreaming.Config):
        """Options."""

        lr: float = Field(0.05, gt=0)
        """Of the samples."""
        smoothness: float = Field(1e-3, ge=0)
        """What the sum of squared differences of neighbouring pixels counts; of measurements there are none."""
        size: float = Field(1e-4, ge=0)
        """What a sample's squared length counts."""
        competition: float = Field(1.0, ge=0)
        """What the divergence of student and models counts, from 0 to 1 (Jensen and Shannon's)."""

    config: Config

    def maker(self, task: Task, draws: torch.Generator) -> Callable[[Loss], Tensor]:
        """Noise, and steps of Adam."""
        return lambda loss: self._dreamt(task, loss, draws)

    def _dreamt(self, task: Task, loss: Loss, draws: torch.Generator) -> Tensor:
        """What steps make of noise; the values of images stay between 0 and 1."""
        config, is_image = self.config, not is_standardised(task)
        labels = torch.randint(task.classes, (config.batch_size,), generator=draws)
        samples = torch.randn(config.batch_size, *task.shape, generator=draws)
        if is_image:
            samples = (samples / 4 + 0.5).clamp(0, 1)
        rule = Adam()
        for _ in range(config.steps):
            leaf = samples.detach().requires_grad_()
            with torch.enable_grad():
                gradients = torch.autograd.grad(loss(leaf, labels), [leaf])
            with torch.no_grad():
                rule.step([samples], list(gradients), config.lr)
                if is_image:
                    samples.clamp_(0, 1)
        return samples

    def loss(self, task: Task, models: Sequence[Tensor], teachers: Teachers, student: Tensor) -> Loss:
        """Classes, priors of images, and competition."""
        config, known = self.config, task.model.named(student)

        def loss(samples: Tensor, labels: Tensor) -> Tensor:
            said, learned = teachers.logits(samples), task.model.forward(known, samples)
            apart = config.competition * (1 - divergence(said, learned))
            rough = config.smoothness * roughness(samples) + config.size * samples.square().flatten(1).sum(1).mean()
            return cross_entropy(said, labels) + rough + apart

        return loss


def divergence(one: Tensor, other: Tensor) -> Tensor:
    """Jensen and Shannon's of what two logits [samples, classes] say, as a share of its greatest value: the mean."""
    logs = [logits.log_softmax(1) for logits in (one, other)]
    middle = torch.logaddexp(*logs) - math.log(2)
    parts = [kl_div(middle, log, log_target=True, reduction="batchmean") for log in logs]
    return (parts[0] + parts[1]) / (2 * math.log(2))


def roughness(samples: Tensor) -> Tensor:
    """The sum over a sample's neighbouring pixels of their squared differences, the mean over samples; of vectors 0."""
    if samples.dim() < 4:
        return samples.new_zeros(())
    down, across = (samples.diff(dim=side).square().flatten(1).sum(1).mean() for side in (2, 3))
    return down + across
