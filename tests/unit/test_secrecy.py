"""What does not go with sums under masks in cohorts is refused in one line, and what they show is stated."""

import pytest

from node import ConfigError
from node.attack.observers.byzantine import ByzantineNodes
from node.config import ExperimentConfig
from node.experiment import combinations
from node.experiment.setup import prepare
from protocols.cpfl import CPFL
from protocols.secrecy import MOST_SENDERS


def check(nodes=24, **options):
    CPFL.check(CPFL.Config(secure=True, **options), nodes)


def experiment(**sections):
    protocol = {"use": "cpfl", "secure": True, **sections.pop("protocol", {})}
    return ExperimentConfig.model_validate({"nodes": 24, "protocol": protocol, **sections})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"branching": 2}, "protocol.branching: members would add up models that are hidden from them .* allowed .* 0"),
        (
            {"correction": "scaffold"},
            "protocol.correction: changes of control variates are not masked .* with it: none",
        ),
        ({"forming": "loss"}, "protocol.forming: the registrar is told single models"),
        ({"unify": "fisher"}, "protocol.unify: fisher tells of single gradients"),
        ({"compare": ("fisher",)}, "protocol.unify: fisher tells of single gradients"),
        ({"cohorts": 7}, r"protocol.cohorts: 7 for 24 nodes; .* each has 4 or more, .* allowed: 1 to 6"),
        ({"cohorts": 1, "nodes": 3}, r"nodes: 3 are too few for protocol.secure = true; allowed: 4 or more"),
        ({"sample": 3}, r"protocol.sample: 3 are too few for a sum .* allowed: 0, or 4 and more"),
        ({"cohorts": 1, "nodes": 201}, r"protocol.sample: 201 members in a round are too many .* allowed: 4 to 200"),
        ({"cohorts": 1, "nodes": 400, "sample": 180, "over_select": 0.2}, "protocol.sample: 216 members in a round"),
    ],
    ids=str,
)
def test_what_would_tell_of_single_models_is_refused(options, says):
    with pytest.raises(ConfigError, match=says):
        check(**options)
    if options.get("nodes", 24) >= 7:
        CPFL.check(CPFL.Config(**{key: value for key, value in options.items() if key != "nodes"}), 1000)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"cohorts": 6},
        {"weights": "nova"},
        {"weights": "uniform"},
        {"server": "adam"},
        {"sampling": "oort", "sample": 4},
        {"sample": 4, "over_select": 0.5},
        {"leader": "fixed", "cohorts": 1, "leader_trains": False},
        {"cohorts": 1, "nodes": 200},
        {"cohorts": 1, "nodes": 400, "sample": MOST_SENDERS},
    ],
    ids=str,
)
def test_the_rest_goes_with_them(options):
    check(**options)


def test_a_robust_rule_is_refused_as_for_every_leader():
    config = experiment(aggregation={"rule": "median", "tolerance": 1}, data={"local_test_fraction": 0.1})
    with pytest.raises(ConfigError, match=r"aggregation.rule: protocol 'cpfl' does not aggregate"):
        prepare(config)


def test_masked_numbers_are_no_weights_to_lie_about():
    config = experiment()
    with pytest.raises(ConfigError, match="'cpfl' sends masked whole numbers"):
        ByzantineNodes.check(ByzantineNodes.Config(attack="sign-flip"), (1,), config)
    ByzantineNodes.check(ByzantineNodes.Config(attack="label-flip"), (1,), config)


def test_what_stays_in_the_clear_is_stated():
    shown = CPFL.shows(CPFL.Config(secure=True))
    assert {"number of samples", "validation loss", "participant set"} <= set(shown)
    assert "participant set" not in CPFL.shows(CPFL.Config())


@pytest.mark.parametrize("secure", [False, True])
def test_keys_that_follow_from_the_seed_are_warned_of_where_there_are_any(secure):
    config = experiment(clock="real", protocol={"secure": secure}, privacy={"noise": "seeded"})
    warned = combinations.check(config, CPFL)
    assert any("insecure keys" in line for line in warned) is secure


@pytest.mark.parametrize(("options", "least"), [({}, 1), ({"secure": True}, 4), ({"secure": True, "min_size": 6}, 6)])
def test_a_cohort_needs_a_leader_and_three_others(options, least):
    assert CPFL.Config(**options).least_size == least
