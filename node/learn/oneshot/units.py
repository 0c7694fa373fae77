"""The hidden units of a network whose layers follow one another: what may change places without changing an answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor, nn

from node.errors import ConfigError
from node.learn.models import Model

_UNIT_BY_UNIT = (
    nn.ReLU,
    nn.LeakyReLU,
    nn.GELU,
    nn.Tanh,
    nn.Sigmoid,
    nn.Flatten,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.Identity,
)
_NEVER = -1e30
"""How alike units are that may not take each other's place."""


class Units(NamedTuple):
    """The units between two layers: neurons, or the channels of a convolution."""

    makers: tuple[str, ...]
    """Parameters that have one row a unit: weights, bias, and those of a normalisation after them."""
    reader: str
    """The weights that read the units; after flattening, a block of columns is one unit."""
    size: int
    groups: int
    """Units are normalised in so many groups, and stay in theirs."""

    def incoming(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """What makes each unit, float64 [units, parameters]."""
        return torch.cat([parameters[name].reshape(self.size, -1) for name in self.makers], 1).double()

    def outgoing(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """What becomes of each unit, float64 [units, parameters]."""
        return self._blocks(parameters).transpose(0, 1).flatten(1).double()

    def permute(self, parameters: Mapping[str, Tensor], order: Tensor) -> None:
        """Put unit ``order[i]`` in place i, in place: the network says what it has said."""
        for name in self.makers:
            parameters[name].copy_(parameters[name][order])
        blocks = self._blocks(parameters)
        blocks.copy_(blocks[:, order])

    def _blocks(self, parameters: Mapping[str, Tensor]) -> Tensor:
        reader = parameters[self.reader]
        return reader.view(len(reader), self.size, -1)

    def best(self, likeness: Tensor) -> Tensor:
        """Which unit takes each place, so that likeness [places, units] sums up to most."""
        group = torch.arange(self.size) // (self.size // self.groups)
        allowed = torch.where(group[:, None] == group, likeness, _NEVER)
        return torch.from_numpy(linear_sum_assignment(allowed.numpy(), maximize=True)[1])


def hidden_units(model: Model) -> list[Units]:
    """The units between each layer and the next.

    Raises ConfigError for a network that is no plain sequence, or that has layers of which this cannot be told.
    """
    found: list[Units] = []
    makers: list[str] = []
    count, groups = 0, 1
    for name, module in _in_sequence(model.name, model.module, ""):
        own = [f"{name}{parameter}" for parameter, _ in module.named_parameters()]
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            if makers:
                found.append(Units(tuple(makers), f"{name}weight", count, groups))
            makers, count, groups = own, len(module.get_parameter("weight")), 1
        elif isinstance(module, nn.GroupNorm):
            makers += own
            groups = 1 if module.num_groups == count else module.num_groups
        elif not isinstance(module, _UNIT_BY_UNIT):
            raise _refused(model.name, module)
    return found


def _in_sequence(model: str, module: nn.Module, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    """The modules that are applied one after another, each with what its parameters' names begin with."""
    if type(module) is nn.Sequential:
        for name, part in module.named_children():
            yield from _in_sequence(model, part, f"{prefix}{name}.")
    elif next(module.children(), None) is None:
        yield prefix, module
    else:
        raise _refused(model, module)


def _refused(model: str, module: nn.Module) -> ConfigError:
    return ConfigError(
        f"model.name: units of {model!r} cannot be matched, for it has a {type(module).__name__}; allowed: a sequence "
        f"of dense layers, convolutions, group normalisations, poolings and activations, such as mlp and lenet"
    )
