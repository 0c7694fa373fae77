"""One body, two arms: real processes over loopback end with the models of the simulation, bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from launch import experiment

RING = {"kind": "ring"}
SEEDED = {"privacy": {"noise": "seeded"}}  # noise and secrets that both worlds can have alike
HALVED = [{"use": "asking:Halved", "nodes": [1, 2, 4]}, {"use": "asking:Deaf"}, {"use": "asking:Count", "nodes": [0]}]
CASES = {
    "dpsgd": {"protocol": {"use": "dpsgd", "rounds": 4}},
    "dpsgd-random-regular": {
        "protocol": {"use": "dpsgd", "rounds": 3},
        "topology": {"kind": "random-regular", "degree": 3},
        "training": {"optimizer": "adam", "lr": 0.01, "local_epochs": 1, "schedule": "cosine", "schedule_rounds": 3},
    },
    "epidemic-oracle": {"protocol": {"use": "epidemic", "variant": "oracle", "degree": 3, "rounds": 4}},
    "fedavg": {"protocol": {"use": "fedavg", "rounds": 4, "sample": 3, "proximal": 0.1, "server": "adam"}},
    "pushsum-one-peer": {"protocol": {"use": "pushsum", "rounds": 5}, "topology": {"kind": "one-peer"}, "nodes": 8},
    "local": {
        "protocol": {"use": "local", "rounds": 5},
        "model": {"name": "wide:wide"},
        "record": {"models": True, "every": 2},
    },
    "fedper": {"protocol": {"use": "fedper", "rounds": 4}},
    "dispfl": {"protocol": {"use": "dispfl", "rounds": 4, "density": 0.4}},
    "zipdl": {"protocol": {"use": "zipdl", "rounds": 4, "noise": 0.05}, **SEEDED},
    "decor": {"protocol": {"use": "decor", "rounds": 4, "pairwise": 0.05, "noise": 0.01}, **SEEDED},
    "secagg": {"protocol": {"use": "secagg", "rounds": 4}, "topology": {"kind": "regular", "degree": 3}, **SEEDED},
    "muffliato": {"protocol": {"use": "muffliato", "rounds": 2, "gossip_rounds": 3, "noise": 0.01}, **SEEDED},
    "shatter": {"protocol": {"use": "shatter", "rounds": 4, "chunks": 2, "degree": 3}, **SEEDED},
    "cpfl": {
        "protocol": {
            "use": "cpfl",
            "cohorts": 2,
            "leader": "fixed",
            "sample": 3,
            "stopping": {"window": 2, "patience": 2, "most_rounds": 5},
        },
        "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5, "local_test_fraction": 0.2},
        "nodes": 8,
    },
    "asking": {"protocol": {"use": "asking:Asking", "rounds": 3}, "topology": RING, "mods": HALVED},
}


def arm(starling, folder: Path, clock: str, tables: dict):
    file = experiment(folder, **{"record": {"models": True}, **tables})
    for name in ("asking.py", "wide.py"):
        shutil.copy(Path(__file__).with_name(name), folder)
    command = starling.start(folder, "run", file, "--clock", clock, "--out", "run", "--quiet")
    try:
        code = command.wait()
        assert (code, command.err) == (0, "")
    finally:
        command.end()
    return command


def metrics(command, without: set[str]) -> list[tuple]:
    """Every number of the run but its time, in an order of its own."""
    columns = pq.read_table(command.folder / "run" / "metrics.parquet").to_pydict()
    rows = zip(columns["node"], columns["round"], columns["metric"], columns["value"], strict=True)
    return sorted(row for row in rows if row[2] not in without)


@pytest.mark.parametrize("name", CASES)
def test_real_nodes_end_with_the_models_of_the_simulation(starling, tmp_path, name):
    real = arm(starling, tmp_path / "real", "real", CASES[name])
    virtual = arm(starling, tmp_path / "virtual", "virtual", CASES[name])
    assert len(real.models()) == real.summary["nodes"]
    assert real.models() == virtual.models()
    # Where a handler answers, what a node has sent until it records depends on when others ask it; and what a mod drops
    # may come when its node has ended. When cohorts have stopped and converged, and how long they trained, are times.
    times = {f"cpfl/{what}_s" for what in ("converged", "unify", "cohort.stopped", "training", "unified/average.time")}
    unsteady = {"asking": {"bytes_sent"}, "secagg": {"bytes_sent"}, "cpfl": times}.get(name, set())
    assert metrics(real, unsteady) == metrics(virtual, unsteady)
    for key in (
        "messages",
        "bytes_sent",
        "tasks",
        "forced_solves",
        "rounds",
        *([] if name == "asking" else ["events"]),
    ):
        assert real.summary[key] == virtual.summary[key], key
    for metric in virtual.summary["metrics"].keys() - unsteady:
        spread = virtual.summary["metrics"][metric]
        assert real.summary["metrics"][metric] == spread, metric
    # Equal for a reason: the nodes did learn, and (but where the result is one) did not all learn the same.
    assert virtual.summary["metrics"]["accuracy"]["max"] > 0.15
    assert (len(set(virtual.models().values())) == 1) == (name in ("fedavg", "cpfl"))


def test_elected_leaders_end_with_the_model_of_the_simulation(starling, tmp_path):
    """Who leads, and how often they say so, is a matter of time; what their members train is not."""
    tables = {**CASES["cpfl"], "protocol": {**CASES["cpfl"]["protocol"], "leader": "elected"}}
    real, virtual = (arm(starling, tmp_path / clock, clock, tables) for clock in ("real", "virtual"))
    assert real.models() == virtual.models()
    fixed = arm(starling, tmp_path / "fixed", "virtual", CASES["cpfl"])
    assert real.models() == fixed.models()


def test_another_seed_ends_with_other_models(starling, tmp_path):
    """What the test above compares does depend on the experiment."""
    one = arm(starling, tmp_path / "one", "virtual", CASES["dpsgd"])
    other = arm(starling, tmp_path / "other", "virtual", CASES["dpsgd"] | {"seed": 12})
    assert not set(one.models().values()) & set(other.models().values())
