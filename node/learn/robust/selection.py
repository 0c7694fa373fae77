"""Rules that keep some models, or weigh them, by how far they are from each other, and average those.

Rows are finite models [m, d], of which ``f`` may be lies; the result is one model [d]. Of equal scores the first wins.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable

import numpy as np
import torch
from torch import Tensor

from node.learn.robust.geometry import combine, inner_products, mean_of, squared_distances

_SUBSETS_AT_ONCE = 1024
_NO_WEIGHT = 1e-12
"""What rounding leaves of a weight that was filtered out."""


def krum_scores(rows: Tensor, f: int) -> Tensor:
    """Sum of squared distances of each row to its ``m - f - 2`` nearest others, float64 [m]."""
    return squared_distances(rows).sort(dim=1).values[:, 1 : len(rows) - f - 1].sum(1)


def krum(rows: Tensor, f: int) -> Tensor:
    """The row with the lowest score. Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017."""
    return rows[krum_scores(rows, f).argmin()].clone()


def multi_krum(rows: Tensor, f: int, selected: int = 0) -> Tensor:
    """The mean of the rows with the lowest scores. Blanchard, El Mhamdi, Guerraoui, Stainer, NeurIPS 2017.

    Args:
        selected: how many; 0: ``m - f``. The paper proves its claims for at most ``m - f - 2``.
    """
    lowest = krum_scores(rows, f).argsort(stable=True)
    return mean_of(lowest[: selected or len(rows) - f], rows)


def mda(rows: Tensor, f: int) -> Tensor:
    """Minimum diameter averaging: the mean of the ``m - f`` rows that are nowhere far from each other.

    El Mhamdi, Guerraoui, Guirguis, Hoang, Rouault, PODC 2020. Tries all subsets. Many have one diameter, since a single
    pair sets it: of these, the one with the smallest sum of squared distances.
    """
    squared = squared_distances(rows)

    def width(some: Tensor) -> Tensor:
        within = _within(squared, some)
        return torch.stack([within.amax((1, 2)), within.sum((1, 2))], dim=1)

    return mean_of(_best_subset(len(rows), f, width), rows)


def smea(rows: Tensor, f: int) -> Tensor:
    """Smallest maximum eigenvalue averaging: the mean of the ``m - f`` rows that vary least along any direction.

    Allouah, Guerraoui, Gupta, Pinot, Stephan, ICML 2023. Tries all subsets. The largest eigenvalue of a subset's
    covariance is that of its inner products around its mean, which has as many rows as models, not parameters.
    """
    products = inner_products(squared_distances(rows))

    def largest_variance(some: Tensor) -> Tensor:
        within = _within(products, some)
        centred = within - within.mean(1, keepdim=True)
        largest: Tensor = torch.linalg.eigvalsh(centred - centred.mean(2, keepdim=True))[:, -1:]
        return largest

    return mean_of(_best_subset(len(rows), f, largest_variance), rows)


def caf(rows: Tensor, f: int) -> Tensor:
    """Covariance-bound agnostic filter: the best weighted mean met while outliers lose weight, down to ``m - 2f``.

    Each pass finds the direction of largest variance, and takes weight from rows in proportion to their squared
    distance from the mean along it. Allouah, Guerraoui, Stephan, ICML 2025.
    """
    products = inner_products(squared_distances(rows))
    weights = best = torch.ones(len(rows), dtype=torch.float64, device=rows.device)
    least = float("inf")
    while weights.sum() > max(len(rows) - 2 * f, _NO_WEIGHT):
        variance, deviations = _main_direction(products, weights)
        if variance < least:
            least, best = variance, weights
        if variance == 0:
            break
        loss = deviations / deviations[weights > 0].max()
        weights = torch.where(weights > 0, weights * (1 - loss), 0.0)
        weights = torch.where(weights > _NO_WEIGHT, weights, 0.0)
    return combine(best / best.sum(), rows)


def _main_direction(products: Tensor, weights: Tensor) -> tuple[float, Tensor]:
    """Largest variance of the weighted rows, and each row's squared deviation along it up to a factor, [m]."""
    shares = weights / weights.sum()
    centred = products - shares @ products
    centred = centred - (centred @ shares)[:, None]
    roots = shares.sqrt()
    values, vectors = torch.linalg.eigh(roots[:, None] * centred * roots)
    return max(float(values[-1]), 0.0), (centred @ (roots * vectors[:, -1])).square()


def _best_subset(m: int, f: int, score: Callable[[Tensor], Tensor]) -> Tensor:
    """The first subset of ``m - f`` numbers below ``m`` with the lowest score.

    Scores of subsets [subsets, m - f] are [subsets, criteria]: a later criterion decides where all earlier are equal.
    """
    best, least = torch.arange(m - f), [float("inf")]
    for some in _subsets(m, m - f):
        scores = score(some).cpu()
        left = torch.arange(len(some))
        for criterion in scores.unbind(1):
            left = left[criterion[left] == criterion[left].min()]
        if scores[left[0]].tolist() < least:
            best, least = some[left[0]], scores[left[0]].tolist()
    return best


def _subsets(m: int, size: int) -> Iterable[Tensor]:
    subsets = itertools.combinations(range(m), size)
    while len(some := list(itertools.islice(subsets, _SUBSETS_AT_ONCE))):
        yield torch.from_numpy(np.array(some, np.int64))


def _within(matrix: Tensor, some: Tensor) -> Tensor:
    """The part [subsets, k, k] of a matrix [m, m] that is about each subset [subsets, k]."""
    return matrix[some[:, :, None], some[:, None, :]]
