"""How well a model's losses tell what its node trains on from what it holds out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from node.config import DataSection, ModelSection, TrainingSection
from node.errors import ComputeError
from node.learn.data import federate
from node.learn.evaluation import RISK
from node.learn.models import build
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Task
from node.testing import Quadratic, check_op

NODES = 40
FEDERATION = federate(DataSection(local_test_fraction=0.25, partition="iid"), NODES, 0)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def workload(federation=FEDERATION, name="mlp"):
    return Workload(federation, build(ModelSection(name=name), (1, 8, 8), 10), TrainingSection(), 7)


def risk(work, model, node=3):
    return work.risk.solve(Task((model,), {}, Key(7, node, 0)))["risk"]


def initial(work):
    return work.init.solve(Task((), {}, Key(7, 0, 0)))


def overfitted(work, node=3, steps=400):
    return work.train.solve(Task((initial(work),), {"steps": steps, "lr": 0.3, "proximal": 0.0}, Key(7, node, 1)))


@pytest.mark.parametrize("name", ["mlp", "lenet"])
def test_it_is_the_area_under_the_curve_of_the_losses(name):
    work = workload(name=name)
    model = overfitted(work, steps=60)
    inside, outside = FEDERATION.shards.of(3), FEDERATION.local_tests.of(3)
    rows = np.concatenate([inside, outside])
    logits = work._model.logits(model, FEDERATION.train.features[rows])
    losses = torch.nn.functional.cross_entropy(logits, FEDERATION.train.labels[rows], reduction="none")
    expected = roc_auc_score(np.arange(len(rows)) < len(inside), -losses.detach().numpy()) - 0.5
    assert risk(work, model) == pytest.approx(expected, abs=1e-12)


def test_a_model_that_has_learnt_samples_by_heart_gives_them_away_to_their_node():
    work = workload()
    model = overfitted(work)
    assert risk(work, model, node=3) > 0.15
    others = [risk(work, model, node) for node in range(10, NODES)]
    assert abs(np.mean(others)) < 0.05
    untrained = [risk(work, initial(work), node) for node in range(NODES)]
    assert abs(np.mean(untrained)) < 0.05


def test_equal_losses_tell_nothing():
    work = workload()
    assert risk(work, torch.zeros(work.model_spec.shape)) == 0.0


def test_a_broken_model_has_a_risk_all_the_same():
    work = workload()
    assert -0.5 <= risk(work, torch.full(work.model_spec.shape, torch.nan)) <= 0.5


def test_the_op_is_pure_and_keeps_to_its_spec():
    work = workload()
    check_op(work.risk, [overfitted(work, steps=30)], seed=7)
    assert work.risk.spec([work.model_spec], {}) == RISK


def test_without_held_out_samples_there_is_nothing_to_compare():
    work = workload(federate(DataSection(), NODES, 0))
    with pytest.raises(ComputeError, match=r"node 3 holds out no samples; raise data.local_test_fraction"):
        risk(work, initial(work))


def test_the_closed_form_workload_leaks_most_at_a_node_s_own_target():
    work = Quadratic(4, [[0.0], [1.0], [5.0], [1.0]])
    check_op(work.risk, [np.array([1.0])])
    risks = [work.risk.solve(Task((np.array([1.0]),), {}, Key(0, node, 0)))["risk"] for node in range(4)]
    assert risks == [0.25, 0.5, 0.1, 0.5]
    assert {work.group_of(node) for node in range(4)} == {0}
