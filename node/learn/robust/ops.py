"""Robust mixing as ops, for ``ctx.apply``: Refs of models in, the own one first, a Ref of one model out.

Where too few models are left for the rule, because others were not finite or never came, the own model stays: whoever
sends nonsense, or nothing, must not end a node.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from node.learn.robust.aggregation import TooFewModels, aggregate
from node.op import Key, Spec, op


@functools.cache
def code_digest() -> bytes:
    """What robust mixing follows from besides its inputs: all of this package, and how this machine computes."""
    sources = b"".join(path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    machine = f"{torch.__version__} {torch.backends.cpu.get_cpu_capability()} {torch.get_num_threads()}"
    return blake2b(sources + machine.encode(), digest_size=16).digest()


def _basis(key: Key) -> bytes:
    return code_digest()


@partial(replace, basis=_basis)
@op
def robust_mix(
    own: Tensor, *received: Tensor, rule: str, f: int = 0, pre: tuple[str, ...] = (), **options: Any
) -> Tensor:
    """:func:`~node.learn.robust.aggregation.aggregate` without bucketing, losses or a previous aggregate."""
    return _aggregated((own, *received), rule, f, pre, **options)


@partial(replace, basis=_basis)
@op(seeded=True)
def bucketed_mix(
    own: Tensor,
    *received: Tensor,
    rule: str,
    rng: np.random.Generator,
    f: int = 0,
    pre: tuple[str, ...] = ("bucketing",),
    **options: Any,
) -> Tensor:
    """The same with pre-aggregations that are random: ``pre`` names bucketing, alone or among others."""
    return _aggregated((own, *received), rule, f, pre, rng=rng, **options)


@partial(replace, basis=_basis)
@op
def judged_mix(own: Tensor, *others: Any, rule: str = "ubar", f: int = 0, **options: Any) -> Tensor:
    """The same for a rule that needs losses.

    ``others`` are the models received, and for every model, the own one's first, a metric with a ``loss``, in the same
    order: what ``ctx.evaluate(model, on="train")`` gives, or an op of its own on a minibatch.
    """
    models = [own, *[other for other in others if not isinstance(other, Mapping)]]
    losses = [float(other["loss"]) for other in others if isinstance(other, Mapping)]
    return _aggregated(models, rule, f, losses=losses, **options)


@partial(replace, basis=_basis)
@op
def centered_clipping_from(
    previous: Tensor, own: Tensor, *received: Tensor, pre: tuple[str, ...] = (), f: int = 0, **options: Any
) -> Tensor:
    """Centered clipping that starts at the previous aggregate, not at the own model; ``f`` is for ``pre``."""
    start = previous.to(own.device)
    return _aggregated((own, *received), "centered-clipping", f, pre, previous=start, **options)


@partial(replace, basis=_basis)
@op(spec=lambda inputs, static: Spec((1,), "float64", ("refused_models",)))
def nonfinite(*inputs: Any) -> dict[str, float]:
    """How many of some models have a NaN or an infinity, and are dropped by the ops above, as a metric.

    Earlier counts among the inputs are added.
    """
    models = [each for each in inputs if not isinstance(each, Mapping)]
    before = [float(each["refused_models"]) for each in inputs if isinstance(each, Mapping)]
    return {"refused_models": float(sum(not bool(model.isfinite().all()) for model in models)) + sum(before)}


def _aggregated(models: Sequence[Tensor], rule: str, f: int, pre: Sequence[str] = (), **given: Any) -> Tensor:
    """Models [d], the own one first, aggregated on its device; what came over a network may be elsewhere."""
    rows = torch.stack([model.to(models[0].device) for model in models])
    try:
        return aggregate(rows, rule, f, pre, **given)
    except TooFewModels:
        return rows[0].clone()
