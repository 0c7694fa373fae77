"""Attackers of an experiment: what may be asked for, which messages are attacked, and what is the truth."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs

from node.attack import references, rmia
from node.attack.attacker import Attack
from node.attack.byzantine import ATTACKS
from node.attack.kinds import KINDS
from node.attack.observers.membership import Membership
from node.attack.sampling import Curious, mean_of, numbered, with_kept
from node.attack.truth import Truth
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.attacking import attacked_messages, is_of_one_message, pictures
from node.experiment.plugins import by_path, registered
from node.experiment.setup import prepare
from node.experiment.simulation import rebuild
from node.experiment.virtual import run_virtual
from node.learn.data import federate
from node.mods import Mod, Observer
from node.op import Op, Spec, op
from node.participants import Participants
from node.row import Row

HERE = __name__
FLAT = Spec((1,), "float64", ("norm",))


class Norms(Curious):
    """The simplest attack: how long is the model in a message?"""

    metrics = ("norm",)

    def attack(self, ctx, round, seen, own):
        calls.append((ctx.me, round, tuple(message.sender for message in seen)))
        return [ctx.apply(NORM, message.model) for message in seen]


class Idle(Mod):
    """Changes nothing."""


NORM = Op("test:norm", lambda task: {"norm": float(task.inputs[0].double().norm())}, spec=lambda *_: FLAT)
ALONE = {"membership_trajectory_auc": 0.5}
calls: list[tuple] = []


class Meddling(Observer):
    """Records ops whenever it sees anything, and one round of its own."""

    def received(self, ctx, sender, message):
        ctx.apply(twice, message.model)

    def trained(self, ctx, before, after):
        self.last = ctx.apply(twice, after)

    def sent(self, ctx, to, message):
        ctx.apply(twice, message.model)

    def ended(self, ctx):
        ctx.record(round=0, twice=ctx.apply(NORM, self.last))


@op
def twice(model):
    return model * 2


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    """This file, as a module that an experiment can name."""
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])
    calls.clear()


def config(**tables) -> ExperimentConfig:
    small = {
        "nodes": 5,
        "topology": {"kind": "full"},
        "model": {"name": "softmax"},
        "protocol": {"use": "dpsgd", "rounds": 4},
        "training": {"local_steps": 2},
    }
    return ExperimentConfig.model_validate(small | tables)


def ran(**tables):
    """A finished simulation, and its summary."""
    setup = prepare(config(**tables))
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished", result.error
    return result, result.summary(setup)


def refusal(*attackers, **tables) -> str:
    with pytest.raises(ConfigError) as refused:
        prepare(config(attackers=attackers, **tables))
    assert "\n" not in str(refused.value)
    return str(refused.value)


# What may be asked for


@pytest.mark.parametrize("kind", KINDS)
def test_every_registered_kind_exists(kind):
    found = by_path(KINDS[kind].path, "kind")
    assert issubclass(found, Attack)
    assert len(KINDS[kind].meaning.splitlines()) == 1


WRONG = {
    "membershp": ({"kind": "membershp"}, "attackers[0].kind: no attack is called 'membershp'; did you mean"),
    "no subclass": ({"kind": f"{HERE}:Meddling"}, "is not a subclass of node.attack.attacker.Attack"),
    "abstract": (
        {"kind": "node.attack.sampling:Curious"},
        "Curious leaves its attack to subclasses; name one of these",
    ),
    "no such node": ({"kind": "membership", "nodes": [5]}, "attackers[0].nodes: there is no node 5; allowed: 0 to 4"),
    "unknown option": ({"kind": "membership", "evry": 1}, "attackers[0].evry: there is no such key; did you mean"),
    "odd references": ({"kind": "membership", "references": 3}, "multiple of 2"),
    "tuned on too few": ({"kind": "membership", "references": 2, "tune_rmia": True}, "allowed with 4 references or"),
    "tuned online": ({"kind": "membership", "references": 4, "online": True, "tune_rmia": True}, "that are not online"),
    "unknown score": ({"kind": "membership", "scores": ["luck"]}, "attackers[0].scores.0"),
    "never": ({"kind": "membership", "every": 0}, "attackers[0].every"),
    "unknown lie": ({"kind": "byzantine", "attack": "lie"}, "attackers.attack: no attack is called 'lie'; known: sign"),
    "option of no lie": ({"kind": "byzantine", "attack": "ipm", "eps": 1}, "attackers.eps: no option of 'ipm'"),
    "label-flip's": ({"kind": "byzantine", "attack": "label-flip", "z": 1}, "attackers.z: no option of 'label-flip'"),
    "all lie": ({"kind": "byzantine", "nodes": [0, 1, 2, 3, 4]}, "at least one must be honest"),
    "no such column": ({"kind": "attribute"}, "attackers.column: 0 of samples of shape [1, 8, 8]"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_one_line(name):
    section, part = WRONG[name]
    assert part in refusal(section)


@pytest.mark.parametrize("lie", ["sign-flip", "nonfinite"])
def test_masked_whole_numbers_are_nothing_to_lie_about(lie):
    told = refusal({"kind": "byzantine", "attack": lie, "nodes": [4]}, protocol={"use": "secagg", "rounds": 1})
    assert "'secagg' sends masked whole numbers, which are no weights to lie about; allowed with it: label-flip" in told
    ran(protocol={"use": "secagg", "rounds": 1}, attackers=[{"kind": "byzantine", "attack": "label-flip"}])


@pytest.mark.parametrize("lie", ATTACKS)
@pytest.mark.parametrize("use", ["dispfl", "facade", "fedper", "shatter"])
def test_no_lie_ends_a_run_whose_messages_are_parts_of_models(use, lie):
    tables = {"model": {"name": "mlp", "hidden": [8]}, "attackers": [{"kind": "byzantine", "attack": lie}]}
    ran(protocol={"use": use, "rounds": 2, **QUICK.get(use, {})}, **tables)


def test_a_node_tells_one_lie():
    def attackers(*nodes):
        lies = ({"attack": "sign-flip"}, {"attack": "label-flip"})
        return [{"kind": "byzantine", "nodes": list(own), **lie} for own, lie in zip(nodes, lies, strict=True)]

    with pytest.raises(ConfigError, match=r"^attackers\[1\].nodes: node 2 lies already, by attackers\[0\]"):
        prepare(ExperimentConfig(nodes=6, attackers=attackers([1, 2], [2, 3])))
    assert len(prepare(ExperimentConfig(nodes=6, attackers=attackers([1, 2], [3]))).attacks) == 2


def test_attributes_are_of_tables():
    with pytest.raises(ConfigError, match=r"samples of shape \[1, 8, 8\]; allowed: tables, as data.name = 'breast"):
        prepare(ExperimentConfig(nodes=6, data={"name": "digits"}, attackers=[{"kind": "attribute"}]))


def test_no_node_at_all_is_no_attacker():
    with pytest.raises(ValueError, match="nodes"):
        config(attackers=[{"kind": "membership", "nodes": []}])


def test_omniscience_is_for_simulations():
    lie = {"kind": "byzantine", "attack": "ipm", "omniscient": True}
    assert "attackers.omniscient: a real node knows only" in refusal(lie, clock="real")
    assert prepare(config(attackers=[lie])).attacks


@pytest.mark.parametrize(
    ("kind", "tables", "part"),
    [
        ("inversion", {"data": {"name": "breast_cancer"}}, "inversion looks for images"),
        ("reconstruction", {"protocol": {"use": "epidemic"}}, "reconstruction is of 'dpsgd', not 'epidemic'"),
        ("reconstruction", {"topology": {"kind": "random-regular", "degree": 2}, "nodes": 6}, "the same in every rou"),
        ("inversion", {"protocol": {"use": "dispfl"}}, "with 'dispfl' nobody knows the start"),
        ("inversion", {"protocol": {"use": "pfedme"}}, "'pfedme' has rates of its own"),
        ("inversion", {"training": {"optimizer": "adam"}}, "training.optimizer: 'adam', but inversion takes an update"),
        ("inversion", {"training": {"momentum": 0.9}}, "training.momentum: 0.9, but inversion takes an update"),
        ("inversion", {"training": {"weight_decay": 0.1}}, "allowed with it: 0.0"),
        ("inversion", {"training": {"schedule": "cosine"}}, "allowed with it: 'constant'"),
        ("reconstruction", {"aggregation": {"rule": "median"}}, "reconstruction solves for weighted means"),
        ("reconstruction", {"aggregation": {"pre": ["nnm"], "rule": "krum"}}, "allowed with it: aggregation.rule"),
        ("reconstruction", {"privacy": {"mechanism": "node"}}, "which noise makes another in each"),
        ("reconstruction", {"privacy": {"mechanism": "record"}}, "allowed with it: privacy.mechanism = 'none'"),
        ("linkability", {"nodes": 2}, "2 nodes hold data; linkability needs 3"),
        ("attribute", {"data": {"name": "breast_cancer"}}, "attackers.column: 99"),
    ],
)
def test_an_attack_that_does_not_fit_the_experiment_says_so(kind, tables, part):
    section = {"kind": kind, "column": 99} if kind == "attribute" else {"kind": kind}
    assert part in refusal(section, **tables)


def test_the_first_learner_attacks_unless_told_otherwise():
    server = config(protocol={"use": "fedavg", "rounds": 1}, attackers=[{"kind": f"{HERE}:Norms"}])
    assert prepare(server).attacks[0].nodes == (1,)
    assert prepare(config(attackers=[{"kind": f"{HERE}:Norms", "nodes": [3, 1, 3]}])).attacks[0].nodes == (1, 3)


# Which messages are attacked


def test_messages_of_every_nth_round_are_attacked_once_the_round_is_over():
    result, summary = ran(attackers=[{"kind": f"{HERE}:Norms", "every": 3, "nodes": [2], "most": 9}])
    assert calls == [(2, 0, (0, 1, 3, 4)), (2, 3, (0, 1, 3, 4))]
    messages = summary["attacks"]["messages"]
    assert [(m["round"], m["attacker"], m["victim"]) for m in messages] == [
        (round, 2, victim) for round in (0, 3) for victim in (0, 1, 3, 4)
    ]
    rows = {(row.round, row.node): row.value for row in result.recorder.rows() if row.metric == "norm"}
    for round in (0, 3):
        mean = np.mean([m["norm"] for m in messages if m["round"] == round])
        assert rows[round, 2] == pytest.approx(mean)


def test_a_sample_depends_on_the_seed_alone():
    def attacked(seed, **devices):
        calls.clear()
        ran(seed=seed, devices=devices, attackers=[{"kind": f"{HERE}:Norms", "every": 1, "most": 2}])
        return list(calls)

    first = attacked(0)
    assert all(len(senders) == 2 for _, _, senders in first)
    assert [round for _, round, _ in first] == [0, 1, 2, 3]
    assert len({senders for _, _, senders in first}) > 1
    uneven = {"distribution": "lognormal", "median": 1.0, "sigma": 1.5}
    assert attacked(0, seconds_per_sample=uneven) == first
    assert attacked(1) != first


def test_an_attackers_model_is_never_attacked_by_itself_nor_a_server_without_data():
    ran(
        protocol={"use": "fedavg", "rounds": 2, "sample": 3},
        attackers=[{"kind": f"{HERE}:Norms", "every": 1, "nodes": [0, 1]}],
    )
    assert {attacker for attacker, _, _ in calls} == {0}
    assert all(0 not in senders for _, _, senders in calls)


def test_a_core_is_completed_with_the_attackers_own_head():
    _, summary = ran(
        protocol={"use": "fedper", "rounds": 3},
        model={"name": "mlp", "hidden": [8]},
        attackers=[{"kind": "membership", "every": 1, "scores": ["loss"]}],
    )
    assert len(summary["attacks"]["messages"]) == 12
    assert all(0 < m["membership_auc"] < 1 for m in summary["attacks"]["messages"])


class Seeing(Curious):
    """Notes what of each message was the sender's own."""

    metrics = ("norm",)

    def attack(self, ctx, round, seen, own):
        calls.extend((ctx.me, each.sender, each.observed) for each in seen)
        return [ctx.apply(NORM, each.model) for each in seen]


def test_a_core_is_completed_with_the_heads_in_the_same_message():
    tables = {"model": {"name": "mlp", "hidden": [8]}, "attackers": [{"kind": f"{HERE}:Seeing", "every": 1}]}
    result, summary = ran(protocol={"use": "facade", "rounds": 2, "heads": 2, "warm_up_rounds": 1}, **tables)
    whole = len(result.models[0])
    assert [observed for _, _, observed in calls] == [whole] * (4 * 2 + 4), "two heads each while warming up, then one"
    assert len(summary["attacks"]["messages"]) == 12
    calls.clear()
    ran(protocol={"use": "fedper", "rounds": 1}, **tables)
    assert {observed < whole for _, _, observed in calls} == {True}


def test_what_a_mask_keeps_is_completed_with_the_attackers_own():
    attackers = [{"kind": "membership", "every": 1, "scores": ["loss"]}]
    _, summary = ran(protocol={"use": "dispfl", "rounds": 3, "density": 0.5}, attackers=attackers)
    # What is sent in the first round is untrained, and the attacker has no model yet.
    assert len(summary["attacks"]["messages"]) == 8
    assert all(0 < m["membership_auc"] < 1 for m in summary["attacks"]["messages"])
    own, values = torch.arange(4.0), torch.tensor([7.0, 8.0])
    for mask, expected in (([1, 0, 0, 1], [7.0, 1.0, 2.0, 8.0]), ([0, 0, 0, 0], [0.0, 1.0, 2.0, 3.0])):
        told = type("T", (), {"inputs": (own, torch.tensor(mask).float(), values), "static": {}})()
        assert with_kept.solve(told).tolist() == expected


# An attacker that is started again


def restarted(*attackers, crash_s=0.26, protocol="dpsgd", **options):
    """The rows and attacks of a run whose node 0 crashes while it trains for round 3, and comes back soon."""
    schedule = [
        {"time_s": crash_s, "node": 0, "what": "crash"},
        {"time_s": crash_s + 0.02, "node": 0, "what": "return"},
    ]
    result, summary = ran(
        topology={"kind": "ring"},
        protocol={"use": protocol, "rounds": 8, **options},
        devices={"seconds_per_sample": 0.03125},
        churn={"detect_s": 0.005, "schedule": schedule},
        attackers=list(attackers),
    )
    return [row for row in result.recorder.rows() if row.node == 0], summary["attacks"]


def test_an_attacker_that_is_started_again_goes_on_and_counts_no_message_twice():
    rows, found = restarted({"kind": f"{HERE}:Norms", "every": 1, "most": 9}, deadline_s=0.2)
    assert [round for _, round, _ in calls] == list(range(8))
    assert all(senders == (1, 4) for _, _, senders in calls)
    assert [(m["round"], m["victim"]) for m in found["messages"]] == [(r, v) for r in range(8) for v in (1, 4)]
    for name in ("norm", "from/1.norm"):
        assert [row.round for row in rows if row.metric == name] == list(range(8))


def test_what_has_no_round_is_counted_on_after_a_restart():
    attackers = {"kind": f"{HERE}:Norms", "every": 1, "most": 9}
    rows, _ = restarted(attackers, protocol="adpsgd")
    own = [row.round for row in rows if row.metric == "norm"]
    assert own == sorted(own)
    assert max(own) >= 7


def test_the_course_of_messages_begins_anew_after_a_restart(monkeypatch):
    concluded = []
    monkeypatch.setattr(Membership, "_solve_course", lambda self, task: concluded.append(len(task.inputs)) or ALONE)
    restarted({"kind": "membership", "every": 1, "scores": ["loss"], "trajectory": True}, deadline_s=0.2)
    assert concluded == [5, 5], "of two neighbours, from round 3 on"
    concluded.clear()
    schedule = {"kind": "membership", "every": 1, "scores": ["loss"], "trajectory": True}
    restarted(schedule, crash_s=1e3, deadline_s=0.2)
    assert concluded == [8, 8]


@pytest.mark.parametrize("crash_s", [0.16, 0.26, 0.45])
def test_nothing_is_reconstructed_without_the_first_rounds_and_the_log_says_so(crash_s):
    with capture_logs() as log:
        _, found = restarted({"kind": "reconstruction", "rounds": 3}, crash_s=crash_s, deadline_s=0.2)
    assert found["messages"] == []
    assert [(line["log_level"], line["node"]) for line in log if "reconstructs nothing" in line.get("lost", "")] == [
        ("warning", 0)
    ]


def test_an_attacker_that_had_kept_nothing_begins_at_the_beginning():
    with capture_logs() as log:
        _, found = restarted({"kind": "reconstruction", "rounds": 3}, crash_s=0.01, deadline_s=0.2)
    assert {message["round"] for message in found["messages"]} == {2}
    assert not [line for line in log if line["event"] == "attacker started again"]


# Observers change nothing


QUICK = {
    "shatter": {"chunks": 2, "degree": 2},
    "pens": {"candidates": 2},
    "dac": {"sample": 2},
    "facade": {"heads": 2},
    "pfedme": {"batches": 2},
    "muffliato": {"gossip_rounds": 2},
}


@pytest.mark.parametrize("use", sorted(registered("starling.protocols")))
def test_no_protocol_tells_whether_it_is_watched(use):
    if "rounds" not in registered("starling.protocols")[use].load().Config.model_fields:
        pytest.skip("it does not count rounds of gossip")
    tables = {"protocol": {"use": use, "rounds": 2, **QUICK.get(use, {})}, "model": {"name": "mlp", "hidden": [8]}}
    tables["data"] = {"name": "digits", "local_test_fraction": 0.2}
    alone, _ = ran(**tables)
    for rider in ("Observer", "Idle"):
        watched, _ = ran(**tables, mods=[{"use": f"{HERE}:{rider}", "nodes": [0]}])  # so that some are, and others not
        assert watched.event_hash == alone.event_hash
        assert watched.tasks == alone.tasks
        for node, model in alone.models.items():
            assert torch.equal(watched.models[node], model)


def test_an_onlooker_adds_nothing_to_what_the_node_says_of_itself():
    private = {"privacy": {"mechanism": "record", "noise": "seeded"}}
    alone, _ = ran(**private)
    watched, _ = ran(**private, attackers=[{"kind": f"{HERE}:Norms", "every": 1}])

    def told(result):
        rows = [(row.node, row.round, row.metric, row.value) for row in result.recorder.rows()]
        return [row for row in rows if row[2] in ("epsilon", "bytes_sent")]

    assert told(watched) == told(alone)
    assert len(told(alone)) == 2 * 5 * 4


def test_what_observers_record_leaves_the_nodes_own_randomness_alone():
    watched, summary = ran(mods=[{"use": f"{HERE}:Meddling"}])
    alone, _ = ran()
    for node, model in alone.models.items():
        assert torch.equal(watched.models[node], model)
    assert watched.event_hash == alone.event_hash
    assert watched.tasks > alone.tasks
    assert summary["metrics"]["twice.norm"]["mean"] > 0


def test_a_failure_after_the_end_is_the_nodes(monkeypatch):
    monkeypatch.setattr(Meddling, "ended", lambda self, ctx: 1 / 0)
    setup = prepare(config(mods=[{"use": f"{HERE}:Meddling", "nodes": [2]}]))
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "failed"
    assert result.error.startswith("node 2: ZeroDivisionError")


# What was measured


def test_means_leave_out_what_is_no_number():
    given = [{"a": 1.0, "b": math.nan}, {"a": 3.0, "b": math.nan}, {"a": math.nan, "b": math.nan}]
    mean = mean_of.solve(type("T", (), {"inputs": tuple(given), "static": {}})())
    assert mean["a"] == 2.0
    assert math.isnan(mean["b"])


def test_the_table_of_messages_is_sorted_and_whole():
    rows = [
        Row(2.0, 1, 3, "from/4.auc", 0.75),
        Row(2.0, 1, 3, "auc", 0.5),
        Row(1.0, 1, 0, "from/10.auc", 0.25),
        Row(1.0, 1, 0, "from/4#2.auc", 0.5),
        Row(1.0, 1, 0, "from/4.auc", math.nan),
        Row(1.0, 1, 0, "from/4.tpr", 0.125),
    ]
    assert attacked_messages(rows, Participants(11)) == [
        {"round": 0, "attacker": 1, "victim": 4, "auc": None, "tpr": 0.125},
        {"round": 0, "attacker": 1, "victim": 4, "auc": 0.5},
        {"round": 0, "attacker": 1, "victim": 10, "auc": 0.25},
        {"round": 3, "attacker": 1, "victim": 4, "auc": 0.75},
    ]
    assert is_of_one_message("from/4.auc")
    assert not is_of_one_message("auc")


def test_what_several_tables_of_a_kind_find_is_numbered():
    def told(*attackers):
        return ran(attackers=list(attackers))[1]["attacks"]

    lies = [{"kind": "byzantine", "attack": attack, "nodes": [node]} for attack, node in (("ipm", 1), ("alie", 3))]
    curious = [{"kind": "membership", "nodes": [node], "scores": [score]} for node, score in ((0, "loss"), (2, "gap"))]
    found = told(*lies, *curious)
    assert list(found) == ["messages", "pooled", "byzantine", "byzantine#2", "final", "final#2"]
    assert [found[name]["attack"] for name in ("byzantine", "byzantine#2")] == ["ipm", "alie"]
    assert [found[name]["nodes"] for name in ("byzantine", "byzantine#2")] == [[1], [3]]
    assert found["final"] != found["final#2"]
    assert list(told(lies[0])) == ["messages", "pooled", "byzantine"]


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"byzantine", "attribute"}))
def test_a_node_attacks_but_once_in_one_way(kind):
    said = refusal({"kind": "linkability" if kind == "inversion" else "inversion"}, {"kind": kind}, {"kind": kind})
    assert said == (
        "attackers[2].nodes: node 0 attacks like this already, by attackers[1], whose figures these would replace; "
        "name other nodes"
    )


def test_a_node_may_attack_in_two_ways_and_two_nodes_in_one():
    curious = {"every": 1, "most": 9, "nodes": [0]}
    together = [{"kind": kind, **curious} for kind in ("linkability", "membership")]
    found = ran(attackers=[*together, {"kind": "linkability", **curious, "nodes": [1]}])[1]["attacks"]["messages"]
    assert {"linkability_rank", "membership_auc"} < set(found[0])
    assert {(m["attacker"], "membership_auc" in m) for m in found} == {(0, True), (1, False)}
    alone = ran(attackers=[together[0]])[1]["attacks"]["messages"]
    assert [m["linkability_rank"] for m in found if not m["attacker"]] == [m["linkability_rank"] for m in alone]


def test_a_free_name_is_kept_and_a_taken_one_numbered():
    assert numbered("a", {"b": 1}) == "a"
    assert numbered("a", {"a": 1}) == "a#2"
    assert numbered("a", ["a", "a#2"]) == "a#3"


def test_messages_of_a_single_victim_have_a_mean():
    attackers = [{"kind": "membership", "every": 1, "scores": ["loss"]}]
    found = ran(nodes=2, attackers=attackers)[1]["attacks"]
    aucs = [message["membership_auc"] for message in found["messages"]]
    assert len(aucs) == 4
    assert found["pooled"]["membership_auc"] == {"estimate": pytest.approx(np.mean(aucs)), "low": None, "high": None}


def test_rmia_may_be_tuned_on_a_reference_model(monkeypatch):
    asked = []

    def tuned(references, inside, of_population):
        asked.append((references.shape, inside.shape, of_population.shape, inside.mean()))
        return 1.0

    monkeypatch.setattr(rmia, "tuned_a", tuned)
    table = {"kind": "membership", "references": 4, "reference_epochs": 2, "every": 1, "most": 1, "final": False}
    aucs = []
    for attacker in (table, {**table, "tune_rmia": True}):
        tables = {"protocol": {"use": "dpsgd", "rounds": 1}, "training": {"local_steps": 30, "lr": 0.5}}
        _, summary = ran(attackers=[attacker], **tables)
        aucs.append(summary["attacks"]["messages"][0])
    ((on_pool, halves, points, share),) = asked
    assert on_pool == halves == (4, 90)
    assert (points[0], share) == (4, 0.5)
    assert aucs[0]["membership_rmia_auc"] != aucs[1]["membership_rmia_auc"]
    assert aucs[0]["membership_lira_auc"] == aucs[1]["membership_lira_auc"]


@pytest.mark.parametrize(
    ("data", "online", "trainings"),
    [({}, False, 1), ({}, True, 5), ({"groups": [3, 2]}, False, 2), ({"partition": "dirichlet"}, False, 5)],
)
def test_victims_of_one_distribution_have_reference_models_in_common(monkeypatch, data, online, trainings):
    pools = []

    def train(model, training, features, labels, inside, epochs, seed):
        pools.append(len(labels))
        return torch.stack([model.initial(seed + number) for number in range(len(inside))])

    monkeypatch.setattr(references, "train", train)
    table = {"kind": "membership", "references": 2, "online": online, "every": 9, "scores": ["loss"]}
    setup = prepare(config(data=data, attackers=[table]))
    models = {node: setup.model.initial(node) for node in range(5)}
    attack = setup.attacks[0]
    final = attack.judge(models)["final"]
    assert len(pools) == trainings
    backwards = prepare(config(data=data, attackers=[table])).attacks[0]
    for node in reversed(range(5)):
        leakage = backwards.leakage(backwards.scored(models[node], node))
        assert leakage["membership_lira_auc"] == final["nodes"][str(node)]["membership_lira_auc"], "in any order"


def test_pictures_are_put_together_pixel_by_pixel():
    rows = [
        Row(0.0, 1, 2, f"from/3.{what}.{i}", i + at) for what, at in (("picture", 0), ("original", 4)) for i in range(4)
    ]
    rows += [Row(0.0, 1, 2, f"from/5.picture.{i}", math.nan) for i in range(4)]
    assert attacked_messages(rows, Participants(11)) == []
    found = pictures(rows, (1, 2, 2)).to_pydict()
    assert found == {
        "round": [2],
        "attacker": [1],
        "victim": [3],
        "shape": [[1, 2, 2]],
        "reconstructed": [[0.0, 1.0, 2.0, 3.0]],
        "original": [[4.0, 5.0, 6.0, 7.0]],
    }
    assert pictures([], (1, 2, 2)) is None


# The truth


def truth(matched=False, **data):
    section = config(data=data).data
    federation = federate(section, 6, 3)
    return federation, Truth(federation, 3, matched=matched)


def rows_of(samples):
    return {row.tobytes() for row in samples.features.numpy()}


def test_members_and_the_parts_of_the_test_set_do_not_meet():
    federation, known = truth()
    members, others, pool, population = (
        rows_of(part(1)) for part in (known.members, known.non_members, known.pool, known.population)
    )
    assert len(known.non_members(1).labels) == len(federation.test.labels) // 2
    for one, other in ((members, others), (others, pool), (others, population), (pool, population), (members, pool)):
        assert not one & other
    sizes = [len(part(1).labels) for part in (known.non_members, known.pool, known.population)]
    assert sum(sizes) == len(federation.test.labels)
    assert rows_of(known.non_members(2)) == others


def test_skewed_nodes_get_non_members_of_their_own_labels():
    _, known = truth(matched=True, partition="dirichlet", alpha=0.1)
    for node in range(6):
        shares = [
            np.bincount(part(node).labels.numpy(), minlength=10) / len(part(node).labels)
            for part in (known.members, known.non_members)
        ]
        held = np.bincount(known.non_members(node).labels.numpy(), minlength=10)
        assert np.abs(shares[0] - shares[1]).sum() / 2 < 0.1 + 10 / held.sum()
    _, plain = truth(partition="dirichlet", alpha=0.1)
    assert len(plain.non_members(0).labels) > len(known.non_members(0).labels)


def test_groups_have_non_members_of_their_own():
    federation, known = truth(groups=[4, 2])
    assert rows_of(known.non_members(0)) == rows_of(known.non_members(3))
    turned = {np.rot90(row[0], 2).tobytes() for row in known.non_members(5).features.numpy()}
    assert turned <= {row[0].tobytes() for row in federation.own_test(0).features.numpy()}
    assert (known.group_of(0), known.group_of(5)) == (0, 1)


# Ops


def test_ops_of_two_attackers_are_told_apart_by_name_and_made_anew_elsewhere():
    tables = [
        {"kind": "membership"},
        {"kind": "membership", "scores": ["gap"], "nodes": [1]},
        {"kind": "reconstruction"},
    ]
    asked = config(attackers=tables)
    setup = prepare(asked)
    names = [made.name for attack in setup.attacks for made in attack.ops]
    assert len(set(names)) == len(names) == 4
    assert set(rebuild(asked.model_dump_json())) == {made.name for made in setup.ops}
    bases = {made.basis(None) for attack in setup.attacks for made in attack.ops}
    assert len(bases) == 1
    other = prepare(config(attackers=tables, seed=1))
    assert other.attacks[0].ops[0].basis(None) not in bases


@pytest.mark.parametrize("kind", ["processes", "batched"])
def test_attacks_measure_the_same_whatever_solves_them(kind):
    attackers = [{"kind": "membership", "every": 1, "scores": ["loss"]}]
    # The kernel is pinned: a trial takes the fastest while the test runs, and each has a rounding of its own.
    other = {"kind": "processes", "workers": 1} if kind == "processes" else {"kind": "batched", "kernel": "stacked"}
    inline, other = (ran(attackers=attackers, executor=one)[1]["attacks"] for one in ({"kind": "inline"}, other))
    assert [m.keys() for m in inline["messages"]] == [m.keys() for m in other["messages"]]
    for one, two in zip(inline["messages"], other["messages"], strict=True):
        assert two["membership_auc"] == pytest.approx(one["membership_auc"], abs=0 if kind == "processes" else 0.02)
