"""Merging by the Fisher information of whole layers: a Kronecker product of what goes in and of what errors come back.

The factors: Martens and Grosse: Optimizing Neural Networks with Kronecker-Factored Approximate Curvature, ICML 2015; of
convolutions: Grosse and Martens, ICML 2016. FedFisher: Jhunjhunwala, Wang, Joshi, AISTATS 2024.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from node.assumptions import Assumptions
from node.config import Section
from node.learn.cost import training_flops
from node.learn.models import Model
from node.learn.oneshot.algorithm import Assets, Client, Measuring, Task, Upload
from node.learn.oneshot.grams import Layer, gram, layers
from node.learn.oneshot.merging import descended, some
from node.op import Spec


class Curvature(NamedTuple):
    """A layer's Fisher information, summed up over clients: ``sum E (x) A``."""

    errors: Tensor
    """E of each client times its share of all samples, [clients, outputs, outputs]."""
    inputs: Tensor
    """A of each client, [clients, width, width]."""

    def times(self, matrix: Tensor) -> Tensor:
        """Its product with a layer's matrix M [outputs, width]: ``sum E M A``."""
        return (self.errors @ matrix @ self.inputs).sum(0)

    @property
    def mean(self) -> float:
        """Of a single parameter."""
        traces = [part.diagonal(dim1=1, dim2=2).mean(1) for part in (self.errors, self.inputs)]
        return float((traces[0] * traces[1]).sum())


def errors(model: Model, flat: Tensor, features: Tensor, layer: Layer) -> Tensor:
    """``E_x E_(y ~ p(.|x)) g g^T``, g the gradient of log p(y|x) by a layer's outputs: float64 [outputs, outputs].

    Of a convolution it is the mean over places. ``features``: [samples, *shape].
    """
    watched = copy.deepcopy(model.module)
    seen: list[Tensor] = []
    module = watched.get_submodule(layer.name)
    module.register_forward_hook(lambda module, given, told: seen.append(told))
    found = torch.zeros(layer.outputs, layer.outputs, dtype=torch.float64)
    with torch.enable_grad():
        leaves = {name: part.detach().requires_grad_() for name, part in model.named(flat).items()}
        logs = functional_call(watched, leaves, (features,)).log_softmax(1)
        for label in range(logs.shape[1]):
            (gradient,) = torch.autograd.grad(logs[:, label].sum(), seen, retain_graph=True)
            rows = gradient.flatten(2).mT if isinstance(module, nn.Conv2d) else gradient
            rows = rows.reshape(len(features), -1, layer.outputs).double()
            weights = logs[:, label].detach().double().exp() / rows.shape[1]
            found += torch.einsum("b,bpi,bpj->ij", weights, rows, rows)
    return found / len(features)


class LayerFisher(Measuring):
    """Base: the mean of all models by samples, moved layer by layer to where by Fisher information all lose least.

    Parameters of no dense layer or convolution stay at the mean.
    """

    declares = Assumptions(reveals="statistics", shared_start=True)

    class Config(Section):
        """Options."""

        samples: int = Field(128, ge=1)
        """How many of a client's samples its Fisher information is a mean over, at most."""

    config: Config

    def parts(self, task: Task, counts: Sequence[int]) -> Mapping[str, Spec]:
        """Two factors a layer: of its inputs, with one that is always 1 for its bias, and of its outputs' errors."""
        found = {}
        for layer in layers(task.model):
            width = layer.width(constant=True)
            found[f"{layer.name}/inputs"] = Spec((width, width))
            found[f"{layer.name}/errors"] = Spec((layer.outputs, layer.outputs))
        return found

    def part(self, name: str, client: Client, trained: Tensor) -> Tensor:
        """One of them, as a mean over some of the client's samples."""
        model, features, (wanted, _, side) = client.task.model, some(client, self.config.samples), name.rpartition("/")
        layer = next(layer for layer in layers(model) if layer.name == wanted)
        if side == "errors":
            return errors(model, trained, features, layer).float()
        return (gram(model, trained, features, layer, constant=True) / len(features)).float()

    def measuring_flops(self, task: Task, samples: int) -> float:
        """A pass back for each class, of so many samples."""
        return task.classes * min(samples, self.config.samples) * training_flops(task.model, task.shape)

    def aggregate(self, uploads: Sequence[Upload], assets: Assets) -> Tensor:
        """Model [dimension]."""
        model = assets.task.model
        samples = torch.tensor([upload.samples for upload in uploads], dtype=torch.float64)
        shares = samples / samples.sum()
        merged = shares @ torch.stack([upload.model for upload in uploads]).double()
        parameters = model.named(merged)
        for layer in layers(model):
            inputs, backs = (
                torch.stack([upload.part(f"{layer.name}/{side}") for upload in uploads]).double()
                for side in ("inputs", "errors")
            )
            curvature = Curvature(backs * shares[:, None, None], inputs)
            matrices = [layer.matrix(model.named(upload.model), constant=True) for upload in uploads]
            pull = curvature.times(torch.stack(matrices).double())
            layer.assign(parameters, self.solved(layer.matrix(parameters, constant=True), pull, curvature))
        return merged

    @abstractmethod
    def solved(self, mean: Tensor, pull: Tensor, curvature: Curvature) -> Tensor:
        """A layer's matrix M [outputs, width] with ``curvature.times(M)`` near to ``pull``, found from the mean on."""

    def product_flops(self, task: Task, uploads: int) -> float:
        """What one product with the curvature of all layers takes."""
        sizes = ((layer.width(constant=True), layer.outputs) for layer in layers(task.model))
        return 2.0 * uploads * sum(width * outputs * (width + outputs) for width, outputs in sizes)


class KroneckerFedFisher(LayerFisher):
    """FedFisher with Kronecker factors (K-FAC): adaptive steps downhill, by Fisher information of whole layers."""

    class Config(LayerFisher.Config):
        """Options."""

        steps: int = Field(2000, ge=1)
        """Steps downhill."""

    config: Config

    def solved(self, mean: Tensor, pull: Tensor, curvature: Curvature) -> Tensor:
        """After all steps."""
        return descended(mean, lambda matrix: curvature.times(matrix) - pull, self.config.steps)

    def aggregation_flops(self, task: Task, uploads: int, public_samples: int) -> float:
        """A product each step."""
        return self.config.steps * self.product_flops(task, uploads)
