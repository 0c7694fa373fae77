"""Fifty real client processes upload once; some are killed before, some send garbage, and the rest is the result."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch import experiment

HERE = Path(__file__).parent
CLIENTS = 50
KILLED = list(range(5, 55, 5))
SHORT, SPOILT = 17, 33
GONE = [*KILLED, SHORT, SPOILT]


def run(start, folder, clock, mods, **tables):
    """The command, once it has ended."""
    small = {
        "nodes": CLIENTS + 1,
        "data": {"name": "digits", "partition": "iid"},
        "training": {"lr": 0.1, "local_steps": 5},
        "record": {"models": True},
        "mods": [{"use": f"uploading:{name}", "nodes": nodes} for name, nodes in mods.items()],
    }
    file = experiment(folder, **{**small, **tables})
    shutil.copy(HERE / "uploading.py", folder)
    command = start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    assert command.wait() == 0, command.err
    return command


def verdict(command):
    """What the aggregator has found out about its predictor, but for times."""
    table = pq.read_table(command.folder / "run" / "metrics.parquet", filters=[("node", "=", 0)]).to_pydict()
    found = dict(zip(table["metric"], table["value"], strict=True))
    return {
        name: value
        for name, value in found.items()
        if not name.startswith("missing/") and not name.endswith("_s") and name not in ("bytes_sent", "held_bytes")
    }


@pytest.mark.parametrize("algorithm", ["average", "ensemble-label-probabilities"])
def test_fifty_clients_of_which_twelve_fail(start, tmp_path, algorithm):
    protocol = {"use": "oneshot", "algorithm": algorithm, "deadline_s": 300.0}
    mods = {"Killed": KILLED, "Changed": [SHORT], "Spoilt": [SPOILT]}
    real = run(start, tmp_path / "real", "real", mods, protocol=protocol)
    alone = run(start, tmp_path / "alone", "virtual", {"Silent": GONE}, protocol=protocol)
    assert real.summary["oneshot"]["missing"] == {"gone": KILLED, "malformed": [SHORT], "unsound": [SPOILT]}
    assert real.summary["lost"] == {str(node): "was killed by SIGKILL" for node in KILLED}
    assert alone.summary["oneshot"]["missing"] == {"unheard": sorted(GONE)}
    assert verdict(real) == verdict(alone)
    assert verdict(real)["uploads"] == CLIENTS - len(GONE)
    heard = [name for name in alone.models() if name in real.models() and name != f"node-{SPOILT}.safetensors"]
    assert len(heard) >= CLIENTS - len(KILLED)
    assert [real.models()[name] for name in heard] == [alone.models()[name] for name in heard]
    assert real.leftovers() == []


def test_a_deadline_holds_among_real_processes(start, tmp_path):
    """One client says nothing and stays: nobody but the clock can end that wait."""
    protocol = {"use": "oneshot", "deadline_s": 5.0}
    real = run(start, tmp_path / "real", "real", {"Silent": [2]}, nodes=5, protocol=protocol)
    assert real.summary["oneshot"]["missing"] == {"unheard": [2]}
    assert real.summary["metrics"]["uploads"]["mean"] == 3
