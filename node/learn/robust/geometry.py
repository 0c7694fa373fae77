"""Distances between models, and weighted sums of them: float64 inside, in blocks of columns, so that memory is bounded.

Squares of float32 numbers do not overflow in float64, and a sum of finite models stays within their range: no sender,
however large its finite numbers are, turns a result into infinity or NaN.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_BLOCK_ELEMENTS = 1 << 21


def blocks(rows: Tensor) -> Iterator[Tensor]:
    """The columns of rows [m, d] in order, as float64 [m, at most 2^21 / m]."""
    for block in torch.split(rows, max(1, _BLOCK_ELEMENTS // len(rows)), dim=1):
        yield block.double()


def coordinatewise(function: Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """What a function of float64 columns [m, c] gives for each column of rows [m, d]: [d], in the rows' dtype."""
    return torch.cat([function(block).to(rows.dtype) for block in blocks(rows)])


def combine(weights: Tensor, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Weighted sums of rows [m, d], for float64 weights [m] or [k, m]: [d] or [k, d], in the rows' dtype or another."""
    return torch.cat([(weights @ block).to(dtype or rows.dtype) for block in blocks(rows)], dim=-1)


def mean_of(chosen: Tensor, rows: Tensor) -> Tensor:
    """The mean [d] of the rows whose numbers are given, int64 [k]."""
    weights = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    weights[chosen] = 1 / len(chosen)
    return combine(weights, rows)


def distances_to(point: Tensor, rows: Tensor) -> Tensor:
    """Euclidean distance of each row [m, d] from a point [d], float64 [m]."""
    parts = torch.split(point.double(), max(1, _BLOCK_ELEMENTS // len(rows)))
    squares = [(block - part).square().sum(1) for block, part in zip(blocks(rows), parts, strict=True)]
    return functools.reduce(torch.add, squares).sqrt()


def norms(rows: Tensor) -> Tensor:
    """Euclidean norm of each row [m, d], float64 [m]."""
    return functools.reduce(torch.add, [block.square().sum(1) for block in blocks(rows)]).sqrt()


def squared_distances(rows: Tensor) -> Tensor:
    """Between all rows [m, d], float64 [m, m]; exactly 0 between equal rows."""
    parts = [torch.cdist(block, block, compute_mode="donot_use_mm_for_euclid_dist").square() for block in blocks(rows)]
    return functools.reduce(torch.add, parts)


def inner_products(squared: Tensor) -> Tensor:
    """Of the rows' offsets from the first row, from squared distances [m, m]: float64 [m, m]."""
    return (squared[:1] + squared[:, :1] - squared) / 2
