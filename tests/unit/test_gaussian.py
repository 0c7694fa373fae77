"""The Gaussian mechanism in closed form: reference values, identities, and what is refused."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.privacy import gaussian

mus = st.floats(0.01, 20)
deltas = st.floats(1e-12, 0.1)
epsilons = st.floats(0, 50)


@pytest.mark.parametrize(
    ("epsilon", "delta", "sigma"),
    [
        (0.1, 1e-5, 30.7495661320),
        (1, 1e-5, 3.7306316348),
        (1, 1e-6, 4.2246788893),
        (2, 1e-5, 1.9938124456),
        (4, 1e-5, 1.0811618495),
        (10, 1e-5, 0.4998886197),
    ],
)
def test_the_least_noise(epsilon, delta, sigma):
    assert gaussian.sigma_of(epsilon, delta) == pytest.approx(sigma, abs=1e-8)


def test_the_classical_rule_is_not_enough():
    classical = math.sqrt(2 * math.log(1.25 / 1e-5)) / 10
    assert classical == pytest.approx(0.484481, abs=1e-6)
    assert classical < gaussian.sigma_of(10, 1e-5)
    assert gaussian.delta_of(1 / classical, 10) > 1e-5


@pytest.mark.parametrize(
    ("sigma", "delta"), [(0.5, 5.0986166005e-1), (1, 1.2693673751e-1), (2, 6.8295949831e-3), (5, 1.7546333319e-8)]
)
def test_delta_at_epsilon_one(sigma, delta):
    assert gaussian.delta_of(1 / sigma, 1) == pytest.approx(delta, rel=1e-9)


@pytest.mark.parametrize(
    ("mu", "epsilon"),
    [
        (1 / 0.4, 13.20671224),
        (1 / 0.5, 9.99725615),
        (1, 4.37717810),
        (1 / 2, 1.99309140),
        (1 / 4, 0.92634150),
        (1 / 10, 0.34066936),
        (math.sqrt(20) / 10, 1.76005715),
        (4, 24.38161088),
    ],
)
def test_epsilon_at_delta_1e_5(mu, epsilon):
    assert gaussian.epsilon_of(mu, 1e-5) == pytest.approx(epsilon, abs=1e-8)


@pytest.mark.parametrize(("sigma", "epsilon"), [(1, 5.298525912), (2, 2.524262956), (4, 1.230881478)])
def test_by_zero_concentrated_privacy(sigma, epsilon):
    assert gaussian.zcdp_epsilon_of(1 / sigma, 1e-5) == pytest.approx(epsilon, abs=1e-9)


@pytest.mark.parametrize(
    ("mu", "auc", "at_thousandth", "at_hundredth", "balanced"),
    [
        (0.25, 0.57015810, 0.00225403, 0.01893089, 0.54973822),
        (0.5, 0.63816320, 0.00479556, 0.03389894, 0.59870633),
        (1, 0.76024994, 0.01829847, 0.09236225, 0.69146246),
        (4, 0.99766113, 0.81852748, 0.95290051, 0.97724987),
    ],
)
def test_what_the_best_attack_reaches(mu, auc, at_thousandth, at_hundredth, balanced):
    assert gaussian.attack_auc(mu) == pytest.approx(auc, abs=1e-8)
    assert gaussian.attack_true_positive_rate(mu, 1e-3) == pytest.approx(at_thousandth, abs=1e-8)
    assert gaussian.attack_true_positive_rate(mu, 1e-2) == pytest.approx(at_hundredth, abs=1e-8)
    assert gaussian.attack_balanced_accuracy(mu) == pytest.approx(balanced, abs=1e-8)


def test_a_hundred_rounds_at_four_are_one_at_two_fifths():
    assert gaussian.compose([1 / 4] * 100) == pytest.approx(1 / 0.4, rel=1e-12)
    assert gaussian.sigma_of(2, 1e-5, rounds=100) == pytest.approx(10 * gaussian.sigma_of(2, 1e-5), rel=1e-12)


def test_the_extremes():
    assert gaussian.delta_of(0, 1) == 0
    assert gaussian.delta_of(math.inf, 1) == 1
    assert gaussian.epsilon_of(0, 1e-5) == 0
    assert gaussian.epsilon_of(1e-9, 1e-5) == 0
    assert gaussian.epsilon_of(math.inf, 1e-5) == math.inf
    assert gaussian.compose([]) == 0
    assert gaussian.attack_auc(0) == gaussian.attack_balanced_accuracy(0) == 0.5


def test_a_large_mu_does_not_overflow():
    assert 1e4**2 / 2 < gaussian.epsilon_of(1e4, 1e-5) < gaussian.zcdp_epsilon_of(1e4, 1e-5)


@given(mus, deltas)
def test_there_and_back(mu, delta):
    epsilon = gaussian.epsilon_of(mu, delta)
    if epsilon > 1e-9:
        assert gaussian.delta_of(mu, epsilon) == pytest.approx(delta, rel=1e-6)
        assert gaussian.mu_of(epsilon, delta) == pytest.approx(mu, rel=1e-5)


@given(mus, mus, deltas)
def test_more_mu_costs_more(a, b, delta):
    low, high = sorted((a, b))
    assert gaussian.epsilon_of(low, delta) <= gaussian.epsilon_of(high, delta) + 1e-9


@given(mus, deltas, deltas)
def test_a_larger_delta_buys_epsilon(mu, a, b):
    low, high = sorted((a, b))
    assert gaussian.epsilon_of(mu, low) >= gaussian.epsilon_of(mu, high) - 1e-9


@given(mus, deltas)
def test_the_exact_conversion_is_the_tighter(mu, delta):
    assert gaussian.epsilon_of(mu, delta) <= gaussian.zcdp_epsilon_of(mu, delta)


@given(epsilons, deltas, st.floats(0.01, 100), st.integers(1, 1000))
def test_a_calibrated_noise_keeps_its_promise(epsilon, delta, sensitivity, rounds):
    sigma = gaussian.sigma_of(epsilon, delta, sensitivity, rounds)
    assert gaussian.delta_of(sensitivity * math.sqrt(rounds) / sigma, epsilon) <= delta * (1 + 1e-9) + 1e-15


@given(st.lists(mus, max_size=5), st.lists(mus, max_size=5))
def test_composition_does_not_mind_grouping(first, second):
    grouped = gaussian.compose([gaussian.compose(first), gaussian.compose(second)])
    assert grouped == pytest.approx(gaussian.compose([*second, *first]), rel=1e-12)


@given(mus, st.floats(1e-4, 0.99))
def test_the_trade_off_curve_is_that_of_the_deltas(mu, false_positive_rate):
    # (epsilon, delta)-DP caps the hits at exp(epsilon) false alarms + delta, for every epsilon.
    epsilon = np.linspace(0, 30, 301)
    caps = [math.exp(e) * false_positive_rate + gaussian.delta_of(mu, e) for e in epsilon]
    assert gaussian.attack_true_positive_rate(mu, false_positive_rate) <= min(caps) + 1e-9


def test_calibration_finds_the_same_as_the_closed_form():
    found = gaussian.calibrate(lambda sigma: gaussian.epsilon_of(1 / sigma, 1e-5), 1.0)
    assert found == pytest.approx(3.7306316348, rel=1e-8)
    assert gaussian.epsilon_of(1 / found, 1e-5) <= 1.0


def test_calibration_gives_up_in_words():
    with pytest.raises(ConfigError, match="out of reach"):
        gaussian.calibrate(lambda sigma: 2.0, 1.0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: gaussian.epsilon_of(1, 0), "delta: 0; allowed: above 0"),
        (lambda: gaussian.epsilon_of(1, 1), "delta: 1"),
        (lambda: gaussian.epsilon_of(1, math.nan), "delta: nan"),
        (lambda: gaussian.mu_of(-1, 1e-5), "epsilon: -1"),
        (lambda: gaussian.mu_of(math.inf, 1e-5), "epsilon: inf"),
        (lambda: gaussian.sigma_of(1, 1e-5, sensitivity=0), "sensitivity: 0"),
        (lambda: gaussian.sigma_of(1, 1e-5, rounds=0), "rounds: 0"),
        (lambda: gaussian.zcdp_epsilon_of(1, 2), "delta: 2"),
    ],
)
def test_what_is_refused(call, words):
    with pytest.raises(ConfigError, match=words):
        call()
