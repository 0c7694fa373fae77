"""What a few lying clients cannot carry away: medians and trimmed means in place of means.

Against weights there is coordinate-wise trimming (Yin, Chen, Ramchandran, Bartlett: Byzantine-Robust Distributed
Learning, ICML 2018); against what models say, the same of logits or probabilities. Where each class is known to few
clients only, these few look like liars: under strong skew the price is high.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.learn.oneshot.algorithm import Algorithm, Assets, Upload
from node.learn.oneshot.ensembles import Ensemble
from node.learn.robust.centres import median, trimmed_mean

_ROUNDING = 1e-9
"""0.29 of 100 are 29, whatever the product says."""


class MedianEnsemble(Ensemble):
    """The median of logits, class by class."""

    declares = Assumptions(mixed_architectures=True, result="ensemble")

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes]."""
        models, samples, classes = logits.shape
        return median(logits.reshape(models, -1)).view(samples, classes).softmax(1)


class Trimming(Section):
    """Options of what trims."""

    trim: float = Field(0.2, ge=0, lt=0.5)
    """Share of the clients whose values are left out at either end: as many liars are harmless."""

    def count(self, clients: int) -> int:
        """How many that are, of so many clients."""
        return math.floor(self.trim * clients + _ROUNDING)


class TrimmedEnsemble(Ensemble):
    """The trimmed mean of probabilities, class by class."""

    declares = Assumptions(mixed_architectures=True, result="ensemble")

    class Config(Trimming):
        """Options."""

    config: Config

    def together(self, logits: Tensor, weights: Tensor) -> Tensor:
        """Probabilities [samples, classes]."""
        models, samples, classes = logits.shape
        probabilities = logits.softmax(2).reshape(models, -1)
        kept = trimmed_mean(probabilities, self.config.count(models)).view(samples, classes)
        return kept / kept.sum(1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)


class TrimmedAverage(Algorithm):
    """The trimmed mean of models, parameter by parameter."""

    declares = Assumptions(shared_start=True)

    class Config(Trimming):
        """Options."""

    config: Config

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        models = torch.stack([upload.model for upload in uploads])
        return trimmed_mean(models, self.config.count(len(models)))
