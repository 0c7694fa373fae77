"""Values that were solved together and stay together: what one task of a cluster yields."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from node.learn.arenas import ALIGNMENT, Layout, can_share, layout_of
from node.op import Value


class Rows:
    """Some values, in order. On the way to another process, tensors are the raw bytes that they are made of."""

    def __init__(self, values: Sequence[Value]) -> None:
        self.values = list(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, ([_packed(value) for value in self.values],)

    def __sizeof__(self) -> int:
        # By this a cluster decides what to move, and what to keep in memory.
        return sum(value.nbytes if isinstance(value, Tensor) else 64 for value in self.values)


class _Packed(NamedTuple):
    elements: np.ndarray
    """uint8 [bytes]: an array, because those are moved without being copied first."""
    layout: Layout


def _packed(value: Value) -> Value | _Packed:
    if not can_share(value):
        return value
    return _Packed(value.view(-1).view(torch.uint8).numpy(), layout_of(value))


def _unpacked(values: Sequence[Value | _Packed]) -> Rows:
    return Rows([_tensor(value) if isinstance(value, _Packed) else value for value in values])


def _tensor(packed: _Packed) -> Tensor:
    """The tensor, aligned as it was: what came over a network may begin anywhere."""
    elements, layout = packed
    memory = torch.empty(len(elements) + ALIGNMENT, dtype=torch.uint8).numpy()
    memory[layout.shift : layout.shift + len(elements)] = elements
    return layout.on(memory.data, 0)
