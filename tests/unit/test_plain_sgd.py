"""Protocols that take steps for gradients do not run with an optimizer whose steps are none."""

import pytest

from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.setup import prepare
from protocols.cpfl import CPFL
from protocols.dpsgd import DPSGD

PROTOCOL = {"use": "cpfl", "cohorts": 1, "checkpoint": "last", "stopping": {"rule": "budget", "most_rounds": 1}}


def prepared(protocol, **training):
    data = {"name": "digits", "partition": "iid"}
    sections = {"nodes": 4, "data": data, "protocol": {**PROTOCOL, **protocol}, "training": training}
    return prepare(ExperimentConfig.model_validate(sections))


@pytest.mark.parametrize("protocol", [{"correction": "scaffold"}, {"weights": "nova"}])
@pytest.mark.parametrize("training", [{"optimizer": "adam"}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_steps_that_are_no_gradients_are_refused(protocol, training):
    with pytest.raises(ConfigError, match=r"^training.optimizer: protocol 'cpfl' with these options .* allowed: 'sgd'"):
        prepared(protocol, **training)
    assert prepared(protocol).options.model_dump().items() >= protocol.items()


@pytest.mark.parametrize("training", [{"optimizer": "adam"}, {"momentum": 0.9}, {"weight_decay": 0.1}])
def test_others_take_any_optimizer(training):
    assert prepared({}, **training).config.training.model_dump().items() >= training.items()


def test_only_those_options_ask_for_it():
    assert CPFL.needs_plain_sgd(CPFL.Config(correction="scaffold"))
    assert CPFL.needs_plain_sgd(CPFL.Config(weights="nova"))
    assert not CPFL.needs_plain_sgd(CPFL.Config(weights="uniform"))
    assert not DPSGD.needs_plain_sgd(DPSGD.Config())
