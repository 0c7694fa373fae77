"""Personalized estimation of means, where everything is known in closed form: the yardstick of trade-off studies.

The means of nodes are ``th_i ~ N(0, tau^2)``; a node has m samples of ``N(th_i, 1)``, whose mean is ``xbar_i``. It
releases ``y_i = xbar_i + N(0, s^2)``, and estimates ``(1 - w) xbar_i + w mean_j y_j``: ``w = 0`` is alone, ``w = 1`` is
all alike. An attacker knows everything but one sample and the noise, and tells two values of the sample, D apart, from
what it sees. That is a Gaussian mechanism, so ``mu`` says all of it (Dong, Roth, Su: Gaussian Differential Privacy,
JRSS-B 2022).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from scipy.special import ndtr  # type: ignore[import-untyped]

from node.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class MeanEstimation:
    """One such task.

    Raises:
        ConfigError: a figure is out of range.
    """

    nodes: int
    samples: int
    """Of each node (m)."""
    spread: float
    """Standard deviation of the nodes' means (tau)."""
    noise: float
    """Standard deviation of what is added (s)."""
    change: float
    """How far apart two values of one sample are (D)."""
    noised: Literal["release", "estimate"] = "release"
    """What noise is added to: what nodes send, or, the variant, what they publish in the end."""

    def __post_init__(self) -> None:
        if self.nodes < 1 or self.samples < 1:
            raise ConfigError(f"nodes, samples: {self.nodes}, {self.samples}; allowed: 1 or more")
        if not (self.noise > 0 and self.change > 0 and self.spread >= 0):
            raise ConfigError(
                f"noise, change, spread: {self.noise:g}, {self.change:g}, {self.spread:g}; allowed: above 0, above 0,"
                " and 0 or more"
            )

    @property
    def _others(self) -> float:
        """The share of the others in a mean over all nodes (u)."""
        return 1 - 1 / self.nodes

    @property
    def _noise_of_mean(self) -> float:
        """Variance that noise adds to an estimate that takes all of the mean."""
        return self.noise**2 / self.nodes if self.noised == "release" else 0.0

    def error(self, weight: float) -> float:
        """Mean squared error of a node's estimate with this weight on the mean of all."""
        _check(weight)
        u, m = self._others, self.samples
        own = 1 / m - 2 * weight * u / m + weight**2 * (u * (self.spread**2 + 1 / m) + self._noise_of_mean)
        return own + (self.noise**2 if self.noised == "estimate" else 0.0)

    @property
    def best_weight(self) -> float:
        """The weight of least error."""
        u, m = self._others, self.samples
        return (u / m) / (u * (self.spread**2 + 1 / m) + self._noise_of_mean) if u else 0.0

    @property
    def mu_release(self) -> float:
        """What a released mean tells a neighbour, whatever the weight; infinite where releases have no noise."""
        return self.change / (self.samples * self.noise) if self.noised == "release" else math.inf

    def mu_estimate(self, weight: float) -> float:
        """What the published estimate tells; infinite where a node keeps to itself and publishes no noise."""
        _check(weight)
        own = (1 - weight + weight / self.nodes) * self.change / self.samples
        noise = weight * self.noise / math.sqrt(self.nodes) if self.noised == "release" else self.noise
        return own / noise if noise else math.inf


def attack_auc(mu: float) -> float:
    """Area under the curve of the best attack on a mu-GDP release: ``Phi(mu / sqrt 2)``."""
    return float(ndtr(mu / math.sqrt(2)))


def _check(weight: float) -> None:
    if not 0 <= weight <= 1:
        raise ConfigError(f"weight: {weight:g}; allowed: 0 (alone) to 1 (all alike)")
