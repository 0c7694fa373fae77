"""Noise on label histograms: where it comes from in either world, and what a summary says of it."""

import math

import numpy as np
import pytest
from scipy import stats

from node.cohorts import noised
from node.config import ExperimentConfig
from node.experiment.combinations import RULES, Case
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.privacy import mechanisms
from node.privacy.noise import secret_coins
from protocols import cpfl
from protocols.cpfl import CPFL

FORMING = {"forming": "label-similar", "histogram_epsilon": 0.5}


def experiment(clock="virtual", protocol=None, **privacy):
    return ExperimentConfig.model_validate(
        {
            "nodes": 4,
            "seed": 3,
            "clock": clock,
            "protocol": {
                "use": "cpfl",
                "cohorts": 2,
                "unify": "average",
                "leader": "fixed",
                "stopping": {"rule": "budget", "most_rounds": 1},
                **(FORMING if protocol is None else protocol),
            },
            "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5, "local_test_fraction": 0.1},
            "model": {"name": "softmax"},
            "training": {"local_steps": 1},
            "privacy": privacy,
        }
    )


@pytest.fixture
def told(monkeypatch):
    """The histograms that nodes have told, in the order in which they have."""
    found = []

    def watching(counts, epsilon, coins):
        found.append(noised(counts, epsilon, coins))
        return found[-1]

    monkeypatch.setattr(cpfl, "noised", watching)
    return found


def ran(**options):
    setup = prepare(experiment(**options))
    return run_virtual(setup, lambda *_: None).summary(setup)


def warnings(config):
    case = Case(config, CPFL, (50,) * 4)
    return [rule.says.format(case=case) for rule in RULES if rule.action == "warn" and rule.applies(case)]


# Where it comes from


def test_seeded_coins_are_a_nodes_own_and_the_same_at_every_call():
    insecure = mechanisms.insecure(3, "run", [10])
    first = insecure.coins(1).random(5).tolist()
    assert insecure.coins(1).random(5).tolist() == first
    assert mechanisms.insecure(3, "other", [10]).coins(1).random(5).tolist() == first
    assert insecure.coins(2).random(5).tolist() != first
    assert mechanisms.insecure(4, "run", [10]).coins(1).random(5).tolist() != first


def test_other_coins_never_come_again():
    unrepeatable = mechanisms.unrepeatable([10])
    assert unrepeatable.coins(1).random(5).tolist() != unrepeatable.coins(1).random(5).tolist()


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 20.0])
def test_of_secret_coins_laplace_noise_is_made(epsilon):
    counts = np.full(4000, 10_000)
    noise = noised(counts, epsilon, secret_coins()).counts - counts
    assert stats.kstest(noise, stats.laplace(scale=1 / epsilon).cdf).pvalue > 1e-6


def test_coins_of_zero_and_almost_one_make_finite_noise():
    class Extreme:
        def random(self, count):
            return np.resize([0.0, 1 - 2.0**-53], count)

    assert np.isfinite(noised(np.array([5, 5]), 1e-3, Extreme()).counts).all()


def test_no_coin_is_tossed_for_the_truth():
    assert noised(np.array([3, 0]), math.inf, None).counts.tolist() == [3.0, 0.0]


# In a run


def test_a_simulation_repeats_its_noise_and_says_that_it_protects_nobody(told):
    privacy = ran()["privacy"]
    first = [histogram.counts.tolist() for histogram in told]
    told.clear()
    ran()
    assert [histogram.counts.tolist() for histogram in told] == first
    assert len(first) == 4
    assert (privacy["noise"], privacy["insecure_noise"]) == ("seeded", True)


def test_secret_noise_is_another_in_every_run(told):
    privacy = ran(noise="secret")["privacy"]
    first = [histogram.counts.tolist() for histogram in told]
    told.clear()
    ran(noise="secret")
    assert all(a.counts.tolist() != b for a, b in zip(told, first, strict=True))
    assert (privacy["noise"], privacy["insecure_noise"]) == ("secret", False)


@pytest.mark.parametrize("mechanism", ["none", "record"])
def test_the_summary_states_the_epsilon_beside_the_ledgers(mechanism):
    private = {} if mechanism == "none" else {"mechanism": "record", "noise_multiplier": 2.0}
    privacy = ran(**private)["privacy"]
    assert privacy["releases"] == {
        "label histogram": {"epsilon": 0.5, "unit": "record", "adjacency": "add_remove", "delta": 0.0}
    }
    assert "label histogram (epsilon 0.5, once)" in privacy["side_channels"]
    assert privacy["mechanism"] == mechanism
    assert ("epsilon" in privacy) == (mechanism == "record")


@pytest.mark.parametrize(
    "protocol", [{"forming": "random"}, {"forming": "label-similar"}, {"forming": "random", "histogram_epsilon": 0.5}]
)
def test_nothing_is_stated_where_nothing_is_noised(protocol):
    privacy = ran(protocol=protocol)["privacy"]
    assert "releases" not in privacy
    assert "noise" not in privacy


def test_seeded_noise_of_a_real_run_is_warned_of():
    insecure = 'insecure noise (privacy.noise = "seeded")'
    assert any(insecure in warning for warning in warnings(experiment("real", noise="seeded")))
    assert not any(insecure in warning for warning in warnings(experiment("real")))
    assert not any(
        insecure in warning for warning in warnings(experiment("real", {"forming": "random"}, noise="seeded"))
    )
