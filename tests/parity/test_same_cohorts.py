"""The two ends of cohort-parallel learning, on real data and in both worlds: a server's, and everybody's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from test_parity import arm, metrics

ROUNDS = 4
TRAINED = {
    "nodes": 6,
    "data": {"name": "digits", "partition": "dirichlet", "alpha": 0.5},
    "model": {"name": "mlp"},
    "training": {"lr": 0.1, "local_steps": 4, "momentum": 0.9},
}
BUDGET = {"use": "cpfl", "stopping": {"rule": "budget", "most_rounds": ROUNDS}, "checkpoint": "last"}
SERVED = {**BUDGET, "cohorts": 1, "leader": "fixed", "leader_trains": False}
ALONE = {**BUDGET, "cohorts": 6}


def course(command):
    """The accuracy of the model that each node had after each round that it has made one in."""
    found = metrics(command, set())
    return [(node, round, value) for node, round, metric, value in found if metric == "accuracy" and round < ROUNDS]


@pytest.mark.parametrize("clock", ["real", "virtual"])
@pytest.mark.parametrize("sampled", [{}, {"sample": 3}, {"proximal": 0.1}])
def test_one_cohort_is_federated_averaging_bit_for_bit(starling, tmp_path, clock, sampled):
    """Node 0 serves and has no data; the same clients train the same models in the same rounds."""
    cpfl = arm(starling, tmp_path / "cpfl", clock, {**TRAINED, "protocol": {**SERVED, **sampled}})
    fedavg = {"use": "fedavg", "rounds": ROUNDS, **sampled}
    fedavg = arm(starling, tmp_path / "fedavg", clock, {**TRAINED, "protocol": fedavg})
    assert cpfl.models() == fedavg.models()
    assert len(set(cpfl.models().values())) == 1
    assert course(cpfl) == course(fedavg)
    assert course(fedavg)[-1][-1] > 0.2


@pytest.mark.parametrize("unify", ["average", "ensemble-uniform"])
def test_as_many_cohorts_as_nodes_train_alone(starling, tmp_path, unify):
    """Each node elects itself, and makes the models of local training; only then they become one, or stay apart."""
    cpfl = arm(starling, tmp_path / "cpfl", "virtual", {**TRAINED, "protocol": {**ALONE, "unify": unify}})
    (tmp_path / "alone").mkdir()
    shutil.copy(Path(__file__).with_name("alone.py"), tmp_path / "alone")
    alone = arm(
        starling, tmp_path / "alone", "virtual", {**TRAINED, "protocol": {"use": "alone:Alone", "rounds": ROUNDS}}
    )
    assert course(cpfl) == course(alone)
    assert len(course(alone)) == TRAINED["nodes"] * ROUNDS
    if unify == "average":
        assert len(set(cpfl.models().values())) == 1
    else:
        assert cpfl.models() == alone.models()
