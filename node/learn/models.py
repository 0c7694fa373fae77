"""What is learned: a module's shape and forward pass, as a function of one flat parameter vector.

A model's *value* is a float32 tensor [dimension]: its parameters one after another, in the module's own order. All that
nodes exchange is in it, so a module with buffers (running statistics) is refused.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import math
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import linear

from node.config import ModelSection
from node.errors import ConfigError
from node.learn.architectures import lenet, multilayer, resnet8
from node.op import Spec

Factory = Callable[[tuple[int, ...], int], nn.Module]
"""From the shape of one sample and the number of classes to a module that gives logits [samples, classes]."""

_MODULES: dict[str, Factory] = {"lenet": lenet, "resnet8": resnet8}
_DENSE = ("softmax", "mlp")


class Model:
    """One architecture. Holds no weights: every method takes them as a flat vector."""

    def __init__(self, name: str, make: Callable[[], nn.Module]) -> None:
        """Raises ConfigError for a module that cannot be trained as one flat vector of parameters."""
        self.name = name
        self.factory: Callable[..., nn.Module] = make
        """What builds the module."""
        self._make = make
        self._module = self._seeded(0)
        _check(name, self._module)
        parameters = dict(self._module.named_parameters())
        ends = list(itertools.accumulate(parameter.numel() for parameter in parameters.values()))
        self.parts = [
            (key, slice(end - parameter.numel(), end), parameter.shape)
            for end, (key, parameter) in zip(ends, parameters.items(), strict=True)
        ]
        self.dimension = ends[-1]
        self.spec = Spec((self.dimension,))

    def cut(self, layers: int) -> int:
        """Where the parameters of the last ``layers`` layers begin; a layer is a module with parameters of its own.

        Raises ConfigError where there are not more layers than these.
        """
        starts: dict[str, int] = {}
        for name, part, _ in self.parts:
            starts.setdefault(name.rpartition(".")[0], part.start)
        if not 0 < layers < len(starts):
            most = len(starts) - 1
            allowed = f"1 to {most}" if most else "none, for one must be left to share"
            raise ConfigError(f"private layers: {layers} of the {most + 1} of {self.name!r}; allowed: {allowed}")
        return list(starts.values())[-layers]

    def _seeded(self, seed: int) -> nn.Module:
        """A fresh module whose weights depend on the seed only; leaves the global generator as it was."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self._make()

    def initial(self, seed: int) -> Tensor:
        """The module's own initialisation, as a flat vector [dimension]."""
        parameters = self._seeded(seed).parameters()
        return torch.cat([parameter.detach().flatten() for parameter in parameters])

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The parameters by name, as views of the flat vector."""
        return {name: flat[part].view(shape) for name, part, shape in self.parts}

    def forward(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits [samples, classes] of features [samples, *shape], from parameters by name."""
        logits: Tensor = functional_call(self._module, dict(parameters), (features,))
        return logits

    def logits(self, flat: Tensor, features: Tensor) -> Tensor:
        """Logits [samples, classes] of features [samples, *shape]."""
        return self.forward(self.named(flat), features)

    @property
    def module(self) -> nn.Module:
        """The module itself, for its structure: its weights mean nothing."""
        return self._module

    @property
    def is_convolutional(self) -> bool:
        """Whether the module convolves."""
        return any(isinstance(module, nn.modules.conv._ConvNd) for module in self._module.modules())


class Dense(Model):
    """Fully connected layers with ReLU between them: what the stacked kernels of :mod:`node.learn.stacked` train."""

    def __init__(self, name: str, widths: tuple[int, ...]) -> None:
        """``widths``: features, hidden units of each layer, classes."""
        super().__init__(name, lambda: multilayer(widths))
        self.widths = widths

    def forward(self, parameters: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """Logits [samples, classes] of features [samples, *shape], from parameters by name."""
        tensors = iter(parameters.values())
        activation = linear(features.flatten(1), next(tensors), next(tensors))
        for weight in tensors:
            activation = linear(activation.relu(), weight, next(tensors))
        return activation


def build(section: ModelSection, shape: tuple[int, ...], classes: int) -> Model:
    """The model that ``model.name`` means, for samples of one shape.

    Raises ConfigError for an unknown name, or for a module that cannot be built, trained or fed with these samples.
    """
    if section.name in _DENSE:
        hidden = section.hidden if section.name == "mlp" else ()
        return Dense(section.name, (math.prod(shape), *hidden, classes))
    factory = _find(section.name)
    try:
        model = Model(section.name, lambda: factory(shape, classes))
        model.factory = factory
        with torch.no_grad():
            logits = model.logits(model.initial(0), torch.zeros(2, *shape))
    except ConfigError:
        raise
    except Exception as error:  # somebody else's code, called with shapes it may not support
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"model.name: {section.name!r} does not take samples of shape {list(shape)}: {reason}"
        ) from error
    if logits.shape != (2, classes):
        raise ConfigError(f"model.name: {section.name!r} gives {list(logits.shape)} for 2 samples, not [2, {classes}]")
    return model


def with_classes(model: Model, shape: tuple[int, ...], classes: int) -> Model:
    """A model's architecture for another number of classes, with a module of its own."""
    if isinstance(model, Dense):
        return Dense(model.name, (*model.widths[:-1], classes))
    factory = model.factory
    return Model(model.name, lambda: factory(shape, classes))


def _find(name: str) -> Factory:
    """The factory that a name means: bundled, an entry point, or ``module:callable``."""
    if name in _MODULES:
        return _MODULES[name]
    plugins = {point.name: point for point in entry_points(group="starling.models")}
    module, _, attribute = (plugins[name].value if name in plugins else name).partition(":")
    if not attribute:
        known = sorted({*_DENSE, *_MODULES, *plugins})
        near = difflib.get_close_matches(name, known, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"model.name: no model {name!r}{hint} (there are {', '.join(known)}, or 'module:callable')")
    try:
        factory: Factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.name: cannot import {name!r}: {error}") from error
    return factory


def _check(name: str, module: object) -> None:
    """Refuse what the flat vector would not carry, or what would draw from a generator of its own."""
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.name: {name!r} gives a {type(module).__name__}, not a torch.nn.Module")
    if buffers := [key for key, _ in module.named_buffers()]:
        raise ConfigError(
            f"model.name: {name!r} has the buffer {buffers[0]!r}, which is neither trained nor averaged; "
            f"use GroupNorm in place of BatchNorm"
        )
    if any(isinstance(part, nn.modules.dropout._DropoutNd) for part in module.modules()):
        raise ConfigError(f"model.name: {name!r} has Dropout, whose draws are not seeded by node and step; remove it")
    parameters = list(module.parameters())
    if not parameters:
        raise ConfigError(f"model.name: {name!r} has no parameters")
    if other := {str(parameter.dtype) for parameter in parameters} - {"torch.float32"}:
        raise ConfigError(f"model.name: {name!r} has {min(other)} parameters; only float32 is supported")
