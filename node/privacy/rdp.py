"""Renyi differential privacy of the Gaussian mechanism on random batches, and its conversion to (epsilon, delta).

A curve is an array of RDP values, one for each of some rising orders alpha > 1. Curves of steps add, also where each
step is chosen after the ones before. ``sigma`` is the noise multiplier: standard deviation over sensitivity.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from functools import lru_cache
from itertools import pairwise

import numpy as np
import scipy  # type: ignore[import-untyped]
from numpy.typing import NDArray

from node.errors import ConfigError
from node.privacy.gaussian import check_delta

Curve = NDArray[np.float64]

ORDERS: Curve = np.concatenate((np.arange(11, 110) / 10, np.arange(12, 64))).astype(np.float64)
"""1.1 to 10.9 in tenths, then 12 to 63."""
MANY_ORDERS: Curve = np.sort(np.concatenate((ORDERS, (11.0, 128.0, 256.0, 512.0, 1024.0))))
"""Those and a few more, for much noise and few steps."""
# Terms of the series are summed in blocks, each as long as all before; it ends where they add less than e^-30 of it.
_BLOCK = 64
_MOST_TERMS = 1 << 16
_NEGLIGIBLE = -30.0
_LEAST_SIGMA, _MOST_SIGMA = 1e-7, 1e7
"""Between these, nothing overflows, and what cancels leaves digits enough."""


def gaussian(sigma: float, orders: Curve = ORDERS) -> Curve:
    """One step on all records. Mironov: Renyi Differential Privacy, CSF 2017, corollary 3.

    Raises ConfigError as :func:`poisson`.
    """
    _check(sigma, 1.0)
    return orders / (2 * sigma**2) if sigma > 0 else np.full(len(orders), np.inf)


def poisson(sigma: float, q: float, orders: Curve = ORDERS) -> Curve:
    """One step on a batch that each record joins with probability q; adjacency add/remove. Shape of ``orders``.

    Mironov, Talwar, Zhang: Renyi Differential Privacy of the Sampled Gaussian Mechanism, 2019, section 3.3. With much
    noise, where the series of an order that is not whole is long, an upper bound.

    Raises:
        ConfigError: q is no probability, or sigma is neither 0, nor infinite, nor from 1e-7 to 1e7.
    """
    _check(sigma, q)
    if q == 0 or math.isinf(sigma):
        return np.zeros(len(orders))
    if q == 1 or sigma == 0:
        return gaussian(sigma, orders)
    bounds = [max(0.0, _log_moment(sigma, q, float(order))) / (order - 1) for order in orders]
    # A curve rises with its order: what bounds it at one bounds it at all below.
    return np.minimum.accumulate(bounds[::-1])[::-1]


def without_replacement(sigma: float, q: float, orders: Curve = ORDERS) -> Curve:
    """One step on a batch of fixed size, a share q of the records; adjacency replace-one, and sigma relative to it.

    Wang, Balle, Kasiviswanathan: Subsampled Renyi Differential Privacy and Analytical Moments Accountant, AISTATS 2019,
    theorem 27; between whole orders the logarithm of the moment is interpolated.

    Raises ConfigError as :func:`poisson`.
    """
    _check(sigma, q)
    if q == 0 or math.isinf(sigma):
        return np.zeros(len(orders))
    if q == 1 or sigma == 0:
        return gaussian(sigma, orders)
    whole = np.arange(1, math.ceil(orders.max()) + 1)
    moments = _log_moments_without_replacement(sigma, q, len(whole))
    return np.asarray(np.interp(orders, whole, moments) / (orders - 1))


def epsilon_of(curve: Curve, delta: float, orders: Curve = ORDERS) -> tuple[float, float]:
    """The least epsilon of all orders, and that order. Canonne, Kamath, Steinke, NeurIPS 2020, proposition 12.

    Raises ConfigError for a curve that is not a number somewhere, or a delta that is no probability.
    """
    check_delta(delta)
    if np.isnan(curve).any():
        raise ConfigError(f"curve: not a number at order {orders[np.isnan(curve).argmax()]:g}; nothing follows from it")
    epsilons = curve + np.log1p(-1 / orders) - (math.log(delta) + np.log(orders)) / (orders - 1)
    best = int(np.argmin(epsilons))
    return max(0.0, float(epsilons[best])), float(orders[best])


def least_epsilon(delta: float, orders: Curve = MANY_ORDERS) -> float:
    """What these orders cannot show to be smaller, however much the noise."""
    return epsilon_of(np.zeros(len(orders)), delta, orders)[0]


def older_epsilon_of(curve: Curve, delta: float, orders: Curve = ORDERS) -> tuple[float, float]:
    """The same by Mironov's looser conversion: to compare with what others have stated, never as one's own figure."""
    check_delta(delta)
    epsilons = curve - math.log(delta) / (orders - 1)
    best = int(np.argmin(epsilons))
    return float(epsilons[best]), float(orders[best])


def delta_of(curve: Curve, epsilon: float, orders: Curve = ORDERS) -> float:
    """The least delta of all orders: the conversion of ``epsilon_of``, solved for the other."""
    logs = (orders - 1) * (curve - epsilon + np.log1p(-1 / orders)) - np.log(orders)
    return math.exp(min(0.0, float(np.min(logs))))


def _check(sigma: float, q: float) -> None:
    if not 0 <= q <= 1:
        raise ConfigError(f"q: {q}; allowed: a sampling rate from 0 to 1")
    if not (_LEAST_SIGMA <= sigma <= _MOST_SIGMA or sigma in (0, math.inf)):
        raise ConfigError(
            f"sigma: {sigma}; allowed: a noise multiplier from {_LEAST_SIGMA:g} to {_MOST_SIGMA:g}, 0, or infinity"
        )


def _log_moment(sigma: float, q: float, order: float) -> float:
    """Log of the order-th moment of the likelihood ratio."""
    if order.is_integer():
        k = np.arange(order + 1)
        logs = _log_binomial(order, k) + (order - k) * math.log1p(-q) + k * math.log(q)
        return float(scipy.special.logsumexp(logs + (k * k - k) / (2 * sigma**2)))
    return _log_fractional_moment(sigma, q, order)


def _log_fractional_moment(sigma: float, q: float, order: float) -> float:
    """The two series of section 3.3, which meet where both densities of the mixture are equal.

    Where they are long, the chord between whole orders: the logarithm of a moment is convex in its order.
    """
    meets = sigma**2 * math.log(1 / q - 1) + 0.5
    logs: list[Curve] = []
    signs: list[Curve] = []
    begin, end = 0, _BLOCK
    while end <= _MOST_TERMS:
        i = np.arange(begin, end, dtype=np.float64)
        begin, end = end, 2 * end
        j = order - i
        left, right = scipy.special.log_ndtr((meets - i) / sigma), scipy.special.log_ndtr((j - meets) / sigma)
        below = j * math.log1p(-q) + i * math.log(q) + (i * i - i) / (2 * sigma**2) + left
        above = i * math.log1p(-q) + j * math.log(q) + (j * j - j) / (2 * sigma**2) + right
        logs.append(_log_binomial(order, i) + np.logaddexp(below, above))
        # Beyond the order, binomials alternate: their absolute values would give a looser bound.
        signs.append(scipy.special.gammasgn(j + 1))
        total = float(scipy.special.logsumexp(np.concatenate(logs), b=np.concatenate(signs)))
        if i[-1] > order and logs[-1][-1] < logs[-1][-2] and logs[-1][-1] < total + _NEGLIGIBLE:
            return total
    ends = math.floor(order), math.ceil(order)
    return float(np.interp(order, ends, [_log_moment(sigma, q, float(end)) for end in ends]))


def _log_binomial(n: float, k: Curve) -> Curve:
    """Log of the absolute value, also for fractional n."""
    return np.asarray(scipy.special.gammaln(n + 1) - scipy.special.gammaln(k + 1) - scipy.special.gammaln(n - k + 1))


def _log_moments_without_replacement(sigma: float, q: float, orders: int) -> list[float]:
    """Upper bounds of the log moments of the orders 1, 2, ... so many."""
    differences = _log_differences(sigma, 2 * math.ceil(orders / 2) + 1)
    inverse = 1 / sigma**2
    # Of order i without its binomial: the smaller of two bounds of the i-th moment of the ratio's deviation from 1.
    terms = [2 * math.log(q) + min(math.log(4) + _log_expm1(inverse), math.log(2) + inverse)]
    for i in range(3, orders + 1):
        ternary = math.log(4) + (differences[2 * (i // 2)] + differences[2 * ((i + 1) // 2)]) / 2
        terms.append(i * math.log(q) + min(ternary, math.log(2) + i * (i - 1) / 2 * inverse))
    logs = np.array(terms)
    moments = [0.0]
    for order in range(2, orders + 1):
        binomials = _log_binomial(order, np.arange(2.0, order + 1))
        moments.append(float(scipy.special.logsumexp([0.0, *(binomials + logs[: order - 1])])))
    return moments


@lru_cache(64)
def _log_differences(sigma: float, count: int) -> list[float]:
    """Log of the absolute l-th forward difference of exp(x (x + 1) / (2 sigma^2)) at -1, for l below ``count``.

    The sums cancel to far below what a float holds of their terms: with much noise, each order costs the digits of
    sigma^2 and of a binomial.
    """
    with localcontext() as context:
        context.prec = 50 + count * (2 + max(0, math.ceil(2 * math.log10(sigma))))
        inverse = 1 / (2 * Decimal(sigma) ** 2)
        values = [(inverse * (j * (j - 1))).exp() for j in range(count)]
        logs = []
        for _ in range(count):
            logs.append(float(abs(values[0]).ln()) if values[0] else -math.inf)
            values = [after - before for before, after in pairwise(values)]
    return logs


def _log_expm1(x: float) -> float:
    return x + math.log1p(-math.exp(-x)) if x > 1 else math.log(math.expm1(x))
