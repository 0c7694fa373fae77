"""The Gaussian mechanism in closed form: what mu = sensitivity / noise means as (epsilon, delta), and to an attacker.

Adding normal noise of standard deviation s to something of L2 sensitivity D is exactly mu-GDP with ``mu = D / s``
(Dong, Roth, Su: Gaussian Differential Privacy, JRSS-B 2022). Releases compose as ``mu = sqrt(sum mu_t^2)``, also where
each is chosen after the ones before. Nothing here is a bound: the conversions are exact, except zCDP's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import scipy  # type: ignore[import-untyped]  # it imports its parts on first use: they take 60 MB

from node.errors import ConfigError

# How far roots may be off, relatively; a calibrated noise is then rounded up by as much.
_TOLERANCE = 1e-12
_TINY = 1e-200
_MOST_SIGMA = 1e6
_LEAST_SIGMA = 1e-4


def delta_of(mu: float, epsilon: float) -> float:
    """The least delta with which mu-GDP is (epsilon, delta)-DP.

    Balle, Wang: Improving the Gaussian Mechanism for Differential Privacy, ICML 2018, theorem 8.
    """
    if mu <= 0:
        return 0.0
    if math.isinf(mu):
        return 1.0
    # The factor exp(epsilon) alone overflows.
    taken = math.exp(min(0.0, epsilon + float(scipy.special.log_ndtr(-mu / 2 - epsilon / mu))))
    return max(0.0, float(scipy.special.ndtr(mu / 2 - epsilon / mu)) - taken)


def epsilon_of(mu: float, delta: float) -> float:
    """The least epsilon with which mu-GDP is (epsilon, delta)-DP; infinite where mu is.

    Raises:
        ConfigError: delta is no probability between 0 and 1.
    """
    check_delta(delta)
    if math.isinf(mu):
        return math.inf
    if delta_of(mu, 0.0) <= delta:
        return 0.0
    # The looser conversion brackets the exact one.
    most = zcdp_epsilon_of(mu, delta)
    return float(
        scipy.optimize.brentq(lambda epsilon: delta_of(mu, epsilon) - delta, 0.0, most, rtol=_TOLERANCE, xtol=_TINY)
    )


def mu_of(epsilon: float, delta: float) -> float:
    """The largest mu with which mu-GDP is (epsilon, delta)-DP.

    Raises:
        ConfigError: epsilon is negative or delta is no probability.
    """
    check_epsilon(epsilon)
    check_delta(delta)
    most = 1.0
    while delta_of(most, epsilon) < delta:
        most *= 2
    root = scipy.optimize.brentq(lambda mu: delta_of(mu, epsilon) - delta, 0.0, most, rtol=_TOLERANCE, xtol=_TINY)
    return float(root) * (1 - _TOLERANCE)


def sigma_of(epsilon: float, delta: float, sensitivity: float = 1.0, rounds: int = 1) -> float:
    """The least noise (standard deviation) that makes so many releases (epsilon, delta)-DP together.

    The classical ``sqrt(2 ln(1.25 / delta)) / epsilon`` is not enough from epsilon = 1 on, and says nothing of rounds.

    Raises:
        ConfigError: epsilon, delta, sensitivity or rounds are out of range.
    """
    if not sensitivity > 0:
        raise ConfigError(f"sensitivity: {sensitivity}; allowed: a number above 0")
    if rounds < 1:
        raise ConfigError(f"rounds: {rounds}; allowed: 1 or more")
    return sensitivity * math.sqrt(rounds) / mu_of(epsilon, delta)


def compose(mus: Iterable[float]) -> float:
    """The mu of several releases together."""
    return math.sqrt(math.fsum(mu * mu for mu in mus))


def zcdp_epsilon_of(mu: float, delta: float) -> float:
    """An epsilon by way of zero-concentrated DP, ``rho = mu^2 / 2``: looser, and what DECOR's experiments state.

    Bun, Steinke: Concentrated Differential Privacy, TCC 2016, proposition 1.3.
    """
    check_delta(delta)
    rho = mu * mu / 2
    return rho + 2 * math.sqrt(rho * -math.log(delta))


def attack_auc(mu: float) -> float:
    """Area under the ROC curve of the best membership test there is against mu-GDP."""
    return float(scipy.special.ndtr(mu / math.sqrt(2)))


def attack_true_positive_rate(mu: float, false_positive_rate: float) -> float:
    """Hits of the best test at this rate of false alarms."""
    return float(scipy.special.ndtr(scipy.special.ndtri(false_positive_rate) + mu))


def attack_balanced_accuracy(mu: float) -> float:
    """Mean of hits and correct rejections of the best test, at its best threshold."""
    return float(scipy.special.ndtr(mu / 2))


def calibrate(epsilon_at: Callable[[float], float], epsilon: float) -> float:
    """The least noise multiplier between 1e-4 and 1e6 whose epsilon is at most this; ``epsilon_at`` must fall.

    Raises:
        ConfigError: no noise multiplier in that range reaches it.
    """
    check_epsilon(epsilon)
    low, high = _LEAST_SIGMA, 1.0
    while epsilon_at(high) > epsilon:
        low, high = high, high * 2
        if high > _MOST_SIGMA:
            raise ConfigError(f"epsilon: {epsilon} is out of reach even with a noise multiplier of {_MOST_SIGMA:g}")
    # Not a root finder's last guess but the side of the bracket that keeps the promise.
    while high - low > 1e-9 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if epsilon_at(middle) > epsilon else (low, middle)
    return high


def check_epsilon(epsilon: float) -> None:
    """Refuse what is no epsilon.

    Raises:
        ConfigError: with what is allowed.
    """
    if not 0 <= epsilon < math.inf:
        raise ConfigError(f"epsilon: {epsilon}; allowed: a finite number from 0")


def check_delta(delta: float) -> None:
    """Refuse what is no delta.

    Raises:
        ConfigError: with what is allowed.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"delta: {delta}; allowed: above 0 and below 1, less than one over the number of records")
