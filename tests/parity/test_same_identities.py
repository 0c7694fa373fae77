"""Identities beyond the nodes are processes like all others, and what comes of them is what the simulation says."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch import experiment

NODES = 4
TABLES = {
    "an onlooker of virtual nodes": {
        "protocol": {"use": "shatter", "rounds": 3, "chunks": 2, "degree": 2},
        "attackers": [{"kind": "linkability", "every": 1, "nodes": [1]}],
    },
    "curious sybils": {
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "regular", "degree": 4},
        "attackers": [{"kind": "membership", "every": 2, "identities": 2, "nodes": [2], "scores": ["loss"]}],
    },
    "lying sybils": {
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "ring"},
        "attackers": [{"kind": "byzantine", "attack": "sign-flip", "identities": 1, "nodes": [0, 2]}],
    },
    "sybils with virtual nodes": {
        "protocol": {"use": "shatter", "rounds": 2, "chunks": 2, "degree": 2},
        "attackers": [{"kind": "linkability", "every": 1, "identities": 1}],
    },
}


def arm(starling, folder: Path, clock: str, tables: dict):
    held = {"nodes": NODES, "record": {"models": True}, "privacy": {"noise": "seeded"}}
    file = experiment(folder, **held, **tables)
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
    return {place: value.hex() for place, value in zip(places, columns["value"], strict=True)}


@pytest.mark.parametrize("case", TABLES)
def test_both_worlds_give_the_same_bits(starling, tmp_path, case):
    real, virtual = (arm(starling, tmp_path / clock, clock, TABLES[case]) for clock in ("real", "virtual"))
    assert real.models() == virtual.models()
    assert set(real.models()) == {f"{node}.safetensors" for node in range(NODES)}
    assert numbers(real) == numbers(virtual)
    for key in ("nodes", "messages", "bytes_sent", "events", "tasks", "identities", "attacks", "metrics", "lost"):
        assert real.summary[key] == virtual.summary[key], key
    assert virtual.summary["nodes"] == NODES
    beyond = {place[2] for place in numbers(virtual) if place[0] >= NODES}
    assert "bytes_sent" in beyond
    assert not beyond & {"accuracy", "loss"}


def test_real_virtual_nodes_are_dealt_out_in_secret(starling, tmp_path):
    """Unless the experiment asks for noise by seed; whose they are is then not in its file."""
    tables = {**TABLES["an onlooker of virtual nodes"], "nodes": 3}
    file = experiment(tmp_path / "it", **tables)
    owners = []
    for out in ("one", "other", "last"):
        command = starling.start(tmp_path / out, "run", f"../it/{file}", "--clock", "real", "--out", "run", "--quiet")
        try:
            assert command.wait() == 0, command.err
        finally:
            command.end()
        owners.append(tuple(command.summary["identities"]["owners"]))
    assert all(sorted(dealt) == [0, 0, 1, 1, 2, 2] for dealt in owners)
    assert len(set(owners)) > 1  # alike with a chance of 1 in 8100
