"""One experiment, one hash: whatever solves it, in how many processes and how much memory, however often it dies."""

import json
import os
import signal
import subprocess
import sys
import threading

import pytest

from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual

SMALL = ["nodes=6", "protocol.rounds=6", "clock=virtual", "training.momentum=0.5", "data.partition=iid"]
MODEL_BYTES = 4 * 9_610


def simulated(*sets):
    """The result of a run in this process."""
    result = run_virtual(prepare(load("digits-gossip", [*SMALL, *sets], {})), lambda *_: None)
    assert result.status == "finished", result.error
    result.close()
    return result


@pytest.fixture(scope="module")
def reference():
    return simulated().run_hash


@pytest.mark.parametrize(
    "sets",
    [
        ["executor.kind=processes", "executor.workers=1"],
        ["executor.kind=processes", "executor.workers=2"],
        ["executor.kind=processes", "executor.workers=4"],
        ["executor.window_tasks=1"],
        ["executor.window_tasks=100000"],
        ["executor.deduplicate=false", "executor.fuse=false"],
        [f"executor.memory_bytes={8 * MODEL_BYTES}"],
        [f"executor.memory_bytes={8 * MODEL_BYTES}", "executor.kind=processes", "executor.workers=2"],
    ],
    ids=" ".join,
)
def test_the_executor_changes_no_bit(sets, reference):
    assert simulated(*sets).run_hash == reference


def test_a_seed_changes_the_hash(reference):
    assert simulated("seed=8").run_hash != reference


def test_a_budget_is_kept_and_spills():
    graph = simulated(f"executor.memory_bytes={8 * MODEL_BYTES}").graph
    assert graph["peak_resident_bytes"] <= 8 * MODEL_BYTES
    assert graph["spilled_bytes"] > 0


def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path, reference):
    cache = f"executor.cache={tmp_path / 'cache'}"
    short = simulated(cache, "protocol.rounds=4")
    longer = simulated(cache)
    assert longer.run_hash == reference
    assert longer.graph["reused"] == short.graph["solved"]
    assert longer.graph["solved"] == short.graph["solved"] // 4 * 2
    assert longer.graph["skipped"] == 0


def test_another_learning_rate_reuses_nothing(tmp_path):
    cache = f"executor.cache={tmp_path / 'cache'}"
    simulated(cache)
    assert simulated(cache, "training.lr=0.01").graph["reused"] == 0


def test_what_does_not_change_values_reuses_everything(tmp_path):
    cache = f"executor.cache={tmp_path / 'cache'}"
    simulated(cache)
    other = simulated(cache, "network.model=fair", "network.up_bps=1e6", "devices.seconds_per_sample=0.01")
    assert other.graph["solved"] == 0


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path, reference):
    out, cache = tmp_path / "run", tmp_path / "cache"
    sets = [*SMALL, f"executor.cache={cache}", "executor.window_tasks=24"]
    flags = [flag for key in sets for flag in ("--set", key)]
    command = [sys.executable, "-P", "-m", "node.cli.main", "run", "digits-gossip", "--out", str(out), *flags, "--json"]
    killed = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    over = threading.Event()
    while not list(cache.glob("*.pack")) and killed.poll() is None:
        over.wait(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["run_hash"] == reference
    assert summary["graph"]["reused"] > 0


def test_updates_that_come_too_late_are_never_trained():
    """130 clients train, the first 100 to answer count: 30 trainings take their time, and no arithmetic."""
    slow = 'devices.seconds_per_sample={distribution="uniform",low=0.5,high=1}'
    sample = ["protocol.sample=100", "protocol.over_select=0.3", "protocol.rounds=1"]
    config = load("digits-fedavg", ["clock=virtual", "nodes=131", "data.partition=iid", slow, *sample], {})
    result = run_virtual(prepare(config), lambda *_: None)
    assert result.graph["discarded_trainings"] == 30
    assert result.graph["solved"] == 100 + result.graph["recorded"] - 130
    assert result.usage["device_hours"]["discarded"] > 0
