"""Teachers and students, and averages by Fisher information, are the same in both worlds."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from test_parity import arm, metrics


@pytest.mark.parametrize("unify", ["kd-hard", "fisher"])
def test_what_models_become_is_the_same_among_real_nodes(starling, tmp_path, unify):
    tables = {
        "nodes": 4,
        "protocol": {"use": "teaching:Teaching", "unify": unify},
        "data": {"partition": "dirichlet", "alpha": 0.3},
        "public": {"name": "held-out", "samples": 100},
    }
    arms = []
    for clock in ("real", "virtual"):
        (tmp_path / clock).mkdir()
        shutil.copy(Path(__file__).with_name("teaching.py"), tmp_path / clock)
        arms.append(arm(starling, tmp_path / clock, clock, tables))
    real, virtual = arms
    assert len(real.models()) == 4
    assert real.models() == virtual.models()
    assert metrics(real, {"bytes_sent"}) == metrics(virtual, {"bytes_sent"})
    for key in ("messages", "bytes_sent", "public"):
        assert real.summary[key] == virtual.summary[key], key
    assert virtual.summary["public"] == {
        "source": "held-out",
        "samples": 100,
        "check_samples": 10,
        "foreign_samples": 0,
    }
    found = {name: spread["mean"] for name, spread in virtual.summary["metrics"].items()}
    assert found["ensemble_accuracy"] > 0.5
    assert found["accuracy"] > 0.4
    assert ("agreement" in found) == (unify == "kd-hard")
    assert (found["unify_flops"] > 0) == (unify == "kd-hard")


@pytest.mark.parametrize(
    "tables", [{"unify": "kd-hard", "compare": ["fisher", "ensemble-label"]}, {"unify": "logit-exchange"}], ids=str
)
def test_cohorts_become_the_same_among_real_nodes_and_say_the_same_of_it(starling, tmp_path, tables):
    rounds = {"checkpoint": "last", "leader": "fixed", "stopping": {"rule": "budget", "most_rounds": 3}}
    options = {"use": "cpfl", "cohorts": 2, "distillation": {"steps": 50}, **rounds, **tables}
    experiment = {"nodes": 4, "protocol": options, "public": {"name": "held-out", "samples": 100}}
    arms = []
    for clock in ("real", "virtual"):
        (tmp_path / clock).mkdir()
        arms.append(arm(starling, tmp_path / clock, clock, experiment))
    real, virtual = arms
    assert real.models() == virtual.models()
    assert len(set(real.models().values())) == (2 if tables["unify"] == "logit-exchange" else 1)
    blocks = [each.summary["cpfl"] for each in arms]
    for key in ("unifier", "participants", "mean_cohort_accuracy"):
        assert blocks[0][key] == blocks[1][key], key
    for each in blocks:
        for found in each["unified"].values():
            assert found.pop("time_s") >= 0
        each["bytes"].pop("control")  # who comes late says so again
        if "compare" in tables:
            each["bytes"].pop("unifying")  # what a real node answers after its own end is not counted
        assert each["device_cpu_s"] > 0
    assert blocks[0]["unified"] == blocks[1]["unified"]
    assert blocks[0]["bytes"] == blocks[1]["bytes"]
