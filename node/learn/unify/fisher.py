"""Averages of models that weigh each parameter by how much its model depends on it.

Matena and Raffel: Merging Models with Fisher-Weighted Averaging, NeurIPS 2022. The expectation is over the model's own
classes, not over labels, and of squares of single samples' gradients.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.learn.layers import network
from node.learn.models import Model

LEAST_INFORMATION = 1e-6
"""Below this no model knows anything of a parameter, and all count by their weights alone."""


@torch.no_grad()
def diagonal(model: Model, flat: Tensor, features: Tensor) -> Tensor:
    """``E_x E_(y ~ p(.|x)) (d log p(y|x) / d parameter)^2`` over features [samples, *shape]; as long as ``flat``."""
    passes = network(model)
    parameters = list(model.named(flat.clone()).values())
    differentiate = passes.at(parameters)
    information = torch.zeros_like(flat, dtype=torch.float64)
    for sample in torch.split(features, 1):
        probabilities = passes.logits(parameters, sample).double().softmax(1)[0]
        for label, probability in enumerate(probabilities):
            gradients = differentiate(sample, torch.tensor([label], device=flat.device))
            gradient = torch.cat([part.flatten() for part in gradients]).double()
            information.addcmul_(gradient, gradient * probability)
    return (information / len(features)).to(flat.dtype)


def fisher_mean(models: Sequence[Tensor], fishers: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """``sum w F theta / sum w F`` of flat models and their Fisher diagonals, with weights that sum to 1."""
    total, information, average = (torch.zeros_like(models[0], dtype=torch.float64) for _ in range(3))
    for model, fisher, weight in zip(models, fishers, weights, strict=True):
        known = fisher.double() * weight
        total += known * model
        information += known
        average += model.double() * weight
    is_known = information >= LEAST_INFORMATION
    merged = torch.where(is_known, total / torch.where(is_known, information, 1.0), average)
    return merged.to(models[0].dtype)
