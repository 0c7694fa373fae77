"""scripts/bench/cohort: its data, its grid, and the claims that it checks."""

from __future__ import annotations

import importlib.util
import tomllib
from pathlib import Path

import numpy as np
import pytest

from node.experiment.setup import find_protocol
from node.experiment.sweep import points
from study_runs import made, run, rung, unified

_FILE = Path(__file__).parents[2] / "scripts" / "bench" / "cohort.py"


@pytest.fixture(scope="module")
def bench():
    """The program, as a module."""
    spec = importlib.util.spec_from_file_location("cohort_bench", _FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wrong(bench, *runs, elsewhere=None):
    return [claim.text for claim in bench.claims(made(*runs), elsewhere) if not claim.holds]


def test_what_is_known_of_cohorts_holds_of_runs_that_are_so(bench):
    told = unified(0.93) | {"average": {"accuracy": 0.91, "time_s": 0.0}, "kd-hard": {"accuracy": 0.92, "time_s": 1.0}}
    assert wrong(bench, run(1, 1, accuracy=0.95), run(1, 4, accuracy=0.93, scale=0.4, unified=told)) == []


def test_each_claim_can_be_wrong(bench):
    """Costs that hardly fall; an ensemble that loses much; an average and a student far below it."""
    told = unified(0.8) | {"kd-hard": {"accuracy": 0.7, "time_s": 1.0}}
    found = wrong(bench, run(1, 1, accuracy=0.95), run(1, 4, accuracy=1.04, scale=0.6, unified=told))
    for name in (
        "time falls",
        "CPU falls",
        "bytes falls",
        "mean cohort model",
        "ensemble changes",
        "a student",
        "average",
    ):
        assert sum(name in text for text in found) == 1, name


def test_to_one_accuracy_cohorts_must_cost_more_at_equal_participants(bench):
    all_nodes = [rung(1, 10, 0.5), rung(1, 20, 0.9)]
    few = [rung(1, 10, 0.5, 8), rung(1, 20, 0.9, 8)]
    dear, cheap = [[rung(4, 10, 0.5, 2), rung(4, rounds, 0.9, 2)] for rounds in (40, 11)]
    assert wrong(bench, *all_nodes, *few, *dear) == []
    (text,) = wrong(bench, *all_nodes, *few, *cheap)
    assert "times the CPU of one network, 8 a round, above 1" in text


@pytest.mark.parametrize(("student", "holds"), [(0.86, True), (0.89, False), (0.7, False)])
def test_students_of_another_domain_lose_some_points_and_not_all(bench, student, holds):
    told = unified(0.93) | {"kd-hard": {"accuracy": student, "time_s": 1.0}}
    elsewhere = made(run(1, 2, unified=told), run(1, 4, unified=told))
    texts = wrong(bench, run(1, 1), run(1, 8), elsewhere=elsewhere)
    assert len(texts) == (0 if holds else 2)


def test_a_folder_without_runs_is_no_success(bench, tmp_path, capsys):
    assert not bench.check(tmp_path)
    assert "run the grid first" in capsys.readouterr().out


def test_data_are_classes_with_public_ones_of_another_domain(bench, tmp_path):
    data, other = bench.make(tmp_path, 10)
    with np.load(data) as ours, np.load(other) as theirs:
        assert ours["features"].shape == (450, *bench.SHAPE)
        assert ours["features"].dtype == np.float32
        assert sorted(set(ours["label"].tolist())) == list(range(10))
        assert theirs["features"].shape[1:] == bench.SHAPE
        assert not np.array_equal(ours["features"][:100], theirs["features"][:100])


def test_every_point_of_the_grid_can_be_run(bench, tmp_path):
    data, _ = bench.make(tmp_path, 10)
    swept = points(str(bench.GRID), [f"data.name={data}"], ["seed=1"], {}, "virtual")
    assert {point.config.nodes for point in swept} == {200}
    for point in swept:
        find_protocol(point.config)
    core = points(bench.written(tmp_path, "core", [bench.CORE]), [f"data.name={data}"], ["seed=1,2,3"], {}, "virtual")
    assert len(core) == 24
    assert tomllib.loads((tmp_path / "core.toml").read_text())["sweep"] == [bench.CORE]
