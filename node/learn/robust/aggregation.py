"""How a rule is applied to models as they come.

Whatever is received is first made fit for a rule: models that are not finite are dropped, and the rest are put in an
order that follows from their content, so that the result never depends on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.errors import ComputeError
from node.learn.robust.rules import PREAGGREGATIONS, RULES, arguments, too_few, wrong


class TooFewModels(ComputeError):
    """So many models cannot be aggregated by this rule."""


def aggregate(
    models: Tensor,
    rule: str,
    f: int = 0,
    pre: Sequence[str] = (),
    *,
    rng: np.random.Generator | None = None,
    weights: Sequence[float] | None = None,
    losses: Sequence[float] | None = None,
    previous: Tensor | None = None,
    with_own: bool = True,
    **options: float,
) -> Tensor:
    """One model [d] of several, ``models`` [n, d], the own one first.

    A sender whose model is not finite is certainly faulty: it is dropped, and ``f`` counts one less. An own model that
    is not finite is returned as it is, because its node has diverged itself.

    Args:
        rng: what buckets are drawn from.
        weights: mixing weight of each model, for clipped gossip; None: equal ones.
        losses: of each model on the node's own data, for UBAR.
        previous: where centered clipping starts; None: at the own model.
        with_own: whether the own model is one of those that are aggregated.
        options: as in :func:`check_rule`.

    Raises TooFewModels where they are, and any other ComputeError for an option that is unknown or out of range.
    """
    order = order_of(models)
    if not len(order):
        return models[0].clone()
    f = max(0, f - (len(models) - len(order)))
    order = order if with_own else order[1:]
    if reason := wrong(rule, pre, options):
        raise ComputeError(reason)
    if reason := too_few(rule, len(order), f, pre, options):
        raise TooFewModels(reason)
    if RULES[rule].needs_losses and losses is None:
        raise ComputeError(f"{rule!r} needs the loss of every model: record judged_mix")
    if "bucketing" in pre and rng is None:
        raise ComputeError("'bucketing' needs a generator to draw from: record bucketed_mix")
    given: dict[str, Any] = {**options, "f": f, "rng": rng, "previous": previous}
    for name, numbers in (("weights", weights or (1 / len(models),) * len(models)), ("losses", losses)):
        if numbers is not None:
            given[name] = _ordered(name, numbers, models, order)
    rows = models[order]
    for name in pre:
        rows = _call(PREAGGREGATIONS[name], rows, given)
    return _call(RULES[rule].function, rows, given)


def is_finite(models: Tensor) -> Tensor:
    """Which of some models [n, d] have no NaN and no infinity, bool [n]."""
    return torch.stack([model.isfinite().all() for model in models])


def order_of(models: Tensor) -> Tensor:
    """The own model and the finite ones of the rest, sorted by content, as row numbers; none where the own is not."""
    finite = is_finite(models).tolist()
    if not finite[0]:
        return torch.empty(0, dtype=torch.int64)
    received = [i for i in range(1, len(models)) if finite[i]]
    received.sort(key=lambda i: models[i].cpu().numpy().tobytes())
    return torch.tensor([0, *received])


def _ordered(name: str, numbers: Sequence[float], models: Tensor, order: Tensor) -> Tensor:
    if len(numbers) != len(models):
        raise ComputeError(f"{len(numbers)} {name} for {len(models)} models, the own one included; each needs one")
    return torch.tensor(numbers, dtype=torch.float64, device=models.device)[order]


def _call(function: Callable[..., Tensor], rows: Tensor, given: Mapping[str, Any]) -> Tensor:
    return function(rows, **{name: given[name] for name in arguments(function) if name in given})
