"""Features that nobody learns: the same random ones at all clients and the aggregator, and heads on them.

Rahimi, Recht: Random Features for Large-Scale Kernel Machines, NIPS 2007; with rectified units: Cho, Saul: Kernel
Methods for Deep Learning, NIPS 2009. They stand for any frozen extractor: a client tells statistics of what comes out
of it, and needs neither a model nor training.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Task
from node.op import Spec

_SCALE = 2.0
_SHIFT_DEVIATION = 0.3


@lru_cache(maxsize=4)
def _drawn(inputs: int, units: int, seed: int) -> tuple[Tensor, Tensor]:
    """Weights [inputs, units] and shifts [units], float64."""
    rng = np.random.default_rng([seed, *b"features"])
    weights = rng.normal(size=(inputs, units)) * (_SCALE / math.sqrt(inputs))
    return torch.from_numpy(weights), torch.from_numpy(rng.normal(0.0, _SHIFT_DEVIATION, units))


def random_features(samples: Tensor, units: int, seed: int) -> Tensor:
    """``relu(2 x W / sqrt(inputs) + b)`` of each sample x, float64 [samples, units].

    Elements of ``W`` [inputs, units] are N(0, 1), those of ``b`` [units] are N(0, 0.09).

    Args:
        samples: [samples, *shape].
        seed: the same for everybody.
    """
    flat = samples.flatten(1).double()
    weights, shifts = _drawn(flat.shape[1], units, seed)
    return (flat @ weights + shifts).relu()


class FeatureHead(Measuring):
    """Base of those whose clients tell of their features, and whose result is linear in them.

    The result is flat: for each class the weights of all features, then a constant.
    """

    declares = Assumptions(reveals="statistics", extractor=True, result="head")
    sends_model = False
    trains = False

    class Config(Section):
        """Options."""

        units: int = Field(500, ge=1)
        """Random features; all clients compute the same ones."""

    config: Config

    def result(self, task: Task, uploads: int) -> Spec:
        """Weights and constants [classes, units + 1], flat."""
        return Spec((task.classes * (self.config.units + 1),))

    def measuring_flops(self, task: Task, samples: int) -> float:
        """The features of all samples."""
        return 2.0 * samples * math.prod(task.shape) * self.config.units

    def features(self, samples: Tensor, who: Client | Assets) -> Tensor:
        """Of samples [samples, *shape], float64 [samples, units]."""
        return random_features(samples, self.config.units, who.shared_seed)

    def predict(self, state: Tensor, features: Tensor, assets: Assets) -> Tensor:
        """Probabilities [samples, classes]."""
        head = state.double().view(assets.task.classes, -1)
        return self.confidence(self.features(features, assets) @ head[:, :-1].mT + head[:, -1]).float()

    def confidence(self, scores: Tensor) -> Tensor:
        """Probabilities of a head's scores, both [samples, classes]."""
        return scores.softmax(1)
