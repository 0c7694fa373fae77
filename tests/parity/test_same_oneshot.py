"""One upload of each client leads to the same predictor in both worlds, and costs the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from test_parity import arm, metrics

CLIENTS = 5
TIMES = {"client_s", "closed_s", "aggregated_s", "held_bytes"}
ALGORITHMS = {
    "average": {"algorithm": "average", "upload": "float16"},
    "ensemble": {"algorithm": "ensemble-label-probabilities", "upload": "int8"},
    "parts": {"algorithm": "summing:Summing"},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_an_upload_is_the_same_among_real_nodes(starling, tmp_path, name):
    tables = {
        "nodes": CLIENTS + 1,
        "protocol": {"use": "oneshot", **ALGORITHMS[name]},
        "training": {"lr": 0.1, "local_steps": 20},
    }
    arms = []
    for clock in ("real", "virtual"):
        (tmp_path / clock).mkdir()
        shutil.copy(Path(__file__).with_name("summing.py"), tmp_path / clock)
        arms.append(arm(starling, tmp_path / clock, clock, tables))
    real, virtual = arms
    assert len(real.models()) == CLIENTS + (name != "ensemble")
    assert real.models() == virtual.models()
    assert metrics(real, TIMES) == metrics(virtual, TIMES)
    for key in ("messages", "bytes_sent", "oneshot", "tasks"):
        assert real.summary[key] == virtual.summary[key], key
    assert real.summary["messages"] == CLIENTS
    uploaded = real.summary["oneshot"]["uploaded_bytes"]
    assert sum(each["total"] for each in uploaded.values()) == real.summary["bytes_sent"]
    assert real.summary["oneshot"]["sent_bytes"] == {"oneshot/upload/1": real.summary["bytes_sent"]}
    assert (uploaded["parts"]["total"] > 0) == (name == "parts")
    assert virtual.summary["metrics"]["accuracy"]["max"] > 0.05


def test_a_stack_learns_the_same_among_real_nodes(starling, tmp_path):
    """FENS: an upload, a download of everything, and rounds of the model on top; the bytes of each kind too."""
    tables = {
        "nodes": CLIENTS + 1,
        "protocol": {"use": "fens", "rounds": 6, "upload": "int8"},
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5, "local_test_fraction": 0.1},
        "training": {"lr": 0.1, "local_steps": 20},
    }
    real, virtual = (arm(starling, tmp_path / clock, clock, tables) for clock in ("real", "virtual"))
    assert len(real.models()) == CLIENTS
    assert real.models() == virtual.models()
    assert metrics(real, set()) == metrics(virtual, set())
    for key in ("messages", "bytes_sent", "fens", "tasks"):
        assert real.summary[key] == virtual.summary[key], key
    assert real.summary["messages"] == CLIENTS * (1 + 1 + 1 + 6 + 1 + 6)
    assert sum(real.summary["fens"]["sent_bytes"].values()) == real.summary["bytes_sent"]
