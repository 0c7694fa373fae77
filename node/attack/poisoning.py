"""Lies in the data: flipped labels and backdoors, as transformations of what the nodes of an experiment hold."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from node.errors import ConfigError
from node.learn.data import Dataset, Federation
from node.learn.models import Model
from node.op import Op, Spec, Task


def flip_labels(labels: Tensor, classes: int) -> Tensor:
    """``classes - 1 - y`` for each label y, int64 [samples]."""
    return classes - 1 - labels


def with_flipped_labels(federation: Federation, nodes: Iterable[int]) -> Federation:
    """The federation in which some nodes train on flipped labels; nothing else differs."""
    train = federation.train
    labels = train.labels.clone()
    for node in nodes:
        rows = torch.from_numpy(federation.shards.of(node))
        labels[rows] = flip_labels(train.labels[rows], train.classes)
    return replace(federation, train=replace(train, labels=labels))


@dataclass(frozen=True, slots=True)
class Trigger:
    """A bright square in the lower right corner of an image, and the class that it is to stand for.

    Gu, Dolan-Gavitt, Garg, BadNets, arXiv 1708.06733 (2017).
    """

    target: int = 0
    """The class that images with the trigger are to be taken for."""
    size: int = 3
    """Side of the square, in pixels."""
    value: float = 1.0
    """Brightness of its pixels."""

    def stamp(self, images: Tensor) -> Tensor:
        """Copies of images [samples, channels, height, width] with the trigger.

        Raises ConfigError for samples that are no images, or smaller than the trigger.
        """
        if images.ndim != 4 or min(images.shape[2:]) < self.size:
            shape = list(images.shape[1:])
            raise ConfigError(
                f"backdoor: a trigger of {self.size}x{self.size} pixels does not fit samples of shape {shape}"
            )
        stamped = images.clone()
        stamped[:, :, -self.size :, -self.size :] = self.value
        return stamped

    def test_set(self, test: Dataset) -> Dataset:
        """The stamped test images of all other classes, labelled as the target: accuracy here is the success rate."""
        others = test.labels != self.target
        if not 0 <= self.target < test.classes or not others.any():
            raise ConfigError(f"backdoor.target: {self.target}; the test set needs samples of other classes than it")
        images = self.stamp(test.features[others])
        owners = None if test.owners is None else test.owners[others.numpy()]
        return replace(test, features=images, labels=torch.full((len(images),), self.target), owners=owners)


def with_backdoor(
    federation: Federation, nodes: Iterable[int], trigger: Trigger, fraction: float, seed: int
) -> Federation:
    """The federation in which some nodes train on images with the trigger, labelled as its target.

    Args:
        fraction: of each of these nodes' samples, drawn by seed and node; at least one of them.
    """
    if not 0 < fraction <= 1:
        raise ConfigError(f"backdoor.fraction: {fraction}; allowed is more than 0, up to 1")
    train = federation.train
    if not 0 <= trigger.target < train.classes:
        raise ConfigError(f"backdoor.target: no class {trigger.target}; there are 0 to {train.classes - 1}")
    features, labels = train.features.clone(), train.labels.clone()
    for node in nodes:
        held = federation.shards.of(node)
        rng = np.random.default_rng([seed, node, *b"backdoor"])
        poisoned = np.sort(rng.choice(held, max(1, round(fraction * len(held))), replace=False))
        rows = torch.from_numpy(poisoned)
        features[rows] = trigger.stamp(train.features[rows])
        labels[rows] = trigger.target
    return replace(federation, train=replace(train, features=features, labels=labels))


def success_rate(model: Model, triggered: Dataset) -> Op[...]:
    """An op that measures a flat model on :meth:`Trigger.test_set`: the metric ``success_rate``."""

    def measure(task: Task) -> dict[str, float]:
        with torch.no_grad():
            logits = model.logits(task.inputs[0].cpu(), triggered.features)
        return {"success_rate": float((logits.argmax(1) == triggered.labels).double().mean())}

    contents = triggered.features.numpy().tobytes() + triggered.labels.numpy().tobytes() + repr(model.module).encode()
    digest = blake2b(contents, digest_size=16).digest()
    spec = Spec((1,), "float64", ("success_rate",))
    return Op("attack:success_rate", measure, spec=lambda inputs, static: spec, basis=lambda key: digest)
