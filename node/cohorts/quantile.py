"""When enough cohorts have stopped for their models to be unified, and how much each of them knows of a class."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from node.errors import ConfigError


class Quantile:
    """Which cohorts have stopped; unification starts with the ``ceil(quantile * cohorts)``-th.

    Cohorts that stop later are left out, or join the teachers when they come.
    """

    def __init__(self, cohorts: int, quantile: float = 1.0) -> None:
        """Raises ConfigError for a quantile that is not above 0, and at most 1."""
        if not 0 < quantile <= 1:
            raise ConfigError(f"protocol.quantile: {quantile}; allowed: above 0, up to 1")
        self._quantile = quantile
        self._cohorts = set(range(cohorts))
        self._stopped: dict[int, float] = {}
        self._in_time: tuple[int, ...] = ()
        self.start_s: float | None = None
        """When unification started: the time to convergence of the run, without unification."""

    @property
    def needed(self) -> int:
        """Cohorts that must have stopped."""
        return math.ceil(self._quantile * len(self._cohorts) - 1e-9)  # 0.07 * 100 is a little over 7

    def stop(self, cohort: int, time_s: float) -> bool:
        """A cohort has stopped; whether unification starts now. Hearing it again changes nothing."""
        if cohort in self._cohorts:
            self._stopped.setdefault(cohort, time_s)
        return self._starts(time_s)

    def lose(self, cohort: int, time_s: float) -> bool:
        """A cohort that has not stopped will never: it is dissolved, or gone; whether unification starts now."""
        if cohort not in self._stopped:
            self._cohorts.discard(cohort)
        return self._starts(time_s)

    def _starts(self, time_s: float) -> bool:
        if self.start_s is not None or not self._cohorts or len(self._stopped) < self.needed:
            return False
        self.start_s, self._in_time = time_s, tuple(sorted(self._stopped))
        return True

    @property
    def stopped(self) -> tuple[int, ...]:
        """The cohorts that have stopped, in the order in which they came."""
        return tuple(self._stopped)

    @property
    def missing(self) -> tuple[int, ...]:
        """The cohorts that have neither stopped nor been lost, sorted."""
        return tuple(sorted(self._cohorts - self._stopped.keys()))

    @property
    def in_time(self) -> tuple[int, ...]:
        """The cohorts that had stopped when unification started, sorted."""
        return self._in_time

    @property
    def late(self) -> tuple[int, ...]:
        """The cohorts that have stopped since, in the order in which they came."""
        return tuple(cohort for cohort in self._stopped if self.start_s is not None and cohort not in self._in_time)


def teacher_weights(
    counts: Mapping[int, Sequence[float]], most_over_median: float | None = None
) -> dict[int, NDArray[np.float64]]:
    """How much each teacher that is present counts for each class, arrays [classes]: for each class they sum to 1.

    A teacher's weight is its cohort's share of the samples of a class. Of a class that nobody claims, all know equally
    much. Cohorts count themselves: with ``most_over_median``, one that claims more samples in all than so many times
    the (lower) median is scaled down to that. A count that is negative or not finite is 0.
    """
    teachers = sorted(counts)
    claims = np.array([counts[teacher] for teacher in teachers], dtype=np.float64)
    claims = np.where(np.isfinite(claims) & (claims > 0), claims, 0.0)
    if most_over_median is not None:
        totals = claims.sum(axis=1)
        most = most_over_median * np.sort(totals)[(len(totals) - 1) // 2]
        claims *= np.where(totals > most, most / np.where(totals > 0, totals, 1.0), 1.0)[:, None]
    sums = claims.sum(axis=0)
    weights = np.where(sums > 0, claims / np.where(sums > 0, sums, 1.0), 1 / len(teachers))
    return dict(zip(teachers, weights, strict=True))
