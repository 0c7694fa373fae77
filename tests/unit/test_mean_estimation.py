"""Personalized mean estimation: closed forms against golden values, their own minima, and runs of the simulator."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.experiment.testbed import Personalized, noised, simulate
from node.op import Key, Task
from node.privacy.mean_estimation import MeanEstimation, attack_auc
from node.testing import check_op, check_protocol

TASK = MeanEstimation(nodes=20, samples=10, spread=0.3, noise=0.5, change=3.0)
PUBLISHED = replace(TASK, noised="estimate")

TASKS = st.builds(
    MeanEstimation,
    nodes=st.integers(2, 50),
    samples=st.integers(1, 50),
    spread=st.floats(0, 3),
    noise=st.floats(0.01, 5),
    change=st.floats(0.01, 5),
    noised=st.sampled_from(["release", "estimate"]),
)


# Golden values


@pytest.mark.parametrize(
    ("weight", "error", "mu", "auc"),
    [
        (0.0, 0.1, math.inf, 1.0),
        (0.25, 0.0645625, 8.184009, 1.0),
        (0.5, 0.05325, 2.817446, 0.976827),
        (0.75, 0.0660625, 1.028591, 0.766486),
        (1.0, 0.103, 0.134164, 0.537790),
    ],
)
def test_noise_on_the_release(weight, error, mu, auc):
    assert TASK.error(weight) == pytest.approx(error, rel=1e-9)
    assert TASK.mu_estimate(weight) == pytest.approx(mu, abs=5e-7)
    assert attack_auc(TASK.mu_estimate(weight)) == pytest.approx(auc, abs=5e-7)


def test_the_best_weight_and_the_leakage_of_a_release():
    assert TASK.best_weight == pytest.approx(0.49222798, abs=5e-9)
    assert TASK.error(TASK.best_weight) == pytest.approx(0.05323834, abs=5e-9)
    assert TASK.mu_release == pytest.approx(0.6)
    assert attack_auc(TASK.mu_release) == pytest.approx(0.664313, abs=5e-7)


@pytest.mark.parametrize(
    ("noise", "weight", "error"),
    [
        (0.1, 0.524862, 0.050138),
        (0.5, 0.492228, 0.053238),
        (1.0, 0.412148, 0.060846),
        (2.0, 0.249671, 0.076281),
        (4.0, 0.096889, 0.090796),
    ],
)
def test_the_best_weight_by_noise(noise, weight, error):
    task = replace(TASK, noise=noise)
    assert task.best_weight == pytest.approx(weight, abs=6e-7)
    assert task.error(task.best_weight) == pytest.approx(error, abs=6e-7)


@pytest.mark.parametrize(
    ("weight", "error", "mu"),
    [
        (0.0, 0.35, 0.6),
        (0.25, 0.31378125, 0.4575),
        (0.5, 0.300125, 0.315),
        (0.75, 0.30903125, 0.1725),
        (1, 0.3405, 0.03),
    ],
)
def test_noise_on_the_estimate(weight, error, mu):
    assert PUBLISHED.error(weight) == pytest.approx(error, rel=1e-9)
    assert PUBLISHED.mu_estimate(weight) == pytest.approx(mu, rel=1e-9)


def test_the_best_weight_with_noise_on_the_estimate():
    assert PUBLISHED.best_weight == pytest.approx(0.52631579, abs=5e-9)
    assert PUBLISHED.error(PUBLISHED.best_weight) == pytest.approx(0.3)
    assert PUBLISHED.mu_release == math.inf


# What must hold of every task


@given(TASKS, st.floats(0, 1))
def test_no_weight_is_better_than_the_best(task, weight):
    if task.best_weight <= 1:
        assert task.error(weight) >= task.error(task.best_weight) - 1e-12


@given(TASKS, st.floats(0, 0.99))
def test_the_more_of_the_others_the_less_leaks(task, weight):
    assert task.mu_estimate(weight + 0.01) < task.mu_estimate(weight)


@given(st.floats(0, 30), st.floats(0, 30))
def test_an_attack_is_a_coin_at_least_and_better_the_larger_mu(one, other):
    assert 0.5 <= attack_auc(min(one, other)) <= attack_auc(max(one, other)) <= 1


def test_a_minority_with_fewer_samples_leaks_more():
    assert replace(TASK, samples=5).mu_release == 2 * TASK.mu_release


@pytest.mark.parametrize("wrong", [{"nodes": 0}, {"samples": 0}, {"noise": 0.0}, {"change": -1.0}, {"spread": -0.1}])
def test_figures_out_of_range_are_refused(wrong):
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))}.*allowed"):
        replace(TASK, **wrong)


def test_weights_out_of_range_are_refused():
    for call in (TASK.error, TASK.mu_estimate):
        with pytest.raises(ConfigError, match=r"weight: 1.5; allowed: 0 \(alone\) to 1"):
            call(1.5)


# Simulated


@pytest.mark.parametrize("weight", [0.25, 0.5, 0.75, 1.0])
def test_a_run_falls_on_the_closed_forms(weight):
    found = simulate(TASK, weight, trials=20_000)
    assert found.error == pytest.approx(TASK.error(weight), rel=0.01)
    assert found.auc_estimate == pytest.approx(attack_auc(TASK.mu_estimate(weight)), abs=0.01)
    assert found.auc_release == pytest.approx(attack_auc(TASK.mu_release), abs=0.01)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
def test_so_does_one_with_noise_on_the_estimate(weight):
    found = simulate(PUBLISHED, weight, trials=20_000, seed=3)
    assert found.error == pytest.approx(PUBLISHED.error(weight), rel=0.01)
    assert found.auc_estimate == pytest.approx(attack_auc(PUBLISHED.mu_estimate(weight)), abs=0.01)
    assert found.auc_release == 1.0


def test_a_run_follows_from_its_seed():
    one, same, other = (simulate(TASK, 0.5, trials=200, seed=seed) for seed in (1, 1, 2))
    assert one == same != other


def test_an_attacker_needs_a_victim():
    with pytest.raises(ConfigError, match="nodes: 1; allowed: 2 or more"):
        simulate(replace(TASK, nodes=1), 0.5)


def test_the_protocol_and_its_op_are_as_all_are():
    check_protocol(Personalized(Personalized.Config()))
    mean = np.zeros(50_000)
    draw = noised.solve(Task((mean,), {"deviation": 0.3}, Key(1, 2, 3)))
    assert draw.std() == pytest.approx(0.3, rel=0.02)
    check_op(noised, [mean], deviation=0.3)
