"""Real runs with privacy: noise that nobody can repeat, budgets that no crash forgets, and the simulation's bits."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from gate import Gate
from launch import WAIT_S, experiment
from node.privacy.budget import NodeAccountant

HERE = Path(__file__).parent
PRIVATE = {"mechanism": "record", "noise_multiplier": 2.0}
DPSGD = {"use": "dpsgd", "rounds": 4}
STEPS = 2
"""Of one training, in every experiment here."""


def ran(start, folder, clock, code=0, **tables):
    file = experiment(folder, **{"protocol": DPSGD, "record": {"models": True}, **tables})
    command = start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    assert command.wait() == code, command.err
    return command


def epsilons(command) -> dict[tuple[int, int], float]:
    """What was spent, by node and round."""
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("metric", "=", "epsilon")])
    columns = (table[name].to_pylist() for name in ("node", "round", "value"))
    return {(node, round): value for node, round, value in zip(*columns, strict=True)}


# The same as simulated, where noise is


@pytest.mark.parametrize("mechanism", ["record", "node"])
def test_seeded_noise_gives_the_simulation_s_models(start, tmp_path, mechanism):
    privacy = {**PRIVATE, "mechanism": mechanism, "noise": "seeded"}
    real, virtual = (ran(start, tmp_path / clock, clock, privacy=privacy) for clock in ("real", "virtual"))
    assert len(real.models()) == 6
    assert real.models() == virtual.models()
    assert len(epsilons(real)) == 6 * DPSGD["rounds"]
    assert epsilons(real) == epsilons(virtual)
    one, other = (command.summary["privacy"] for command in (real, virtual))
    told = ("guarantee", "epsilon", "unit", "adjacency", "view", "sigma", "clip", "noise", "insecure_noise")
    assert {name: one[name] for name in told} == {name: other[name] for name in told}
    assert one["insecure_noise"]
    assert [line for line in one["warnings"] if "insecure noise" in line]
    assert not [line for line in other["warnings"] if "insecure noise" in line]


def test_a_real_run_s_noise_is_secret_and_costs_the_same(start, tmp_path):
    real = [ran(start, tmp_path / name, "real", privacy=PRIVATE) for name in ("one", "two")]
    virtual = ran(start, tmp_path / "virtual", "virtual", privacy=PRIVATE)
    assert not set(real[0].models().values()) & set(real[1].models().values())
    assert not set(real[0].models().values()) & set(virtual.models().values())
    assert epsilons(real[0]) == epsilons(real[1]) == epsilons(virtual)
    privacy = real[0].summary["privacy"]
    assert (privacy["noise"], privacy["insecure_noise"]) == ("secret", False)
    assert privacy["epsilon"] == virtual.summary["privacy"]["epsilon"]
    assert privacy["epsilon"]["max"] == max(epsilons(virtual).values())
    assert real[0].summary["metrics"]["accuracy"]["max"] > 0.1


# Budgets


def test_a_spent_budget_ends_a_real_run_with_what_was_measured(start, tmp_path):
    privacy = {**PRIVATE, "epsilon": 1.0}
    command = ran(start, tmp_path / "stop", "real", code=3, privacy=privacy, protocol={"use": "local", "rounds": 60})
    summary = command.summary
    assert summary["status"] == "failed"
    assert "has spent its privacy: the budget of epsilon 1 at delta 1e-05" in summary["error"]
    assert command.err == f"starling: failed: {summary['error']}\n"
    assert 0 < summary["privacy"]["epsilon"]["max"] <= 1.0
    assert summary["rounds"] > 1


def test_nodes_that_relay_finish(start, tmp_path):
    privacy = {**PRIVATE, "epsilon": 1.0, "when_spent": "relay", "noise": "seeded"}
    protocol = {"use": "dpsgd", "rounds": 30}
    arms = [
        ran(start, tmp_path / clock, clock, privacy=privacy, protocol=protocol, data={"partition": "iid"})
        for clock in ("real", "virtual")
    ]
    assert arms[0].models() == arms[1].models()
    assert epsilons(arms[0]) == epsilons(arms[1])
    assert 0.5 < arms[0].summary["privacy"]["epsilon"]["max"] <= 1.0


def test_what_a_killed_node_spent_is_told(start, tmp_path):
    """It has charged its fourth training, and dies before it: the others go on, and its charge counts."""
    with Gate(tmp_path, 2, 4) as gate:
        equal = {"name": "synthetic", "samples": 600}
        protocol = {"use": "local", "rounds": 4}
        file = experiment(tmp_path / "it", privacy=PRIVATE, protocol=protocol, data=equal, mods=gate.mods)
        shutil.copy(HERE / "gate.py", tmp_path / "it")
        command = start(tmp_path / "it", "run", file, "--clock", "real", "--out", "run", "--quiet")
        psutil.Process(gate.reached()).kill()
        assert command.wait() == 0, command.err
    assert command.summary["lost"] == {"2": "was killed by SIGKILL"}
    told = epsilons(command)
    assert (2, 3) not in told
    assert command.summary["privacy"]["epsilon"]["mean"] == pytest.approx(told[0, 3], rel=1e-12)


# Restarts


def started(start, folder, state, file):
    """A node in a folder of its own, with its state elsewhere."""
    folder.mkdir()
    (folder / "node.toml").write_text(
        f'experiment = "{file}"\nnode = 0\nlisten = "127.0.0.1:0"\nadmin = ""\n'
        f'state = "{state}"\ncards = "{state.parent / "cards"}"\n'
    )
    shutil.copy(HERE / "gate.py", folder)
    return start(folder, "node", "--config", "node.toml")


def lone(tmp_path, **tables):
    """One node that trains by itself, for six rounds."""
    alone = {"nodes": 1, "topology": {"kind": "full"}, "data": {"partition": "iid"}}
    file = experiment(tmp_path / "it", **{**alone, "protocol": {"use": "local", "rounds": 6}, **tables})
    return tmp_path / "it" / file


def steps(state) -> int:
    """Steps that are kept as spent."""
    _, _, body = (state / "spent.json").read_text().partition("\n")
    return sum(count for _, _, count in json.loads(body)["steps"])


def wait_for(path):
    waiting = threading.Event()
    for _ in range(int(WAIT_S / 0.01)):
        if path.exists():
            return
        waiting.wait(0.01)
    raise AssertionError(f"{path} was never written")


def test_a_killed_node_pays_for_the_training_that_it_had_begun(start, tmp_path):
    state = tmp_path / "state"
    with Gate(tmp_path, 0, 3) as gate:
        file = lone(tmp_path, privacy=PRIVATE, mods=gate.mods)
        first = started(start, tmp_path / "first", state, file)
        assert gate.reached() == first.pid
        assert steps(state) == 3 * STEPS  # before the third training has begun
        psutil.Process(first.pid).kill()
        assert first.wait() == -signal.SIGKILL
        assert steps(state) == 3 * STEPS
        gate.open()
        second = started(start, tmp_path / "second", state, file)
        assert gate.reached() == second.pid
        assert steps(state) == (3 + 3) * STEPS
        gate.open()
        wait_for(state / "model.safetensors")
        psutil.Process(second.pid).terminate()
        assert second.wait() == 0
    # Two rounds were done, the third was paid for twice.
    assert steps(state) == (6 + 1) * STEPS
    summary = json.loads((state / "summary.json").read_text())
    accountant = NodeAccountant()
    accountant.step(2.0, 16 / 1437, 7 * STEPS)
    assert summary["privacy"]["epsilon"]["max"] == accountant.epsilon(1e-5)
    assert summary["privacy"]["noise"] == "secret"


def test_what_is_spent_is_damaged(start, tmp_path):
    state = tmp_path / "state"
    file = lone(tmp_path, privacy=PRIVATE)
    state.mkdir(mode=0o700)
    (state / "spent.json").write_text("0123\n{}\n")
    command = started(start, tmp_path / "damaged", state, file)
    assert command.wait() == 3
    assert "spent.json: is damaged" in command.err
    assert "Traceback" not in command.err
