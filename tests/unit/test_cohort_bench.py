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


@pytest.mark.parametrize(("student", "holds"), [(0.88, True), (0.84, False)])
def test_a_student_has_most_of_what_the_ensemble_has_over_a_model(bench, student, holds):
    """The cohorts' models have 0.8, their ensemble 0.9."""
    told = unified(0.9) | {"kd-hard": {"accuracy": student, "time_s": 1.0}}
    texts = wrong(bench, run(1, 1, accuracy=0.95), run(1, 8, accuracy=0.9, scale=0.2, unified=told))
    assert [text.partition(": ")[2] for text in texts] == (
        [] if holds else ["a student has 40% of what the ensemble has over a cohort's model, more than half"]
    )


@pytest.mark.parametrize(("average", "holds"), [(0.83, True), (0.87, False)])
def test_of_many_cohorts_an_average_is_far_below_the_ensemble(bench, average, holds):
    told = unified(0.9) | {"average": {"accuracy": average, "time_s": 0.0}}
    assert len(wrong(bench, run(1, 1, accuracy=0.95), run(1, 16, accuracy=0.9, scale=0.2, unified=told))) == (not holds)


def test_every_further_cohort_must_save(bench):
    told = unified(0.94) | {"average": {"accuracy": 0.93, "time_s": 0.0}, "kd-hard": {"accuracy": 0.93, "time_s": 1.0}}
    four, two = [run(1, cohorts, accuracy=0.94, scale=0.4, unified=told) for cohorts in (4, 2)]
    assert wrong(bench, run(1, 1, accuracy=0.95), four) == []
    found = wrong(bench, run(1, 1, accuracy=0.95), four, two)
    assert [text.partition(",")[0] for text in found] == [
        "alpha 0.1: time falls with the number of cohorts",
        "alpha 0.1: cpu falls with the number of cohorts",
    ]


def test_without_an_ensemble_nothing_is_said_of_unifying(bench):
    bare = {"average": {"accuracy": 0.5, "time_s": 0.0}}
    assert wrong(bench, run(1, 1, accuracy=0.95), run(1, 4, accuracy=0.9, scale=0.4, unified=bare)) == []


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
    texts = wrong(bench, run(1, 1), run(1, 8, scale=0.5), elsewhere=elsewhere)
    assert len(texts) == (0 if holds else 2)


def test_a_check_prints_the_tables_and_then_the_claims(bench, tmp_path, capsys, monkeypatch):
    told = unified(0.93) | {"average": {"accuracy": 0.91, "time_s": 0.0}, "kd-hard": {"accuracy": 0.92, "time_s": 1.0}}
    known = made(
        *[run(seed, 1, accuracy=0.95) for seed in (1, 2)],
        *[run(seed, 4, accuracy=0.93, scale=0.4, unified=told) for seed in (1, 2)],
    )
    monkeypatch.setattr(bench, "_read", lambda folder: None if folder.name == "other" else known)
    assert bench.check(tmp_path)
    printed = capsys.readouterr().out
    assert printed.index("Against one network") < printed.index("ok    alpha 0.1: time falls 2.50 times")
    assert "2.50±0.00x" in printed


def test_a_folder_without_runs_is_no_success(bench, tmp_path, capsys):
    assert not bench.check(tmp_path)
    assert "run the grid first" in capsys.readouterr().out


def test_data_are_classes_with_public_ones_of_both_domains(bench, tmp_path):
    with np.load((files := bench.make(tmp_path, 10)).data) as ours:
        features, labels = ours["features"], ours["label"]
    assert features.shape == (450, *bench.SHAPE)
    assert features.dtype == np.float32
    assert sorted(set(labels.tolist())) == list(range(10))
    with np.load(files.public) as public, np.load(files.others) as others:
        assert public["features"].shape == (720, *bench.SHAPE)
        assert others["features"].shape == (1500, *bench.SHAPE)
        alike, unlike = (nearest_class(features, labels, each["features"], each["label"]) for each in (public, others))
    assert alike > 0.5
    assert unlike < 0.25


def nearest_class(features, labels, others, known):
    """How often a sample's class is that whose mean is nearest."""
    means = np.stack([features[labels == label].mean(0).ravel() for label in range(10)])
    distances = np.linalg.norm(others.reshape(len(others), 1, -1) - means, axis=2)
    return (distances.argmin(1) == known).mean()


def test_no_public_sample_is_one_that_somebody_trains_on(bench, tmp_path):
    files = bench.make(tmp_path, 10)
    with np.load(files.data) as ours, np.load(files.public) as public:
        private = {row.tobytes() for row in ours["features"]}
        assert not private & {row.tobytes() for row in public["features"]}


def test_every_point_of_the_grid_can_be_run(bench, tmp_path):
    files = bench.make(tmp_path, 10)
    sets = [f"data.name={files.data}", f"public.name={files.public}"]
    swept = points(str(bench.GRID), sets, ["seed=1"], {}, "virtual")
    assert {point.config.nodes for point in swept} == {200}
    for point in swept:
        find_protocol(point.config)
    core = points(bench.written(tmp_path, "core", [bench.CORE]), sets, ["seed=1,2,3"], {}, "virtual")
    assert len(core) == 24
    assert tomllib.loads((tmp_path / "core.toml").read_text())["sweep"] == [bench.CORE]
