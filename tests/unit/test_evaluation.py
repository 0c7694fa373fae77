"""Judging models on a node's own distribution: one at a time, many at once, and label by label."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from node.config import DataSection, ModelSection, TrainingSection
from node.learn.basis import Basis
from node.learn.data import federate
from node.learn.models import build
from node.learn.tasks import by_shape
from node.learn.workload import Workload, prepare_torch
from node.op import Key, Spec, Task

NODES = 6
FEDERATION = federate(DataSection(groups=(4, 2), local_test_fraction=0.1), NODES, 0)
PLAIN = federate(DataSection(), NODES, 0)
BY_LABEL = federate(DataSection(groups=(4, 2), group_by="labels"), NODES, 0)


@pytest.fixture(autouse=True)
def _deterministic():
    prepare_torch()


def workload(federation=FEDERATION, name="mlp", kernel="auto"):
    model = build(ModelSection(name=name, hidden=(24,)), (1, 8, 8), 10)
    return Workload(federation, model, TrainingSection(), 7, kernel)


def task(model, on="own", node=0):
    return Task((model,), {"on": on}, Key(7, node, 0))


def trained(work, node, steps=60):
    start = work.init.solve(Task((), {}, Key(7, 0, 0)))
    return work.train.solve(Task((start,), {"steps": steps, "lr": 0.5, "proximal": 0.0}, Key(7, node, 1)))


# evaluate


def test_a_model_is_judged_on_its_nodes_own_distribution():
    work = workload()
    model = trained(work, 5)
    found = {(on, node): work.evaluate.solve(task(model, on, node)) for on in ("own", "test") for node in (0, 5)}
    assert found["own", 0] == found["test", 0] == found["test", 5]
    assert found["own", 5]["accuracy"] > found["own", 0]["accuracy"] + 0.2
    own = FEDERATION.own_test(5)
    right = work._model.logits(model, own.features).argmax(1) == own.labels
    assert found["own", 5]["accuracy"] == pytest.approx(float(right.double().mean()))


def test_without_groups_a_node_s_own_test_set_is_the_test_set():
    work = workload(PLAIN)
    model = trained(work, 1)
    assert work.evaluate.solve(task(model, "own", 3)) == work.evaluate.solve(task(model, "test", 3))
    batched = work.evaluate.solve_batch([task(model, on, 3) for on in ("own", "test")])
    assert batched[0] == batched[1]


@pytest.mark.parametrize("federation", [FEDERATION, BY_LABEL], ids=["rotation", "labels"])
def test_many_at_once_are_judged_as_one_by_one(federation):
    work = workload(federation)
    tasks = [task(trained(work, node, 3), on, node) for node in range(NODES) for on in ("own", "test", "train")]
    for alone, together in zip(map(work.evaluate.solve, tasks), work.evaluate.solve_batch(tasks), strict=True):
        assert together["accuracy"] == alone["accuracy"]
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_the_grouping_of_tasks_makes_no_difference():
    work = workload()
    tasks = [task(trained(work, node, 2), "own", node) for node in range(NODES)]
    together = work.evaluate.solve_batch(tasks)
    assert work.evaluate.solve_batch(tasks[::-1]) == together[::-1]
    assert [work.evaluate.solve_batch([one])[0] for one in tasks] == together


def test_convolutional_models_are_judged_on_their_own_too():
    work = workload(name="lenet", kernel="loop")
    tasks = [task(trained(work, node, 1), "own", node) for node in (0, 5)]
    for alone, together in zip(map(work.evaluate.solve, tasks), work.evaluate.solve_batch(tasks), strict=True):
        assert together["loss"] == pytest.approx(alone["loss"], rel=1e-5)


def test_what_an_evaluation_goes_through():
    work = workload(BY_LABEL)
    test = len(BY_LABEL.test.labels)
    own = [work.held_samples(node, "own") for node in (0, 5)]
    assert sum(own) == work.held_samples(0, "test") == test
    assert own[1] == int((BY_LABEL.test.labels >= 5).sum())
    assert workload(PLAIN).held_samples(2, "own") == len(PLAIN.test.labels)
    work = workload()
    assert work.held_samples(3, "train") == FEDERATION.shards.size(3)
    assert work.held_samples(3, "local") == FEDERATION.local_tests.size(3) > 0


# confusion


@pytest.mark.parametrize("name", ["softmax", "mlp", "lenet"])
@pytest.mark.parametrize("node", [0, 5])
def test_confusion_counts_what_samples_are_and_are_taken_for(name, node):
    work = workload(name=name, kernel="loop")
    model = trained(work, node, 20)
    own = FEDERATION.own_test(node)
    taken_for = work._model.logits(model, own.features).argmax(1)
    counts = work.confusion.solve(task(model, node=node)).reshape(10, 10)
    np.testing.assert_array_equal(counts, confusion_matrix(own.labels, taken_for, labels=range(10)))


def test_confusion_and_own_accuracy_agree():
    work = workload()
    for node in (0, 5):
        model = trained(work, node)
        counts = work.confusion.solve(task(model, node=node)).reshape(10, 10)
        accuracy = work.evaluate.solve(task(model, "own", node))["accuracy"]
        assert float(counts.trace()) / float(counts.sum()) == accuracy


def test_confusion_is_declared_as_it_is():
    work = workload()
    spec = work.confusion.spec([work.model_spec], {})
    counts = work.confusion.solve(task(trained(work, 0, 1)))
    assert spec == Spec((100,), "int64")
    assert (counts.dtype, counts.shape) == (torch.int64, spec.shape)
    assert work.confusion.seeded
    assert work.confusion in work.ops


def test_confusion_does_not_depend_on_where_the_model_lies_in_memory():
    work = workload()
    model = trained(work, 5)
    counts = work.confusion.solve(task(model, node=5))
    for shift in (1, 3, 8):
        moved = torch.zeros(len(model) + shift)[shift:].copy_(model)
        assert torch.equal(work.confusion.solve(task(moved, node=5)), counts)


def test_a_large_test_set_is_counted_whole():
    federation = federate(DataSection(name="synthetic", samples=3_000, test_fraction=0.5, groups=(2, 2)), 4, 0)
    counts = workload(federation).confusion.solve(task(trained(workload(), 0, 1), node=3)).reshape(10, 10)
    np.testing.assert_array_equal(counts.sum(1), np.bincount(federation.test.labels))


def test_groups_do_not_change_what_the_test_set_says():
    model = trained(workload(PLAIN), 2)
    assert workload().evaluate.solve(task(model, "test", 5)) == workload(PLAIN).evaluate.solve(task(model, "test", 5))


# What values follow from


def basis(federation):
    return Basis(federation, build(ModelSection(), (1, 8, 8), 10), TrainingSection(), "loop cpu inline")


def test_evaluations_follow_from_the_own_test_set():
    own = FEDERATION.train.groups.tests[1]
    brighter = dataclasses.replace(own, features=own.features + 1)
    groups = dataclasses.replace(FEDERATION.train.groups, tests=(FEDERATION.test, brighter))
    changed = dataclasses.replace(FEDERATION, train=dataclasses.replace(FEDERATION.train, groups=groups))
    before, after = basis(FEDERATION), basis(changed)
    assert before.of_evaluate(Key(0, 5, 1)) != after.of_evaluate(Key(0, 5, 1))
    assert before.of_evaluate(Key(0, 0, 1)) == after.of_evaluate(Key(0, 0, 1))
    assert before.of_train(Key(0, 5, 1)) == after.of_train(Key(0, 5, 1))


def test_training_follows_from_how_images_are_turned():
    turned, plain = basis(FEDERATION), basis(dataclasses.replace(FEDERATION, train=PLAIN.train))
    assert turned.of_train(Key(0, 0, 1)) == plain.of_train(Key(0, 0, 1))
    assert turned.of_train(Key(0, 5, 1)) != plain.of_train(Key(0, 5, 1))


# Tasks that are not all alike


def test_values_come_in_the_order_of_their_tasks():
    tasks = [task(None, on, node) for node, on in enumerate(["own", "test", "own", "train", "test"])]
    calls = []

    def solve(alike):
        calls.append([one.key.node for one in alike])
        return [one.key.node for one in alike]

    assert by_shape(tasks, lambda one: one.static["on"], solve) == [0, 1, 2, 3, 4]
    assert calls == [[0, 2], [1, 4], [3]]
    assert by_shape([], lambda one: 0, solve) == []


def test_a_solution_of_another_length_is_an_error():
    with pytest.raises(ValueError, match="shorter"):
        by_shape([task(None)] * 2, lambda one: 0, lambda alike: [1])
