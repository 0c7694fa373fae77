"""A study of cohorts: rows, cells, baselines, what it takes to one accuracy, and the literature beside it."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest

from node.cli.cohort_literature import KNOWN, comparable, ours
from node.cli.cohort_study import study
from node.cli.cohort_summary import Cohort
from node.cli.cohort_table import findings, lines, parts
from node.cli.cohort_targets import target
from node.experiment.noise_scale import NoiseScale
from study_runs import NODES, made, run, rung, unified


def test_runs_of_one_number_of_cohorts_are_no_study():
    assert study([]) is None
    assert study([run(1, 4), run(2, 4)]) is None
    assert study([run(1, 4), run(1, 1, status="failed")]) is None
    assert study([run(1, 4), run(1, 1, {"use": "dpsgd", "rounds": 20})]) is None
    assert study([run(1, 4), run(1, 1)]) is not None


def test_cells_are_runs_that_differ_in_their_seed_alone():
    found = made(run(1, 1), run(2, 1), run(1, 4), run(2, 4), run(1, 4, alpha=1.0))
    assert [len(cell.rows) for cell in found.cells] == [2, 2, 1]
    assert found.settings == ["alpha=0.1", "alpha=1"]
    assert found.cells[0].mean("accuracy_one") == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("protocol", "cohorts", "method"),
    [
        ({}, 1, "one network"),
        ({}, 4, "4 cohorts"),
        ({}, NODES, "24 nodes alone"),
        ({"sample": 12}, 1, "one network, 12 a round"),
        ({"sample": 3}, 4, "4 cohorts, 3 of each"),
        ({"sample": 3, "sampling": "oort"}, 4, "4 cohorts, 3 of each, oort"),
        ({"forming": "stratified"}, 4, "4 cohorts, stratified"),
        ({"forming": "stratified"}, 1, "one network"),
        ({"quantile": 0.75}, 4, "4 cohorts, quantile=0.75"),
    ],
)
def test_methods_are_told_in_words(protocol, cohorts, method):
    rows = made(run(1, 2), run(1, 8), run(1, cohorts, protocol)).rows
    assert rows[-1].method == method


def test_the_length_of_a_run_is_its_course_and_no_method():
    found = made(rung(1, 8, 0.5), rung(1, 20, 0.7), rung(4, 8, 0.5), run(1, 1))
    assert [row.method for row in found.rows] == ["one network", "one network", "4 cohorts", "one network"]
    assert [row.course for row in found.rows] == ["8 rounds", "20 rounds", "8 rounds", ""]
    assert [cell.first.course for cell in found.converged] == [""]


def test_figures_of_one_network_and_of_cohorts():
    one, four = made(run(1, 1), run(1, 4, scale=0.5, rounds=40)).rows
    assert one.figures["accuracy_one"] == one.figures["accuracy_cohort"] == 0.9
    assert "accuracy_ensemble" not in one.figures
    assert (one.figures["participants"], one.figures["rounds"]) == (NODES, 100)
    assert one.figures["train_hours"] == pytest.approx(0.5)
    assert four.figures["accuracy_cohort"] == pytest.approx(0.8)
    assert four.figures["accuracy_ensemble"] == pytest.approx(0.9)
    assert four.figures["accuracy_student"] == pytest.approx(0.88)
    assert (four.figures["student_s"], four.figures["student_bytes"]) == (360.0, 4000)
    assert (four.figures["rounds"], four.figures["most_rounds"]) == (41.5, 43)


def test_what_distilling_takes_is_told_apart_from_training():
    """The run's own unifier is a student, whose time is part of what devices have spent."""
    own = run(1, 4, unifier="kd-hard", unify_s=370.0, device_cpu_s=1800 + 360)
    figures = made(run(1, 1), own).rows[1].figures
    assert figures["train_hours"] == pytest.approx(0.5)
    assert figures["handing_s"] == pytest.approx(10)


def test_three_quarters_of_the_cohorts_have_converged_before_the_last():
    figures = made(run(1, 1), run(1, 4)).rows[1].figures
    assert (figures["converged_share_s"], figures["converged_s"]) == (99, 100)
    unfinished = [{"cohort": i, "stopped_s": 5.0 if i < 2 else None} for i in range(4)]
    told = run(1, 4).summary.cpfl.model_copy(
        update={"cohorts": tuple(Cohort.model_validate(each) for each in unfinished)}
    )
    late = replace(run(1, 4), summary=run(1, 4).summary.model_copy(update={"cpfl": told}))
    assert made(run(1, 1), late).rows[1].figures["converged_share_s"] is None


def test_other_protocols_are_baselines_with_what_the_whole_run_took():
    row = made(run(1, 1), run(1, 4), run(1, 1, {"use": "dpsgd", "rounds": 20})).rows[-1]
    assert (row.method, row.course, row.cohorts) == ("dpsgd", "20 rounds", None)
    assert row.figures["train_hours"] == 0.7
    assert (row.figures["converged_s"], row.figures["up_bytes"]) == (500.0, 40_000_000)


def test_a_row_for_each_run_is_written(tmp_path):
    made(run(1, 1), run(1, 4), run(2, 4)).write(tmp_path / "cohorts.csv")
    with (tmp_path / "cohorts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["one network", "4 cohorts", "4 cohorts"]
    assert [row["seed"] for row in rows] == ["1", "1", "2"]
    assert float(rows[1]["accuracy_student"]) == pytest.approx(0.88)
    assert rows[0]["accuracy_student"] == ""


# To one accuracy


def test_costs_are_interpolated_between_the_rungs_of_a_ladder():
    found = made(rung(1, 10, 0.5), rung(1, 20, 0.7), rung(1, 40, 0.9), rung(4, 10, 0.4), rung(4, 40, 0.8))
    reached = target(found, "")
    assert reached.accuracy == 0.8
    one, four = reached.ways
    assert (one.method, one.cohorts, four.cohorts) == ("one network", 1, 4)
    assert one.rounds == pytest.approx(30)
    assert one.costs["converged_s"].mean == pytest.approx(30)
    assert four.rounds == pytest.approx(41.5)
    assert four.participants == NODES


def test_the_target_is_what_every_way_reaches_with_every_seed():
    ladders = [rung(1, 10, 0.5, seed=seed) for seed in (1, 2)] + [rung(1, 20, 0.9, seed=seed) for seed in (1, 2)]
    ladders += [rung(4, 10, 0.5, seed=seed) for seed in (1, 2)] + [
        rung(4, 20, 0.6 + seed / 10, seed=seed) for seed in (1, 2)
    ]
    reached = target(made(*ladders), "")
    assert reached.accuracy == pytest.approx(0.7)
    assert all(way.costs["rounds"].seeds == 2 for way in reached.ways)
    assert reached.ways[0].costs["rounds"].half == pytest.approx(0)


def test_a_ladder_that_begins_above_the_target_costs_its_first_rung():
    reached = target(made(rung(1, 10, 0.9), rung(1, 20, 0.95), rung(4, 10, 0.5), rung(4, 20, 0.8)), "")
    assert reached.ways[0].rounds == 10


def test_accuracy_that_falls_again_has_been_reached_before():
    reached = target(made(rung(1, 10, 0.5), rung(1, 20, 0.9), rung(1, 40, 0.6), rung(4, 10, 0.5), rung(4, 20, 0.9)), "")
    assert reached.ways[0].rounds == pytest.approx(20)


def test_one_way_alone_has_nothing_to_be_held_against():
    assert target(made(rung(1, 10, 0.5), rung(1, 20, 0.9), run(1, 4)), "") is None
    assert target(made(rung(1, 10, 0.5), rung(4, 10, 0.9)), "") is None


# Beside the literature


def test_factors_and_changes_against_one_network():
    (own,) = ours(made(run(1, 1), run(1, 4, accuracy=0.88, scale=0.5)))
    assert (own.alpha, own.cohorts) == (0.1, 4)
    assert [each.mean for each in (own.time, own.cpu, own.bytes)] == pytest.approx([2, 2, 2])
    changes = [each.mean for each in (own.cohort, own.ensemble, own.average, own.student)]
    assert changes == pytest.approx([-0.12, -0.02, -0.07, -0.04])
    assert {own.time.half, own.student.half} == {None}
    assert own.whole_time.mean == pytest.approx(100 / (50 + 2 + 360))


def test_seeds_are_compared_each_with_itself():
    """What differs from seed to seed alike in both is no uncertainty of a factor; a seed of one alone says nothing."""
    scales = {1: 1.0, 2: 3.0, 3: 5.0}
    whole = [run(seed, 1, accuracy=0.9 - seed / 100, scale=scale) for seed, scale in scales.items()]
    parts = [run(seed, 4, accuracy=0.87 - seed / 100, scale=scale / 2) for seed, scale in scales.items()]
    (own,) = ours(made(*whole, *parts, run(4, 4, accuracy=0.1, scale=9)))
    assert own.time.seeds == own.ensemble.seeds == 3
    assert (own.time.mean, own.time.half) == pytest.approx((2, 0))
    assert (own.ensemble.mean, own.ensemble.half) == pytest.approx((-0.03, 0))


def test_factors_of_seeds_have_the_interval_of_their_mean():
    whole = [run(seed, 1) for seed in (1, 2, 3)]
    (own,) = ours(made(*whole, *[run(seed, 4, scale=1 / factor) for seed, factor in ((1, 2), (2, 4), (3, 5))]))
    assert own.time.mean == pytest.approx(11 / 3)
    assert own.time.half == pytest.approx(4.302653 * math.sqrt(7 / 3 / 3), rel=1e-5)


def test_without_a_common_seed_nothing_is_known():
    (own,) = ours(made(run(1, 1), run(2, 4)))
    assert (own.time, own.ensemble) == (None, None)


def test_only_what_compares_is_laid_beside():
    """Other formings, samples and skews are other experiments."""
    found = made(run(1, 1), run(1, 4), run(1, 4, {"forming": "stratified"}), run(1, 1, {"sample": 12}), run(1, 8))
    assert [each.cohorts for each in ours(found)] == [4, 8]
    assert [(each.source, each.cohorts) for each in comparable(found)] == [
        ("published", 4),
        ("here", 4),
        ("measured", 4),
        ("here", 8),
    ]


def test_what_is_known_is_told_as_factors_of_one_network():
    measured = {(each.alpha, each.cohorts): each for each in KNOWN}
    assert measured[0.1, 4].time.mean == pytest.approx(6.84, abs=0.01)
    assert measured[1.0, 16].ensemble.mean == pytest.approx(0.884 - 0.922)
    assert (measured[None, 4].time.mean, measured[None, 4].cpu.mean, measured[None, 4].bytes) == (1.9, 1.3, None)
    assert {each.time.half for each in KNOWN} == {None}


# In words


def test_every_cell_is_a_line_of_both_tables():
    found = made(
        *[run(seed, cohorts) for seed in (1, 2, 3) for cohorts in (1, 4)], run(1, 1, {"use": "dpsgd", "rounds": 9})
    )
    accuracy, cost, against = parts(found, {})
    assert (
        [row[0] for row in accuracy.rows]
        == [row[0] for row in cost.rows]
        == ["one network", "4 cohorts", "dpsgd, 9 rounds"]
    )
    assert accuracy.rows[1][1:4] == ["3", "24", "102"]
    assert accuracy.rows[1][6] == "0.900±0.000"
    assert "360±0" in cost.rows[1]
    own = next(row for row in against.rows if row[0] == "here")
    assert own[3:8] == ["1.00±0.00x", "0.22±0.00x", "1.00±0.00x", "1.00±0.00x", "-10.0±0.0"]
    published = next(row for row in against.rows if row[0] == "published")
    assert published[1:7] == ["skewed", "4", "1.90x", "–", "1.30x", "–"]
    assert all(len(row) == len(part.head) for part in (accuracy, cost, against) for row in part.rows)


def test_both_views_are_told_in_sentences():
    ladders = [rung(1, 10, 0.5, 8), rung(1, 20, 0.9, 8), rung(4, 10, 0.4, 2), rung(4, 40, 0.9, 2)]
    text = "\n".join(findings(made(run(1, 1), run(1, 4, scale=0.5), *ladders), {}))
    assert "Until they stop, alpha 0.1: 4 cohorts take 0.50 times the time, 0.50 times the CPU" in text
    assert "8 nodes a round: 4 cohorts, 2 of each take 2.00 times the time" in text
    assert "of one network, 8 a round" in text


def test_predicted_rounds_stand_beside_those_that_were_needed():
    found = made(rung(1, 10, 0.5), rung(1, 20, 0.9), rung(4, 10, 0.5), rung(4, 20, 0.9))
    scales = {"": NoiseScale(6.0, 4)}
    part = next(part for part in parts(found, scales) if part.title.startswith("To accuracy 0.90"))
    assert [row[3] for row in part.rows] == ["20", f"{20 * (1 + 6 / 6) / (1 + 6 / 24):.0f}"]
    assert "K = 4" in "\n".join(findings(found, scales))
    unseen = {"": NoiseScale(math.inf, 1)}
    assert [row[3] for row in parts(found, unseen)[2].rows] == ["–", "–"]


def test_lines_fit_a_terminal():
    every = [run(seed, cohorts) for seed in (1, 2, 3) for cohorts in (1, 2, 4)]
    assert max(map(len, lines(made(*every), {}))) <= 130


def test_a_run_that_knows_no_student_has_none():
    bare = {name: told for name, told in unified(0.9).items() if name == "average"}
    found = made(run(1, 1), run(1, 4, unified=bare))
    assert "accuracy_student" not in found.rows[1].figures
    own = next(iter(ours(found)))
    assert (own.student, own.whole_time) == (None, None)


def test_rules_that_differ_are_told_and_windows_of_budgets_are_not():
    windows = [run(1, 4, {"stopping": {"window": window, "patience": 3}}) for window in (5, 9)]
    found = made(run(1, 1, {"stopping": {"window": 5, "patience": 3}}), *windows, rung(1, 8, 0.5))
    assert [row.course for row in found.rows] == ["window=5", "window=5", "window=9", "8 rounds"]
    alike = made(run(1, 1, {"stopping": {"window": 5}}), run(1, 4, {"stopping": {"window": 5}}), rung(1, 8, 0.5))
    assert [row.course for row in alike.rows] == ["", "", "8 rounds"]
