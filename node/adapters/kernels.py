"""LoRA for a batch whose rows use different adapters, in plain torch: y + s B(Ax), each row with its own A, B and s.

``gather`` and ``segment`` are the products of BGMV and SGMV (Punica: Chen et al., MLSys 2024; S-LoRA: Sheng et al.,
MLSys 2024); ``rank_concat`` is one product with all ranks side by side. They agree up to rounding; which is fastest
depends on the batch (``choosing``). ``mixture`` adds outputs and ``fusion`` averages parameters (LoraRetriever: Zhao
et al., Findings of ACL 2024).

All take y [rows, tokens, out], what the base module gives for x [rows, tokens, in], and give a new [rows, tokens, out].
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

BASE = -1
"""The slot of a row that uses the base model alone: as an index it is the last slot, which is kept zero."""


class Stack(NamedTuple):
    """The adapters of one linear module, a slot each, padded with zeros to one rank."""

    a: Tensor
    """[slots, rank, in]; the last slot is zero if any row uses the base."""
    b: Tensor
    """[slots, out, rank]"""
    scale: Tensor
    """[slots]"""


class Rows:
    """Which slot each row of a batch uses. What kernels need to know of it is worked out once, for all layers."""

    def __init__(self, slots: Sequence[int]) -> None:
        """``slots``: of each row; ``BASE`` for none."""
        self.slots = tuple(slots)

    @cached_property
    def index(self) -> Tensor:
        """[rows], int64."""
        return torch.tensor(self.slots, dtype=torch.int64)

    @cached_property
    def used(self) -> tuple[int, ...]:
        """The slots of this batch, sorted, without the base."""
        return tuple(sorted(set(self.slots) - {BASE}))

    @cached_property
    def order(self) -> Tensor | None:
        """[rows]: rows sorted by slot, equal ones as they come; None where they are sorted."""
        order = sorted(range(len(self.slots)), key=lambda row: self.slots[row])
        return None if order == list(range(len(order))) else torch.tensor(order)

    @cached_property
    def runs(self) -> tuple[tuple[int, slice], ...]:
        """Each slot that is used, and its rows in ``order``."""
        runs, end = [], 0
        for slot, rows in groupby(sorted(self.slots)):
            start, end = end, end + len(list(rows))
            if slot != BASE:
                runs.append((slot, slice(start, end)))
        return tuple(runs)

    @cached_property
    def places(self) -> Tensor:
        """[rows, used]: 1 where a row uses that slot, else 0."""
        return self.index[:, None] == torch.tensor(self.used, dtype=torch.int64)


@dataclass(frozen=True)
class Composed:
    """Several weighted adapters for each row."""

    slots: Tensor
    """[rows, k], int64; ``BASE`` where a row has fewer."""
    weights: Tensor
    """[rows, k]"""


Kernel: TypeAlias = Callable[[Tensor, Tensor, Stack, Rows], Tensor]
"""Adds one adapter for each row: (y, x, stack, rows)."""
Composition: TypeAlias = Callable[[Tensor, Tensor, Stack, Composed], Tensor]
"""Adds several adapters for each row: (y, x, stack, composed)."""


def gather(y: Tensor, x: Tensor, stack: Stack, rows: Rows) -> Tensor:
    """Take each row's adapter beside it, then two batched products."""
    index = rows.index
    narrow = torch.bmm(x, stack.a[index].mT) * stack.scale[index, None, None]
    return torch.baddbmm(y, narrow, stack.b[index].mT)


def segment(y: Tensor, x: Tensor, stack: Stack, rows: Rows) -> Tensor:
    """Bring rows of one adapter together, then two products for each adapter. Rows of the base keep their bits."""
    if rows.order is not None:
        x, out = x[rows.order], y[rows.order]
    else:
        out = y.clone()
    for slot, where in rows.runs:
        out[where] += (x[where] @ stack.a[slot].T * stack.scale[slot]) @ stack.b[slot].T
    if rows.order is None:
        return out
    return torch.empty_like(out).index_copy_(0, rows.order, out)


def rank_concat(y: Tensor, x: Tensor, stack: Stack, rows: Rows) -> Tensor:
    """Apply all adapters to all rows in one product, and let through what is each row's own."""
    if not rows.used:
        return y.clone()
    used = torch.tensor(rows.used)
    a, b = stack.a[used], stack.b[used]
    count, rank, width = a.shape
    narrow = x @ a.reshape(count * rank, width).T
    own = (rows.places.to(x.dtype) * stack.scale[used]).repeat_interleave(rank, dim=1)
    return y + (narrow * own[:, None]) @ b.mT.reshape(count * rank, -1)


KERNELS: dict[str, Kernel] = {"gather": gather, "segment": segment, "rank-concat": rank_concat}


def mixture(y: Tensor, x: Tensor, stack: Stack, composed: Composed) -> Tensor:
    """Add a weighted sum of the adapters' outputs: sum_j w_j s_j B_j(A_j x)."""
    count, k = composed.slots.shape
    a, b = stack.a[composed.slots], stack.b[composed.slots]
    rank = a.shape[2]
    weights = composed.weights * stack.scale[composed.slots]
    narrow = torch.bmm(x, a.view(count, k * rank, -1).mT) * weights.repeat_interleave(rank, dim=1)[:, None]
    return torch.baddbmm(y, narrow, b.permute(0, 1, 3, 2).reshape(count, k * rank, -1))


def fusion(y: Tensor, x: Tensor, stack: Stack, composed: Composed) -> Tensor:
    """Apply one adapter of averaged parameters: (sum_j w_j s_j B_j)(sum_j w_j A_j x), which crosses B_i with A_j."""
    a = torch.einsum("bk,bkri->bri", composed.weights, stack.a[composed.slots])
    b = torch.einsum("bk,bkor->bor", composed.weights * stack.scale[composed.slots], stack.b[composed.slots])
    return torch.baddbmm(y, torch.bmm(x, a.mT), b.mT)


COMPOSITIONS: dict[str, Composition] = {"mixture": mixture, "fusion": fusion}
