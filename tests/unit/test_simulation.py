"""What a simulation is built from: every mistake is found before anything runs or is written."""

import json

import pytest

from node.cli.main import main
from node.errors import ConfigError
from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.simulation import rebuild, simulation
from node.experiment.virtual import run_virtual

SMALL = ["nodes=4", "topology.degree=2", "protocol.rounds=2", "clock=virtual"]
MODEL_BYTES = 4 * 9_610


def simulated(*sets):
    return simulation(prepare(load("digits-gossip", [*SMALL, *sets], {})))


WRONG = {
    "devices.trace=nope.csv": "devices.trace: .*nope.csv: there is no such file",
    "devices.reference_model=nope": "devices.reference_model: no model 'nope'",
    'devices.trace="phones"': "devices.reference_model",
    'network.rules=[{kind="loss",value=2}]': r"network.rules\[0\].value: 2 is no share",
    'network.rules=[{kind="partition",frm=[9]}]': r"network.rules\[0\].frm: there is no node 9",
    'network.latency_s={matrix="/nope",trip="one-way"}': "network.latency_s.matrix: cannot read /nope",
    'churn.schedule=[{time_s=1,node=99,what="crash"}]': r"churn.schedule\[0\].node: there is no node 99",
    "churn.trace=nope.csv": "churn.",
    "churn.diurnal=0.5": "churn.diurnal: only sessions",
    "executor.cache=/etc/passwd": "executor.cache: /etc/passwd: cannot be used",
    "executor.memory_bytes=1": f"executor.memory_bytes: 1 is less than the {3 * MODEL_BYTES} bytes of 3 models",
    "executor.device=cuda": 'executor.device: only kind = "batched" has a choice',
    "executor.kernel=stacked": 'executor.kernel: only kind = "batched" has a choice',
    "executor.address=tcp://127.0.0.1:1": "executor.address: is a Dask scheduler's",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_mistake_is_one_line_before_anything_runs(wrong):
    with pytest.raises(ConfigError, match=WRONG[wrong]) as caught:
        simulated(wrong)
    assert "\n" not in str(caught.value)


def test_what_leaves_memory_needs_a_folder_that_can_be_written_to():
    with pytest.raises(ConfigError, match=r"executor\.spill_folder: no file can be made in /nope/x"):
        simulated(f"executor.memory_bytes={20 * MODEL_BYTES}", "executor.spill_folder=/nope/x")


def test_a_dask_cluster_has_its_own_limits():
    with pytest.raises(ConfigError, match=r"executor\.memory_bytes: with dask"):
        simulated("executor.kind=dask", "executor.memory_bytes=100000000")


@pytest.mark.parametrize("wrong", ["devices.trace=nope.csv", "executor.cache=/etc/passwd", "--trace=."])
def test_a_mistake_writes_nothing_and_exits_with_2(wrong, tmp_path, capsys):
    flags = [flag for key in SMALL for flag in ("--set", key)]
    change = ["--trace", str(tmp_path)] if wrong.startswith("--") else ["--set", wrong]
    with pytest.raises(SystemExit) as left:
        main(["run", "digits-gossip", "--out", str(tmp_path / "out"), *flags, *change])
    assert left.value.code == 2
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().err.startswith("starling: ")


def test_a_costlier_model_takes_longer_on_the_same_device():
    time_s = {}
    for hidden in ("[128]", "[256]"):
        built = simulated(f"model.hidden={hidden}")
        time_s[hidden] = built.surroundings.devices.train_s(0, 100, 5, 0)
    assert time_s["[128]"] == pytest.approx(0.1), "the reference is the bundled mlp"
    assert time_s["[256]"] == pytest.approx(0.2, rel=0.02)


def test_a_device_that_cannot_hold_the_model_is_named(tmp_path):
    trace = tmp_path / "devices.csv"
    trace.write_text("node,seconds_per_sample,memory_bytes\n0,1,1e9\n1,1,1000\n2,1,1e9\n3,1,1000\n")
    with pytest.raises(ConfigError, match=r"node 1 has 1000 bytes of memory.*2 of 4 nodes"):
        simulated(f"devices.trace={trace}", "devices.reference_model=mlp")


def test_what_is_rebuilt_elsewhere_are_the_same_ops():
    setup = prepare(load("digits-gossip", SMALL, {}))
    ops = rebuild(setup.config.model_dump_json())
    assert sorted(ops) == sorted(op.name for op in setup.workload.ops)


def test_a_prepared_simulation_runs_once_and_says_so_in_its_result():
    built = simulated()
    result = run_virtual(built, lambda *_: None)
    assert result.status == "finished"
    assert result.graph["recorded"] == built.solver.graph.recorded == 4 * 2 * 3
    assert json.dumps(result.graph)
    result.close()
