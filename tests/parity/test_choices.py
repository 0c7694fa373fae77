"""Nodes choose the same peers and heads in both worlds: models and metrics are equal, to the last bit."""

from __future__ import annotations

import pyarrow.parquet as pq
import pytest

from launch import experiment

DIGITS = {"name": "digits", "groups": [4, 2], "local_test_fraction": 0.2}
GRAPH = {"kind": "random-regular", "degree": 3, "weights": "uniform"}
CASES = {
    "pens": {"rounds": 5, "candidates": 4, "selected": 2, "first_phase": 0.6, "kept_rounds": 5},
    "dac": {"rounds": 4, "sample": 2, "kept_rounds": 4},
    "facade": {"rounds": 4, "explore": 0.25, "warm_up_rounds": 1, "risk_weight": 0.5},
    "oracle": {"rounds": 4, "sample": 2, "kept_rounds": 4},
}


def run(starling, folder, clock, use):
    tables = {"protocol": {"use": use, **CASES[use]}, "data": DIGITS, "topology": GRAPH, "record": {"models": True}}
    command = starling.start(folder, "run", experiment(folder, **tables), "--clock", clock, "--out", "run", "--quiet")
    try:
        assert (command.wait(), command.err) == (0, "")
    finally:
        command.end()
    return command


def chosen(command):
    """Every metric of every round but what a node had sent until then: it answers others at their time."""
    columns = pq.read_table(command.folder / "run" / "metrics.parquet").to_pydict()
    rows = zip(columns["node"], columns["round"], columns["metric"], columns["value"], strict=True)
    return sorted(row for row in rows if row[2] != "bytes_sent")


@pytest.mark.parametrize("use", CASES)
def test_real_nodes_choose_as_simulated_ones(starling, tmp_path, use):
    real, virtual = (run(starling, tmp_path / clock, clock, use) for clock in ("real", "virtual"))
    assert len(real.models()) == 6
    assert real.models() == virtual.models()
    assert chosen(real) == chosen(virtual)
    # A real node that has ended goes on answering, which its own account, closed by then, does not count.
    sent = ("messages", "bytes_sent") if use == "facade" else ()
    for key in (*sent, "tasks", "forced_solves", "rounds"):
        assert real.summary[key] == virtual.summary[key], key
    assert (virtual.summary["forced_solves"] > 0) == (use != "oracle")
    assert len(set(virtual.models().values())) > 1
