"""What an attack proves: a lower bound on epsilon, to hold against the accountant's upper bound.

A membership attack with true positive rate TPR at false positive rate FPR refutes every (epsilon, delta) below
``log((TPR - delta)/FPR)`` (Kairouz, Oh and Viswanath, ICML 2015; as an audit: Jagielski, Ullman and Oprea, NeurIPS
2020). For Gaussian noise, one point of the curve also bounds mu, which is much tighter (Nasr et al., USENIX Security
2023). Both take Clopper-Pearson bounds of the rates, at a threshold that was chosen on other trials.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri  # type: ignore[import-untyped]

from node.attack.metrics import LEVEL, clopper_pearson, clopper_pearson_bounds, curve
from node.errors import ConfigError
from node.privacy.gaussian import check_delta, epsilon_of


class Bound(NamedTuple):
    """What one threshold shows: both rates hold together with the chance that their two intervals leave."""

    threshold: float
    """Scores from here on were taken for members; chosen on the first half of the trials."""
    tpr_low: float
    """Lower bound of the true positive rate, from the second half."""
    fpr_high: float
    """Upper bound of the false positive rate, from the second half."""


class Audit(NamedTuple):
    """Lower bounds that an attack proves."""

    delta: float
    epsilon: float
    """Holds for any mechanism; from the point :attr:`pointwise`."""
    mu: float
    """Holds for Gaussian noise only; from the point :attr:`gaussian`."""
    gaussian_epsilon: float
    """The epsilon of ``mu`` at ``delta``: for Gaussian noise only."""
    pointwise: Bound
    gaussian: Bound


class Verdict(NamedTuple):
    """Whether an accountant's epsilon survives an audit."""

    holds: bool
    proven: float
    """The largest epsilon that the audit refutes everything below."""
    accounted: float
    reason: str
    """One line."""


def epsilon_at(tpr: float, fpr: float, delta: float) -> float:
    """The largest epsilon that a point (or bounds: TPR from below, FPR from above) refutes; 0 where it refutes none.

    The larger of ``log((TPR - delta)/FPR)`` and its mirror image ``log((1 - delta - FPR)/(1 - TPR))``.
    """
    return max(0.0, _log_ratio(tpr - delta, fpr), _log_ratio(1 - delta - fpr, 1 - tpr))


def mu_at(tpr: float, fpr: float) -> float:
    """The mu of the Gaussian mechanism whose curve goes through a point (Dong et al., JRSS B 2022); 0 below it."""
    if tpr <= fpr:
        return 0.0
    return float(ndtri(tpr) - ndtri(fpr))


def audit(
    scores: np.ndarray, members: np.ndarray, delta: float, rng: np.random.Generator, *, level: float = LEVEL
) -> Audit:
    """Choose a threshold on a random half of the trials, and bound epsilon by the other half.

    Args:
        scores: of each trial, higher for members, [trials].
        members: bool [trials].
        delta: above 0 and below 1.
        rng: who is in which half.
        level: confidence of each rate's interval.

    Raises ConfigError with fewer than two members or two non-members.
    """
    check_delta(delta)
    choosing, judging = _halves(members, rng)

    def best(proven: Callable[[float, float], float]) -> Bound:
        threshold = _best_threshold(scores[choosing], members[choosing], level, proven)
        return Bound(threshold, *rates(scores[judging] >= threshold, members[judging], level))

    pointwise = best(lambda tpr, fpr: epsilon_at(tpr, fpr, delta))
    gaussian = best(mu_at)
    mu = mu_at(gaussian.tpr_low, gaussian.fpr_high)
    epsilon = epsilon_at(pointwise.tpr_low, pointwise.fpr_high, delta)
    return Audit(delta, epsilon, mu, epsilon_of(mu, delta), pointwise, gaussian)


def rates(guesses: np.ndarray, members: np.ndarray, level: float = LEVEL) -> tuple[float, float]:
    """What guesses, bool [trials], show at least of the true positive rate, and at most of the false positive rate."""
    inside, outside = (int(np.count_nonzero(side)) for side in (members, ~members))
    tpr_low = clopper_pearson(int(np.count_nonzero(guesses & members)), inside, level)[0]
    fpr_high = clopper_pearson(int(np.count_nonzero(guesses & ~members)), outside, level)[1]
    return tpr_low, fpr_high


def verdict(found: Audit, accounted: float, *, gaussian: bool) -> Verdict:
    """Whether an accounted epsilon, at the audit's delta, survives.

    Args:
        found: the audit.
        accounted: the accountant's epsilon, for the same adjacency and view as the trials; infinity is no guarantee.
        gaussian: whether the audited mechanism is Gaussian noise, so that the tighter bound counts too.
    """
    if math.isnan(accounted) or accounted < 0:
        raise ConfigError(f"accounted: epsilon {accounted}; need a number from 0 on, or infinity")
    proven = max(found.epsilon, found.gaussian_epsilon) if gaussian else found.epsilon
    holds = proven <= accounted
    said = "is within" if holds else "REFUTES"
    reason = (
        f"an attack proves epsilon >= {proven:.4g} at delta {found.delta:g}, which {said} the {accounted:.4g} accounted"
    )
    return Verdict(holds, proven, accounted, reason)


def _best_threshold(
    scores: np.ndarray, members: np.ndarray, level: float, proven: Callable[[float, float], float]
) -> float:
    """The threshold whose bounds prove most; the strictest of equals."""
    points = curve(scores, members)
    inside, outside = (int(np.count_nonzero(side)) for side in (members, ~members))
    tpr_low = clopper_pearson_bounds(np.rint(points.tpr * inside), inside, level)[0]
    fpr_high = clopper_pearson_bounds(np.rint(points.fpr * outside), outside, level)[1]
    bounds = [proven(tpr, fpr) for tpr, fpr in zip(tpr_low.tolist(), fpr_high.tolist(), strict=True)]
    return float(points.thresholds[int(np.argmax(bounds))])


def _halves(members: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves, with members and non-members in equal parts."""
    sides = [rng.permutation(np.flatnonzero(side)) for side in (members, ~members)]
    if min(len(side) for side in sides) < 2:
        raise ConfigError(f"members: {len(sides[0])} of {len(members)} trials; need at least 2 members and 2 others")
    first, second = zip(*[np.array_split(side, 2) for side in sides], strict=True)
    return np.concatenate(first), np.concatenate(second)


def _log_ratio(numerator: float, denominator: float) -> float:
    if numerator <= 0:
        return -math.inf
    return math.log(numerator / denominator) if denominator > 0 else math.inf
