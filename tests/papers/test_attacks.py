"""Attackers among the nodes of whole runs, against what theory or the papers lead one to expect."""

from __future__ import annotations

import networkx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from node.cli.attack import findings
from node.config import ExperimentConfig
from node.experiment.attacking import pictures
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.op import Key, Task

OVERFIT = {
    "nodes": 6,
    "seed": 1,
    "topology": {"kind": "ring"},
    "data": {"test_fraction": 0.85},
    "model": {"name": "mlp", "hidden": [64]},
    "training": {"lr": 0.1, "local_steps": 20, "batch_size": 16},
}


def ran(kind, protocol="dpsgd", rounds=5, *, by=(0,), options=None, **tables):
    """A finished simulation with one attacker, and what it has measured."""
    attackers = [{"kind": kind, "nodes": by, **(options or {})}]
    config = ExperimentConfig.model_validate(
        OVERFIT
        | {
            "protocol": protocol if isinstance(protocol, dict) else {"use": protocol, "rounds": rounds},
            "attackers": attackers,
        }
        | tables
    )
    setup = prepare(config)
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished", result.error
    return setup, result, result.summary(setup)["attacks"]


def mean(messages, metric):
    return float(np.mean([message[metric] for message in messages]))


# Membership


def test_local_models_that_overfit_give_their_members_away():
    """Personalization, section 6.1: local models of few samples have a loss AUC near .85, D-PSGD's near .53."""
    _, _, local = ran("membership", "local", rounds=10)
    _, _, mixed = ran("membership", rounds=10, topology={"kind": "full"})
    assert 0.62 < local["final"]["mean"]["membership_auc"] < 0.95
    assert mixed["final"]["mean"]["membership_auc"] < local["final"]["mean"]["membership_auc"] - 0.05


def test_an_untrained_model_tells_nothing():
    setup, _, _ = ran("membership", rounds=1)
    attack = setup.attacks[0]
    models = {node: setup.model.initial(node) for node in range(6)}
    final = attack.judge(models)["final"]
    for name in ("membership_auc", "membership_gap_auc", "membership_modified_entropy_auc"):
        assert 0.42 < final["mean"][name] < 0.58, name
    assert final["epsilon_at_least"] == 0


def test_what_leaks_is_told_with_intervals():
    setup, result, attacks = ran("membership", rounds=5, options={"every": 1, "most": 9}, topology={"kind": "full"})
    assert result.summary(setup)["attacks"]["pooled"] == attacks["pooled"]
    of_messages = attacks["pooled"]["membership_auc"]
    assert of_messages["estimate"] == pytest.approx(mean(attacks["messages"], "membership_auc"))
    assert {"membership_tpr_1pct", "membership_gap_auc"} <= attacks["pooled"].keys()
    for figures in (*attacks["pooled"].values(), *attacks["final"]["pooled"].values()):
        assert figures["low"] <= figures["estimate"] <= figures["high"]
    final = attacks["final"]["pooled"]["membership_auc"]
    assert 0.01 < final["high"] - final["low"] < 0.2
    lines = list(findings(attacks))
    assert any(line.strip().startswith("membership_auc") and "95% interval" in line for line in lines)
    assert any("all samples" in line and "95% interval" in line for line in lines)


def test_the_course_of_a_victims_messages_tells_its_members():
    options = {"every": 1, "most": 9, "scores": ["loss"], "trajectory": True}
    tables = {"nodes": 4, "topology": {"kind": "full"}, "data": {"test_fraction": 0.6}}
    _, _, attacks = ran("membership", rounds=5, options=options, **tables)
    told = [m for m in attacks["messages"] if "membership_trajectory_auc" in m]
    assert [(m["round"], m["victim"]) for m in told] == [(4, 1), (4, 2), (4, 3)]
    assert mean(told, "membership_trajectory_auc") > 0.5
    _, _, short = ran("membership", rounds=2, options=options, **tables)
    assert not any("membership_trajectory_auc" in m for m in short["messages"])


def test_what_is_sent_before_mixing_leaks_more_than_what_is_kept_after():
    _, _, attacks = ran("membership", rounds=9, options={"every": 4, "most": 2}, topology={"kind": "full"})
    sent = mean(attacks["messages"], "membership_auc")
    assert sent > attacks["final"]["mean"]["membership_auc"]
    assert [message["round"] for message in attacks["messages"]] == [0, 0, 4, 4, 8, 8]


@pytest.mark.parametrize("online", [False, True])
def test_reference_models_add_their_scores(online):
    options = {"every": 4, "most": 1, "references": 8, "online": online, "reference_epochs": 10}
    _, _, attacks = ran("membership", rounds=5, options=options)
    final = attacks["final"]["mean"]
    for name in ("membership_lira_auc", "membership_rmia_auc"):
        assert 0.45 < final[name] < 0.95
        assert name in attacks["messages"][0]
    scores = [value for name, value in attacks["messages"][0].items() if name.endswith("_auc") and "best" not in name]
    assert attacks["messages"][0]["membership_best_auc"] == max(scores)


def test_groups_and_the_worst_node_are_told_apart():
    _, _, attacks = ran("membership", data={"groups": [4, 2], "test_fraction": 0.85}, rounds=3)
    final = attacks["final"]
    assert {name: figures["nodes"] for name, figures in final["groups"].items()} == {"0": 4, "1": 2}
    of = [final["nodes"][str(node)]["membership_auc"] for node in range(6)]
    assert final["groups"]["1"]["membership_auc"] == pytest.approx(np.mean(of[4:]))
    assert final["mean"]["membership_auc"] == pytest.approx(np.mean(of))
    best = [final["nodes"][str(node)]["membership_best_auc"] for node in range(6)]
    assert final["worst"]["node"] == int(np.argmax(best))
    assert final["roc"]["fpr"][-1] == final["roc"]["tpr"][-1] == 1.0


def test_a_model_that_is_no_numbers_is_no_failure():
    setup, _, _ = ran("membership", rounds=1)
    model = setup.model.initial(0)
    final = setup.attacks[0].judge({0: model, 1: torch.full_like(model, torch.nan)})["final"]
    assert final["nodes"]["1"]["membership_auc"] is None
    assert final["mean"]["membership_auc"] == final["nodes"]["0"]["membership_auc"]


# Linkability: attacks, section 5.5


def test_models_are_linked_to_their_trainers_better_where_data_are_skewed():
    def linked(alpha):
        data = {"partition": "dirichlet", "alpha": alpha, "test_fraction": 0.3}
        _, _, attacks = ran("linkability", "epidemic", 6, data=data, by=(0, 3), options={"every": 1}, seed=2)
        return mean(attacks["messages"], "linkability_accuracy"), attacks["linkability"]["chance"]

    (skewed, chance), (even, _) = linked(0.1), linked(100)
    assert chance == 0.2
    assert skewed >= 0.6
    assert skewed >= even


def test_chunks_are_harder_to_link_than_models():
    """Shatter: linkability falls with the number of chunks."""

    def linked(chunks):
        protocol = {"use": "shatter", "rounds": 5, "chunks": chunks, "degree": 2}
        data = {"partition": "dirichlet", "alpha": 0.1, "test_fraction": 0.3}
        options = {"every": 1, "most": 6}
        _, _, attacks = ran("linkability", data=data, options=options, seed=2, nodes=8, protocol=protocol)
        assert all(message["victim"] != message["attacker"] for message in attacks["messages"])
        return mean(attacks["messages"], "linkability_accuracy")

    few, many = linked(2), linked(16)
    assert few >= 0.6
    assert many <= few - 0.3


# Inversion: attacks, section 4


def test_one_step_on_one_image_gives_it_away(tmp_path):
    training = {"lr": 0.1, "local_steps": 1, "batch_size": 1}
    setup, result, attacks = ran(
        "inversion", rounds=2, training=training, options={"every": 1, "most": 2}, topology={"kind": "full"}
    )
    first = [message for message in attacks["messages"] if message["round"] == 0]
    assert len(first) == 2
    for message in first:
        assert message["inversion_psnr"] > 60
        assert message["inversion_labels"] == message["inversion_recovered"] == 1.0
    table = pictures(result.recorder.rows(), setup.workload.sample_shape)
    pq.write_table(table, tmp_path / "pictures.parquet")
    found, real = (np.array(table.column(name).to_pylist()) for name in ("reconstructed", "original"))
    assert np.abs(found - real)[:2].max() < 1e-3
    held = setup.attacks[0].scene.truth.members(attacks["messages"][0]["victim"]).features.numpy().reshape(-1, 64)
    assert any(np.array_equal(row, real[0].astype(np.float32)) for row in held)
    assert "picture.0" not in result.summary(setup)["metrics"]


def test_more_images_and_more_steps_are_harder():
    def psnr(**training):
        options = {"every": 9, "most": 1, "iterations": 60}
        _, _, attacks = ran("inversion", rounds=1, training={"lr": 0.1, **training}, options=options)
        return mean(attacks["messages"], "inversion_psnr")

    exact, batch, steps = (
        psnr(local_steps=1, batch_size=1),
        psnr(local_steps=1, batch_size=4),
        psnr(local_steps=3, batch_size=2),
    )
    assert exact > batch + 20
    assert exact > steps + 20


@pytest.mark.parametrize(("chunks", "is_recovered"), [(2, True), (16, False)])
def test_chunks_are_matched_where_the_public_partition_says(chunks, is_recovered):
    """Shatter: half of the coordinates still give an image away; fewer than the image has pixels do not."""
    _, _, attacks = ran(
        "inversion",
        {"use": "shatter", "rounds": 1, "chunks": chunks, "degree": 2},
        options={"every": 1, "most": 2, "restarts": 2, "iterations": 600 if is_recovered else 60},
        data={"test_fraction": 0.8},
        model={"name": "softmax"},
        training={"lr": 0.1, "batch_size": 1, "local_steps": 1},
        seed=1,
    )
    psnr = [message["inversion_psnr"] for message in attacks["messages"]]
    assert len(psnr) == 2
    assert all(db > 40 if is_recovered else db < 20 for db in psnr), psnr


def test_a_core_alone_is_matched_where_it_was_observed():
    options = {"every": 9, "most": 1, "iterations": 40}
    training = {"lr": 0.1, "local_steps": 1, "batch_size": 1}
    _, _, attacks = ran("inversion", "fedper", 1, training=training, options=options)
    assert np.isfinite(mean(attacks["messages"], "inversion_psnr"))


# Reconstruction: attacks, section 5.1


def test_on_a_ring_of_eight_two_rounds_recover_the_four_nodes_within_two_hops():
    _, _, attacks = ran("reconstruction", rounds=3, by=(2,), options={"rounds": 2}, nodes=8)
    distance = networkx.single_source_shortest_path_length(networkx.cycle_graph(8), 2)
    assert len(attacks["messages"]) == 7
    for message in attacks["messages"]:
        assert message["reconstruction_recovered"] == (distance[message["victim"]] <= 2), message
        assert message["round"] == 1
    assert attacks["reconstruction"] == {f"recovered_at_{hops}": float(hops <= 2) for hops in range(1, 5)}


def test_constant_updates_come_back_exactly():
    """What D-PSGD sends while every node's update stays the same, gives back those within reach, to the last digits."""
    setup, _, _ = ran("reconstruction", rounds=1, by=(2,), options={"rounds": 3}, nodes=8)
    attack, mixing = setup.attacks[0], setup.topology.matrix()
    rng = np.random.default_rng(5)
    start, updates = rng.normal(size=setup.model.dimension), rng.normal(size=(8, setup.model.dimension))
    models, sent = np.tile(start, (8, 1)), []
    for _ in range(3):
        sent.append(models + updates)
        models = mixing @ sent[-1]
    heard = tuple((round, sender) for round in range(3) for sender in (1, 3))
    inputs = [start, *(sent[round][2] for round in range(3)), *(sent[round][sender] for round, sender in heard)]
    task = Task(
        tuple(torch.from_numpy(value) for value in inputs), {"attacker": 2, "heard": heard, "rounds": 3}, Key(0, 2, 0)
    )
    found = attack.solving.solve(task).numpy()
    others = [node for node in range(8) if node != 2]
    error = {node: np.abs(found[i] - updates[node]).max() for i, node in enumerate(others)}
    assert max(error[node] for node in (0, 1, 3, 4, 5, 7)) < 1e-4
    assert error[6] > 0.1


# Byzantine nodes: attacks, section 6


def honest(attack, **options):
    topology = {"kind": "full"}
    return ran("byzantine", rounds=6, by=(1, 4), options={"attack": attack, **options}, topology=topology, data={})[2]


def test_lies_harm_the_honest_and_are_counted_among_their_neighbours():
    harmless = honest("mimic")["byzantine"]
    assert harmless["honest_accuracy"] > 0.8
    for attack, options in (("gaussian", {}), ("sign-flip", {}), ("ipm", {"epsilon": 2.0, "omniscient": True})):
        found = honest(attack, **options)["byzantine"]
        assert found["honest_accuracy"] < harmless["honest_accuracy"] - 0.2, attack
        assert found["liars_heard"] == {"2": 4}
        assert (found["attack"], found["nodes"]) == (attack, [1, 4])
        assert "success_rate" not in found


def test_bad_data_are_the_attackers_own_and_a_backdoor_opens():
    flipped = ran("byzantine", rounds=1, by=(1,), options={"attack": "label-flip"})[0].attacks[0].scene
    plain = ran("membership", rounds=1)[0].attacks[0].scene
    for node in range(6):
        labels, others = (scene.truth.members(node).labels for scene in (flipped, plain))
        assert torch.equal(labels, 9 - others if node == 1 else others)
    opened = honest("backdoor", fraction=0.5, target=3)["byzantine"]
    boosted = honest("backdoor", fraction=0.5, target=3, boost=0.5)["byzantine"]
    assert opened["honest_accuracy"] > 0.7
    assert boosted["success_rate"] > opened["success_rate"] > 0.2


# Attributes: attacks, section 5.4


@pytest.mark.parametrize("method", ["losses", "outputs"])
def test_a_model_tells_of_attributes_beyond_the_baseline(method):
    data = {"name": "breast_cancer", "test_fraction": 0.2}
    options = {"every": 7, "most": 2, "column": 0, "method": method}
    _, _, attacks = ran("attribute", rounds=8, data=data, options=options, nodes=4)
    messages = attacks["messages"]
    for message in messages:
        lift = message["attribute_accuracy"] - message["attribute_baseline"]
        assert message["attribute_lift"] == pytest.approx(lift)
    if method == "losses":
        assert mean(messages, "attribute_lift") > 0.1
    else:
        assert abs(mean(messages, "attribute_lift")) < 0.2
