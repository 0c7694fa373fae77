"""Groups of nodes fare the same in both worlds: one fairness, to the last bit."""

from __future__ import annotations

import pytest

from launch import experiment

DIGITS = {"name": "digits", "groups": [4, 2]}
CASES = {
    "rotation": {"data": DIGITS},
    "labels": {"data": {**DIGITS, "group_by": "labels", "partition": "dirichlet"}},
    "server": {"data": DIGITS, "nodes": 7, "protocol": {"use": "fedavg", "rounds": 3}},
}


def summary(starling, folder, clock, tables):
    file = experiment(folder, **{"protocol": {"use": "dpsgd", "rounds": 3}, **tables})
    command = starling.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    try:
        assert (command.wait(), command.err) == (0, "")
    finally:
        command.end()
    return command.summary


@pytest.mark.parametrize("name", CASES)
def test_real_and_simulated_groups_fare_the_same(starling, tmp_path, name):
    real, virtual = (summary(starling, tmp_path / clock, clock, CASES[name]) for clock in ("real", "virtual"))
    assert real["fairness"] == virtual["fairness"]
    assert real["fairness"]["nodes"] == 6
    assert {group: told["nodes"] for group, told in real["fairness"]["groups"].items()} == {"0": 4, "1": 2}
    assert real["fairness"]["accuracy_gap"] > 0
