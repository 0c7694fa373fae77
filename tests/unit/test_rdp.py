"""Renyi accounting of random batches: reference values, independent integrals, and bounds that must not cross."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from node.errors import ConfigError
from node.privacy import gaussian, rdp

DELTA = 1e-5
sigmas = st.floats(0.5, 10)
rates = st.floats(1e-4, 0.9)


@pytest.mark.parametrize(
    ("sigma", "q", "steps", "epsilon", "order"),
    [
        (1, 0.01, 1000, 2.101365, 7.8),
        (0.8, 0.02, 500, 5.370138, 3.8),
        (2, 0.1, 200, 3.679746, 6),
        (1.5, 1, 10, 11.440861, 3.2),
        (0.5, 0.001, 10000, 6.418367, 3),
        (4, 1, 100, 14.132226, 2.8),
        (1, 1, 1, 4.728507, 5.4),
    ],
)
def test_epsilon_by_the_best_order(sigma, q, steps, epsilon, order):
    found, best = rdp.epsilon_of(steps * rdp.poisson(sigma, q), DELTA)
    assert found == pytest.approx(epsilon, abs=2e-6)
    assert best == pytest.approx(order)


def test_the_headline_curve():
    orders = np.array([2, 3, 4, 8, 16, 32, 64.0])
    known = [0.17181342207455, 0.26463757458466, 0.36315404891076, 0.89364390760603, 3087.8507836962]
    assert 1000 * rdp.poisson(1, 0.01, orders) == pytest.approx([*known, 11246.275937, 27321.731875], rel=1e-9)


def test_looser_ways_to_count_the_headline_case():
    whole = np.arange(2.0, 64)
    curve = 1000 * rdp.poisson(1, 0.01, whole)
    assert rdp.epsilon_of(curve, DELTA, whole) == pytest.approx((2.107753, 8), abs=1e-6)
    assert rdp.older_epsilon_of(curve, DELTA, whole) == pytest.approx((2.538348, 8), abs=1e-6)
    assert rdp.delta_of(1000 * rdp.poisson(1, 0.01), 2) == pytest.approx(1.9812e-5, rel=1e-4)


def test_without_replacement():
    curve = 1000 * rdp.without_replacement(1, 0.01)
    assert rdp.epsilon_of(curve, DELTA) == pytest.approx((3.576111, 6), abs=1e-6)


@pytest.mark.parametrize(("epsilon", "sigma"), [(1, 1.513122), (4, 0.777573)])
def test_calibration(epsilon, sigma):
    found = gaussian.calibrate(lambda noise: rdp.epsilon_of(1000 * rdp.poisson(noise, 0.01), DELTA)[0], epsilon)
    assert found == pytest.approx(sigma, abs=1e-6)
    assert rdp.epsilon_of(1000 * rdp.poisson(found, 0.01), DELTA)[0] <= epsilon


def test_the_orders():
    assert len(rdp.ORDERS) == 151
    assert len(rdp.MANY_ORDERS) == 156
    assert rdp.ORDERS[[0, 98, 99, -1]] == pytest.approx([1.1, 10.9, 12, 63])
    assert (np.diff(rdp.MANY_ORDERS) > 0).all()


@pytest.mark.parametrize("order", [1.1, 1.5, 2.5, 7.8, 10.9, 3.0])
@pytest.mark.parametrize(("sigma", "q"), [(1, 0.01), (0.8, 0.3), (3, 0.5), (2, 0.95)])
def test_against_the_integral(sigma, q, order):
    def ratio(z):
        return (1 - q + q * math.exp((2 * z - 1) / (2 * sigma**2))) ** order * stats.norm.pdf(z, scale=sigma)

    # The integrand has a bump at 0 and one at the order.
    moment, _ = integrate.quad(ratio, -12 * sigma, order + 12 * sigma, points=[0, order], limit=200)
    assert rdp.poisson(sigma, q, np.array([order])) == pytest.approx([math.log(moment) / (order - 1)], rel=1e-7)


def test_signs_matter_in_the_fractional_series():
    # With absolute values: 5.371863.
    assert rdp.epsilon_of(500 * rdp.poisson(0.8, 0.02), DELTA)[0] < 5.3702


def test_the_extremes():
    assert (rdp.poisson(1, 0) == 0).all()
    assert (rdp.without_replacement(1, 0) == 0).all()
    assert rdp.poisson(2, 1) == pytest.approx(rdp.ORDERS / 8)
    assert rdp.without_replacement(2, 1) == pytest.approx(rdp.ORDERS / 8)
    assert np.isinf(rdp.poisson(0, 0.5)).all()
    assert np.isinf(rdp.without_replacement(0, 0.5)).all()
    assert rdp.epsilon_of(rdp.poisson(0, 0.5), DELTA)[0] == math.inf
    assert rdp.epsilon_of(np.zeros(151), 0.5)[0] == 0
    assert np.isfinite(rdp.poisson(1, 0.01, rdp.MANY_ORDERS)).all()


def test_much_noise_costs_digits_but_not_the_bound():
    curve = rdp.without_replacement(300, 0.01)
    assert (curve > 0).all()
    assert (curve <= rdp.gaussian(300) + 1e-12).all()


@settings(max_examples=10)
@given(sigmas, rates)
def test_a_random_batch_tells_less_than_all_records(sigma, q):
    assert (rdp.poisson(sigma, q) <= rdp.gaussian(sigma) * (1 + 1e-9) + 1e-12).all()


@settings(max_examples=10)
@given(sigmas, rates)
def test_a_curve_rises_with_its_order(sigma, q):
    assert (np.diff(rdp.poisson(sigma, q)) > -1e-9).all()


@settings(max_examples=8)
@given(sigmas, sigmas, rates, rates)
def test_more_noise_and_smaller_batches_cost_less(sigma, other, q, rate):
    quiet, loud = sorted((sigma, other))
    rare, often = sorted((q, rate))
    assert (rdp.poisson(loud, q) <= rdp.poisson(quiet, q) * (1 + 1e-7) + 1e-12).all()
    assert (rdp.poisson(sigma, rare) <= rdp.poisson(sigma, often) * (1 + 1e-7) + 1e-12).all()


@settings(max_examples=8)
@given(sigmas, rates, st.integers(1, 2000), st.floats(1e-9, 1e-2))
def test_conversions_agree_and_are_ordered(sigma, q, steps, delta):
    curve = steps * rdp.poisson(sigma, q)
    epsilon, _ = rdp.epsilon_of(curve, delta)
    assert epsilon <= rdp.older_epsilon_of(curve, delta)[0] + 1e-9
    assert rdp.epsilon_of(curve + curve, delta)[0] >= epsilon
    if epsilon > 0:
        assert rdp.delta_of(curve, epsilon) == pytest.approx(delta, rel=1e-6)


@settings(max_examples=8)
@given(sigmas, st.integers(1, 100), st.floats(1e-9, 1e-2))
def test_never_below_the_exact_value(sigma, steps, delta):
    exact = gaussian.epsilon_of(math.sqrt(steps) / sigma, delta)
    assert rdp.epsilon_of(steps * rdp.gaussian(sigma), delta)[0] >= exact - 1e-9


@pytest.mark.parametrize("curve", [rdp.poisson, rdp.without_replacement])
@pytest.mark.parametrize(("sigma", "q", "words"), [(1, 1.5, "q: 1.5"), (1, -0.1, "q: -0.1"), (-1, 0.5, "sigma: -1")])
def test_what_is_refused(curve, sigma, q, words):
    with pytest.raises(ConfigError, match=words):
        curve(sigma, q)


@pytest.mark.parametrize("sigma", [1e-200, 1e-159, 9e-8, 1.1e7, 1e155, math.nan])
def test_noise_beyond_all_bounds_is_refused_in_one_line(sigma):
    for curve in (
        lambda: rdp.gaussian(sigma),
        lambda: rdp.poisson(sigma, 0.5),
        lambda: rdp.without_replacement(sigma, 0.5),
    ):
        with pytest.raises(
            ConfigError, match=r"^sigma: \S+; allowed: a noise multiplier from 1e-07 to 1e\+07, 0, or inf"
        ):
            curve()


@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 300.0, 1e4, 1e6])
@pytest.mark.parametrize("q", [1e-9, 0.01, 0.5, 1 - 1e-12])
def test_curves_at_the_bounds_are_curves(sigma, q):
    curve = rdp.poisson(sigma, q, rdp.MANY_ORDERS)
    assert np.isfinite(curve).all()
    assert (curve >= 0).all()
    assert (np.diff(curve) >= 0).all()
    assert (curve <= rdp.gaussian(sigma, rdp.MANY_ORDERS) * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize(("sigma", "q"), [(2.0, 0.1), (5.0, 0.5), (20.0, 0.3)])
def test_where_the_series_is_long_the_bound_is_above_it_and_close(monkeypatch, sigma, q):
    monkeypatch.setattr(rdp, "_MOST_TERMS", 1 << 20)
    exact = rdp.poisson(sigma, q)
    monkeypatch.setattr(rdp, "_MOST_TERMS", 0)
    bound = rdp.poisson(sigma, q)
    assert (bound >= exact * (1 - 1e-9)).all()
    assert bound[rdp.ORDERS >= 2] == pytest.approx(exact[rdp.ORDERS >= 2], rel=0.15)
    assert (bound <= 2 * exact + 1e-12).all()
    assert bound[rdp.ORDERS % 1 == 0] == pytest.approx(exact[rdp.ORDERS % 1 == 0], rel=1e-12)


def test_a_curve_that_is_not_a_number_is_no_epsilon():
    curve = rdp.gaussian(1)
    curve[3] = math.nan
    with pytest.raises(ConfigError, match=r"curve: not a number at order 1\.4"):
        rdp.epsilon_of(curve, DELTA)


def test_a_delta_that_is_none_is_refused():
    for convert in (rdp.epsilon_of, rdp.older_epsilon_of):
        with pytest.raises(ConfigError, match="delta: 1"):
            convert(rdp.gaussian(1), 1)


def test_noise_without_end_costs_nothing():
    for curve in (rdp.poisson(math.inf, 0.1), rdp.poisson(math.inf, 1), rdp.without_replacement(math.inf, 0.1)):
        assert not curve.any()


def test_no_order_shows_less_than_the_least():
    assert rdp.least_epsilon(1e-5) == pytest.approx(0.0035014, abs=1e-7)
    assert rdp.least_epsilon(1e-5) < rdp.least_epsilon(1e-5, rdp.ORDERS) == pytest.approx(0.1028673, abs=1e-7)
    curve = rdp.poisson(1e4, 0.01, rdp.MANY_ORDERS)
    assert rdp.epsilon_of(curve, 1e-5, rdp.MANY_ORDERS)[0] == pytest.approx(rdp.least_epsilon(1e-5), rel=1e-3)
