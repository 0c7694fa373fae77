"""How requests were served: times to first and later tokens, what met its objective, and intervals for all of it.

Definitions::

    TTFT = first token - send          TPOT = (e2e - TTFT) / (tokens - 1), 0 for a single token
    e2e  = last token - send           ITL  = the gaps between tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import scipy.stats  # type: ignore[import-untyped]

PERCENTILES = (50, 95, 99)

_RESAMPLES = 999
_RESAMPLES_AT_ONCE = 50
_SLORA_TTFT_S = 6.0


@dataclass(frozen=True)
class Served:
    """One request from its sending to its last token; times in seconds on one clock."""

    sent_s: float
    token_s: tuple[float, ...]
    """When each token came, rising; at least one."""
    load_wait_s: float = 0.0
    """How long it waited for its adapter alone."""
    queue_s: float = 0.0
    """How long it waited for a place in a batch."""
    prefill_s: float = 0.0
    """From its place in a batch to its first token."""

    @property
    def ttft_s(self) -> float:
        """Time to the first token."""
        return self.token_s[0] - self.sent_s

    @property
    def e2e_s(self) -> float:
        """Time to the last token."""
        return self.token_s[-1] - self.sent_s

    @property
    def tpot_s(self) -> float:
        """Time per token after the first; 0 where there is no other."""
        later = len(self.token_s) - 1
        return (self.e2e_s - self.ttft_s) / later if later else 0.0

    @property
    def itl_s(self) -> tuple[float, ...]:
        """The gaps between its tokens."""
        return tuple(after - before for before, after in pairwise(self.token_s))


@dataclass(frozen=True)
class Objective:
    """What a request should not exceed; None: whatever it takes."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None

    def met(self, served: Served) -> bool:
        """Whether a request has met all of it."""
        return all(
            limit is None or value <= limit
            for limit, value in (
                (self.ttft_s, served.ttft_s),
                (self.tpot_s, served.tpot_s),
                (self.e2e_s, served.e2e_s),
            )
        )


@dataclass(frozen=True)
class Estimate:
    """A statistic of a sample, and its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


def percentile(values_s: Sequence[float], q: float, rng: np.random.Generator) -> Estimate:
    """A percentile with its bootstrap interval (percentile method, 999 resamples); one value has no spread.

    Raises:
        ValueError: there are no values.
    """
    sample = np.asarray(values_s, dtype=float)
    if not sample.size:
        raise ValueError("a percentile of nothing")
    value = float(np.percentile(sample, q))
    if sample.min() == sample.max():
        return Estimate(value, value, value)

    def statistic(resampled: npt.NDArray[np.float64], axis: int) -> npt.NDArray[np.float64]:
        return np.percentile(resampled, q, axis=axis)

    found = scipy.stats.bootstrap(
        (sample,), statistic, n_resamples=_RESAMPLES, batch=_RESAMPLES_AT_ONCE, method="percentile", rng=rng
    )
    return Estimate(value, float(found.confidence_interval.low), float(found.confidence_interval.high))


def throughput(served: Sequence[Served]) -> float:
    """Requests per second, from the first sending to the last token."""
    return len(served) / _span_s(served) if served else 0.0


def goodput(served: Sequence[Served], objective: Objective) -> float:
    """Requests per second that meet all of an objective; never more than the throughput."""
    return sum(map(objective.met, served)) / _span_s(served) if served else 0.0


def attainment(served: Sequence[Served], objective: Objective, asked: int) -> float:
    """The share of all requests that were made, whether served or not, that meet an objective."""
    return sum(map(objective.met, served)) / asked if asked else 0.0


def satisfaction(served: Served) -> float:
    """S-LoRA's measure of one request: 1 at once, falling with the square of the TTFT to 0 at six seconds."""
    return max(0.0, 1 - (served.ttft_s / _SLORA_TTFT_S) ** 2)


def imbalance(load: Sequence[float]) -> float:
    """The greatest load of a node over the mean; 1 is balanced, and so is no load at all."""
    mean = sum(load) / len(load)
    return max(load) / mean if mean else 1.0


def _span_s(served: Sequence[Served]) -> float:
    return max(each.token_s[-1] for each in served) - min(each.sent_s for each in served)
