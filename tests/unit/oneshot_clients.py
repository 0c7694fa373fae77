"""Clients of one-shot algorithms without a run around them: handmade ones, and ones trained on digits."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from node.config import DataSection, PublicSection, TrainingSection
from node.learn.data import federate
from node.learn.models import Dense, Model
from node.learn.oneshot.algorithm import Assets, Client, Measuring, OwnTraining, Task, Upload
from node.learn.training import Trainer
from node.op import Key

CLIENTS = 10
PARTITIONS = ("iid", "dirichlet-0.5", "dirichlet-0.1", "shards")


class World(NamedTuple):
    """What there is to aggregate: models, and the data [samples, *shape] and labels that each has seen."""

    task: Task
    start: Tensor
    models: list[Tensor]
    data: list[tuple[Tensor, Tensor]]
    public: tuple[Tensor, Tensor | None] | None = None

    def client(self, own, i):
        """What client ``i`` has, as an algorithm may see it."""
        nothing = tuple(each[:0] for each in self.data[i])
        shown = None if self.public is None else self.public[0]
        return Client("it", own.declares, self.task, self.data[i], nothing, self.start, shown, Key(5, i + 1, 0), 5)

    def uploads(self, own):
        """What all clients send."""
        return [self._upload(own, i) for i in range(len(self.models))]

    def _upload(self, own, i):
        labels = self.data[i][1]
        counts = torch.bincount(labels, minlength=self.task.classes).tolist()
        model = own.fit(self.client(own, i)) if isinstance(own, OwnTraining) else self.models[i]
        names = own.parts(self.task, counts) if isinstance(own, Measuring) else {}
        parts = {name: own.part(name, self.client(own, i), model) for name in names}
        for name, spec in dict(names).items():
            assert (tuple(parts[name].shape), parts[name].dtype) == (tuple(spec.shape), getattr(torch, spec.dtype))
        sent = model if own.sends_model else None
        return Upload("it", own.declares, i + 1, sent, parts, len(labels), counts, 0.0)

    def assets(self, own):
        """What the aggregator has besides."""
        return Assets("it", own.declares, self.task, self.start, self.public, Key(5, 0, 0), 5)

    def aggregated(self, own, uploads=None):
        """The predictor that an algorithm makes of all this, or of some uploads."""
        state = own.aggregate(uploads or self.uploads(own), self.assets(own)).float()
        assert tuple(state.shape) == tuple(own.result(self.task, len(self.models)).shape)
        return state

    def accuracy(self, own, features, labels, uploads=None):
        """How often that predictor is right, in percent."""
        told = own.predict(self.aggregated(own, uploads), features, self.assets(own))
        assert torch.allclose(told.sum(1), torch.ones(len(told)), atol=1e-5)
        return 100 * float((told.argmax(1) == labels).double().mean())


def sequence(make):
    """A model of layers that follow one another; ``make`` gives fresh ones."""
    return Model("sequence", lambda: nn.Sequential(*make()))


def handmade(model, shape, classes, clients=3, samples=20, seed=0):
    """Models that have been initialised apart, with random data."""
    chance = torch.Generator().manual_seed(seed)
    data = [
        (torch.rand(samples + i, *shape, generator=chance), torch.randint(classes, (samples + i,), generator=chance))
        for i in range(clients)
    ]
    models = [model.initial(100 * seed + i + 1) for i in range(clients)]
    return World(Task(model, shape, classes), model.initial(100 * seed), models, data)


def fitted(model, start, features, labels, epochs, seed):
    """A model after some passes over data: SGD with rate .05, momentum .9 and batches of 32."""
    chance = np.random.default_rng(seed)
    orders = [torch.from_numpy(chance.permutation(len(labels))) for _ in range(epochs)]
    batches = [(features[rows], labels[rows]) for order in orders for rows in torch.split(order, 32)]
    return Trainer(model, TrainingSection(momentum=0.9)).train(start, batches, 0.05)


class Trained(NamedTuple):
    """Ten clients of digits, each trained for 40 passes, and what they are tested by."""

    world: World
    features: Tensor
    labels: Tensor

    def accuracy(self, own, uploads=None):
        """Of an algorithm's predictor, in percent."""
        return self.world.accuracy(own, self.features, self.labels, uploads)


@functools.cache
def untrained(partition, seed):
    """Digits as the reference figures are of: 400 test samples, 200 set aside, 1,197 divided. No model has trained."""
    kind, _, alpha = partition.partition("-")
    least = {"least_samples": 10} if kind == "dirichlet" else {}
    section = DataSection(partition=kind, alpha=float(alpha or 1), test_fraction=400 / 1797, **least)
    aside = PublicSection(name="held-out", fraction=200 / 1397, labelled=True)
    federation = federate(section, CLIENTS, seed, aside)
    train = federation.train
    rows = [federation.shards.of(i) for i in range(CLIENTS)]
    data = [(train.features[own], train.labels[own]) for own in rows]
    model = Dense("mlp", (64, 100, 10))
    start = model.initial(seed)
    public = federation.public.features, federation.public.labels
    task = Task(model, tuple(train.features.shape[1:]), train.classes, len(public[0]))
    world = World(task, start, [start] * CLIENTS, data, public)
    return Trained(world, federation.test.features, federation.test.labels)


@functools.cache
def trained(partition, seed):
    """The same, with clients that have trained."""
    found = untrained(partition, seed)
    world = found.world
    models = [
        fitted(world.task.model, world.start, *own, epochs=40, seed=100 * seed + i) for i, own in enumerate(world.data)
    ]
    return found._replace(world=world._replace(models=models))
