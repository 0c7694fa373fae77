"""Draws of the simulated world's quantities: each follows from the experiment's seed and from what it is for alone."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np

from node.config import Distribution

_NORMAL = NormalDist()
_TINY = 1e-12
"""How close to 0 and 1 a quantile is asked for where there it is infinite, or has no logarithm."""
_WORD = 0xFFFFFFFFFFFFFFFF


def generator(seed: int, stream: str) -> np.random.Generator:
    """A fresh generator; ``stream`` names what is drawn (8 letters count), so that different things are independent."""
    return np.random.Generator(np.random.Philox(key=[seed, _number(stream)]))


def per_node(quantity: float | Distribution, nodes: int, seed: int, stream: str) -> list[float]:
    """One draw for each node; more nodes do not change the first ones' draws."""
    if not isinstance(quantity, Distribution):
        return [float(quantity)] * nodes
    return [draw(quantity, u) for u in generator(seed, stream).random(nodes).tolist()]


def draw_rows(rows: int, nodes: int, seed: int, stream: str) -> np.ndarray:
    """A row of a trace for each node, int64 [nodes]; the same one twice only where there are fewer rows than nodes."""
    rng = generator(seed, stream)
    return rng.permutation(rows)[:nodes] if nodes <= rows else rng.integers(rows, size=nodes)


def per_pair(quantity: float | Distribution, a: int, b: int, seed: int) -> float:
    """The draw of a pair of nodes, the same both ways; computed when asked, so that no table of pairs is needed."""
    if not isinstance(quantity, Distribution):
        return quantity
    return draw(quantity, uniform(seed, min(a, b), max(a, b)))


def uniform(seed: int, a: int, b: int) -> float:
    """A number in (0, 1) that depends on its arguments alone (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    state = (seed ^ a * 0x9E3779B97F4A7C15 ^ b * 0xD1B54A32D192ED03) & _WORD
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & _WORD
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & _WORD
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & _WORD
        state ^= state >> 31
    return ((state >> 11) + 0.5) / 2**53


def normal(seed: int, a: int, b: int, stream: str) -> float:
    """A standard normal number that depends on its arguments alone."""
    return _NORMAL.inv_cdf(_inside(uniform(seed ^ _number(stream), a, b)))


def draw(quantity: Distribution, u: float) -> float:
    """The quantile of a distribution at ``u`` in [0, 1): a draw, where ``u`` is uniform."""
    match quantity.distribution:
        case "uniform":
            assert quantity.high is not None
            return quantity.low + u * (quantity.high - quantity.low)
        case "exponential":
            assert quantity.mean is not None
            return -quantity.mean * float(np.log1p(-u))
        case "lognormal":
            assert quantity.median is not None
            return quantity.median * float(np.exp(quantity.sigma * _NORMAL.inv_cdf(_inside(u))))
        case "weibull":
            assert quantity.mean is not None
            return _weibull(quantity.mean, quantity.shape, _inside(u))


def _weibull(mean: float, shape: float, u: float) -> float:
    """In logarithms, because with a small shape both the scale and its factor leave the range of a float."""
    log_scale = math.log(mean) - math.lgamma(1 + 1 / shape)
    return math.exp(log_scale + math.log(-math.log1p(-u)) / shape)


def _inside(u: float) -> float:
    return min(max(u, _TINY), 1 - _TINY)


def _number(stream: str) -> int:
    return int.from_bytes(stream.encode()[:8], "little")
