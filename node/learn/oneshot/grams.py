"""What goes into the layers of a model at one client, as second moments.

A dense layer is a linear regression on what goes into it; a convolution is one on the patches that it slides over.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import unfold

from node.learn.cost import inference_flops
from node.learn.models import Model

_ROWS = 512
"""Samples that go through a model at a time."""
_PROBES = 2
"""As many as a model has been tried with; some normalisations refuse a single one."""


class Layer(NamedTuple):
    """One dense layer or convolution, as a matrix from inputs to outputs."""

    name: str
    weight: str
    """Name of its weights among the model's parameters."""
    bias: str
    """Name of its bias; empty without one."""
    inputs: int
    """Of a convolution: channels times the elements of its window."""
    outputs: int

    def matrix(self, parameters: Mapping[str, Tensor], constant: bool) -> Tensor:
        """Its weights [outputs, inputs], and its bias as one more column, of an input that is always 1."""
        weight = parameters[self.weight].flatten(1)
        return torch.cat([weight, parameters[self.bias][:, None]], 1) if constant and self.bias else weight

    def assign(self, parameters: Mapping[str, Tensor], matrix: Tensor) -> None:
        """Write such a matrix into parameters, in place."""
        weight = parameters[self.weight]
        weight.copy_(matrix[:, : self.inputs].view_as(weight))
        if matrix.shape[1] > self.inputs:
            parameters[self.bias].copy_(matrix[:, -1])

    def width(self, constant: bool) -> int:
        """Columns of that matrix."""
        return self.inputs + int(constant and bool(self.bias))


def layers(model: Model) -> list[Layer]:
    """The layers of a model that are linear in their inputs, in the module's order."""
    found = []
    for name, module in model.module.named_modules():
        if _is_linear(module):
            prefix = f"{name}." if name else ""
            bias = f"{prefix}bias" if module.bias is not None else ""
            weight = module.get_parameter("weight")
            found.append(Layer(name, f"{prefix}weight", bias, weight[0].numel(), len(weight)))
    return found


def _is_linear(module: nn.Module) -> bool:
    """Whether a module is one matrix for all its inputs, and what it slides over can be unfolded."""
    if isinstance(module, nn.Conv2d):
        return module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return isinstance(module, nn.Linear)


@torch.no_grad()
def gram(model: Model, flat: Tensor, features: Tensor, layer: Layer, constant: bool) -> Tensor:
    """``X^T X`` of what goes into a layer, float64 [width, width].

    Args:
        features: [samples, *shape]; the sum is over samples, of a convolution over its places too.
        constant: whether an input that is always 1 stands for the bias.
    """
    watched = copy.deepcopy(model.module)
    width = layer.width(constant)
    found = torch.zeros(width, width, dtype=torch.float64)
    watched.get_submodule(layer.name).register_forward_pre_hook(_adding(found, layer.inputs))
    for part in torch.split(features, _ROWS):
        functional_call(watched, model.named(flat), (part,))
    return found


@lru_cache(maxsize=8)
def gram_flops(model: Model, shape: tuple[int, ...], constant: bool) -> float:
    """FLOPs of :func:`gram` for one layer after another, of one sample: for each a forward pass, then its products."""
    watched, rows = copy.deepcopy(model.module), dict[str, int]()

    def counting(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def count(module: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows[name] = len(_rows(module, given[0]))

        return count

    every = layers(model)
    for layer in every:
        watched.get_submodule(layer.name).register_forward_pre_hook(counting(layer.name))
    functional_call(watched, model.named(model.initial(0)), (torch.zeros(_PROBES, *shape),))
    products = sum(2.0 * rows[layer.name] / _PROBES * layer.width(constant) ** 2 for layer in every)
    return len(every) * inference_flops(model, shape) + products


def _adding(total: Tensor, inputs: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def add(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        rows = _rows(module, given[0]).double()
        if len(total) > inputs:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
        total.addmm_(rows.mT, rows)

    return add


def _rows(module: nn.Module, inputs: Tensor) -> Tensor:
    """What one layer is multiplied by, [rows, inputs]."""
    if not isinstance(module, nn.Conv2d):
        return inputs.flatten(0, -2)
    how = (module.kernel_size, module.dilation, module.padding, module.stride)
    return unfold(inputs, *how).mT.flatten(0, 1)  # type: ignore[arg-type]  # ints, as layers() has seen to


def upper(matrix: Tensor) -> Tensor:
    """The upper triangle of a symmetric matrix [width, width], row by row."""
    return matrix[tuple(torch.triu_indices(len(matrix), len(matrix)))]


def symmetric(triangle: Tensor, width: int) -> Tensor:
    """The matrix that an upper triangle is of."""
    matrix = triangle.new_zeros(width, width)
    matrix[tuple(torch.triu_indices(width, width))] = triangle
    return matrix + matrix.triu(1).mT
