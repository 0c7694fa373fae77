"""An attacker measures the same among encrypted processes as in a simulation, and changes nothing in either."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch import experiment

NODES = 5
SMALL = {"nodes": NODES, "topology": {"kind": "ring"}, "protocol": {"use": "dpsgd", "rounds": 4}}
ATTACKERS = {
    "membership": [{"kind": "membership", "every": 2, "most": 2, "references": 4, "nodes": [1]}],
    "two kinds on two nodes": [
        {"kind": "linkability", "every": 1, "nodes": [0, 3]},
        {"kind": "membership", "every": 3, "nodes": [3], "scores": ["loss"], "final": False},
    ],
    "inversion": [{"kind": "inversion", "every": 1, "most": 1, "iterations": 30}],
    "reconstruction": [{"kind": "reconstruction", "rounds": 3, "nodes": [2]}],
    "byzantine": [{"kind": "byzantine", "attack": "gaussian", "sigma": 0.01, "nodes": [2]}],
}


def arm(starling, folder: Path, clock: str, attackers: list, **tables):
    file = experiment(folder, **SMALL, record={"models": True}, attackers=attackers, **tables)
    command = starling.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    try:
        code = command.wait()
        assert (code, command.err) == (0, "")
    finally:
        command.end()
    return command


def numbers(command) -> dict:
    """Every number of the run but its time."""
    columns = pq.read_table(command.folder / "run" / "metrics.parquet").to_pydict()
    places = zip(columns["node"], columns["round"], columns["metric"], strict=True)
    kept = {place: value for place, value in zip(places, columns["value"], strict=True) if place[2] != "bytes_sent"}
    return {place: value.hex() for place, value in kept.items()}


@pytest.mark.parametrize("kind", ATTACKERS)
def test_real_and_simulated_attackers_measure_the_same_bits(starling, tmp_path, kind):
    training = {"local_steps": 1, "batch_size": 2, "lr": 0.3} if kind == "inversion" else {"local_steps": 6, "lr": 0.3}
    real = arm(starling, tmp_path / "real", "real", ATTACKERS[kind], training=training)
    virtual = arm(starling, tmp_path / "virtual", "virtual", ATTACKERS[kind], training=training)
    assert numbers(real) == numbers(virtual)
    assert real.summary["attacks"] == virtual.summary["attacks"]
    assert real.models() == virtual.models()
    attacks = virtual.summary["attacks"]
    assert (len(attacks["messages"]) > 0) == (kind != "byzantine")
    pictures = [command.folder / "run" / "pictures.parquet" for command in (real, virtual)]
    assert [path.exists() for path in pictures] == [kind == "inversion"] * 2
    if kind == "inversion":
        assert pq.read_table(pictures[0]).equals(pq.read_table(pictures[1]))


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_a_curious_attacker_changes_no_bit_of_any_model(starling, tmp_path, clock):
    attacked = arm(starling, tmp_path / "attacked", clock, ATTACKERS["membership"] + ATTACKERS["reconstruction"])
    alone = arm(starling, tmp_path / "alone", clock, [])
    assert attacked.models() == alone.models()
    assert len(attacked.models()) == NODES
    known, ours = numbers(alone), numbers(attacked)
    assert {place: ours[place] for place in known} == known
    assert len(ours) > len(known)
    assert "attacks" not in alone.summary
    for key in ("messages", "bytes_sent", "rounds", "events"):
        assert attacked.summary[key] == alone.summary[key], key
