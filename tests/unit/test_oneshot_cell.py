"""A benchmark's cell: its figures against the run that they are of, what is shared and kept, and what fails."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from node.experiment.oneshot_cell import failed, keep, kept, solve
from node.experiment.oneshot_grid import FLOPS_PER_S, REFERENCES, Cell, Entrant, Setting
from node.experiment.setup import prepare
from node.experiment.simulation import simulation
from node.experiment.virtual import run_virtual
from node.learn.cost import inference_flops, training_flops
from node.learn.oneshot.judging import judged

QUICK = {"training": {"local_epochs": 2}}
SETTING = Setting("digits", "dirichlet(0.5)", clients=4, seed=3)
ROWS = {entrant.name: entrant for entrant in REFERENCES}


def cell(name="average", setting=SETTING, **more):
    entrant = ROWS.get(name) or Entrant(name, name, sets=QUICK, **more)
    if name in ROWS and "fedavg" not in name:
        entrant = Entrant(name, entrant.algorithm, sets=QUICK, division="reference", measures=entrant.measures)
    return Cell(entrant, setting)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def figures(folder):
    """Of a cell by its entrant's name, each solved once."""
    solved = {}

    def of(name):
        if name not in solved:
            record = solve(cell(name), folder)
            assert record["status"] == "finished", record["error"]
            solved[name] = record["figures"]
        return solved[name]

    return of


@pytest.fixture(scope="module")
def run():
    """What ``average`` comes to without the benchmark."""
    setup = prepare(cell().config())
    return setup, run_virtual(simulation(setup), lambda *_: None)


# Quality


def test_accuracy_is_that_of_the_run(figures, run):
    _, result = run
    assert figures("average")["accuracy"] == result.recorder.latest("accuracy")[0]


def test_accuracy_on_clients_own_classes(figures, run):
    setup, result = run
    test = setup.workload._federation.test
    found = judged(setup.model.logits(result.models[0], test.features).softmax(1), test.labels)
    held = np.array([setup.workload.label_histogram(node) for node in range(1, 5)])
    own = [sum(row[c] * found[f"recall_{c}"] for c in range(10)) / row.sum() for row in held]
    told = figures("average")
    assert told["client_accuracy"] == pytest.approx(np.mean(own))
    assert told["client_accuracy_std"] == pytest.approx(np.std(own))
    assert told["worst_client"] == pytest.approx(min(own))
    assert told["worst_client"] <= told["lowest_tenth"] <= told["client_accuracy"]


def test_single_clients_are_judged_on_the_whole_test_set(figures, run):
    setup, result = run
    test = setup.workload._federation.test
    accuracy = [
        float((setup.model.logits(result.models[node], test.features).argmax(1) == test.labels).double().mean())
        for node in range(1, 5)
    ]
    assert figures("best client")["accuracy"] == pytest.approx(max(accuracy))
    assert figures("worst client")["accuracy"] == pytest.approx(min(accuracy))
    assert figures("mean client")["accuracy"] == pytest.approx(np.mean(accuracy))


def test_a_client_does_better_on_its_own_classes(figures):
    assert figures("mean client")["client_accuracy"] > figures("mean client")["accuracy"]


def test_data_in_one_place_costs_no_messages(figures):
    central = figures("centralised")
    assert central["up_bytes"] == central["messages"] == 0
    assert central["accuracy"] > figures("mean client")["accuracy"]


def test_many_rounds_are_judged_alike(figures):
    many = figures("fedavg 10 rounds")
    assert {"ece", "worst_client", "accuracy", "up_bytes", "down_bytes"} <= many.keys()
    assert many["up_bytes"] > 9 * figures("average")["up_bytes"]
    assert many["down_bytes"] > many["up_bytes"]


# Costs


def test_bytes_are_those_of_all_messages(figures, run):
    _, result = run
    told = figures("average")
    assert told["in_bytes"] == result.bytes_sent == 4 * told["up_bytes"]
    assert told["up_bytes_max"] == told["up_bytes"]
    assert told["down_bytes"] == told["out_bytes"] == 0
    assert told["messages"] == result.messages == 4
    assert 30_040 < told["up_bytes"] < 30_040 + 100


def test_seconds_tell_flops(figures, run):
    setup, _ = run
    flops = training_flops(setup.model, setup.workload.sample_shape)
    samples = [2 * setup.workload.shard_size(node) for node in range(1, 5)]
    told = figures("average")
    assert told["client_flops"] == pytest.approx(np.mean(samples) * flops)
    assert told["client_s_max"] == pytest.approx(max(samples) * flops / FLOPS_PER_S)
    assert told["aggregator_flops"] == pytest.approx(2 * 4 * setup.model.dimension)


def test_an_ensemble_weighs_as_much_as_its_members(figures, run):
    setup, _ = run
    one = inference_flops(setup.model, setup.workload.sample_shape)
    mean, ensemble = figures("average"), figures("ensemble-probabilities")
    assert mean["result_bytes"] == 4 * setup.model.dimension
    assert mean["inference_flops"] == one
    assert ensemble["result_bytes"] == 4 * 4 * (setup.model.dimension + 10)
    assert ensemble["inference_flops"] == 4 * one


def test_what_streams_is_held_once(figures):
    assert figures("average")["state_bytes"] == figures("average")["up_bytes"]
    assert figures("ties")["state_bytes"] == figures("ties")["in_bytes"]


# Sharing and keeping


def test_entrants_of_a_setting_share_its_training(figures, folder):
    figures("average")
    packs = set(folder.rglob("*.pack"))
    seen = []
    other = Cell(Entrant("weighted-average", "weighted-average", sets=QUICK), SETTING)
    config = other.config()
    (shared,) = [path for path in folder.iterdir() if any(path.glob("*.pack"))]
    cached = config.model_copy(update={"executor": config.executor.model_copy(update={"cache": str(shared)})})
    result = run_virtual(simulation(prepare(cached)), lambda *_: None, watcher=lambda *told: seen.append(told))
    assert packs
    assert result.graph["reused"] >= 4
    assert any(kind == "train" for _, kind, _, _ in seen)  # its virtual time passes all the same


def test_damage_changes_nobodys_training(tmp_path):
    solve(cell(), tmp_path)
    (shared,) = tmp_path.iterdir()
    trained = sum(path.stat().st_size for path in shared.iterdir())
    hit = solve(cell(setting=replace(SETTING, damage="drop 1")), tmp_path)
    assert [*tmp_path.iterdir()] == [shared]
    added = sum(path.stat().st_size for path in shared.iterdir()) - trained
    assert added < trained / 2  # the mean of the others, and no model of theirs
    assert hit["figures"] == solve(cell(setting=replace(SETTING, damage="drop 1")), tmp_path / "anew")["figures"]


def test_a_cell_is_the_same_to_the_digit_with_and_without_a_cache(tmp_path):
    one, other = solve(cell("ties"), tmp_path / "a"), solve(cell("ties"), tmp_path / "b")
    again = solve(cell("ties"), tmp_path / "a")
    assert json.dumps(one) == json.dumps(other) == json.dumps(again)


def test_what_is_kept_is_read_back(tmp_path, folder):
    record = solve(cell(), folder)
    keep(cell(), record, tmp_path)
    assert kept(cell(), tmp_path) == record
    assert kept(cell("ties"), tmp_path) is None
    assert kept(cell(setting=Setting("digits", "iid", 4)), tmp_path) is None


def test_settings_that_are_one_experiment_are_kept_apart(tmp_path, folder):
    """All data in one place have nobody to lose, and stay what they are wherever others lose somebody."""
    whole = cell("centralised", SETTING)
    hit = replace(whole, setting=replace(SETTING, damage="drop 1"))
    assert whole.config() == hit.config()
    for each in (whole, hit):
        keep(each, solve(each, folder), tmp_path)
    assert [kept(each, tmp_path)["setting"]["damage"] for each in (whole, hit)] == ["", "drop 1"]


def test_a_cell_of_a_file_is_solved_again_when_that_has_changed(tmp_path):
    path, folder = tmp_path / "own.csv", tmp_path / "cells"
    folder.mkdir()
    own = cell(setting=Setting(str(path), "iid", 4))
    path.write_text("a,label\n1,0\n2,1\n")
    keep(own, {"status": "finished"}, folder)
    assert kept(own, folder) == {"status": "finished"}
    path.write_text("a,label\n1,0\n2,1\n3,1\n")
    assert kept(own, folder) is None
    path.unlink()
    assert kept(own, folder) is None


def test_half_a_file_counts_as_none(tmp_path, folder):
    keep(cell(), solve(cell(), folder), tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_text(path.read_text()[:50])
    assert kept(cell(), tmp_path) is None


def test_failures_are_told_and_tried_again(tmp_path):
    record = failed(cell(), "no such thing")
    keep(cell(), record, tmp_path)
    assert record["figures"] == {}
    assert record["error"] == "no such thing"
    assert kept(cell(), tmp_path) is None


# Damage


def test_dropped_clients_are_no_part_of_the_result(folder):
    whole = solve(cell(), folder)["figures"]
    hit = solve(cell(setting=Setting("digits", "dirichlet(0.5)", 4, 3, "drop 2")), folder)
    assert hit["status"] == "finished"
    assert hit["figures"]["uploads"] == 2
    assert hit["figures"]["in_bytes"] == whole["in_bytes"] / 2
    assert hit["setting"]["damage"] == "drop 2"


def test_liars_change_the_result(folder):
    lied = solve(cell(setting=Setting("digits", "dirichlet(0.5)", 4, 3, "sign-flip 1")), folder)["figures"]
    assert lied["uploads"] == 4
    assert lied["accuracy"] != solve(cell(), folder)["figures"]["accuracy"]


def test_every_figure_is_a_number_that_json_knows(figures):
    for name in ("average", "ensemble-vote", "mean client", "fedavg 1 round"):
        assert all(math.isfinite(value) for value in figures(name).values())
