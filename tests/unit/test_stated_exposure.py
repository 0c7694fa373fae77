"""What a run's summary states of what nodes have learned of each other, without a second command."""

from __future__ import annotations

import json
import math
from types import SimpleNamespace

import pytest

from launch import experiment
from logged import FULL, Averaging, Noise, simulate, steps_of
from node.cli.main import main
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment import exposure
from node.experiment.exposure import MOST_LOGGED, figures, is_logged, needs_log, stated
from node.experiment.folder import LINEAGE
from node.experiment.setup import find_protocol, prepare
from node.experiment.sweep import Point, row
from node.privacy import gaussian
from node.privacy.exposure import of_each
from node.privacy.from_run import told

NETWORK = {
    "muffliato": {"clip": 0.5, "noise": 0.2, "gossip_rounds": 2},
    "zipdl": {"clip": 0.5, "noise": 0.2},
    "decor": {"clip": 0.5, "noise": 0.2, "pairwise": 0.4},
}


def config_of(use="muffliato", nodes=8, privacy=None, lineage=False, **options):
    tables = {"protocol": {"use": use, **options}, "privacy": privacy or {}, "record": {"lineage": lineage}}
    return ExperimentConfig.model_validate({"nodes": nodes, **tables})


def asked(config):
    return config, *find_protocol(config)


# Who keeps a log


@pytest.mark.parametrize("use", NETWORK)
def test_noise_that_only_a_log_can_account_for_is_logged_unasked(use):
    assert is_logged(*asked(config_of(use, rounds=10)))
    assert not is_logged(*asked(config_of(use, rounds=10, noise=0.0)))


@pytest.mark.parametrize("use", ["dpsgd", "secagg", "shatter"])
def test_others_are_logged_where_they_are_asked_to(use):
    assert not is_logged(*asked(config_of(use)))
    assert is_logged(*asked(config_of(use, lineage=True)))


def test_what_protects_single_records_needs_no_log():
    protected = config_of(privacy={"mechanism": "record"})
    assert not needs_log(*asked(protected))
    assert not is_logged(*asked(protected))


def test_a_long_log_is_kept_only_where_it_is_asked_for():
    longest = MOST_LOGGED // (8 * 5)
    assert is_logged(*asked(config_of(rounds=longest, gossip_rounds=5)))
    assert not is_logged(*asked(config_of(rounds=longest + 1, gossip_rounds=5)))
    assert not is_logged(*asked(config_of(nodes=301, rounds=1, gossip_rounds=1)))
    assert is_logged(*asked(config_of(rounds=longest + 1, gossip_rounds=5, lineage=True)))


# What it says


@pytest.fixture(scope="module")
def noised(tmp_path_factory):
    """The folder of a log in which noised updates have been averaged twice on a ring."""
    folder = tmp_path_factory.mktemp("noised")
    simulate(folder, lambda: Averaging(Averaging.Config(rounds=2)), mods=[Noise()])
    return folder / LINEAGE


def test_figures_over_pairs_and_by_distance(noised):
    said = stated(noised, "finished", *asked(config_of("dpsgd", lineage=True, privacy={"delta": 1e-6})))
    words = ("unit", "adjacency", "view", "delta", "conversion", "label", "clipped", "contributions")
    assert [said[word] for word in words] == [
        *("node", "replace_one", "T1", 1e-6, "gdp", "exact (non-adaptive)", True, "one")
    ]
    assert [(ring["distance"], ring["pairs"]) for ring in said["distances"]] == [(1, 16), (2, 16), (3, 16), (4, 8)]
    assert said["mu"] == {"mean": pytest.approx(2 * 32 / 56), "max": pytest.approx(2.0)}
    assert said["epsilon"]["max"] == pytest.approx(gaussian.epsilon_of(2.0, 1e-6))
    assert said["epsilon"]["mean"] == pytest.approx(said["epsilon"]["max"] * 32 / 56)
    assert said["worst"]["epsilon"] == said["epsilon"]["max"]
    assert json.loads(json.dumps(said, allow_nan=False))["mu"] == said["mu"]


def test_without_clipping_there_is_no_epsilon(tmp_path):
    happened = told(steps_of(tmp_path, lambda: Averaging(Averaging.Config(rounds=1)), nodes=3, topology=FULL))
    said = figures(of_each(happened, 1e-5, "replace_one"))
    assert (said["clipped"], said["epsilon"]) == (False, {"mean": None, "max": None})
    assert said["mu"] == {"mean": None, "max": None}


def test_what_the_log_lacks_is_part_of_it(noised):
    happened = told(steps_of_log(noised))
    said = figures(of_each(happened, 1e-5, "replace_one"), ["2-0.jsonl is missing"])
    assert (said["label"], said["missing"]) == ("incomplete (non-adaptive)", ["2-0.jsonl is missing"])


def steps_of_log(folder):
    return exposure.provenance.read(folder)


# What is left out


def test_what_protects_records_says_nothing_of_pairs(noised):
    assert stated(noised, "finished", *asked(config_of("dpsgd", lineage=True, privacy={"mechanism": "record"}))) == {}


def test_what_noises_nothing_and_was_not_asked_says_nothing(noised):
    assert stated(noised, "finished", *asked(config_of("dpsgd"))) == {}


def test_a_log_that_was_not_kept_tells_how_to_get_it(noised):
    said = stated(noised, "finished", *asked(config_of(nodes=500)))
    assert "record.lineage = true" in said["left_out"]
    assert "starling privacy network" in said["left_out"]


@pytest.mark.parametrize(("limit", "value"), [("MOST_WORK", 1000.0), ("MOST_NODES", 7)])
def test_too_much_work_is_left_to_who_asks_for_it(noised, monkeypatch, limit, value):
    monkeypatch.setattr(exposure, limit, value)
    said = stated(noised, "finished", *asked(config_of("dpsgd", lineage=True)))
    assert set(said) == {"left_out"}
    assert said["left_out"].startswith("8 nodes and ")
    assert said["left_out"].endswith("`starling privacy network` with the run's folder tells it")


def test_a_log_that_cannot_be_told_says_why(tmp_path):
    said = stated(tmp_path, "finished", *asked(config_of("dpsgd", lineage=True)))
    assert "there is no log of who made and received what" in said["left_out"]


def test_whoever_does_not_want_to_wait_keeps_the_rest(noised, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(exposure, "of_each", interrupted)
    said = stated(noised, "finished", *asked(config_of("dpsgd", lineage=True)))
    assert said["left_out"].startswith("interrupted; ")


# From the experiment's file to the report


@pytest.fixture
def run(tmp_path, capfd):
    def started(**tables):
        file = experiment(tmp_path, nodes=8, **tables)
        with pytest.raises(SystemExit) as ended:
            main(["run", str(tmp_path / file), "--out", str(tmp_path / "run")])
        told = json.loads((tmp_path / "run" / "summary.json").read_text())
        return SimpleNamespace(
            code=ended.value.code or 0, summary=told, said=capfd.readouterr().out, folder=tmp_path / "run"
        )

    return started


@pytest.mark.parametrize("use", NETWORK)
def test_a_run_of_a_network_mechanism_states_its_privacy(run, use):
    ended = run(protocol={"use": use, "rounds": 2, **NETWORK[use]}, topology={"kind": "ring"})
    network = ended.summary["privacy"]["network"]
    assert (ended.code, network["clipped"], network["label"]) == (0, True, "exact (non-adaptive)")
    assert 0 < network["mu"]["mean"] <= network["mu"]["max"] < math.inf
    assert sum(ring["pairs"] for ring in network["distances"]) == 8 * 7
    near, *_, far = (ring["mu_mean"] for ring in network["distances"])
    assert far <= near
    assert ended.summary["privacy"]["mechanism"] == "none"
    epsilon = network["epsilon"]
    shown = f"{epsilon['max']:.4g} for the worst pair, {epsilon['mean']:.4g} on average (per node, replace-one, T1"
    assert f"what nodes learn of each other, epsilon: {shown}" in ended.said
    report = (ended.folder / "report.html").read_text()
    assert shown in report
    assert "keys: whoever knows the seed can draw them again" in report


def test_a_node_that_noises_its_updates_has_both_guarantees(run):
    private = {"mechanism": "node", "noise_multiplier": 2.0}
    ended = run(protocol={"use": "dpsgd", "rounds": 2}, privacy=private, record={"lineage": True})
    privacy = ended.summary["privacy"]
    assert (privacy["unit"], privacy["network"]["unit"]) == ("node", "node")
    assert privacy["network"]["mu"]["max"] <= 2 / 2.0 * math.sqrt(2) + 1e-9
    assert "noise: whoever knows the seed can draw them again" in (ended.folder / "report.html").read_text()


def test_what_is_public_is_in_the_report(run):
    ended = run(protocol={"use": "dpsgd", "rounds": 1}, privacy={"mechanism": "record"})
    assert "network" not in ended.summary["privacy"]
    assert "number of records of each node" in (ended.folder / "report.html").read_text()


def test_what_is_left_out_is_said(run):
    """FACADE's heads are nothing that the accountant knows."""
    ended = run(protocol={"use": "facade", "rounds": 2, "heads": 2}, record={"lineage": True})
    assert set(ended.summary["privacy"]["network"]) == {"left_out"}
    assert "what nodes learn of each other, not accounted: op " in ended.said


def test_a_run_that_did_not_finish_is_not_accounted(run):
    budget = {"mechanism": "node", "noise_multiplier": 2.0, "epsilon": 5.0}
    ended = run(protocol={"use": "dpsgd", "rounds": 30}, privacy=budget, record={"lineage": True})
    assert (ended.code, ended.summary["status"]) == (3, "failed")
    assert ended.summary["privacy"]["network"]["left_out"].startswith("the run did not finish; ")


def test_zip_dls_clipping_cuts_updates_and_no_noise_of_others(run):
    clipped = run(protocol={"use": "zipdl", "rounds": 2, "clip": 0.5, "noise": 0.2})
    assert "guarantees nothing" not in clipped.said
    bare = run(protocol={"use": "zipdl", "rounds": 2, "noise": 0.2})
    assert bare.summary["privacy"]["network"]["epsilon"] == {"mean": None, "max": None}
    assert "no guarantee: updates are not clipped" in bare.said
    tables = {"protocol": {"use": "zipdl", "clip": 0.5}, "privacy": {"mechanism": "node"}}
    with pytest.raises(ConfigError, match=r"protocol.clip: would cut noise"):
        prepare(ExperimentConfig.model_validate({"nodes": 8, **tables}))


# In a sweep's table


def test_the_sweeps_table_has_both_epsilons():
    point = Point("point", {"seed": "1"}, ExperimentConfig())
    privacy = {
        "epsilon": {"mean": 1.5, "max": None},
        "network": {"epsilon": {"mean": 0.5, "max": 2.5}},
    }
    told = row(point, {"metrics": {}, "privacy": privacy})
    names = ("epsilon_mean", "epsilon_max", "epsilon_pair_mean", "epsilon_pair_max")
    assert [told[name] for name in names] == [1.5, math.inf, 0.5, 2.5]
    bare = row(point, {"metrics": {}, "privacy": {"network": {"left_out": "why"}}})
    assert not any(name in bare for name in names)
    assert not any(name in row(point, {"metrics": {}}) for name in names)
