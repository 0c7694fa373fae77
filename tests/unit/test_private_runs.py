"""Simulated runs with privacy: the same in every executor, ended by budgets, told with all that an epsilon means."""

import json
import math
from types import SimpleNamespace

import numpy as np
import pytest

from node.cli import running
from node.cli.figures import key_figures, privacy_figures
from node.cli.progress import Progress
from node.cli.report import write_report
from node.cli.runs import load_run
from node.cli.summary import Summary
from node.config import ExperimentConfig
from node.errors import BudgetSpent
from node.experiment.loading import load
from node.experiment.real import _gather
from node.experiment.result import Result, write_run
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.live.channel import Work
from node.privacy.budget import NodeAccountant
from node.record import Recorder

SMALL = ["nodes=6", "topology.degree=2", "model.hidden=[8]", "training.local_steps=2", "protocol.rounds=3"]
RECORD = ["privacy.mechanism=record", "privacy.noise_multiplier=2"]
NODE = ["privacy.mechanism=node", "privacy.accountant=gdp", "privacy.noise_multiplier=3"]
TIGHT = [*RECORD, "privacy.epsilon=1.0", "protocol.rounds=40"]


def simulated(*overrides):
    setup = prepare(load("digits-gossip", ["clock=virtual", *SMALL, *overrides], {}))
    return setup, run_virtual(setup, lambda *_: None)


def models(result):
    found = {node: np.asarray(model).tobytes() for node, model in result.models.items()}
    result.close()
    return found


def summarised(*overrides):
    setup, result = simulated(*overrides)
    return result.summary(setup)


# The same everywhere


@pytest.mark.parametrize("mechanism", [RECORD, NODE], ids=["record", "node"])
def test_every_executor_ends_with_the_same_models(mechanism):
    kernel = ["executor.kernel=loop"]  # what noised updates are made of is trained by a kernel
    arms = {
        "inline": [],
        "batched": ["executor.kind=batched", *kernel],
        "processes": ["executor.kind=processes", "executor.workers=2"],
    }
    found = {name: models(simulated(*mechanism, *keys)[1]) for name, keys in arms.items()}
    assert found["inline"] == found["batched"] == found["processes"]
    assert found["inline"] != models(simulated()[1])


def test_noise_follows_the_seed_or_nothing():
    assert models(simulated(*RECORD)[1]) == models(simulated(*RECORD)[1])
    assert models(simulated(*RECORD)[1]) != models(simulated(*RECORD, "seed=8")[1])
    secret = [models(simulated(*RECORD, "privacy.noise=secret")[1]) for _ in range(2)]
    assert secret[0] != secret[1]


def test_what_is_kept_is_found_again(tmp_path):
    cached = [*RECORD, f"executor.cache={tmp_path}"]
    _, first = simulated(*cached)
    _, second = simulated(*cached)
    assert (first.run_hash, second.graph["solved"]) == (second.run_hash, 0)
    assert simulated(*cached, "privacy.clip=0.5")[1].run_hash != first.run_hash


def test_time_passes_as_for_batches_of_the_expected_size():
    _, private = simulated(*RECORD)
    _, plain = simulated()
    assert private.time_s == plain.time_s


# What is told


def test_every_round_says_what_was_spent_until_then():
    setup, result = simulated(*RECORD)
    rows = [row for row in result.recorder.rows() if row.metric == "epsilon"]
    assert len(rows) == 6 * 3
    for row in rows:
        accountant = NodeAccountant()
        accountant.step(2.0, 16 / setup.workload.shard_size(row.node), 2 * (row.round + 1))
        assert row.value == accountant.epsilon(1e-5)


def test_the_summary_says_all_that_an_epsilon_means():
    summary = summarised(*RECORD, "privacy.view=T3", "privacy.clip=0.5", "privacy.epsilon=100")
    private = summary["privacy"]
    assert private["epsilon"]["max"] == summary["metrics"]["epsilon"]["max"]
    assert private["epsilon"]["mean"] == pytest.approx(summary["metrics"]["epsilon"]["mean"])
    assert private["guarantee"] == (
        f"({private['epsilon']['max']:.4g}, 1e-05)-DP per record, add-remove, against T3 (eavesdropper on all links), "
        "adaptive, by RDP"
    )
    told = {name: private[name] for name in ("mechanism", "unit", "adjacency", "view", "delta", "conversion")}
    assert told == {
        "mechanism": "record",
        "unit": "record",
        "adjacency": "add_remove",
        "view": "T3",
        "delta": 1e-5,
        "conversion": "rdp",
    }
    assert (private["sigma"], private["clip"], private["sampling"], private["budget"]) == (2.0, 0.5, "poisson", 100.0)
    assert (private["noise"], private["insecure_noise"], private["side_channels"]) == ("seeded", True, [])
    assert private["public"] == ["number of records of each node"]
    assert len(private["warnings"]) == 1
    json.dumps(private, allow_nan=False)


def test_whole_nodes_pay_once_a_training():
    private = summarised(*NODE)["privacy"]
    accountant = NodeAccountant(unit="node")
    accountant.step(3.0, 1.0, 3)
    assert private["epsilon"]["max"] == accountant.epsilon(1e-5, "gdp")
    assert "per node, add-remove, against T1 (honest-but-curious neighbour)" in private["guarantee"]
    assert (private["unit"], private["sampling"]) == ("node", "all")


def test_without_noise_epsilon_is_infinite_and_said_to_be():
    summary = summarised(*RECORD, "privacy.noise_multiplier=0")
    private = summary["privacy"]
    assert private["epsilon"] == {"mean": None, "max": None}
    assert private["guarantee"] == "no differential privacy"
    assert next(running._privacy(summary)) == "privacy: no differential privacy; noise is none"
    assert any("no guarantee" in warning for warning in private["warnings"])
    json.dumps(summary, allow_nan=False)


def test_a_spread_of_nothing_known_is_not_available():
    spread = dict.fromkeys(("mean", "std", "min", "max"))
    summary = summarised(*RECORD, "privacy.noise_multiplier=0")
    assert summary["metrics"]["epsilon"] == spread
    shown = key_figures(Summary.model_validate(summary))
    assert shown["epsilon per record, add-remove, T1"].text == "n/a"


def test_without_privacy_nothing_is_told():
    summary = summarised()
    assert "privacy" not in summary
    assert "epsilon" not in summary["metrics"]


def test_a_server_has_nothing_to_spend():
    setup, result = simulated("protocol.use=fedavg", "protocol.sample=2", *RECORD)
    assert sorted(result.spent) == [1, 2, 3, 4, 5]
    assert {row.node for row in result.recorder.rows() if row.metric == "epsilon"} < set(result.spent)
    assert result.summary(setup)["privacy"]["epsilon"]["max"] > 0


def test_who_spent_nothing_counts_in_the_mean_of_both_worlds():
    """Of a real run, the supervisor knows only what nodes have said before each training."""
    setup, result = simulated("protocol.use=fedavg", "protocol.sample=2", "protocol.rounds=1", *RECORD)
    virtual = result.summary(setup)["privacy"]["epsilon"]
    assert any(not state["steps"] for state in result.spent.values())
    assert virtual["mean"] < virtual["max"] / 2
    said = {node: state if state["steps"] else None for node, state in result.spent.items()}
    work = Work(0, 0, 0, 0)
    children = [SimpleNamespace(node=node, finished=None, work=work, spent=said.get(node)) for node in range(6)]
    real = Result(Recorder())
    _gather(setup, children, real)
    assert real.summary(setup)["privacy"]["epsilon"] == virtual


# Budgets


def test_a_spent_budget_ends_the_run_and_keeps_what_was_measured(tmp_path):
    setup, result = simulated(*TIGHT)
    assert result.status == "failed"
    assert "has spent its privacy: the budget of epsilon 1 at delta 1e-05" in result.error
    summary = write_run(tmp_path, setup, result)
    assert 0 < summary["privacy"]["epsilon"]["max"] <= 1.0
    assert summary["rounds"] > 1
    assert summary["metrics"]["accuracy"]["mean"] > 0


def test_a_node_that_relays_mixes_on_without_its_data():
    setup, result = simulated(*TIGHT, "privacy.when_spent=relay")
    summary = result.summary(setup)
    assert (summary["status"], summary["rounds"]) == ("finished", 40)
    assert 0.8 < summary["privacy"]["epsilon"]["max"] <= 1.0
    trained = [sum(n for _, _, n in state["steps"]) for state in result.spent.values()]
    assert max(trained) < 40 * 2
    by_round = [row.value for row in result.recorder.rows() if row.metric == "epsilon" and row.node == 0]
    assert by_round[-1] == by_round[-10] > by_round[0]
    models_of = np.array([np.asarray(model) for model in result.models.values()])
    result.close()
    apart = np.linalg.norm(models_of - models_of.mean(0), axis=1).max()
    assert apart < 0.05 * np.linalg.norm(models_of.mean(0))  # nothing but averaging for many rounds


def test_a_node_that_was_away_remembers_what_it_spent():
    """It lives three times, and pays for every round that it begins."""
    alone = ["protocol.use=local", "protocol.rounds=20"]
    _, plain = simulated(*RECORD, *alone)
    round_s = plain.time_s / 20
    faults = [(3.5, "crash"), (5.0, "return"), (9.5, "crash"), (11.0, "return")]
    schedule = ", ".join(f'{{time_s={number * round_s}, node=0, what="{what}"}}' for number, what in faults)
    _, result = simulated(*RECORD, *alone, f"churn.schedule=[{schedule}]")
    assert result.status == "finished", result.error
    taken = {node: sum(n for _, _, n in state["steps"]) for node, state in result.spent.items()}
    assert {sum(n for _, _, n in state["steps"]) for state in plain.spent.values()} == {20 * 2}
    assert taken.pop(0) == (20 + 2) * 2  # two rounds were begun twice
    assert set(taken.values()) == {20 * 2}
    assert result.recorder.latest("epsilon")[0] > plain.recorder.latest("epsilon")[0]


def test_the_ledger_refuses_by_name():
    ledger = prepare(load("digits-gossip", ["clock=virtual", *SMALL, *TIGHT], {})).ledger()
    with pytest.raises(BudgetSpent, match=r"^node 2 has spent its privacy"):
        ledger.charge(2, 10_000)


# On the screen


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    setup, result = simulated(*RECORD)
    write_run(path, setup, result)
    return path


def test_a_run_prints_its_guarantee_and_what_to_beware_of(folder, capsys):
    summary = json.loads((folder / "summary.json").read_text())
    running.tell_outcome(summary, folder)
    lines = capsys.readouterr().out.splitlines()
    assert f"  privacy: at most {summary['privacy']['guarantee']}; noise is seeded" in lines
    assert [line for line in lines if line.startswith("  beware: hyper-parameters")]


def test_a_report_never_shows_an_epsilon_alone(folder, tmp_path):
    run = load_run(folder)
    write_report([run], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Privacy</h2>" in page
    assert run.summary.privacy.guarantee in page
    assert "epsilon per record, add-remove, T1" in key_figures(run.summary)
    assert "epsilon" not in key_figures(run.summary)
    told = privacy_figures(run.summary)
    assert told["noise over clipping norm"].text == "2 over 1, seeded"
    assert told["budget of that epsilon"].text == "none"


def test_a_report_of_a_plain_run_has_no_such_section(tmp_path):
    setup, result = simulated()
    write_run(tmp_path, setup, result)
    write_report([load_run(tmp_path)], tmp_path / "report.html")
    assert "<h2>Privacy</h2>" not in (tmp_path / "report.html").read_text()


def test_progress_says_what_was_spent(monkeypatch, capsys):
    config = ExperimentConfig(privacy={"mechanism": "record", "view": "T4"})
    recorder = Recorder()
    recorder.add(1.0, 0, 0, {"accuracy": 0.5, "epsilon": 1.25})
    recorder.add(1.0, 1, 0, {"accuracy": 0.5, "epsilon": math.pi})
    monkeypatch.setattr("node.cli.progress._LINE_EVERY_S", 0.0)
    with Progress(config, quiet=False) as progress:
        progress.update(1.0, recorder)
    assert "epsilon 3.14 per record, add-remove, T4" in capsys.readouterr().err
