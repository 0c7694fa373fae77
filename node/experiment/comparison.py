"""What several runs say together: means with intervals, Pareto fronts, and how much a front covers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from node.errors import ConfigError

LEVEL = 0.95


class Estimate(NamedTuple):
    """A mean, and how far the true one may be from it."""

    mean: float
    half: float | None
    """Half the width of the interval; None for a single value, which tells nothing of its error."""
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" + ("" if self.half is None else f"±{self.half:.3f}")


class Point(NamedTuple):
    """Something that was reached, and what it cost."""

    gain: float
    """More is better."""
    cost: float
    """Less is better."""


def estimate(values: Iterable[float], level: float = LEVEL) -> Estimate | None:
    """The mean of independent values and its Student interval; None of none. One infinite value makes it infinite."""
    numbers = np.fromiter(values, dtype=np.float64)
    if not numbers.size:
        return None
    mean = math.fsum(numbers) / numbers.size if np.isfinite(numbers).all() else float(numbers.sum())
    if numbers.size == 1 or not math.isfinite(mean):
        return Estimate(mean, None, numbers.size)
    from scipy.special import stdtrit  # type: ignore[import-untyped]  # only now: a report of one run needs none of it

    error = float(numbers.std(ddof=1)) / math.sqrt(numbers.size)
    return Estimate(mean, float(stdtrit(numbers.size - 1, (1 + level) / 2)) * error, numbers.size)


def pareto_front(points: Sequence[Point]) -> list[int]:
    """Which points no other one is better than in one respect and as good as in the other, cheapest first.

    Of equal points the first counts.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i].cost, -points[i].gain, i))
    front: list[int] = []
    for i in order:
        if not front or points[i].gain > points[front[-1]].gain:
            front.append(i)
    return front


def hypervolume(points: Sequence[Point], worst: Point) -> float:
    """The area of all that is not better than some point, and better than ``worst``.

    Zitzler and Thiele: Multiobjective Optimization Using Evolutionary Algorithms, PPSN 1998. Points that are not better
    than ``worst`` in both respects add nothing.

    Raises:
        ConfigError: a figure is not a finite number.
    """
    if not np.isfinite([*points, worst]).all():
        raise ConfigError("hypervolume: a point is not a finite number; leave it out")
    inside = [point for point in points if point.gain > worst.gain and point.cost < worst.cost]
    front = [inside[i] for i in pareto_front(inside)]
    ends = [*(point.cost for point in front), worst.cost][1:]
    return math.fsum((point.gain - worst.gain) * (end - point.cost) for point, end in zip(front, ends, strict=True))
