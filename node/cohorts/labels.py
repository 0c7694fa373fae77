"""Cohorts that each have every class, from what nodes tell of their labels."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from node.cohorts.forming import Cohorts, sizes
from node.errors import ConfigError
from node.private import Coins

_GAIN = 1e-9
"""Share of all samples by which a swap must lower the objective: less may be rounding, and go on for ever."""


@dataclass(frozen=True, slots=True, eq=False)
class Histogram:
    """What a node tells of its labels."""

    counts: NDArray[np.float64]
    """Samples of each class, shape [classes]; with noise, of no whole numbers."""
    epsilon: float
    """Differential privacy of one sample; infinite for the plain truth."""


def noised(counts: NDArray[np.int64], epsilon: float, coins: Coins) -> Histogram:
    """A histogram with Laplace noise of scale ``1/epsilon`` on each class, clipped at 0 (Dwork et al., TCC 2006).

    One sample more or less changes the counts by 1 in L1, and so this is ``epsilon``-differentially private towards all
    who do not know ``coins``: a seeded generator protects nobody. An infinite epsilon adds nothing.

    Raises ConfigError unless epsilon is above 0.
    """
    if not epsilon > 0:
        raise ConfigError(f"protocol.histogram_epsilon: {epsilon}; allowed: above 0, or inf for no noise")
    if np.isinf(epsilon):
        return Histogram(counts.astype(np.float64), epsilon)
    exponential = -np.log1p(-coins.random(2 * len(counts)))
    noise = (exponential[::2] - exponential[1::2]) / epsilon  # the difference of two exponentials is Laplace
    return Histogram(np.maximum(counts + noise, 0.0), epsilon)


def total_variation(histograms: Mapping[int, NDArray[np.float64]], cohorts: Cohorts) -> NDArray[np.float64]:
    """How far the labels of each cohort are from those of all, shape [cohorts]: 0 for alike, up to 1.

    A cohort without samples is as far as can be.
    """
    some = next(iter(histograms.values()))
    totals = np.array([total_of(histograms, members, like=some) for members in cohorts])
    overall = totals.sum(axis=0) / totals.sum()
    shares = totals / np.maximum(totals.sum(axis=1, keepdims=True), np.finfo(float).tiny)
    return np.where(totals.any(axis=1), np.abs(shares - overall).sum(axis=1) / 2, 1.0)


def total_of(
    histograms: Mapping[int, NDArray[np.float64]], members: Sequence[int], like: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The sum of some nodes' histograms, of the shape of ``like``."""
    total = np.zeros(like.shape)
    for node in members:
        total += histograms[node]
    return total


def stratified(histograms: Mapping[int, NDArray[np.float64]], cohorts: int) -> Cohorts:
    """Cohorts whose label counts are all near the same share of everybody's; sizes differ by at most one.

    The largest node first, each goes where the distance to the target grows least, in L1; then pairs are swapped while
    that lowers the sum of distances. ``histograms`` are counts of shape [classes], by node.
    """
    nodes = sorted(histograms)
    rows = np.array([histograms[node] for node in nodes], dtype=np.float64)
    target = rows.sum(axis=0) / cohorts
    members = _greedy(rows, target, sizes(len(nodes), cohorts))
    least = _GAIN * max(float(rows.sum()), 1.0)
    while sum(_swap(rows, target, members, *pair, least) for pair in itertools.combinations(range(cohorts), 2)):
        pass
    return tuple(tuple(sorted(nodes[i] for i in cohort)) for cohort in members)


def _greedy(rows: NDArray[np.float64], target: NDArray[np.float64], wanted: list[int]) -> list[list[int]]:
    """Row numbers of each cohort, of the ``wanted`` sizes; any of them become the larger ones."""
    members: list[list[int]] = [[] for _ in wanted]
    gaps = np.tile(-target, (len(wanted), 1))
    least = wanted[-1]
    larger = sum(size > least for size in wanted)
    for i in np.argsort(-rows.sum(axis=1), kind="stable").tolist():
        grown = sum(len(cohort) > least for cohort in members)
        increase = np.abs(gaps + rows[i]).sum(axis=1) - np.abs(gaps).sum(axis=1)
        for number, cohort in enumerate(members):
            if len(cohort) > least or (len(cohort) == least and grown == larger):
                increase[number] = np.inf
        best = int(increase.argmin())
        members[best].append(i)
        gaps[best] += rows[i]
    return members


def _swap(
    rows: NDArray[np.float64], target: NDArray[np.float64], members: list[list[int]], a: int, b: int, least: float
) -> bool:
    """Swap the pair of two cohorts' nodes that lowers the objective most, in place; whether any does."""
    ours, theirs = rows[members[a]], rows[members[b]]
    gap_a, gap_b = ours.sum(axis=0) - target, theirs.sum(axis=0) - target
    change = theirs[None, :, :] - ours[:, None, :]
    after = np.abs(gap_a + change).sum(axis=2) + np.abs(gap_b - change).sum(axis=2)
    i, j = divmod(int(after.argmin()), after.shape[1])
    if after[i, j] >= np.abs(gap_a).sum() + np.abs(gap_b).sum() - least:
        return False
    members[a][i], members[b][j] = members[b][j], members[a][i]
    return True
