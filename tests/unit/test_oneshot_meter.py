"""Memory and products of one-shot work as measured in a cell, against what they must be, and what clients measure."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from node.config import ModelSection
from node.experiment.oneshot_cell import solve
from node.experiment.oneshot_grid import CLIENTS, Cell, Entrant, Setting
from node.experiment.virtual import run_virtual
from node.learn import models
from node.learn.footprint import footprint
from node.learn.oneshot.algorithm import Task
from node.learn.oneshot.averaging import Average
from node.learn.oneshot.grams import gram, gram_flops, layers
from node.learn.oneshot.merging import FedFisher, Fisher
from node.learn.oneshot.metering import Meter
from node.learn.oneshot.regression import MaEcho, RegMean
from node.learn.unify.fisher import diagonal
from oneshots import NODES, Run, checked

CLIENTS_OF_RUN = NODES - 1
DIMENSION = 64 * 12 + 12 + 12 * 10 + 10  # of the small model
MODEL_BYTES = 4 * DIMENSION
MLP = models.build(ModelSection(name="mlp", hidden=(12,)), (1, 8, 8), 10)
LENET = models.build(ModelSection(name="lenet"), (1, 28, 28), 10)
SHAPES = {MLP: (1, 8, 8), LENET: (1, 28, 28)}


def measured(algorithm, **tables):
    setup = checked(protocol={"algorithm": algorithm}, **tables)
    meter = Meter(setup.workload, setup.config.nodes, setup.config.seed, "this one")
    result = run_virtual(setup, lambda *_: None)
    accuracy = result.recorder.latest("accuracy")[0]
    result.close()
    return meter.figures(trains=algorithm != "ridge"), accuracy


# The meter


def test_measuring_changes_no_figure():
    _, accuracy = measured("regmean")
    assert accuracy == Run(protocol={"algorithm": "regmean"}).metric("accuracy")


def test_an_aggregator_that_holds_all_uploads_has_them_in_its_peak():
    vote, _ = measured("ensemble-vote")
    assert vote["aggregator_peak_bytes"] >= 2 * CLIENTS_OF_RUN * MODEL_BYTES  # its inputs, and the ensemble
    mean, _ = measured("average")
    assert mean["aggregator_peak_bytes"] < 10 * MODEL_BYTES  # sums are in double precision


def test_more_clients_fill_only_who_must_hold_them():
    for algorithm, grows in (("ensemble-vote", True), ("average", False), ("ridge", False)):
        few, many = (measured(algorithm, nodes=nodes)[0]["aggregator_peak_bytes"] for nodes in (4, 13))
        assert (many > 3 * few) == grows
        assert grows or many == few


def test_a_client_holds_what_it_measures():
    plain, _ = measured("average")
    grams, _ = measured("regmean")
    assert plain["client_peak_bytes"] > 3 * MODEL_BYTES  # model, gradient, momentum
    assert grams["client_peak_bytes"] >= 8 * 65 * 65  # in double precision
    assert grams["client_peak_bytes"] >= plain["client_peak_bytes"]


def test_clients_that_train_nothing_are_measured_by_what_they_send():
    heads, _ = measured("ridge")
    assert heads["client_peak_bytes"] > 4 * 501 * 502 / 2


def test_products_are_counted():
    figures, _ = measured("ma-echo")
    own = MaEcho()
    assert figures["aggregator_counted_flops"] == own.aggregation_flops(Task(MLP, (1, 8, 8), 10), CLIENTS_OF_RUN, 0)


def test_two_runs_measure_the_same():
    assert measured("fisher")[0] == measured("fisher")[0]


def test_one_cell_of_a_data_set_is_measured(tmp_path):
    quick = Entrant("average", "average", sets={"training": {"local_epochs": 1}})
    told = [
        "client_peak_bytes" in solve(Cell(quick, setting), tmp_path)["figures"]
        for setting in (
            Setting("breast_cancer", "iid"),
            Setting("breast_cancer", "shards(2)"),
            Setting("breast_cancer", "iid", CLIENTS - 1),
            Setting("breast_cancer", "iid", seed=1),
        )
    ]
    assert told == [True, False, False, False]


def test_what_a_cache_holds_is_measured_again(tmp_path):
    cell = Cell(Entrant("regmean", "regmean", sets={"training": {"local_epochs": 1}}), Setting("breast_cancer", "iid"))
    one, again = (solve(cell, tmp_path)["figures"] for _ in range(2))
    assert one == again
    assert one["aggregator_peak_bytes"] > 0


# What clients measure takes time


@pytest.mark.parametrize("model", SHAPES, ids=lambda model: model.name)
@pytest.mark.parametrize("constant", [True, False])
def test_gram_matrices_take_what_is_counted(model, constant):
    """Products in place are in no formula of torch: they are added by the rows that a constant input counts."""
    samples, flat = torch.rand(3, *SHAPES[model]), model.initial(0)
    total = 0.0
    for layer in layers(model):
        _, taken = footprint(partial(gram, model, flat, samples, layer, constant))
        rows = float(gram(model, flat, samples, layer, True)[-1, -1])
        total += taken.flops + 2 * rows * layer.width(constant) ** 2
    assert gram_flops(model, SHAPES[model], constant) == pytest.approx(total / len(samples))


def test_fisher_information_takes_about_what_is_counted():
    task = Task(MLP, (1, 8, 8), 10)
    own = Fisher(Fisher.Config(samples=6))
    counted = footprint(lambda: diagonal(MLP, MLP.initial(0), torch.rand(6, 1, 8, 8)))[1].flops
    assert 0.5 < own.measuring_flops(task, 6) / counted < 2
    assert own.measuring_flops(task, 600) == own.measuring_flops(task, 6)


def test_who_measures_more_takes_longer():
    task = Task(MLP, (1, 8, 8), 10)
    for kind in (Fisher, FedFisher, RegMean, MaEcho):
        few, more = (kind().measuring_flops(task, samples) for samples in (10, 100))
        assert 0 < few < more
    assert not hasattr(Average(), "measuring_flops")


@pytest.mark.parametrize("algorithm", ["regmean", "ma-echo", "fisher", "fedfisher"])
def test_time_passes_while_clients_measure(algorithm):
    plain, longer = (Run(protocol={"algorithm": name}).metric("client_s", node=2) for name in ("average", algorithm))
    assert longer > plain
