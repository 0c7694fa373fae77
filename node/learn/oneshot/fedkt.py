"""FedKT: each client teaches students of its own with public samples; only what its students agree on counts as a vote.

Li, He, Song: Practical One-Shot Federated Learning for Cross-Silo Setting, IJCAI 2021. Teachers of parts of the data
that vote on public samples: Papernot, Abadi, Erlingsson, Goodfellow, Talwar, ICLR 2017 (PATE). Without their noise.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import inference_flops, training_flops
from node.learn.oneshot.algorithm import Assets, Client, OwnTraining, Task, Upload
from node.learn.oneshot.distilling import drawn_key, fresh
from node.learn.unify.distillation import distil
from node.op import Key, Spec

_TIE = 1e-3
"""What a vote that does not count is worth: only between equals."""


class FedKT(OwnTraining):
    """A model of what clients vote for, each by students whose teachers have seen disjoint parts of its data."""

    declares = Assumptions(public="unlabelled", own_training=True, mixed_architectures=True)

    class Config(Section):
        """Options."""

        students: int = Field(2, ge=1)
        """Each of a division of the client's data of its own; a client's vote counts where all of them agree."""
        teachers: int = Field(5, ge=1)
        """Parts of each division; no more than samples."""
        steps: int = Field(300, ge=1)
        """Of Adam, of each teacher and each student."""
        batch_size: int = Field(32, ge=1)
        """Samples a step."""
        lr: float = Field(1e-3, gt=0)
        """Learning rate."""

    config: Config

    def fitted(self, task: Task) -> Spec:
        """The students, flat."""
        return Spec((self.config.students * task.model.dimension,))

    def fit_samples(self, task: Task, samples: int) -> float:
        """Of all teachers' and students' steps."""
        config = self.config
        return config.students * (min(config.teachers, samples) + 1) * config.steps * config.batch_size

    def fit(self, client: Client) -> Tensor:
        """Students [students * dimension], of the votes of their teachers."""
        return torch.cat([self._student(client) for _ in range(self.config.students)])

    def _student(self, client: Client) -> Tensor:
        task = client.task
        order = torch.from_numpy(client.rng.permutation(len(client.labels)))
        parts = order.tensor_split(min(self.config.teachers, len(order)))
        taught = [self._learned(task, client.features[rows], client.labels[rows], seeds(client)) for rows in parts]
        said = votes([task.logits(flat, client.public) for flat in taught])
        return self._learned(task, client.public, said.argmax(1), seeds(client))

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        task, students = assets.task, self.config.students
        said = [
            agreed([task.logits(flat, assets.public) for flat in upload.model.view(students, -1)]) for upload in uploads
        ]
        seeds = fresh(assets), drawn_key(assets)
        return self._learned(task, assets.public, torch.stack(said).sum(0).argmax(1), seeds)

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All students' answers, and the model's steps."""
        answers = uploads * self.config.students * public_samples * inference_flops(task.model, task.shape)
        return answers + self.config.steps * self.config.batch_size * training_flops(task.model, task.shape)

    def _learned(self, task: Task, features: Tensor, labels: Tensor, seeds: tuple[Tensor, Key]) -> Tensor:
        """A model that has learned the labels of samples, from a start and a key."""
        config, (start, key) = self.config, seeds
        course = {"steps": config.steps, "batch_size": config.batch_size}

        def objective(logits: Tensor, rows: Tensor) -> Tensor:
            return cross_entropy(logits, labels[rows])

        return distil(task.model, start, features, objective, key, **course, lr=config.lr)


def seeds(client: Client) -> tuple[Tensor, Key]:
    """A start and a key of the client's own."""
    first, second = client.rng.integers(2**63, size=2).tolist()
    return client.task.model.initial(first), Key(second, 0, 0)


def votes(logits: Sequence[Tensor]) -> Tensor:
    """How many models put each sample first into each class, of their logits [samples, classes]."""
    return torch.stack([one_hot(each.argmax(1), each.shape[1]) for each in logits]).sum(0)


def agreed(logits: Sequence[Tensor]) -> Tensor:
    """The same, where all models agree; elsewhere next to nothing."""
    found = votes(logits).double()
    return torch.where(found.amax(1, keepdim=True) == len(logits), found, _TIE * found)
