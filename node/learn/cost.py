"""What training a model costs, counted once, so that a costlier model takes longer on the same device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from node.learn.models import Model

_SAMPLES = 2
"""As many as a model has been tried with; some normalisations refuse a single one."""


def training_flops(model: Model, shape: tuple[int, ...]) -> float:
    """FLOPs of training on one sample of a shape, forward and backward; a multiply-add is 2.

    Counts matrix products, convolutions and attention, by torch's own formulas. The first layer's inputs need no
    gradient, so that training costs a little less than three times the forward pass. A model without any such product
    counts a multiply-add for each parameter, three times.
    """
    flat = model.initial(0).requires_grad_()
    features = torch.zeros(_SAMPLES, *shape)
    labels = torch.zeros(_SAMPLES, dtype=torch.int64)
    with torch.enable_grad(), _Counter() as counter:
        torch.autograd.grad(cross_entropy(model.logits(flat, features), labels), flat)
    return counter.flops / _SAMPLES or 6.0 * model.dimension


def inference_flops(model: Model, shape: tuple[int, ...]) -> float:
    """FLOPs of the forward pass of one sample of a shape, counted as in training."""
    with torch.no_grad(), _Counter() as counter:
        model.logits(model.initial(0), torch.zeros(_SAMPLES, *shape))
    return counter.flops / _SAMPLES or 2.0 * model.dimension


def flops_of(call: Callable[[], object]) -> float:
    """FLOPs of the products in a call, counted as in training; 0 where it has none."""
    with torch.no_grad(), _Counter() as counter:
        call()
    return float(counter.flops)


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """``torch.utils.flop_counter.FlopCounterMode`` without its report, and without importing a compiler stack."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # to ask the compiler not to look into this would import it: over a CPU-second, and 70 MB

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        formula = flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=out)
        return out
