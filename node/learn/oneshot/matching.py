"""Means of models whose hidden units have been put in one order first.

Networks that compute the same may have their units in any order, and a mean of units that do different things does
neither. Weight matching: Ainsworth, Hayase, Srinivasa: Git Re-Basin: Merging Models modulo Permutation Symmetries, ICLR
2023. Optimal transport: Singh and Jaggi: Model Fusion via Optimal Transport, NeurIPS 2020.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from node.assumptions import Assumptions
from node.learn.models import Model
from node.learn.oneshot.algorithm import Algorithm, Assets, Task, Upload
from node.learn.oneshot.units import hidden_units
from node.op import Spec

_LEAST_GAIN = 1e-9
"""Of all likeness: less is rounding, and would let two orders take turns for ever."""


def transported(model: Model, reference: Tensor, other: Tensor) -> Tensor:
    """A model [dimension] with the units of each layer, from the first on, moved to those of a reference.

    A unit's way is the distance between the weights into it and its bias. All units weigh the same, and there are as
    many on both sides, so that an optimal transport plan is a permutation (Birkhoff): no unit is split.
    """
    turned = other.clone()
    ours, theirs = model.named(reference), model.named(turned)
    for units in hidden_units(model):
        way = torch.cdist(units.incoming(ours), units.incoming(theirs), compute_mode="donot_use_mm_for_euclid_dist")
        units.permute(theirs, units.best(-way))
    return turned


def weight_matched(model: Model, reference: Tensor, other: Tensor, rng: np.random.Generator) -> Tensor:
    """A model [dimension] with its hidden units permuted to be as like those of a reference as they get.

    How alike two models are is their inner product. Coordinate descent ends in an optimum near to where it begins,
    which in deep narrow networks need not be the best: it begins with units as they are, and as transport leaves them.
    """
    starts = other.clone(), transported(model, reference, other)
    return max((_descended(model, reference, start, rng) for start in starts), key=lambda flat: float(reference @ flat))


def _descended(model: Model, reference: Tensor, turned: Tensor, rng: np.random.Generator) -> Tensor:
    """Layers take turns in random order, each put in its best order while others stay, until none moves; in place."""
    ours, theirs = model.named(reference), model.named(turned)
    layers, is_moving = hidden_units(model), True
    while is_moving:
        is_moving = False
        for place in rng.permutation(len(layers)):
            units = layers[place]
            likeness = units.incoming(ours) @ units.incoming(theirs).T
            likeness += units.outgoing(ours) @ units.outgoing(theirs).T
            order = units.best(likeness)
            if likeness.gather(1, order[:, None]).sum() - likeness.trace() > _LEAST_GAIN * likeness.abs().sum():
                units.permute(theirs, order)
                is_moving = True
    return turned


class Matching(Algorithm):
    """The mean of models by samples, all in the order of the units of the model that has seen most."""

    declares = Assumptions(reveals="scalars")

    def result(self, task: Task, uploads: int) -> Spec:
        """One model. Raises ConfigError for an architecture whose units cannot be told apart."""
        hidden_units(task.model)
        return task.model.spec

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float64)
        first = int(samples.argmax())
        reference = uploads[first].model
        aligned = [
            reference if i == first else self.aligned(reference, upload.model, assets)
            for i, upload in enumerate(uploads)
        ]
        return (samples / samples.sum()) @ torch.stack(aligned).double()

    @abstractmethod
    def aligned(self, reference: Tensor, other: Tensor, assets: Assets) -> Tensor:
        """A model [dimension] with its units in the order of a reference's."""

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """All pairs of units once, and an assignment of them."""
        total = 0.0
        for units in hidden_units(task.model):
            vectors = {name: shape for name, _, shape in task.model.parts}
            numbers = sum(vectors[name].numel() for name in (*units.makers, units.reader))
            total += 2.0 * units.size * numbers + units.size**3
        return (uploads - 1) * total + super().aggregation_flops(task, uploads, public_samples)


class WeightMatching(Matching):
    """By weights into and out of each unit, until no layer moves (Git Re-Basin)."""

    def aligned(self, reference: Tensor, other: Tensor, assets: Assets) -> Tensor:
        """By coordinate descent over layers."""
        return weight_matched(assets.task.model, reference, other, assets.rng)


class OptimalTransport(Matching):
    """By weights into each unit, from the first layer on (OT fusion)."""

    def aligned(self, reference: Tensor, other: Tensor, assets: Assets) -> Tensor:
        """By one assignment a layer."""
        return transported(assets.task.model, reference, other)
