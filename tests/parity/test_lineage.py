"""Real processes, each with numbers of its own for its values, log the same history as the simulation."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from launch import experiment
from node.privacy.from_run import told
from node.privacy.network import mu_matrix
from node.provenance import read

NOISED = {
    "nodes": 4,
    "protocol": {"use": "dpsgd", "rounds": 3},
    "topology": {"kind": "ring"},
    "privacy": {"mechanism": "node", "noise_multiplier": 1.5, "noise": "seeded"},
    "record": {"lineage": True, "models": True},
}


@pytest.fixture(scope="module")
def arms(starling, tmp_path_factory):
    """The same experiment in both worlds."""
    ended = {}
    for clock in ("real", "virtual"):
        folder = tmp_path_factory.mktemp("lineage") / clock
        command = starling.start(folder, "run", experiment(folder, **NOISED), "--clock", clock, "--out", "run")
        try:
            assert command.wait() == 0, command.err
        finally:
            command.end()
        ended[clock] = command
    return ended


def history(command):
    """What every value consists of, named by its node and how many it has made before; and who got which."""
    lineage = told(read(command.folder / "run" / "lineage")).lineage
    names, counts = {}, Counter()
    for value, made in lineage.made.items():
        names[value] = made.node, counts[made.node]
        counts[made.node] += 1
    inputs = {source.column: input for input, source in lineage.sources.items()}
    rows = lineage.matrix(list(names))
    made = {
        name: {tuple(inputs[at]): round(float(row[at]), 12) for at in np.flatnonzero(row)}
        for name, row in zip(names.values(), rows, strict=True)
    }
    return made, sorted((got.node, *names[got.value]) for got in lineage.received)


def test_both_worlds_end_with_the_same_models(arms):
    assert arms["real"].models() == arms["virtual"].models()


def test_each_process_has_written_a_file_of_its_own(arms):
    files = {
        clock: sorted(path.name for path in (command.folder / "run" / "lineage").iterdir())
        for clock, command in arms.items()
    }
    assert files == {"real": [f"{node}-0.jsonl" for node in range(4)], "virtual": ["all.jsonl"]}


def test_both_worlds_log_the_same_history(arms):
    made, received = history(arms["real"])
    assert (made, received) == history(arms["virtual"])
    assert len(received) == 3 * 4 * 2
    # A model of the second round holds the first round's update of its neighbour.
    assert set(made[0, 2]) >= {(0, 0), (1, 0), (3, 0), (0, 1)}


def test_both_worlds_are_accounted_alike(arms):
    mus = [mu_matrix(told(read(command.folder / "run" / "lineage")).lineage, 2.0, "all") for command in arms.values()]
    assert mus[0] == pytest.approx(mus[1], nan_ok=True)
    assert np.nanmin(mus[0]) > 0
    assert np.nanmax(mus[0]) <= 2 / 1.5 * np.sqrt(3) + 1e-9


def test_the_summaries_say_the_same_of_both(arms):
    said = [command.summary["privacy"]["network"] for command in arms.values()]
    assert [network["label"] for network in said] == ["exact (non-adaptive)"] * 2
    assert said[0]["epsilon"] == pytest.approx(said[1]["epsilon"])
    assert said[0]["distances"] == [pytest.approx(ring) for ring in said[1]["distances"]]


def test_the_command_says_the_same_of_both(arms, starling, tmp_path):
    said = []
    for clock, command in arms.items():
        asked = starling.start(
            tmp_path / clock, "privacy", "network", str(command.folder / "run"), "--collude", "1,2", "--json"
        )
        try:
            assert asked.wait() == 0, asked.err
        finally:
            asked.end()
        said.append(json.loads(asked.out))
    assert said[0]["worst"]["mu"] == pytest.approx(said[1]["worst"]["mu"])
    assert [ring["pairs"] for ring in said[0]["distances"]] == [2] == [ring["pairs"] for ring in said[1]["distances"]]
