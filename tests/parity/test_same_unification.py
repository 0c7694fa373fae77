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
