"""How well an attack tells members from non-members, in the figures that the field reports.

``scores`` [samples] are higher for members, ``members`` is bool [samples]. Every threshold counts: none is dropped for
lying on a straight piece of the curve, because the best rate below some small false positive rate may lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import scipy  # type: ignore[import-untyped]

from node.errors import ConfigError

LEVEL = 0.95
"""Confidence of intervals."""


class Curve(NamedTuple):
    """A receiver operating characteristic: one point per threshold, the strictest (nothing is a member) first."""

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray
    """A sample counts as a member from this score on."""

    @property
    def auc(self) -> float:
        """Area under the curve; ties count half."""
        return float(np.trapezoid(self.tpr, self.fpr))

    @property
    def balanced_accuracy(self) -> float:
        """``max over thresholds of 1 - (FPR + FNR)/2``."""
        return float(np.max(1 + self.tpr - self.fpr) / 2)

    def tpr_at(self, fpr: float) -> float:
        """The highest true positive rate among points whose false positive rate is at most ``fpr``."""
        return float(self.tpr[self.fpr <= fpr].max())

    def log_log(self, points: int = 100) -> tuple[np.ndarray, np.ndarray]:
        """The curve for two logarithmic axes, thinned: rates (FPR, TPR) from the lowest FPR that was resolved to 1."""
        lowest = self.fpr[self.fpr > 0].min()
        fpr = np.geomspace(lowest, 1, points)
        tpr = self.tpr[np.searchsorted(self.fpr, fpr * (1 + 1e-12), side="right") - 1]
        return fpr[tpr > 0], tpr[tpr > 0]


class Leakage(NamedTuple):
    """What an attack reports of one model or message."""

    auc: float
    balanced_accuracy: float
    tpr_at_1_percent: float | None
    """At a false positive rate of at most 1%; None (n/a) with fewer than 100 non-members."""
    tpr_at_01_percent: float | None
    """At most 0.1%; None (n/a) with fewer than 1,000 non-members: it would be the rate at no false positive at all."""
    members: int
    non_members: int


def curve(scores: np.ndarray, members: np.ndarray) -> Curve:
    """The attack's curve. Raises ConfigError unless there are members and non-members, and all scores are numbers."""
    from sklearn.metrics import roc_curve  # only now: nodes that attack nobody do without scikit-learn's 75 MB

    _check(scores, members)
    return Curve(*roc_curve(members, scores, drop_intermediate=False))


def auc(scores: np.ndarray, members: np.ndarray) -> float:
    """Area under the curve: the chance that a member scores above a non-member."""
    return curve(scores, members).auc


def measure(scores: np.ndarray, members: np.ndarray) -> Leakage:
    """Every figure of one attack."""
    roc = curve(scores, members)
    inside = int(np.count_nonzero(members))
    outside = len(members) - inside
    at_1, at_01 = (roc.tpr_at(fpr) if outside * fpr >= 1 else None for fpr in (0.01, 0.001))
    return Leakage(roc.auc, roc.balanced_accuracy, at_1, at_01, inside, outside)


def by_group(scores: np.ndarray, members: np.ndarray, groups: np.ndarray) -> dict[int, Leakage]:
    """Every figure for each group (node, cluster, minority) by itself, in the groups' order.

    A group without members, or without non-members, has none.
    """
    masks = {int(group): groups == group for group in np.unique(groups)}
    return {
        group: measure(scores[mask], members[mask]) for group, mask in masks.items() if 0 < members[mask].mean() < 1
    }


def worst(leakages: Mapping[int, Leakage]) -> int:
    """The group that an attack tells apart best, by AUC; the first of equals."""
    return max(leakages, key=lambda group: leakages[group].auc)


def shuffled_auc(scores: np.ndarray, members: np.ndarray, rng: np.random.Generator) -> float:
    """AUC against members drawn by lot: an evaluation is broken where this is far from 0.5."""
    return auc(scores, rng.permutation(members))


class Interval(NamedTuple):
    """A figure, and where 95% of its resamples lie."""

    estimate: float
    low: float | None
    high: float | None


def intervals(
    figures: Mapping[str, Callable[[Curve], float]],
    scores: np.ndarray,
    members: np.ndarray,
    rng: np.random.Generator,
    *,
    resamples: int = 1000,
    level: float = LEVEL,
) -> dict[str, Interval]:
    """Figures of an attack with percentile intervals, all from the same resamples: what takes time is to sort these.

    Members and non-members are resampled apart, so that both stay.
    """
    estimates = curve(scores, members)
    sides = [np.flatnonzero(members), np.flatnonzero(~members)]
    values: dict[str, list[float]] = {name: [] for name in figures}
    for _ in range(resamples):
        rows = np.concatenate([rng.choice(side, len(side)) for side in sides])
        resampled = curve(scores[rows], members[rows])
        for name, figure in figures.items():
            values[name].append(figure(resampled))
    ends = {name: np.quantile(values[name], [(1 - level) / 2, (1 + level) / 2]).tolist() for name in figures}
    return {name: Interval(figure(estimates), *ends[name]) for name, figure in figures.items()}


def mean_interval(values: np.ndarray, clusters: np.ndarray, rng: np.random.Generator) -> Interval | None:
    """The mean [values], and a percentile interval: of a single cluster there is none, and without values nothing.

    Clusters int64 [values] are resampled as wholes: messages of one victim are about the same data.
    """
    if not len(values):
        return None
    _, which = np.unique(clusters, return_inverse=True)
    totals, counts = np.bincount(which, weights=values), np.bincount(which)
    if len(counts) < 2:
        return Interval(float(np.mean(values)), None, None)
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), size=1000)
    low, high = np.quantile(drawn @ totals / (drawn @ counts), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(np.mean(values)), float(low), float(high))


def clopper_pearson(successes: int, trials: int, level: float = LEVEL) -> tuple[float, float]:
    """Exact interval of a rate (Clopper and Pearson, Biometrika 1934), each side missed with chance (1 - level)/2."""
    if not 0 <= successes <= trials or trials < 1:
        raise ConfigError(f"successes: {successes} of {trials} trials; need 0 <= successes <= trials, and a trial")
    low, high = clopper_pearson_bounds(np.array([successes]), trials, level)
    return float(low[0]), float(high[0])


def clopper_pearson_bounds(successes: np.ndarray, trials: int, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The intervals of :func:`clopper_pearson` for many counts at once: lower and upper ends."""
    tail = (1 - level) / 2
    some, not_all = np.maximum(successes, 1), np.minimum(successes, trials - 1)
    low = np.where(successes > 0, scipy.special.betaincinv(some, trials - some + 1, tail), 0.0)
    high = np.where(successes < trials, scipy.special.betaincinv(not_all + 1, trials - not_all, 1 - tail), 1.0)
    return low, high


def _check(scores: np.ndarray, members: np.ndarray) -> None:
    if scores.shape != members.shape or members.dtype != np.bool_:
        raise ConfigError(
            f"members: {members.dtype}{list(members.shape)} for scores {list(scores.shape)}; need a bool for each"
        )
    if not 0 < np.count_nonzero(members) < len(members):
        raise ConfigError(f"members: {np.count_nonzero(members)} of {len(members)} samples; need members and others")
    if np.isnan(scores).any():
        raise ConfigError(f"scores: sample {int(np.isnan(scores).argmax())} has no number for a score")
