"""Empirical epsilon: what attacks prove, against what an accountant says."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from node.attack import audit
from node.attack.metrics import auc, clopper_pearson
from node.errors import ConfigError
from node.privacy.gaussian import attack_true_positive_rate, epsilon_of

DELTA = 1e-5
RATES = st.floats(0.001, 0.999)


def canary(sigma, rounds, trials, seed):
    """A canary of norm 1 is in or out of every full-batch round: the sum of noisy gradients along it, and the truth."""
    rng = np.random.default_rng(seed)
    members = np.arange(trials) % 2 == 0
    return rounds * members + sigma * rng.normal(size=(trials, rounds)).sum(1), members


# Points


def test_golden_point():
    assert audit.epsilon_at(0.3, 0.05, DELTA) == pytest.approx(1.7917261353, abs=1e-9)
    assert audit.mu_at(0.3, 0.05) == pytest.approx(1.1204531142, abs=1e-9)


def test_golden_counts():
    low, high = clopper_pearson(300, 1000)[0], clopper_pearson(50, 1000)[1]
    assert audit.epsilon_at(low, high, DELTA) == pytest.approx(1.4243626110, abs=1e-9)
    assert audit.mu_at(low, high) == pytest.approx(0.9034133967, abs=1e-9)
    guesses = np.concatenate([np.arange(1000) < 300, np.arange(1000) < 50])
    assert audit.rates(guesses, np.arange(2000) < 1000) == (low, high)


@pytest.mark.parametrize(("mu", "epsilon"), [(math.sqrt(20) / 10, 1.76005715), (0.5, 1.99309140), (4, 24.38161088)])
def test_golden_epsilon_of_mu(mu, epsilon):
    assert epsilon_of(mu, DELTA) == pytest.approx(epsilon, abs=1e-7)


@given(st.floats(0.05, 4), RATES)
def test_a_point_of_a_gaussian_curve_gives_its_mu_and_never_more_than_its_epsilon(mu, fpr):
    tpr = attack_true_positive_rate(mu, fpr)
    if tpr < 1:
        assert audit.mu_at(tpr, fpr) == pytest.approx(mu, rel=1e-5)
        assert audit.epsilon_at(tpr, fpr, DELTA) <= epsilon_of(mu, DELTA) + 1e-9


@given(st.floats(0.1, 8))
def test_randomised_response_is_met_exactly(epsilon):
    # Pure DP: truth with probability e^eps/(1 + e^eps).
    truth = math.exp(epsilon) / (1 + math.exp(epsilon))
    assert audit.epsilon_at(truth, 1 - truth, 0.0) == pytest.approx(epsilon)


@given(RATES, RATES)
def test_the_mirror_image_of_a_point_proves_as_much(tpr, fpr):
    mirrored = audit.epsilon_at(1 - fpr, 1 - tpr, DELTA)
    assert audit.epsilon_at(tpr, fpr, DELTA) == pytest.approx(mirrored, rel=1e-9, abs=1e-12)


def test_points_at_or_below_chance_prove_nothing():
    assert audit.epsilon_at(0.2, 0.2, DELTA) == 0
    assert audit.epsilon_at(0.1, 0.5, DELTA) == 0
    assert audit.mu_at(0.2, 0.2) == audit.mu_at(0.1, 0.5) == 0
    assert audit.epsilon_at(DELTA / 2, 0.0, DELTA) == 0


def test_a_perfect_point_proves_everything():
    assert audit.epsilon_at(1.0, 0.0, DELTA) == math.inf
    assert audit.mu_at(1.0, 0.0) == math.inf


# Audits


@pytest.mark.parametrize("seed", range(5))
def test_a_canary_in_gaussian_noise_meets_its_closed_form(seed):
    mu = math.sqrt(20) / 10
    scores, members = canary(sigma=10, rounds=20, trials=4000, seed=seed)
    assert auc(scores, members) == pytest.approx(norm.cdf(mu / math.sqrt(2)), abs=0.03)
    found = audit.audit(scores, members, DELTA, np.random.default_rng(seed))
    assert found.epsilon <= 1.76005715
    assert 0.1 < found.mu <= mu
    assert found.gaussian_epsilon == pytest.approx(epsilon_of(found.mu, DELTA))
    assert audit.verdict(found, 1.76005715, gaussian=True).holds


def test_the_gaussian_bound_is_much_tighter_for_gaussian_noise():
    found = audit.audit(*canary(sigma=2, rounds=4, trials=4000, seed=0), DELTA, np.random.default_rng(0))
    assert epsilon_of(1.0, DELTA) / 2 < found.gaussian_epsilon <= epsilon_of(1.0, DELTA)
    assert found.epsilon < found.gaussian_epsilon * 0.7


@settings(max_examples=30)
@given(st.floats(0.3, 3), st.integers(0, 2**32 - 1))
def test_no_audit_proves_more_than_is_accounted(mu, seed):
    # So sure that no example of any run should fail by chance.
    scores, members = canary(sigma=1 / mu, rounds=1, trials=600, seed=seed)
    found = audit.audit(scores, members, DELTA, np.random.default_rng(seed), level=1 - 1e-6)
    assert audit.verdict(found, epsilon_of(mu, DELTA), gaussian=True).holds


def test_a_broken_mechanism_is_caught():
    """Noise of half the size that was accounted for."""
    found = audit.audit(*canary(sigma=0.5, rounds=1, trials=4000, seed=1), DELTA, np.random.default_rng(1))
    refused = audit.verdict(found, epsilon_of(1.0, DELTA), gaussian=True)
    assert not refused.holds
    assert refused.proven > refused.accounted
    assert "REFUTES the 4.37" in refused.reason


def test_no_noise_at_all_is_caught_without_assuming_any():
    members = np.arange(4000) % 2 == 0
    found = audit.audit(members * 1.0, members, DELTA, np.random.default_rng(2))
    assert found.pointwise.threshold == 1
    assert found.epsilon > 5
    assert not audit.verdict(found, 4.0, gaussian=False).holds
    assert audit.verdict(found, math.inf, gaussian=True).holds


def test_only_gaussian_noise_is_judged_by_the_gaussian_bound():
    found = audit.audit(*canary(sigma=0.5, rounds=1, trials=4000, seed=1), DELTA, np.random.default_rng(1))
    between = (found.epsilon + found.gaussian_epsilon) / 2
    assert audit.verdict(found, between, gaussian=False).holds
    assert not audit.verdict(found, between, gaussian=True).holds


def test_the_threshold_comes_from_trials_that_do_not_judge_it():
    """Many attacks on noise, each at its best threshold: as many succeed as the intervals allow."""
    rng = np.random.default_rng(3)
    members = np.arange(60) % 2 == 0
    proven = [audit.audit(rng.random(60), members, DELTA, rng).epsilon > 0 for _ in range(200)]
    assert np.mean(proven) <= 0.03


def test_scores_without_information_prove_nothing():
    found = audit.audit(np.zeros(100), np.arange(100) < 50, DELTA, np.random.default_rng(0))
    assert (found.epsilon, found.mu, found.gaussian_epsilon) == (0, 0, 0)


def test_an_audit_depends_on_its_seed_alone():
    trial = canary(sigma=1, rounds=1, trials=500, seed=4)
    one, other = (audit.audit(*trial, DELTA, np.random.default_rng(8)) for _ in range(2))
    assert one == other


# Bad input


def test_halves_need_both_kinds():
    with pytest.raises(ConfigError, match="1 of 10 trials; need at least 2 members"):
        audit.audit(np.zeros(10), np.arange(10) < 1, DELTA, np.random.default_rng(0))


@pytest.mark.parametrize("delta", [-0.1, 0.0, 1.0])
def test_delta_is_a_probability(delta):
    with pytest.raises(ConfigError, match="delta"):
        audit.audit(np.zeros(10), np.arange(10) < 5, delta, np.random.default_rng(0))


@pytest.mark.parametrize("epsilon", [-1.0, math.nan])
def test_an_accounted_epsilon_is_a_number(epsilon):
    found = audit.audit(np.zeros(100), np.arange(100) < 50, DELTA, np.random.default_rng(0))
    with pytest.raises(ConfigError, match="accounted: epsilon"):
        audit.verdict(found, epsilon, gaussian=False)
