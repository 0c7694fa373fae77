"""Rules whose result lies in the middle of all models. Rows are finite models [m, d]; the result is one model [d]."""

from __future__ import annotations

import torch
from torch import Tensor

from node.learn.robust.geometry import combine, coordinatewise, distances_to, mean_of

_CONVERGED = 1e-12
"""A step this small beside the distances that it was computed from changes no digit of a float32."""


def mean(rows: Tensor) -> Tensor:
    """The average: one sender can move it anywhere."""
    return mean_of(torch.arange(len(rows)), rows)


def median(rows: Tensor) -> Tensor:
    """The middle value of each coordinate; for an even count the mean of both middle ones.

    Yin, Chen, Ramchandran, Bartlett, ICML 2018.
    """
    return coordinatewise(_median, rows)


def trimmed_mean(rows: Tensor, f: int) -> Tensor:
    """The mean of each coordinate without its ``f`` lowest and ``f`` highest values.

    Yin, Chen, Ramchandran, Bartlett, ICML 2018.
    """
    return coordinatewise(lambda block: block.sort(dim=0).values[f : len(rows) - f].mean(0), rows)


def meamed(rows: Tensor, f: int) -> Tensor:
    """The mean of each coordinate's ``m - f`` values nearest to its median; of two as near, the lower.

    Xie, Koyejo, Gupta, arXiv 1802.10116 (2018).
    """

    def around_median(block: Tensor) -> Tensor:
        values = block.sort(dim=0).values
        nearest = (values - _median(values)).abs().argsort(dim=0, stable=True)[: len(rows) - f]
        return values.gather(0, nearest).mean(0)

    return coordinatewise(around_median, rows)


def geometric_median(rows: Tensor, nu: float = 1e-6, passes: int = 200) -> Tensor:
    """The point with the smallest sum of distances, by Weiszfeld's iteration from the coordinate-wise median (RFA).

    Pillutla, Kakade, Harchaoui, IEEE Transactions on Signal Processing 2022.

    Args:
        nu: distances count as at least this, so that a row may be the median itself.
        passes: the most iterations; it ends earlier where the point no longer moves.
    """
    point = median(rows).double()
    distances = distances_to(point, rows)
    for _ in range(passes):
        weights = 1 / distances.clamp(min=nu)
        moved = combine(weights / weights.sum(), rows, torch.float64)
        step = torch.linalg.vector_norm(moved - point)
        point, distances = moved, distances_to(moved, rows)
        if step <= _CONVERGED * distances.median():
            break
    return point.to(rows.dtype)


def _median(block: Tensor) -> Tensor:
    values = block.sort(dim=0).values
    return (values[(len(block) - 1) // 2] + values[len(block) // 2]) / 2
