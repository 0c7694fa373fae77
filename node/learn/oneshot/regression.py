"""Merging layer by layer, by what goes into each layer at each client.

Regression mean: Jin, Ren, Preotiuc-Pietro, Cheng: Dataless Knowledge Fusion by Merging Weights of Language Models, ICLR
2023. Common harmonized optima: Su, Li, Xue: One-Shot Federated Learning without Server-Side Training (MA-Echo), Neural
Networks, 2023.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from pydantic import Field
from torch import Tensor

from node.assumptions import Assumptions
from node.config import Section
from node.learn.models import Model
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Streaming, Task, Upload
from node.learn.oneshot.grams import Layer, gram, gram_flops, layers, symmetric, upper
from node.op import Spec

_LEAST_CURVATURE = 1e-6
"""Of the largest: below it lies what rounding to float32 has left of nothing."""


def damped(moment: Tensor, share: float) -> Tensor:
    """``share G + (1 - share) diag(G)`` of a symmetric matrix."""
    return torch.lerp(moment.diagonal().diag(), moment, share)


def regressed(mean: Tensor, pulled: Tensor, total: Tensor) -> Tensor:
    """What fits the outputs of all clients best, each on its own inputs: ``pulled total^-1``, in float64.

    Directions that no client has any input in stay as they are in the mean.

    Args:
        mean: of all clients' matrices W [outputs, inputs].
        pulled: the sum of ``W G~``, where ``G~`` is a client's damped moments.
        total: the sum of ``G~`` [inputs, inputs].
    """
    size = total.diagonal().sqrt()
    scale = torch.where(size > 0, 1 / size, 0.0)
    inverse: Tensor = torch.linalg.pinv(scale[:, None] * total * scale, rtol=_LEAST_CURVATURE, hermitian=True)
    return mean + (pulled - mean @ total) @ (scale[:, None] * inverse * scale)


class RegMean(Measuring, Streaming):
    """The regression mean of each dense layer and convolution; the mean of all other parameters."""

    declares = Assumptions(reveals="statistics", shared_start=True)

    class Config(Section):
        """Options."""

        share: float = Field(0.9, ge=0, le=1)
        """How much of what lies off the Gram matrices' diagonals counts; what is best depends on the architecture."""
        triangles: bool = False
        """Clients send the upper triangles alone, which is about half."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """The Gram matrix of each layer, with an input that is always 1 for its bias."""
        widths = {layer.name: layer.width(constant=True) for layer in layers(task.model)}
        if self.config.triangles:
            return {name: Spec((width * (width + 1) // 2,)) for name, width in widths.items()}
        return {name: Spec((width, width)) for name, width in widths.items()}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of them, over the client's samples."""
        model = client.task.model
        moment = gram(model, trained, client.features, _layer(model, name), constant=True).float()
        return upper(moment) if self.config.triangles else moment

    def measuring_flops(self, task: Task, samples: int) -> float:
        """The Gram matrices."""
        return samples * gram_flops(task.model, task.shape, constant=True)

    def state(self, task: Task) -> Spec:
        """The sum of models and their number; then for each layer the sums of moments and of what they pull to."""
        return Spec((sum(_sizes(task.model)),), "float64")

    def add(self, state: Tensor, upload: Upload, assets: Assets) -> Tensor:
        """One more model."""
        state, model = state.clone(), assets.task.model
        models, number, sums = _cut(state, model)
        models += upload.model
        number += 1
        parameters = model.named(upload.model)
        for layer, total, pulled in sums:
            moment = damped(self._moment(upload, layer).double(), self.config.share)
            total += moment
            pulled += layer.matrix(parameters, constant=True).double() @ moment
        return state

    def finish(self, state: Tensor, assets: Assets) -> Tensor:
        """Model [dimension]."""
        models, number, sums = _cut(state, assets.task.model)
        merged = models / number
        parameters = assets.task.model.named(merged)
        for layer, total, pulled in sums:
            layer.assign(parameters, regressed(layer.matrix(parameters, constant=True), pulled, total))
        return merged

    def _moment(self, upload: Upload, layer: Layer) -> Tensor:
        sent = upload.part(layer.name)
        return symmetric(sent, layer.width(constant=True)) if self.config.triangles else sent

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """Products with the Gram matrices, and an eigendecomposition of their sum."""
        widths = [(layer.width(constant=True), layer.outputs) for layer in layers(task.model)]
        return sum(2.0 * uploads * width**2 * (outputs + 1) + 10.0 * width**3 for width, outputs in widths)


def _layer(model: Model, name: str) -> Layer:
    return next(layer for layer in layers(model) if layer.name == name)


def _sizes(model: Model) -> list[int]:
    """How many numbers each piece of :class:`RegMean`'s state has."""
    shapes = [(layer.width(constant=True), layer.outputs) for layer in layers(model)]
    return [model.dimension, 1, *(size for width, outputs in shapes for size in (width * width, outputs * width))]


def _cut(state: Tensor, model: Model) -> tuple[Tensor, Tensor, list[tuple[Layer, Tensor, Tensor]]]:
    """Its pieces, as views: the sum of models, their number, and for each layer ``(layer, total, pulled)``."""
    models, number, *rest = torch.split(state, _sizes(model))
    totals, pulled = rest[::2], rest[1::2]
    sums = []
    for layer, one, other in zip(layers(model), totals, pulled, strict=True):
        width = layer.width(constant=True)
        sums.append((layer, one.view(width, width), other.view(layer.outputs, width)))
    return models, number, sums


def harmonized(
    weights: Sequence[Tensor], projectors: Sequence[Tensor], steps: int, rate: float, yielding: float
) -> Tensor:
    """A matrix that does to each client's inputs what the client's own does, as far as one can: float64.

    The mean is drawn to each client's matrix within the span of its inputs; across it, clients' matrices give way.

    Args:
        weights: matrices [outputs, inputs].
        projectors: on the span of each client's inputs [inputs, inputs].
        steps: how often the mean moves.
        rate: how far it moves in one step.
        yielding: how far clients' matrices give way in one step.
    """
    anchors = torch.stack([weight.double() for weight in weights])
    spans = torch.stack([projector.double() for projector in projectors])
    across = torch.eye(spans.shape[1], dtype=torch.float64) - spans
    merged = anchors.mean(0)
    for _ in range(steps):
        merged = merged - rate * ((merged - anchors) @ spans).mean(0)
        anchors = anchors + yielding * (merged - anchors) @ across
    return merged


class MaEcho(Measuring):
    """Layer by layer, what agrees with each client on the inputs that it has seen; the mean of all other parameters."""

    declares = Assumptions(reveals="statistics", shared_start=True)

    class Config(Section):
        """Options; the settings are ours, for the paper's depend on its networks."""

        ridge: float = Field(1.0, gt=0)
        """Inputs whose squares sum up to so much at a client are half inside the span of what it has seen."""
        steps: int = Field(100, ge=1)
        """How often the mean moves."""
        rate: float = Field(1.0, gt=0, le=1)
        """How far it moves in one step."""
        yielding: float = Field(0.5, ge=0, le=1)
        """How far clients' matrices give way in one step, across what they have seen."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """The projector on the span of each layer's inputs."""
        return {layer.name: Spec((layer.inputs, layer.inputs)) for layer in layers(task.model)}

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of them: ``X^T (X X^T + ridge I)^-1 X``, which is ``(X^T X + ridge I)^-1 X^T X``."""
        model = client.task.model
        moment = gram(model, trained, client.features, _layer(model, name), constant=False)
        ridge = self.config.ridge * torch.eye(len(moment), dtype=moment.dtype)
        projector: Tensor = torch.linalg.solve(moment + ridge, moment)
        return projector.float()

    def measuring_flops(self, task: Task, samples: int) -> float:
        """The Gram matrices, and for each a factorisation and as many solutions as it has columns."""
        solving = sum(8.0 / 3.0 * layer.inputs**3 for layer in layers(task.model))
        return samples * gram_flops(task.model, task.shape, constant=False) + solving

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        model, config = assets.task.model, self.config
        merged = torch.stack([upload.model for upload in uploads]).mean(0)
        for layer in layers(model):
            weights = [layer.matrix(model.named(upload.model), constant=False) for upload in uploads]
            projectors = [upload.part(layer.name) for upload in uploads]
            found = harmonized(weights, projectors, config.steps, config.rate, config.yielding)
            layer.assign(model.named(merged), found)
        return merged

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """Two products with each projector, each step."""
        sizes = (layer.inputs**2 * layer.outputs for layer in layers(task.model))
        return 4.0 * self.config.steps * uploads * sum(sizes)
