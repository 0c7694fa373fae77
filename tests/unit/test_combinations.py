"""The table [privacy], and what must not, or should not, be combined with it."""

import importlib.util
from typing import ClassVar, get_args

import pytest

from node import Context, Protocol, Ref
from node.config import ExperimentConfig, PrivacySection
from node.errors import ConfigError
from node.experiment import combinations
from node.experiment.combinations import RULES, Case, check, side_channels
from node.experiment.loading import load
from node.experiment.privacy import ledger_of, node_noise_of, noise_of, statement, training_of
from node.experiment.setup import prepare
from node.privacy.budget import VIEWS, View
from protocols.deprl import DePRL
from protocols.dpsgd import DPSGD
from protocols.pfedme import PFedMe

TUNED = "hyper-parameters that were tuned on private data are not accounted for, nor is what is evaluated on it"
RECORD = {"mechanism": "record"}
MANY = [1000, 2000]


class Chooses(Protocol):
    side_channels: ClassVar[tuple[str, ...]] = ("who is contacted", "head id")

    async def run(self, ctx: Context) -> Ref | None:
        return None


def configured(privacy, **tables):
    return ExperimentConfig(privacy=privacy, **tables)


def warned(privacy, samples=MANY, protocol=DPSGD, **tables):
    return check(configured(privacy, **tables), protocol, samples)


# The table


def test_nothing_is_private_unless_asked():
    privacy = ExperimentConfig().privacy
    assert privacy.mechanism == "none"
    assert privacy == PrivacySection()


def test_the_table_names_the_views_that_a_guarantee_knows():
    assert get_args(PrivacySection.model_fields["view"].annotation) == get_args(View) == tuple(VIEWS)


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("privacy.clip=0", "privacy.clip"),
        ("privacy.clip=inf", "privacy.clip"),
        ("privacy.noise_multiplier=-1", "privacy.noise_multiplier"),
        ("privacy.delta=1", "privacy.delta"),
        ("privacy.epsilon=-1", "privacy.epsilon"),
        ("privacy.sampling=shuffled", "privacy.sampling.*poisson"),
        ("privacy.view=T8", "privacy.view"),
        ("privacy.mechanism=dp", "privacy.mechanism.*none"),
        ("privacy.sigma=1", "sigma"),
    ],
)
def test_a_wrong_key_is_one_line(key, says):
    with pytest.raises(ConfigError, match=says) as error:
        load("digits-gossip", [key], {})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("asked", "clock", "found"),
    [
        ("auto", "real", "secret"),
        ("auto", "virtual", "seeded"),
        ("seeded", "real", "seeded"),
        ("secret", "virtual", "secret"),
    ],
)
def test_real_runs_draw_secrets_and_simulations_repeat(asked, clock, found):
    assert noise_of(configured({**RECORD, "noise": asked}, clock=clock)) == found


def test_what_is_not_asked_for_is_not_there():
    config = ExperimentConfig()
    assert training_of(config, None) is None
    assert node_noise_of(config) is None
    assert ledger_of(config, lambda node: 10, None) is None
    assert training_of(configured({"mechanism": "node"}), None) is None
    assert node_noise_of(configured(RECORD)) is None
    assert statement(config, {}, (), ()) == {}
    assert statement(config, {}, ("head id",), ()) == {
        "mechanism": "none",
        "side_channels": ["head id"],
        "warnings": [],
    }


# Rejected


def test_a_budget_without_noise_is_refused():
    with pytest.raises(ConfigError, match=r"privacy.noise_multiplier: without noise"):
        warned({**RECORD, "noise_multiplier": 0, "epsilon": 3})


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"epsilon": 3}, "privacy.epsilon: a budget needs a mechanism: record or node"),
        ({"when_spent": "relay"}, "privacy.when_spent: a budget needs a mechanism"),
        ({"clip": 2}, "privacy.clip: nothing is noised without a mechanism"),
        ({"noise_multiplier": 2}, "privacy.noise_multiplier: nothing is noised"),
        ({"gradients": "vmap"}, "privacy.gradients: nothing is noised"),
        ({"accountant": "gdp"}, "privacy.accountant: nothing is accounted for"),
        ({"view": "T3"}, "privacy.view: nothing is accounted for"),
    ],
)
def test_what_says_nothing_without_a_mechanism_is_refused(keys, says):
    with pytest.raises(ConfigError, match=f"^{says}"):
        warned(keys)
    assert warned({"delta": 1e-6, "noise": "seeded"}) == []  # of attacks, and of network mechanisms


def test_a_budget_that_nobody_could_begin_on_is_refused():
    few = [1000, 58]
    with pytest.raises(ConfigError, match=r"^privacy.epsilon: 3 at delta 1e-05 is spent before .* 58 records spends"):
        warned({**RECORD, "epsilon": 3}, few)
    (relays, _) = warned({**RECORD, "epsilon": 3, "when_spent": "relay"}, few)
    assert relays.startswith("privacy.epsilon: 3 lets some nodes only relay, from the start: a node with 58 records")
    assert warned({**RECORD, "epsilon": 3}) == [TUNED]
    assert warned({**RECORD, "epsilon": 3}, few, training={"local_steps": 1, "batch_size": 8}) == [TUNED]
    with pytest.raises(ConfigError, match="is spent before the run begins"):
        warned({"mechanism": "node", "accountant": "gdp", "epsilon": 1})


def test_what_is_refused_as_too_little_is_what_the_ledger_refuses():
    for epochs, samples in ((0, [70, 33]), (2, [70, 33]), (1, [500, 40])):
        training = {"local_steps": 4, "local_epochs": epochs, "batch_size": 32}
        privacy = {**RECORD, "epsilon": 4}
        config = configured({**privacy, "epsilon": 0}, training=training)
        costs = []
        for held in samples:
            ledger = ledger_of(config, lambda _, held=held: held, None)
            ledger.charge(0, epochs * -(-held // 32) or 4)
            costs.append(ledger.spent(0)["epsilon"])
        enough, little = max(costs) * 1.0001, max(costs) * 0.9999
        assert TUNED in warned({**privacy, "epsilon": enough}, samples, training=training)
        with pytest.raises(ConfigError, match="is spent before the run begins"):
            warned({**privacy, "epsilon": little}, samples, training=training)


@pytest.mark.parametrize(
    ("use", "options"), [("deprl", {"head_steps": 1}), ("pfedme", {"inner_steps": 1})], ids=["deprl", "pfedme"]
)
def test_a_protocol_s_own_first_training_is_what_counts(use, options):
    protocol = {"deprl": DePRL, "pfedme": PFedMe}[use]
    privacy = {**RECORD, "epsilon": 3.5}

    def says(options):
        return check(configured(privacy, protocol={"use": use, **options}), protocol, [58])

    with pytest.raises(ConfigError, match="is spent before the run begins"):
        says(dict.fromkeys(options, 50))
    assert TUNED in says(options)


def test_a_budget_below_what_the_orders_can_show_names_other_accountants():
    with pytest.raises(ConfigError, match=r"privacy.epsilon: 0.003 is less than rdp can show.*pld"):
        warned({**RECORD, "epsilon": 0.003, "noise_multiplier": 1e5})
    assert warned({**RECORD, "epsilon": 0.004, "noise_multiplier": 1e5}) == [TUNED]


def test_a_missing_accountant_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"privacy.accountant: pld needs dp-accounting.*starling-node\[privacy\]"):
        warned({**RECORD, "accountant": "pld"})
    monkeypatch.setattr(combinations.importlib.util, "find_spec", lambda name: object())
    assert warned({**RECORD, "accountant": "pld"}) == [TUNED]


def test_an_accountant_without_a_bound_is_refused():
    with pytest.raises(ConfigError, match=r'privacy.accountant: gdp has no bound for random batches.*"rdp"'):
        warned({**RECORD, "accountant": "gdp"})
    whole = {"training": {"batch_size": 2000}}
    assert warned({**RECORD, "accountant": "gdp"}, **whole) == [TUNED]
    assert warned({"mechanism": "node", "accountant": "gdp"}) == [TUNED]
    with pytest.raises(ConfigError, match="gdp"):
        warned({**RECORD, "accountant": "gdp"}, [2000, 2001], **whole)


@pytest.mark.parametrize(("key", "value"), [("cache", "values"), ("kind", "dask")])
def test_secret_noise_is_never_drawn_twice(key, value):
    executor = {"executor": {key: value}}
    with pytest.raises(ConfigError, match=f"executor.{key}"):
        warned({**RECORD, "noise": "secret"}, **executor)
    assert warned({**RECORD, "noise": "seeded"}, **executor) == [TUNED]
    assert warned({**RECORD, "noise": "secret"}, clock="real", **executor) == [TUNED]  # a real node has neither
    assert warned({"noise": "secret"}, **executor) == []


@pytest.mark.parametrize("use", ["pens", "dac", "facade"])
def test_nobody_relays_who_compares_models_on_private_data(use):
    relay = ["privacy.mechanism=record", "privacy.epsilon=3", "privacy.when_spent=relay", "nodes=12"]
    with pytest.raises(ConfigError, match=r'privacy.when_spent: "relay" promises .* allowed: "stop"'):
        prepare(load("digits-gossip", ["clock=virtual", f"protocol.use={use}", *relay], {}))
    told = prepare(load("digits-gossip", ["clock=virtual", "protocol.use=epidemic", *relay], {})).warnings
    assert not any("when_spent" in line for line in told)


def test_nobody_relays_whose_rule_compares_models_on_private_data():
    relay = {**RECORD, "epsilon": 3.0, "when_spent": "relay"}
    with pytest.raises(ConfigError, match=r"privacy\.when_spent"):
        warned(relay, aggregation={"rule": "ubar"})
    assert warned(relay) == [TUNED]
    assert any("losses on private data" in line for line in warned(RECORD, aggregation={"rule": "ubar"}))


def test_what_is_refused_is_refused_before_a_run():
    with pytest.raises(ConfigError, match=r"privacy.accountant: gdp"):
        prepare(load("digits-gossip", ["privacy.mechanism=record", "privacy.accountant=gdp", "nodes=8"], {}))


# Warned of


@pytest.mark.parametrize("mechanism", ["record", "node"])
def test_privacy_comes_with_a_warning(mechanism):
    assert warned({"mechanism": mechanism}) == [TUNED]
    assert warned({"mechanism": "none"}) == []


def test_no_noise_is_no_guarantee():
    assert any("there is no guarantee" in line for line in warned({**RECORD, "noise_multiplier": 0}))


def test_seeded_noise_in_a_real_run_is_called_insecure():
    assert any("insecure noise" in line for line in warned({**RECORD, "noise": "seeded"}, clock="real"))
    assert warned({**RECORD, "noise": "seeded"}, clock="virtual") == [TUNED]


def test_a_large_delta_is_held_against_the_smallest_node_that_has_data():
    line = "privacy.delta = 0.01 is not below 1/100, of the smallest node: it would allow to publish a record"
    assert warned({**RECORD, "delta": 0.01}, [0, 100, 5000]) == [line, TUNED]
    assert warned({**RECORD, "delta": 0.0099}, [0, 100, 5000]) == [TUNED]


@pytest.mark.parametrize("mechanism", ["record", "node"])
def test_statistics_of_all_records_are_warned_of(mechanism):
    """One-dimensional features are scaled by them, and a record of one node moves those of all."""
    small = ["clock=virtual", "nodes=4", f"privacy.mechanism={mechanism}", "protocol.use=local"]
    found = {
        data: any("standardised with the statistics of all nodes' records" in line for line in setup.warnings)
        for data in ("breast_cancer", "digits")
        for setup in [prepare(load("digits-gossip", [*small, f"data.name={data}"], {}))]
    }
    assert found == {"breast_cancer": True, "digits": False}
    case = Case(configured({"mechanism": "none"}), DPSGD, [100], is_standardised=True)
    assert not any(rule.applies(case) for rule in RULES)


def test_what_a_protocol_shows_besides_models_is_told():
    assert side_channels(Chooses, Chooses.Config()) == ("who is contacted", "head id")
    assert side_channels(DPSGD, DPSGD.Config()) == ()
    [line, last] = warned(RECORD, protocol=Chooses)
    assert "(who is contacted, head id)" in line
    assert last == TUNED
    assert warned({}, protocol=Chooses) == []


# The table of rules


def test_every_rule_is_one_line_and_can_be_told():
    case = Case(configured(RECORD), Chooses, [100])
    for rule in RULES:
        assert rule.action in ("reject", "warn")
        told = rule.says.format(case=case)
        assert told
        assert "\n" not in told
        assert isinstance(rule.applies(case), bool)


def test_a_rule_sees_the_protocol_s_own_options():
    case = Case(ExperimentConfig(protocol={"use": "dpsgd", "rounds": 3}), DPSGD, [])
    assert case.options.rounds == 3
    assert case.fewest == 1
