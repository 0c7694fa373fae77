"""Whether methods differ over several settings: mean ranks, and tests that hold however their accuracies are spread.

Demšar: Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 2006. A *block* is one setting (a data set
and how it is divided); seeds of one setting are not independent and are averaged before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats  # type: ignore[import-untyped]

from node.errors import ConfigError

LEVEL = 0.05
_LEAST_PAIRS = 1e-12
"""Differences that count as none: rounding."""


class Ranking(NamedTuple):
    """Mean ranks of methods over blocks, and what may be said of them."""

    ranks: NDArray[np.float64]
    """Float64 [methods]: 1 is best."""
    friedman: float
    """Chi-squared of equal ranks, with methods - 1 degrees of freedom."""
    iman_davenport: float
    """The same as F, less conservative; infinite where all blocks agree."""
    p_value: float
    """Of the latter."""
    critical_difference: float
    """Mean ranks that are closer do not differ by Nemenyi's test."""


def ranked(scores: ArrayLike, level: float = LEVEL) -> Ranking:
    """Rank methods by their scores [blocks, methods], of which more is better; equal scores share their ranks.

    Friedman, JASA 1937; Iman and Davenport, Communications in Statistics 1980; Nemenyi, 1963.

    Raises:
        ConfigError: there are fewer than two methods or blocks, or a score is no number.
    """
    table = np.asarray(scores, dtype=np.float64)
    if table.ndim != 2 or min(table.shape) < 2 or not np.isfinite(table).all():
        raise ConfigError("ranking: needs two methods and two blocks at least, and a number for each pair of them")
    blocks, methods = table.shape
    ranks = stats.rankdata(-table, axis=1).mean(0)
    spread = math.fsum(ranks**2) - methods * (methods + 1) ** 2 / 4
    friedman = max(0.0, 12 * blocks / (methods * (methods + 1)) * spread)
    left = blocks * (methods - 1) - friedman
    f = (blocks - 1) * friedman / left if left > _LEAST_PAIRS else math.inf
    p_value = float(stats.f.sf(f, methods - 1, (methods - 1) * (blocks - 1)))
    return Ranking(ranks, friedman, f, p_value, critical_difference(methods, blocks, level))


def critical_difference(methods: int, blocks: int, level: float = LEVEL) -> float:
    """How far apart mean ranks must be to differ, by Nemenyi's test."""
    return studentised(methods, level) * math.sqrt(methods * (methods + 1) / (6 * blocks))


def studentised(methods: int, level: float = LEVEL) -> float:
    """The quantile of the studentised range with infinite degrees of freedom, over the square root of 2."""
    return float(stats.studentized_range.ppf(1 - level, methods, np.inf)) / math.sqrt(2)


def cliques(ranks: Sequence[float], difference: float) -> list[tuple[int, int]]:
    """Largest groups of methods none of which differ, as first and last place in the order of rising ranks.

    Groups of one, and groups within another, are left out.
    """
    ordered = sorted(ranks)
    found: list[tuple[int, int]] = []
    for first in range(len(ordered)):
        last = max(place for place in range(first, len(ordered)) if ordered[place] - ordered[first] <= difference)
        if last > first and (not found or last > found[-1][1]):
            found.append((first, last))
    return found


def indistinguishable(scores: ArrayLike, best: int, level: float = LEVEL) -> list[bool]:
    """For each method, whether it is not significantly worse than the ``best`` one over blocks [blocks, methods].

    Wilcoxon's signed-rank test of each against it, one-sided, by Holm's correction (Scandinavian Journal of Statistics,
    1979). So few blocks that no test could tell leave all of them so.
    """
    table = np.asarray(scores, dtype=np.float64)
    others = [method for method in range(table.shape[1]) if method != best]
    p_values = {method: _worse(table[:, best] - table[:, method]) for method in others}
    equal, rejects = [True] * table.shape[1], True
    for place, method in enumerate(sorted(others, key=lambda method: (p_values[method], method))):
        rejects = rejects and p_values[method] <= level / (len(others) - place)
        equal[method] = not rejects
    return equal


def _worse(differences: NDArray[np.float64]) -> float:
    """How likely such differences are where there is none."""
    apart = differences[np.abs(differences) > _LEAST_PAIRS]
    if not apart.size:
        return 1.0
    return float(stats.wilcoxon(apart, alternative="greater", method="exact" if apart.size <= 50 else "approx").pvalue)
