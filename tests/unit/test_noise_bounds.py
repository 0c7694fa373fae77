"""How much noise an experiment, and an accountant, may be told of."""

import math

import pytest

from node.config import PrivacySection
from node.errors import ConfigError
from node.experiment.loading import validated
from node.privacy.budget import NodeAccountant


@pytest.mark.parametrize("sigma", [9e-7, 1.1e6, 1e155, 5e-324, -1.0, math.inf, math.nan])
def test_noise_beyond_all_bounds_is_refused_in_one_line(sigma):
    with pytest.raises(ConfigError) as refused:
        validated({"privacy": {"mechanism": "record", "noise_multiplier": sigma}}, "here.toml")
    assert str(refused.value).startswith(
        f"here.toml: privacy.noise_multiplier: {sigma:g}; allowed are 0, and numbers from"
    )
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("sigma", [0.0, 1e-6, 1.0, 1e6])
def test_noise_within_them_is_not(sigma):
    assert PrivacySection(noise_multiplier=sigma).noise_multiplier == sigma


@pytest.mark.parametrize("sigma", [9e-7, 1.1e6, 1e155, -1.0, math.nan])
def test_an_accountant_enters_no_such_step(sigma):
    accountant = NodeAccountant()
    with pytest.raises(
        ConfigError, match=r"^sigma: \S+; allowed: a noise multiplier from 1e-06 to 1e\+06, 0, or infinity"
    ):
        accountant.step(sigma, 0.5)
    assert accountant.epsilon(1e-5) == 0


@pytest.mark.parametrize("q", [1e-9, 0.01, 0.5, 1.0])
@pytest.mark.parametrize("sigma", [1e-6, 1e-3, 1.0, 300.0, 1e4, 1e6])
def test_within_the_bounds_there_is_an_epsilon(sigma, q):
    accountant = NodeAccountant()
    accountant.step(sigma, q, 3)
    assert 0 <= accountant.epsilon(1e-5) < math.inf


def test_no_noise_is_an_infinite_epsilon_and_endless_noise_none():
    accountant = NodeAccountant()
    accountant.step(math.inf)
    assert accountant.epsilon(1e-5) == 0
    accountant.step(0.0)
    assert accountant.epsilon(1e-5) == math.inf
