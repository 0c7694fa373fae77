"""Per-sample gradients of networks of linear, convolutional and group-normalising layers, hardly ever written out.

One forward and one backward pass give, for every layer, its inputs and the gradients of each sample's loss by its
outputs. The norm of a sample's gradient follows from these alone: either from inner products between positions ("ghost
norms": Goodfellow, 2015; Li et al., ICLR 2022), or, where an image has too many positions for that, from the layer's
gradient itself (mixed ghost clipping: Bu et al., NeurIPS 2022). So does every weighted sum of the samples'
gradients, without a second backward pass (book-keeping: Bu et al., ICML 2023).
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.functional import cross_entropy, group_norm, unfold
from torch.nn.grad import conv2d_weight

from node.errors import ComputeError, ConfigError
from node.learn.models import Model


@dataclass(frozen=True)
class SampleGradients:
    """The gradients of some samples' own losses, by all parameters or by some: what clipping needs of them."""

    squares: Tensor
    """Squared norm of each sample's gradient, over all these parameters; [samples]."""
    weighted: Callable[[Tensor], list[Tensor]]
    """From a factor for each sample, [samples], to the weighted sum of the gradients, one tensor for each parameter.

    A sample whose factor is 0 adds nothing, even where its gradient is not finite.
    """


EVERY = slice(None)
"""All parameters of a model."""

_Rule = Callable[[Any, Tensor, Tensor], SampleGradients]
"""From a layer, its inputs [samples, ...] and its outputs' errors [samples, ...] to the gradients by its own
parameters, weight first."""


class GhostGradients:
    """Per-sample gradients of one model, layer by layer."""

    def __init__(self, model: Model) -> None:
        """Raises ConfigError for a parameter that is in no layer of a known kind."""
        self._module = copy.deepcopy(model.module).requires_grad_(False)
        self._names = [name for name, _, _ in model.parts]
        self._layers: dict[str, nn.Module] = {}
        self._calls: list[tuple[str, Tensor, Tensor]] = []
        self._lock = threading.Lock()  # several nodes of one process may train at once
        for name, module in self._module.named_modules():
            if hasattr(module, "inplace"):
                module.inplace = False  # it would overwrite the outputs that the errors are asked of
            if next(module.parameters(recurse=False), None) is not None and _is_known(module):
                self._layers[name] = module
                module.register_forward_hook(self._recorder(name))
        self._check_covered(model.name)

    def _check_covered(self, name: str) -> None:
        covered = {f"{layer}.{part}".lstrip(".") for layer in self._layers for part in ("weight", "bias")}
        for parameter in self._names:
            if parameter not in covered:
                raise ConfigError(
                    f"ghost: parameter {parameter!r} of model {name!r} is in no Linear, Conv2d (padded with zeros) or "
                    f"GroupNorm layer of its own; use the method 'vmap'"
                )

    def _recorder(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
            if not outputs.requires_grad:
                outputs.requires_grad_()  # nothing before the first layer has a gradient
            self._calls.append((name, inputs[0].detach(), outputs))

        return record

    def at(
        self, parameters: Sequence[Tensor], features: Tensor, labels: Tensor, moving: slice = EVERY
    ) -> SampleGradients:
        """The gradients at some parameters, in the model's order, of samples [b, *shape] with labels [b].

        ``moving``: those of the parameters that they are by, of whole layers.

        Raises ComputeError for a model that does not call every layer exactly once.
        """
        named = dict(zip(self._names, parameters, strict=True))
        with self._lock, torch.enable_grad():
            self._calls.clear()
            logits = functional_call(self._module, named, (features,))
            loss = cross_entropy(logits, labels, reduction="sum")  # a mean would shrink every sample's error
            moves = set(self._names[moving])
            calls = [call for call in self._called_once() if moves & set(self._owned(call[0]))]
            errors = torch.autograd.grad(loss, [outputs for _, _, outputs in calls])
        shares = {
            name: _RULES[type(self._layers[name])](self._layers[name], inputs, error)
            for (name, inputs, _), error in zip(calls, errors, strict=True)
        }
        return self._together(shares, self._names[moving])

    def _owned(self, layer: str) -> list[str]:
        """The names of a layer's parameters, in the order of its rule."""
        return [f"{layer}.{part}".lstrip(".") for part, _ in self._layers[layer].named_parameters()]

    def _called_once(self) -> list[tuple[str, Tensor, Tensor]]:
        calls, self._calls = self._calls, []
        if sorted(name for name, _, _ in calls) != sorted(self._layers):
            raise ComputeError("ghost: a layer is called more than once, or never; use the method 'vmap'")
        return calls

    def _together(self, shares: dict[str, SampleGradients], names: list[str]) -> SampleGradients:
        def weighted(factors: Tensor) -> list[Tensor]:
            found: dict[str, Tensor] = {}
            for name, share in shares.items():
                found.update(zip(self._owned(name), share.weighted(factors), strict=True))
            return [found[name] for name in names]

        return SampleGradients(torch.stack([share.squares for share in shares.values()]).sum(0), weighted)


def _is_known(module: nn.Module) -> bool:
    if isinstance(module, nn.Conv2d):
        return type(module) is nn.Conv2d and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    return type(module) in _RULES


def _has_ghost(positions: int, inputs: int, outputs: int) -> bool:
    """Whether inner products between the positions of a sample take less work than its gradient, inputs by outputs."""
    return positions * (inputs + outputs) < inputs * outputs


def _ghost_squares(inputs: Tensor, errors: Tensor) -> Tensor:
    """Squared norms of the samples' weight gradients, from all pairs of positions, each group by itself.

    ``inputs`` [samples, groups, inputs, positions], ``errors`` [samples, groups, outputs, positions]. Positions may
    cancel, here and in the gradient: what rounding may then have left of either counts in the norm.
    """
    squares = torch.matmul(inputs.mT, inputs).mul_(torch.matmul(errors.mT, errors)).flatten(1).sum(1)
    if (positions := inputs.shape[-1]) == 1:
        return squares
    largest = inputs.square().sum((2, 3)) * errors.square().sum((2, 3))
    return squares + torch.finfo(squares.dtype).eps * positions * largest.sum(1)


def without(factors: Tensor, each: Tensor) -> Tensor:
    """What there is of each sample, [samples, ...], with 0 in place of all of those whose factor is 0.

    A product would do for finite numbers alone: 0 times infinity is not 0.
    """
    if factors.all():
        return each
    return torch.where(factors.view(-1, *[1] * (each.ndim - 1)) != 0, each, 0.0)


def weighted_sum(factors: Tensor, gradients: Tensor) -> Tensor:
    """The sum over samples of a factor [samples] times a gradient [samples, *shape]."""
    total: Tensor = torch.tensordot(factors, without(factors, gradients), 1)
    return total


def _written_out(gradients: Tensor) -> SampleGradients:
    """The gradients by one parameter, given every one of them, [samples, *shape]."""
    squares = gradients.flatten(1).square().sum(1)
    return SampleGradients(squares, lambda factors: [weighted_sum(factors, gradients)])


def _and(weight: SampleGradients, bias: Tensor | None) -> SampleGradients:
    """``bias``: its gradient for every sample [samples, outputs], where there is one."""
    if bias is None:
        return weight
    other = _written_out(bias)
    return SampleGradients(
        weight.squares + other.squares, lambda factors: [*weight.weighted(factors), *other.weighted(factors)]
    )


def _linear(layer: nn.Linear, inputs: Tensor, errors: Tensor) -> SampleGradients:
    inputs = inputs.reshape(len(inputs), -1, layer.in_features)
    errors = errors.reshape(len(errors), -1, layer.out_features)

    def weighted(factors: Tensor) -> list[Tensor]:
        shortened = without(factors, errors) * factors[:, None, None]
        return [shortened.flatten(0, 1).mT @ without(factors, inputs).flatten(0, 1)]

    if _has_ghost(inputs.shape[1], layer.in_features, layer.out_features):
        weight = SampleGradients(_ghost_squares(inputs.mT[:, None], errors.mT[:, None]), weighted)
    else:
        weight = _written_out(torch.matmul(errors.mT, inputs))
    return _and(weight, None if layer.bias is None else errors.sum(1))


def _convolution(layer: nn.Conv2d, inputs: Tensor, errors: Tensor) -> SampleGradients:
    padding: Any = layer.padding  # numbers, of a known layer
    how = (layer.stride, padding, layer.dilation, layer.groups)
    shape, positions = layer.weight.shape, errors[0, 0].numel()

    def gradient(inputs: Tensor, errors: Tensor) -> Tensor:
        found: Tensor = conv2d_weight(inputs, shape, errors, *how)  # type: ignore[no-untyped-call]
        return found

    if _has_ghost(positions, shape[1:].numel(), shape[0] // layer.groups):
        patches = unfold(inputs, layer.kernel_size, layer.dilation, padding, layer.stride)
        by_group = (len(inputs), layer.groups, -1, positions)
        squares = _ghost_squares(patches.reshape(by_group), errors.reshape(by_group))

        def weighted(factors: Tensor) -> list[Tensor]:
            shortened = without(factors, errors) * factors[:, None, None, None]
            return [gradient(without(factors, inputs), shortened)]

        weight = SampleGradients(squares, weighted)
    else:
        weight = _written_out(vmap(gradient)(inputs[:, None], errors[:, None]))
    return _and(weight, None if layer.bias is None else errors.sum((2, 3)))


def _group_norm(layer: nn.GroupNorm, inputs: Tensor, errors: Tensor) -> SampleGradients:
    normal = group_norm(inputs, layer.num_groups, eps=layer.eps)
    scale, shift = (part.reshape(*part.shape[:2], -1).sum(2) for part in (errors * normal, errors))
    return _and(_written_out(scale), shift)


_RULES: dict[type[nn.Module], _Rule] = {nn.Linear: _linear, nn.Conv2d: _convolution, nn.GroupNorm: _group_norm}
