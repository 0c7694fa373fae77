"""Parts of a model: its core, which may be shared, and its head, which stays with its node."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from node.op import Spec, Static, op


def _part_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return Spec((static["stop"] - static["start"],), inputs[0].dtype)


def _join_spec(inputs: Sequence[Spec], static: Static) -> Spec:
    return Spec((sum(spec.shape[0] for spec in inputs),), inputs[0].dtype)


@op(spec=_part_spec)
def part(model: Tensor, *, start: int, stop: int) -> Tensor:
    """The elements ``start`` to ``stop`` of a flat model; a copy, so that the rest can be freed."""
    return model[start:stop].clone()


@op(spec=_join_spec)
def join(*parts: Tensor) -> Tensor:
    """Parts of a flat model one after another."""
    return torch.cat(parts)
