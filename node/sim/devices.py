"""How fast simulated devices compute, and what their links can carry: drawn once, from the experiment's seed."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from node.config import Distribution

_NORMAL = NormalDist()


def per_node(quantity: float | Distribution, nodes: int, seed: int, stream: str) -> list[float]:
    """One draw for each node; ``stream`` names the quantity, so that different ones are independent."""
    if not isinstance(quantity, Distribution):
        return [float(quantity)] * nodes
    rng = np.random.Generator(np.random.Philox(key=[seed, int.from_bytes(stream.encode()[:8], "little")]))
    return [_quantile(quantity, u) for u in rng.random(nodes).tolist()]


def per_pair(quantity: float | Distribution, a: int, b: int, seed: int) -> float:
    """The draw of a pair of nodes, the same both ways; computed when asked, so that no table of pairs is needed."""
    if not isinstance(quantity, Distribution):
        return quantity
    return _quantile(quantity, _uniform(seed, min(a, b), max(a, b)))


def _uniform(seed: int, a: int, b: int) -> float:
    """A number in (0, 1) that depends on its arguments alone (SplitMix64: Steele, Lea, Flood, OOPSLA 2014)."""
    state = (seed ^ a * 0x9E3779B97F4A7C15 ^ b * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF
    for _ in range(2):
        state = (state + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        state = ((state ^ state >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return ((state >> 11) + 0.5) / 2**53


def _quantile(quantity: Distribution, u: float) -> float:
    if quantity.distribution == "uniform":
        assert quantity.high is not None
        return quantity.low + u * (quantity.high - quantity.low)
    if quantity.distribution == "exponential":
        assert quantity.mean is not None
        return -quantity.mean * float(np.log1p(-u))
    assert quantity.median is not None
    return quantity.median * float(np.exp(quantity.sigma * _NORMAL.inv_cdf(min(max(u, 1e-12), 1 - 1e-12))))
