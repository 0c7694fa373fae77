"""Gradients of plain sequential networks, written out layer by layer.

They call the kernels that autograd would, in its order, so that they give its bits without its bookkeeping, which costs
small networks more than their arithmetic.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from typing import Protocol as Interface

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from node.learn.models import Model

Differentiate = Callable[[Tensor, Tensor], list[Tensor]]
"""From features [b, *shape] and labels [b] to the gradient of their mean cross-entropy, tensor by tensor."""

_aten = torch.ops.aten
_MEAN = 1
_NO_LABEL = -100
_WRITTEN = (nn.Flatten, nn.Linear, nn.ReLU, nn.MaxPool2d, nn.GroupNorm, nn.Conv2d)


class Network(Interface):
    """A model's forward and backward pass, at parameters in the model's own order."""

    def logits(self, parameters: Sequence[Tensor], features: Tensor) -> Tensor:
        """Logits [b, classes] of features [b, *shape]."""
        ...

    def at(self, parameters: Sequence[Tensor]) -> Differentiate:
        """What differentiates the model at some parameters, which may change in place from call to call."""
        ...


def network(model: Model) -> Network:
    """The fastest passes for a model, bit for bit the same whichever: written out, or else autograd's."""
    layers = _layers(model.module)
    return Autograd(model) if layers is None else _Written(layers)


class Autograd:
    """The passes of any model."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._names = [name for name, _, _ in model.parts]

    def logits(self, parameters: Sequence[Tensor], features: Tensor) -> Tensor:
        """Logits [b, classes] of features [b, *shape]."""
        return self._model.forward(dict(zip(self._names, parameters, strict=True)), features)

    def at(self, parameters: Sequence[Tensor]) -> Differentiate:
        """What differentiates the model at some parameters, which may change in place from call to call."""
        leaves = [parameter.detach().requires_grad_() for parameter in parameters]

        def differentiate(features: Tensor, labels: Tensor) -> list[Tensor]:
            with torch.enable_grad():
                loss = cross_entropy(self.logits(leaves, features), labels)
                return list(torch.autograd.grad(loss, leaves, materialize_grads=True))

        return differentiate


class _Layer(Interface):
    """One layer: what it saves in the forward pass comes back in the backward pass."""

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        """The outputs, and what to save."""
        ...

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        """The error of the inputs (anything at all, unless it is wanted), and the gradient of the parameters."""
        ...


class _Written:
    """A network as a list of layers, each with the number of its parameters."""

    def __init__(self, layers: Sequence[tuple[_Layer, int]]) -> None:
        ends = list(itertools.accumulate(count for _, count in layers))
        self._layers = [layer for layer, _ in layers]
        self._parts = [slice(end - count, end) for end, (_, count) in zip(ends, layers, strict=True)]
        self._first = next(i for i, (_, count) in enumerate(layers) if count)

    def logits(self, parameters: Sequence[Tensor], features: Tensor) -> Tensor:
        """Logits [b, classes] of features [b, *shape]."""
        for layer, part in zip(self._layers, self._parts, strict=True):
            features, _ = layer.forward(parameters[part], features)
        return features

    def at(self, parameters: Sequence[Tensor]) -> Differentiate:
        """What differentiates the network at some parameters, which may change in place from call to call."""
        steps = [(layer, parameters[part]) for layer, part in zip(self._layers, self._parts, strict=True)]
        return lambda features, labels: self._differentiate(steps, features, labels)

    def _differentiate(
        self, steps: Sequence[tuple[_Layer, Sequence[Tensor]]], features: Tensor, labels: Tensor
    ) -> list[Tensor]:
        activation, saved = features, []
        for layer, parameters in steps:
            activation, kept = layer.forward(parameters, activation)
            saved.append(kept)
        error = _cross_entropy_error(activation, labels)
        gradients: list[Tensor] = []
        for i in reversed(range(self._first, len(steps))):
            layer, parameters = steps[i]
            error, found = layer.backward(parameters, saved[i], error, i > self._first)
            gradients[:0] = found
        return gradients


def _cross_entropy_error(logits: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the mean cross-entropy by the logits."""
    logs = torch.log_softmax(logits, 1)
    _, weight = _aten.nll_loss_forward.default(logs, labels, None, _MEAN, _NO_LABEL)
    one = logs.new_ones(())
    error = _aten.nll_loss_backward.default(one, logs, labels, None, _MEAN, _NO_LABEL, weight)
    by_logits: Tensor = _aten._log_softmax_backward_data.default(error, logs, 1, logs.dtype)
    return by_logits


class _Flatten:
    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        return inputs.flatten(1), inputs.shape

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        return error.view(saved), []


class _Linear:
    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        weight, *bias = parameters
        return torch.addmm(bias[0], inputs, weight.t()) if bias else torch.mm(inputs, weight.t()), inputs

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        weight, *bias = parameters
        gradients = [torch.mm(error.t(), saved), *[torch.sum(error, 0) for _ in bias]]
        return torch.mm(error, weight) if wanted else error, gradients


class _ReLU:
    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        outputs = relu(inputs)
        return outputs, outputs

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        return _aten.threshold_backward.default(error, saved, 0), []


class _MaxPool:
    def __init__(self, module: nn.MaxPool2d) -> None:
        window, stride, padding, dilation = (
            _pair(size) for size in (module.kernel_size, module.stride, module.padding, module.dilation)
        )
        self._how = (window, stride, padding, dilation, module.ceil_mode)

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        # A maximum is the same in any order of memory, and found ten times faster with channels side by side.
        side_by_side = inputs.contiguous(memory_format=torch.channels_last)
        outputs, places = _aten.max_pool2d_with_indices.default(side_by_side, *self._how)
        if side_by_side is not inputs:
            outputs, places = outputs.contiguous(), places.contiguous()
        return outputs, (inputs, places)

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        inputs, places = saved
        return _aten.max_pool2d_with_indices_backward.default(error, inputs, *self._how, places), []


class _GroupNorm:
    def __init__(self, module: nn.GroupNorm) -> None:
        self._groups = module.num_groups
        self._epsilon = module.eps

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        samples, channels = inputs.shape[:2]
        shape = (samples, channels, inputs[0, 0].numel(), self._groups)
        outputs, mean, scale = _aten.native_group_norm.default(inputs, *parameters, *shape, self._epsilon)
        return outputs, (inputs, mean, scale, shape)

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        inputs, mean, scale, shape = saved
        propagated, *gradients = _aten.native_group_norm_backward.default(
            error, inputs, mean, scale, parameters[0], *shape, [wanted, True, True]
        )
        return propagated, gradients


class _Convolution:
    def __init__(self, module: nn.Conv2d) -> None:
        self._how = (module.stride, module.padding, module.dilation, False, (0, 0), module.groups)

    def forward(self, parameters: Sequence[Tensor], inputs: Tensor) -> tuple[Tensor, Any]:
        weight, *bias = parameters
        return _aten.convolution.default(inputs, weight, bias[0] if bias else None, *self._how), inputs

    def backward(
        self, parameters: Sequence[Tensor], saved: Any, error: Tensor, wanted: bool
    ) -> tuple[Tensor, list[Tensor]]:
        weight, *bias = parameters
        sizes = [len(weight)] if bias else None
        propagated, *gradients = _aten.convolution_backward.default(
            error, saved, weight, sizes, *self._how, [wanted, True, bool(bias)]
        )
        return propagated, gradients[: len(parameters)]


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else size


def _layers(module: nn.Module) -> list[tuple[_Layer, int]] | None:
    """The layers of a plain sequential network; None for any other."""
    parts = list(_flat(module))
    owned = [parameter for part in parts for parameter in part.parameters()]
    everything = list(module.parameters())
    if len(owned) != len(everything) or any(a is not b for a, b in zip(owned, everything, strict=True)):
        return None  # some layer occurs twice
    layers: list[tuple[_Layer, int]] = []
    for part in parts:
        layer = _written(part, any(isinstance(layer, _Flatten) for layer, _ in layers))
        if layer is None:
            return None
        layers.append((layer, len(list(part.parameters()))))
        if type(part) is nn.MaxPool2d and len(layers) > 1 and isinstance(layers[-2][0], _ReLU):
            # They commute, in values and in gradients, and a quarter of the elements is left to rectify.
            layers[-2:] = layers[:-3:-1]
    return layers


def _flat(module: nn.Module) -> Iterator[nn.Module]:
    """The modules that a sequential one applies one after another."""
    if type(module) is nn.Sequential and not _has_hooks(module):
        for part in module:
            yield from _flat(part)
    elif type(module) is not nn.Identity:
        yield module


def _has_hooks(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _written(module: nn.Module, is_flat: bool) -> _Layer | None:
    """A layer for a module of exactly a known type, with options that are known; None for any other."""
    if _has_hooks(module) or type(module) not in _WRITTEN:
        return None
    match module:
        case nn.Flatten(start_dim=1, end_dim=-1):
            return _Flatten()
        case nn.Linear() if is_flat:
            return _Linear()
        case nn.ReLU():
            return _ReLU()
        case nn.MaxPool2d(return_indices=False):
            return _MaxPool(module)
        case nn.GroupNorm(affine=True):
            return _GroupNorm(module)
        case nn.Conv2d(padding_mode="zeros", padding=(int(), int())):
            return _Convolution(module)
        case _:
            return None
