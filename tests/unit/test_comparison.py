"""Means with intervals against scipy, and what a Pareto front and its hypervolume must be."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from node.errors import ConfigError
from node.experiment.comparison import Estimate, Point, estimate, hypervolume, pareto_front

FIGURES = st.floats(-10, 10)
POINTS = st.lists(st.builds(Point, FIGURES, FIGURES), min_size=1, max_size=12)
WORST = Point(-11.0, 11.0)


# Intervals


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=20), st.floats(0.5, 0.999))
def test_an_interval_is_students(values, level):
    found = estimate(values, level)
    low = high = np.mean(values)
    if np.std(values) > 0:  # scipy has no interval of equal values
        low, high = stats.t.interval(level, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert found.seeds == len(values)
    assert found.mean - found.half == pytest.approx(low, rel=1e-9, abs=1e-9)
    assert found.mean + found.half == pytest.approx(high, rel=1e-9, abs=1e-9)


def test_95_in_100_intervals_hold_the_mean():
    draws = np.random.default_rng(7).normal(3.0, 2.0, size=(2000, 3))
    found = [estimate(seeds) for seeds in draws]
    held = np.mean([abs(each.mean - 3.0) <= each.half for each in found])
    assert abs(held - 0.95) < 0.02


def test_one_value_has_no_interval_and_none_no_mean():
    assert estimate([0.5]) == Estimate(0.5, None, 1)
    assert str(estimate([0.5])) == "0.500"
    assert estimate([]) is None
    assert str(estimate([0.5, 0.5])) == "0.500±0.000"


def test_what_is_infinite_stays_so():
    assert estimate([math.inf, 1.0]) == Estimate(math.inf, None, 2)
    assert math.isnan(estimate([math.nan, 1.0]).mean)


# Fronts


def test_a_front_by_hand():
    points = [Point(1, 1), Point(2, 3), Point(1.5, 3), Point(3, 4), Point(2, 3), Point(0, 9)]
    assert pareto_front(points) == [0, 1, 3]
    assert pareto_front([]) == []


@given(POINTS)
def test_nothing_beats_what_is_on_the_front_and_something_beats_all_else(points):
    front = pareto_front(points)

    def is_beaten(one):
        return any(other.gain >= one.gain and other.cost <= one.cost and other != one for other in points)

    assert all(not is_beaten(points[i]) for i in front)
    assert all(is_beaten(points[i]) or points[i] in [points[j] for j in front] for i in range(len(points)))
    assert [points[i].cost for i in front] == sorted(points[i].cost for i in front)


# Hypervolume


def test_a_hypervolume_by_hand():
    worst = Point(0.0, 1.0)
    assert hypervolume([Point(1.0, 0.5)], worst) == 0.5
    assert hypervolume([Point(1.0, 0.5), Point(2.0, 0.75)], worst) == 0.25 * 1 + 0.25 * 2
    assert hypervolume([], worst) == 0.0
    assert hypervolume([Point(-1.0, 0.5), Point(1.0, 1.0)], worst) == 0.0


@given(POINTS, st.builds(Point, FIGURES, FIGURES))
def test_one_more_point_never_takes_away(points, more):
    before, after = hypervolume(points, WORST), hypervolume([*points, more], WORST)
    assert after >= before - 1e-9
    beaten = any(point.gain >= more.gain and point.cost <= more.cost for point in points)
    assert (after == pytest.approx(before, abs=1e-9)) or not beaten


@given(POINTS)
def test_only_the_front_counts_and_no_order_does(points):
    whole = hypervolume(points, WORST)
    assert hypervolume([points[i] for i in pareto_front(points)], WORST) == pytest.approx(whole)
    assert hypervolume(points[::-1], WORST) == pytest.approx(whole)
    assert (
        max((point.gain - WORST.gain) * (WORST.cost - point.cost) for point in points) <= whole + 1e-9 <= 21 * 21 + 1e-6
    )


@given(POINTS)
def test_it_is_the_area_that_a_fine_grid_finds(points):
    ends = np.arange(-11, 11, 0.5) + 0.25
    rounded = [Point(round(point.gain * 2) / 2, round(point.cost * 2) / 2) for point in points]
    costs, gains = np.meshgrid(ends, ends)
    covered = np.zeros_like(costs, dtype=bool)
    for point in rounded:
        covered |= (gains < point.gain) & (costs > point.cost)
    assert hypervolume(rounded, WORST) == pytest.approx(covered.sum() * 0.25)


def test_what_is_not_finite_is_refused():
    with pytest.raises(ConfigError, match="hypervolume: a point is not a finite number"):
        hypervolume([Point(math.nan, 0.0)], WORST)
    with pytest.raises(ConfigError, match="hypervolume"):
        hypervolume([], Point(0.0, math.inf))
