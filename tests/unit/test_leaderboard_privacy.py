"""Leakage, epsilon and reliability on the leaderboard: what stands beside what, and what is said where nothing does."""

from __future__ import annotations

import csv
import re
from dataclasses import asdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from node.cli.leaderboard import Board
from node.cli.leaderboard_html import page
from node.cli.leaderboard_privacy import compared, exposed
from node.cli.leaderboard_reliability import bins, picture, write_csv
from node.experiment.oneshot_grid import Setting
from node.learn.oneshot.judging import BINS, RELIABILITY, calibration_error, judged, names, reliability

CELL = "R0 D0 W2 H0 M1 F1 S0"
PLAIN, EIGHT, ONE = (Setting("digits", "iid", epsilon=epsilon) for epsilon in (0.0, 8.0, 1.0))
LEAKS = {f"leakage_{name}": value for name, value in zip(("auc", "auc_low", "auc_high"), (0.7, 0.6, 0.8), strict=True)}
RATES = {f"leakage_{name}": value for name, value in zip(("tpr", "tpr_low", "tpr_high"), (0.1, 0.05, 0.2), strict=True)}


def record(name, setting, accuracy, unattacked="", division="closed", **figures):
    told = {"entrant": name, "assumptions": CELL, "division": division, "setting": asdict(setting)}
    said = {"status": "finished", "error": None, "unattacked": unattacked}
    return {**told, **said, "figures": {"accuracy": accuracy, **figures}}


@pytest.fixture
def board():
    return Board(
        [
            record("mean client", PLAIN, 0.4, "a line of reference", "reference"),
            record("mean", PLAIN, 0.9, **LEAKS, **RATES),
            record("mean", Setting("digits", "iid", seed=1), 0.7, "attacked at seed 0"),
            record("mean", EIGHT, 0.6, epsilon=8.0, **LEAKS),
            record("mean", ONE, 0.2, epsilon=1.0, **LEAKS),
            record("grams", PLAIN, 0.95, "statistics alone"),
            record("mean", Setting("digits", "shards(2)"), 0.5, **LEAKS),
            record("grams", Setting("digits", "shards(2)"), 0.5, "statistics alone"),
        ]
    )


def test_protected_blocks_are_not_ranked(board):
    assert board.main == ["digits iid N=10", "digits shards(2) N=10"]


def test_accuracy_leakage_and_epsilon_stand_side_by_side(board):
    rows = [row for row in exposed(board) if row.entrant == "mean"]
    assert [(row.block, row.accuracy, row.epsilon) for row in rows] == [
        ("digits iid N=10", 0.9, None),
        ("digits iid N=10, epsilon 8", 0.6, 8.0),
        ("digits iid N=10, epsilon 1", 0.2, 1.0),
    ]
    assert rows[0][3:7] == (0.7, (0.6, 0.8), 0.1, (0.05, 0.2))
    assert rows[1].tpr is rows[1].tpr_interval is None
    assert {row.remark for row in rows} == {""}


def test_what_is_neither_attacked_nor_protected_says_why(board):
    (row,) = [row for row in exposed(board) if row.entrant == "grams"]
    assert row.auc is None
    assert row.remark == "statistics alone; no noise covers all that its clients tell"


def test_lines_of_reference_leak_nothing(board):
    assert "mean client" not in {row.entrant for row in exposed(board)}


def test_without_protection_the_first_block_is_told_alone():
    board = Board([record("mean", PLAIN, 0.9, **LEAKS), record("mean", Setting("digits", "shards(2)"), 0.5, **LEAKS)])
    assert compared(board) == {"digits iid N=10": []}
    (row,) = exposed(board)
    assert row.remark == ""


def test_a_board_of_nothing_has_no_rows():
    assert exposed(Board([])) == []
    assert "What uploads give away" not in page(Board([]), [])


def test_the_page_has_the_table_and_why_not(board):
    text = page(board, [])
    section = text[text.index("What uploads give away") :]
    assert "digits iid N=10, epsilon 8" in section
    assert "60.0 to 80.0" in section
    assert "statistics alone; no noise covers" in section
    assert re.search(r"<td[^>]*>8</td>", section)


# Reliability


def told(probabilities, labels):
    return {name: value for name, value in judged(probabilities, labels).items() if name.startswith(RELIABILITY)}


scores = st.lists(
    st.tuples(st.floats(0.01, 1), st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 2)), min_size=1, max_size=40
)


@given(scores)
def test_bins_add_up_to_accuracy_and_calibration_error(samples):
    probabilities = torch.tensor([sample[:3] for sample in samples], dtype=torch.float64)
    labels = torch.tensor([sample[3] for sample in samples])
    found = judged(probabilities, labels)
    table = torch.tensor(list(told(probabilities, labels).values()), dtype=torch.float64).view(BINS, 3)
    assert float(table[:, 0].sum()) == pytest.approx(1)
    assert float(table[:, 2].sum()) == pytest.approx(found["accuracy"])
    assert float((table[:, 2] - table[:, 1]).abs().sum()) == pytest.approx(found["ece"], abs=1e-12)
    assert tuple(found) == names(3).names


def test_the_golden_case_of_ten_bins():
    confidence = torch.tensor([0.95, 0.9, 0.85, 0.62, 0.58, 0.55, 0.31, 0.29], dtype=torch.float64)
    right = torch.tensor([1, 1, 0, 1, 0, 1, 0, 1]).bool()
    table = reliability(confidence, right, 10)
    assert float((table[:, 2] - table[:, 1]).abs().sum()) == pytest.approx(0.29125)
    assert calibration_error(confidence, right, 10) == pytest.approx(0.29125)
    assert table[8].tolist() == pytest.approx([2 / 8, (0.9 + 0.85) / 8, 1 / 8])  # bins are closed above
    assert table[1].tolist() == [0, 0, 0]


def sure_of(confidence, accuracy):
    """Figures of an entrant that says one thing of all samples."""
    place = min(int(confidence * BINS), BINS - 1)
    bins = {f"{RELIABILITY}{i}/{what}": 0.0 for i in range(BINS) for what in ("share", "confidence", "right")}
    shown = {"share": 1.0, "confidence": confidence, "right": accuracy}
    return bins | {f"{RELIABILITY}{place}/{what}": value for what, value in shown.items()}


@pytest.fixture
def confident():
    parts = (PLAIN, Setting("digits", "iid", seed=1))
    loud = [record("loud", part, 0.5, **sure_of(0.9, right)) for part, right in zip(parts, (0.4, 0.6), strict=True)]
    return Board([*loud, *(record("shy", part, 0.8, **sure_of(0.5, 0.8)) for part in parts), record("?", PLAIN, 0.1)])


def test_bins_are_means_over_seeds(confident):
    found = bins(confident, "loud")
    (there,) = [each for each in found if each.share]
    assert (there.low, there.high) == (13 / BINS, 14 / BINS)
    assert (there.confidence, there.accuracy) == (pytest.approx(0.9), pytest.approx(0.5))
    assert all(each.accuracy is None for each in found if not each.share)


def test_who_tells_of_no_bins_has_none(confident):
    assert bins(confident, "?") == []


def test_the_diagram_shows_who_is_known(confident):
    drawn = picture(confident)
    assert "loud" in drawn.svg
    assert "shy" in drawn.svg
    assert picture(Board([record("a", PLAIN, 0.4)])) is None


def test_all_bins_are_in_a_file(confident, tmp_path):
    write_csv(confident, tmp_path / "reliability.csv")
    rows = list(csv.DictReader((tmp_path / "reliability.csv").read_text(encoding="utf-8").splitlines()))
    assert len(rows) == 2 * BINS
    assert {row["entrant"] for row in rows} == {"loud", "shy"}
    (full,) = [row for row in rows if row["entrant"] == "shy" and float(row["share"]) == 1]
    assert float(full["accuracy"]) == pytest.approx(0.8)
    write_csv(Board([]), tmp_path / "none.csv")
    assert not (tmp_path / "none.csv").exists()
