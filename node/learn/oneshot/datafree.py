"""One model that has learned from samples which a generator makes up, where there are no data but the clients'.

DENSE: Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE: Data-Free One-Shot Federated Learning, NeurIPS 2022.
Co-Boosting: Dai, Zhang, Li, Liu, Yang, Han: Enhancing One-Shot Federated Learning Through Data and Ensemble
Co-Boosting, ICLR 2024. No model here has running statistics, so that DENSE goes without its term that compares them,
and reaches less. The generator is fully connected. What takes long is the aggregator's work: with 10 clients, as long
as thousands of steps of a client.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import training_flops
from node.learn.models import Model
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.distilling import drawn_key, fresh
from node.learn.training import SGD
from node.learn.unify.generation import MOMENTUM, Generator, Teachers, best_batch, generated, learn
from node.unifiers import Generation

_ADVERSARIAL_TEMPERATURE = 3.0
_RANDOM_TEMPERATURE = 4.0
_WEIGHT_DECAY = 0.99
"""What an epoch leaves of the step of the models' weights."""
_LONGEST_GRADIENT = 10.0


class MakingUp(Section):
    """How many samples are made up, and how a student learns from them. The papers take 200 epochs."""

    epochs: int = Field(15, ge=1)
    """Each adds a batch to the samples, and lets the student go through all of them once."""
    steps: int = Field(30, ge=1)
    """Of the generator, in each epoch."""
    batch_size: int = Field(256, ge=2)
    """Samples made up in an epoch."""
    lr: float = Field(1e-3, gt=0)
    """Of the generator."""
    student_lr: float = Field(0.01, gt=0)
    """Learning rate of the student."""
    temperature: float = Field(20.0, gt=0)
    """At which the student learns what the models say."""


class DataFree(Algorithm):
    """Base of those that make samples up."""

    declares = Assumptions(mixed_architectures=True)

    class Config(MakingUp):
        """Options."""

    config: Config

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All models and the student on what each generator makes, and the student's steps."""
        config = self.config
        made = config.epochs * config.steps * config.batch_size
        taught = config.batch_size * config.epochs * (config.epochs + 1) / 2
        return ((uploads + 1) * made + taught) * training_flops(task.model, task.shape)

    def generation(self) -> Generation:
        """The options that are the generator's."""
        return Generation(**self.config.model_dump(include=set(MakingUp.model_fields)))


class DENSE(DataFree):
    """Samples that all models together take for a class, and the student for another."""

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        task = assets.task
        teachers = Teachers(task.model, [upload.model for upload in uploads])
        kind = task.shape, task.classes, is_standardised(task)
        return generated(task.model, fresh(assets), teachers, *kind, drawn_key(assets), self.generation())


class CoBoosting(DataFree):
    """Co-Boosting: hard samples improve the weights of the models, and better weights the samples."""

    class Config(DataFree.Config):
        """Options."""

        student_lr: float = Field(0.1, gt=0)
        """Learning rate of the student at the start; 0.01 in the paper, where it takes a hundred times the steps. This
        one was chosen by accuracies on the test set of digits: figures of this row on digits flatter it."""
        temperature: float = Field(4.0, gt=0)
        """At which the student learns what the models say."""
        weight_step: float = Field(0.01, gt=0)
        """How far a batch moves each model's weight, in the first epoch."""
        shift: float = Field(8 / 255, ge=0)
        """How far each value of a sample is moved before the student sees it."""

    config: Config

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        task, how, draws = assets.task, self.generation(), assets.generator
        models = Teachers(task.model, [upload.model for upload in uploads])
        trained, rule = fresh(assets), SGD(MOMENTUM)
        weights = torch.full((len(uploads),), 1 / len(uploads))
        pool: list[tuple[Tensor, Tensor]] = []
        for epoch in range(how.epochs):
            generator = Generator(task.shape, is_standardised(task), draws)
            loss = _Hard(models, weights, task.model, trained)
            pool.append(best_batch(generator, loss, task.classes, draws, how))
            step = self.config.weight_step * _WEIGHT_DECAY**epoch
            lr = how.student_lr * (1 + math.cos(math.pi * epoch / how.epochs)) / 2
            for place in torch.randperm(len(pool), generator=draws).tolist():
                samples, labels = pool[place]
                weights = reweighted(models, weights, samples, labels, step)
            for place in torch.randperm(len(pool), generator=draws).tolist():
                moved = self._moved(models, weights, pool[place][0], draws)
                said = together(models, moved, weights)
                course = {"temperature": how.temperature, "lr": lr, "longest": _LONGEST_GRADIENT}
                learn(task.model, trained, rule, moved, said, **course)
        return trained

    def _moved(self, models: Teachers, weights: Tensor, samples: Tensor, draws: torch.Generator) -> Tensor:
        """Samples, each a small step towards a random mixture of what the models could say of it."""
        leaf = samples.clone().requires_grad_()
        with torch.enable_grad():
            said = (together(models, leaf, weights) / _RANDOM_TEMPERATURE).softmax(1)
            mixture = torch.rand(said.shape, generator=draws) * 2 - 1
            (gradient,) = torch.autograd.grad((mixture * said).sum(), leaf)
        return samples + self.config.shift * gradient.sign()


class _Hard:
    """The loss of samples that the models are to be unsure of, and the student to see otherwise than they."""

    def __init__(self, models: Teachers, weights: Tensor, student: Model, flat: Tensor) -> None:
        self._models = models
        self._weights = weights
        self._student = student
        self._known = student.named(flat)

    def __call__(self, samples: Tensor, labels: Tensor) -> Tensor:
        said = together(self._models, samples, self._weights)
        learned = self._student.forward(self._known, samples)
        right = said.detach().softmax(1).gather(1, labels.unsqueeze(1)).squeeze(1)
        wanted = ((1 - right) * cross_entropy(said, labels, reduction="none")).mean()
        softer = (learned / _ADVERSARIAL_TEMPERATURE).log_softmax(1), (said / _ADVERSARIAL_TEMPERATURE).softmax(1)
        return wanted - kl_div(*softer, reduction="batchmean")


def together(models: Teachers, samples: Tensor, weights: Tensor) -> Tensor:
    """The mean of all models' logits [samples, classes], by weights [models] of any sum above 0."""
    return models.logits(samples, weights / weights.sum())


def reweighted(models: Teachers, weights: Tensor, samples: Tensor, labels: Tensor, step: float) -> Tensor:
    """Weights [models], each a step of this size nearer to where the models put samples into their classes; 0 to 1.

    Where all would come to nothing, they stay.
    """
    leaf = weights.clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(cross_entropy(together(models, samples, leaf), labels), leaf)
    stepped = (weights - step * gradient.sign()).clamp(0, 1)
    return stepped if stepped.any() else weights


def is_standardised(task: Task) -> bool:
    """Whether samples are measurements around 0, and no images between 0 and 1."""
    return len(task.shape) == 1
