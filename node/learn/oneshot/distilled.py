"""Clients that upload a few made-up samples, such that a model which trains on them has learned what they know.

DOSFL: Zhou, Pu, Ma, Li, Wu: Distilled One-Shot Federated Learning, 2020; after Wang, Zhu, Torralba, Efros: Dataset
Distillation, 2018. Samples, their labels and the rates of learning are all learned, by gradients through the training
that they lead to. They belong to the model that all have started from, and look little like real samples, but nothing
keeps them from doing so.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import training_flops
from node.learn.oneshot.algorithm import Assets, Client, OwnTraining, Task, Upload
from node.learn.oneshot.given import SampleGiving
from node.learn.training import Adam
from node.op import Spec

_SECOND_ORDER = 3
"""What a gradient through a step costs, in steps."""
_SURE = 4.0
"""Logit of the class that a made-up sample is of, before anything is learned."""


class Lessons(NamedTuple):
    """Batches that a model goes through, one step each."""

    samples: Tensor
    """[steps, batch, *shape]."""
    labels: Tensor
    """Probabilities [steps, batch, classes]."""
    rates: Tensor
    """Learning rates [steps]."""

    def flat(self) -> Tensor:
        """One after another, as they are uploaded."""
        return torch.cat([part.flatten() for part in self])


class DOSFL(SampleGiving, OwnTraining):
    """Made-up batches from each client; the aggregator's model goes through all of them, in passes of random order."""

    declares = Assumptions(reveals="generator", own_training=True, shared_start=True)

    class Config(Section):
        """Options."""

        steps: int = Field(10, ge=1)
        """Batches that a client makes up."""
        batch: int = Field(10, ge=1)
        """Samples in each."""
        rate: float = Field(0.1, gt=0)
        """What the rates are before they are learned."""
        client_steps: int = Field(100, ge=1)
        """How often a client improves its batches."""
        client_batch_size: int = Field(64, ge=1)
        """Own samples that it improves them by each time."""
        lr: float = Field(0.02, gt=0)
        """Of Adam, which improves them."""
        epochs: int = Field(5, ge=1)
        """Passes of the aggregator's model through all batches of all clients."""

    config: Config

    def fitted(self, task: Task) -> Spec:
        """Samples, labels and rates, flat."""
        return Spec((self.config.steps * (self.config.batch * (math.prod(task.shape) + task.classes) + 1),))

    def fit_samples(self, task: Task, samples: int) -> float:
        """Made-up samples, each time that they are improved, and own ones."""
        config = self.config
        unrolled = _SECOND_ORDER * config.steps * config.batch
        return config.client_steps * (unrolled + min(samples, config.client_batch_size))

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All passes."""
        config = self.config
        return config.epochs * uploads * config.steps * config.batch * training_flops(task.model, task.shape)

    def fit(self, client: Client) -> Tensor:
        """Samples, labels and rates, flat, that lead from the common start to a model of the client's own samples."""
        task, config, draws = client.task, self.config, client.generator
        samples, logits = self._first(client)
        rates = torch.full((config.steps,), math.log(config.rate))
        leaves = [leaf.requires_grad_() for leaf in (samples, logits, rates)]
        start, rule = task.model.named(client.start), Adam()
        for _ in range(config.client_steps):
            rows = torch.randint(len(client.labels), (config.client_batch_size,), generator=draws)
            with torch.enable_grad():
                lessons = Lessons(leaves[0], leaves[1].softmax(2), leaves[2].exp())
                learned = replayed(task, start, lessons)
                loss = cross_entropy(task.model.forward(learned, client.features[rows]), client.labels[rows])
                gradients = torch.autograd.grad(loss, leaves)
            with torch.no_grad():
                rule.step(leaves, list(gradients), config.lr)
        return Lessons(samples, logits.softmax(2), rates.exp()).flat().detach()

    def _first(self, client: Client) -> tuple[Tensor, Tensor]:
        """Noise like the client's samples, of the classes that it has: samples, and logits of labels."""
        config, draws = self.config, client.generator
        mean, deviation = client.features.mean(0), client.features.std(0, correction=0)
        noise = torch.randn((config.steps, config.batch, *client.task.shape), generator=draws)
        rows = torch.randint(len(client.labels), (config.steps, config.batch), generator=draws)
        members = one_hot(client.labels[rows], client.task.classes).float()
        return mean + deviation * noise, _SURE * members

    def lessons(self, upload: Upload, task: Task) -> Lessons:
        """What a client has sent."""
        steps, batch, inputs = self.config.steps, self.config.batch, math.prod(task.shape)
        sizes = [steps * batch * inputs, steps * batch * task.classes, steps]
        samples, labels, rates = torch.split(upload.model, sizes)
        return Lessons(samples.view(steps, batch, *task.shape), labels.view(steps, batch, task.classes), rates)

    def samples(self, uploads: Sequence[Upload], assets: Assets) -> tuple[Tensor, Tensor]:
        """All made-up samples, and the class that each is of most."""
        told = [self.lessons(upload, assets.task) for upload in uploads]
        made = torch.cat([each.samples.flatten(0, 1) for each in told])
        return made, torch.cat([each.labels.flatten(0, 1).argmax(1) for each in told])

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        task = assets.task
        told = [self.lessons(upload, task) for upload in uploads]
        together = Lessons(*(torch.cat(parts) for parts in zip(*told, strict=True)))
        learned: Mapping[str, Tensor] = task.model.named(assets.start)
        for _ in range(self.config.epochs):
            order = torch.from_numpy(assets.rng.permutation(len(together.rates)))
            learned = replayed(task, learned, Lessons(*(part[order] for part in together)), detached=True)
        return torch.cat([part.flatten() for part in learned.values()])


def replayed(task: Task, start: Mapping[str, Tensor], lessons: Lessons, detached: bool = False) -> Mapping[str, Tensor]:
    """Named parameters after a step of plain SGD on each batch, from others on.

    Args:
        detached: whether each step is computed by itself; otherwise what comes out can be differentiated by all
            lessons.
    """
    learned = dict(start)
    for samples, labels, rate in zip(*lessons, strict=True):
        with torch.enable_grad():
            leaves = {
                name: part.detach().requires_grad_() if detached or not part.requires_grad else part
                for name, part in learned.items()
            }
            loss = cross_entropy(task.model.forward(leaves, samples), labels)
            gradients = torch.autograd.grad(loss, list(leaves.values()), create_graph=not detached)
            learned = {
                name: part - rate * gradient for (name, part), gradient in zip(leaves.items(), gradients, strict=True)
            }
    return {name: part.detach() for name, part in learned.items()} if detached else learned
