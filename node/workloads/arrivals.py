"""When requests come: times in seconds from 0 on, rising, shape [requests]."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

from node.config.section import Positive, Section

Times = npt.NDArray[np.float64]


class ArrivalSection(Section):
    """When requests come, where no trace says it."""

    kind: Literal["poisson", "gamma", "paced"] = "poisson"
    """``poisson``: independent; ``gamma``: as bursty as ``cv`` says; ``paced``: at equal distances."""
    rate_per_s: Positive = 1.0
    """Requests per second, on average."""
    cv: Positive = 1.0
    """Gamma: the coefficient of variation of the gaps; 1 is Poisson, more is burstier."""
    exact: bool = False
    """Whether all gaps are stretched so that the last request comes at requests / rate, as vLLM's client does."""


def draw(section: ArrivalSection, rng: np.random.Generator, requests: int) -> Times:
    """The arrival times of so many requests."""
    if section.kind == "paced":
        return np.arange(1, requests + 1) / section.rate_per_s
    cv = section.cv if section.kind == "gamma" else 1.0
    return gamma(rng, requests, section.rate_per_s, cv, section.exact)


def gamma(rng: np.random.Generator, requests: int, rate_per_s: float, cv: float, exact: bool = False) -> Times:
    """Gaps with mean 1 / rate and coefficient of variation ``cv``; with 1, a Poisson process.

    ``exact``: gaps stretched so that the last request comes at requests / rate.
    """
    times = np.cumsum(rng.gamma(shape=1 / cv**2, scale=cv**2 / rate_per_s, size=requests))
    return times * (requests / rate_per_s / times[-1]) if exact and requests else times
