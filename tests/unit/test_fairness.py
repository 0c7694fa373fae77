"""How evenly a run has served its nodes and groups: by hand, by definition, and at the edges."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, recall_score

from node.cli.figures import fairness_figures
from node.cli.report import write_report
from node.cli.running import tell_outcome
from node.cli.runs import load_run
from node.config import ExperimentConfig
from node.experiment.fairness import (
    accuracy,
    demographic_parity,
    equalized_odds,
    fair_accuracy,
    fairness,
    gap,
    group_gap,
    group_means,
    jain,
    over_nodes,
    worst_decile,
)
from node.experiment.result import Result, fairness_of, write_run
from node.experiment.setup import prepare
from node.record import Recorder
from node.row import Row

LABELS = [0, 0, 1, 1, 2, 2]
TAKEN_FOR = [[0, 0, 1, 1, 2, 0], [0, 1, 1, 2, 2, 1]]
TWO = [confusion_matrix(LABELS, taken) for taken in TAKEN_FOR]
VALUES = [0.9, 0.8, 0.5, 0.4]

counts = st.lists(st.integers(0, 9), min_size=9, max_size=9).map(lambda cells: np.array(cells).reshape(3, 3))
filled = counts.map(lambda matrix: matrix + 1)
shares = st.lists(st.floats(0.01, 1), min_size=1, max_size=20)


# Golden values: three classes, two groups


def test_accuracy_of_each_group():
    accuracies = [accuracy(confusion) for confusion in TWO]
    assert accuracies == pytest.approx([5 / 6, 1 / 2])
    assert gap(accuracies) == pytest.approx(1 / 3)
    assert fair_accuracy(accuracies) == pytest.approx(2 / 3)


def test_demographic_parity_of_two_groups():
    assert demographic_parity(TWO) == pytest.approx((2 / 3, 1 / 3))


def test_equalized_odds_of_two_groups():
    assert equalized_odds(TWO) == pytest.approx((3.0, 0.5, 1.0))


def test_spread_over_nodes():
    assert jain(VALUES) == pytest.approx(0.9086021505, abs=1e-10)
    assert worst_decile(VALUES) == pytest.approx(0.43)
    told = over_nodes(dict(enumerate(VALUES)))
    assert told["std"] == pytest.approx(0.2061552813, abs=1e-10)
    assert (told["nodes"], told["jain"], told["worst_decile"]) == (4, jain(VALUES), worst_decile(VALUES))


def test_the_golden_values_as_a_summary():
    told = fairness({0: TWO[0], 1: TWO[1]}, {0: 0, 1: 1})
    assert told["groups"] == {
        "0": {"nodes": 1, "accuracy": pytest.approx(5 / 6)},
        "1": {"nodes": 1, "accuracy": pytest.approx(1 / 2)},
    }
    assert told["worst_group_accuracy"] == pytest.approx(1 / 2)
    assert told["accuracy_gap"] == pytest.approx(1 / 3)
    assert told["fair_accuracy"] == pytest.approx(2 / 3)
    assert told["demographic_parity"] == pytest.approx({"sum": 2 / 3, "max": 1 / 3})
    assert told["equalized_odds"] == pytest.approx({"sum": 3.0, "max": 0.5, "recall": 1.0})
    assert told["std"] == pytest.approx(1 / 6)


# By definition


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_accuracy_is_what_anybody_calls_accuracy(samples):
    labels, taken = zip(*samples, strict=True)
    assert accuracy(confusion_matrix(labels, taken, labels=range(3))) == pytest.approx(accuracy_score(labels, taken))


@given(filled, filled)
def test_binary_parity_and_odds_are_the_usual_differences(one, other):
    """Differences in selection rate, and the larger one in true and false positive rate, as fairlearn defines them."""
    pair = [matrix[:2, :2] for matrix in (one, other)]
    selected = [matrix[:, 1].sum() / matrix.sum() for matrix in pair]
    positive = [matrix[:, 1] / matrix.sum(axis=1) for matrix in pair]
    assert demographic_parity(pair).max == pytest.approx(abs(selected[0] - selected[1]))
    assert equalized_odds(pair).max == pytest.approx(np.abs(positive[0] - positive[1]).max())


@given(filled, filled)
def test_recall_is_the_diagonal_of_equalized_odds(one, other):
    recalls = []
    for matrix in (one, other):
        labels, taken = (places.repeat(matrix.ravel()) for places in np.indices((3, 3)).reshape(2, -1))
        recalls.append(recall_score(labels, taken, average=None))
    assert equalized_odds([one, other]).recall == pytest.approx(np.abs(recalls[0] - recalls[1]).sum())


@given(filled, filled, st.integers(2, 5))
def test_rates_do_not_depend_on_how_many_samples_a_group_has(one, other, times):
    assert demographic_parity([one * times, other]) == pytest.approx(demographic_parity([one, other]))
    assert equalized_odds([one * times, other]) == pytest.approx(equalized_odds([one, other]))


@given(st.lists(filled, min_size=3, max_size=4))
def test_of_more_than_two_groups_the_two_furthest_apart_count(groups):
    pairs = [(one, other) for i, one in enumerate(groups) for other in groups[:i]]
    for measure in (demographic_parity, equalized_odds):
        found = np.array([measure(pair) for pair in pairs])
        assert measure(groups) == pytest.approx(tuple(found.max(axis=0)))


@given(filled)
def test_groups_that_are_alike_are_fair(one):
    assert demographic_parity([one, one]) == (0, 0)
    assert equalized_odds([one, one]) == (0, 0, 0)
    assert fair_accuracy([0.7, 0.7, 0.7]) == pytest.approx(0.7 * 2 / 3 + 1 / 3)


@given(shares)
def test_jain_lies_between_one_nth_and_one(values):
    assert 1 / len(values) - 1e-9 <= jain(values) <= 1 + 1e-9
    assert jain([0.3] * len(values)) == pytest.approx(1)
    assert jain([0.0] * (len(values) - 1) + [0.5]) == pytest.approx(1 / len(values))


# Edges


def test_what_nobody_can_say_is_not_a_number():
    assert math.isnan(accuracy(np.zeros((2, 2))))
    assert math.isnan(jain([0.0, 0.0]))
    assert all(math.isnan(value) for value in (*demographic_parity(TWO[:1]), *equalized_odds(TWO[:1])))


def test_a_label_that_one_group_lacks_is_left_out_of_odds():
    lacking = TWO[1].copy()
    lacking[2] = 0
    assert equalized_odds([TWO[0], lacking]) == pytest.approx((2.0, 0.5, 1.0))
    disjoint = [np.diag([5, 0]), np.diag([0, 5])]
    assert all(math.isnan(value) for value in equalized_odds(disjoint))
    assert demographic_parity(disjoint) == (2.0, 1.0)


def test_groups_without_a_common_label_make_a_summary_of_nulls():
    told = fairness({0: np.diag([5, 0]), 1: np.diag([0, 5])}, {0: 0, 1: 1})
    assert told["equalized_odds"] == {"sum": None, "max": None, "recall": None}
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_models_that_are_never_right_make_a_summary():
    wrong = np.array([[0, 3], [3, 0]])
    told = fairness({0: wrong, 1: wrong}, {0: 0, 1: 1})
    assert (told["jain"], told["worst_group_accuracy"], told["fair_accuracy"]) == (None, 0.0, pytest.approx(1 / 3))


def test_one_group_alone_has_no_gap_and_no_parity():
    told = fairness({4: TWO[0], 2: TWO[1]}, {4: 1, 2: 1})
    assert list(told["groups"]) == ["1"]
    assert (told["accuracy_gap"], told["demographic_parity"]["sum"]) == (0.0, None)


def test_a_node_of_no_group_does_not_count():
    groups = {0: -1, 1: 0, 2: 1}
    with_server = fairness({0: TWO[0], 1: TWO[0], 2: TWO[1]}, groups)
    assert with_server == fairness({1: TWO[0], 2: TWO[1]}, groups)
    assert fairness({0: TWO[0]}, groups) == fairness({}, groups) == {}


def test_a_groups_rates_are_those_of_its_nodes_together():
    groups = {0: 0, 1: 0, 2: 1}
    told = fairness({2: TWO[1], 1: 3 * TWO[1], 0: TWO[0]}, groups)
    assert told["groups"]["0"] == {"nodes": 2, "accuracy": pytest.approx((5 + 9) / 24)}
    assert told["demographic_parity"]["sum"] == pytest.approx(demographic_parity([TWO[0] + 3 * TWO[1], TWO[1]]).sum)
    assert told["std"] == pytest.approx(np.std([5 / 6, 1 / 2, 1 / 2]))


def test_the_order_of_nodes_makes_no_difference():
    groups = dict.fromkeys(range(6), 0) | {4: 1, 5: 1}
    confusions = {node: np.random.default_rng(node).integers(1, 50, (4, 4)) for node in range(6)}
    backwards = {node: confusions[node] for node in reversed(range(6))}
    assert json.dumps(fairness(confusions, groups)) == json.dumps(fairness(backwards, groups))


def test_unfair_privacy_is_the_gap_between_groups_of_any_metric_of_nodes():
    auc = {0: 0.53, 1: 0.55, 2: 0.60, 3: 0.64, 9: 0.99}
    groups = {0: 0, 1: 0, 2: 1, 3: 1, 9: -1}
    assert group_means(auc, groups) == pytest.approx({0: 0.54, 1: 0.62})
    assert group_gap(auc, groups) == pytest.approx(0.08)


# What a run says


@pytest.fixture(scope="module")
def setups():
    """An experiment with groups, one whose nodes differ without groups, and one whose nodes are alike."""
    tables = {"nodes": 4, "topology": {"kind": "full"}, "model": {"name": "softmax"}}
    kinds = ({"groups": [3, 1]}, {"partition": "dirichlet"}, {})
    return [prepare(ExperimentConfig.model_validate({**tables, "data": data})) for data in kinds]


def measured(setup, *accuracies, **fields) -> Result:
    recorder = Recorder()
    for node, value in enumerate(accuracies):
        recorder.append(Row(1.0, node, 0, "accuracy", value))
    models = {node: setup.model.initial(node) for node in range(4)}
    return Result(recorder, **{"status": "finished", "models": models, **fields})


def test_with_groups_final_models_are_judged(setups):
    told = fairness_of(measured(setups[0]), setups[0])
    assert {name: group["nodes"] for name, group in told["groups"].items()} == {"0": 3, "1": 1}
    assert told["nodes"] == 4
    assert measured(setups[0]).summary(setups[0])["fairness"] == told


def test_models_that_have_diverged_are_judged_too(setups):
    models = {node: setups[0].model.initial(0) * math.nan for node in range(4)}
    told = fairness_of(measured(setups[0], models=models), setups[0])
    assert 0 <= told["worst_group_accuracy"] < 0.3


def test_without_groups_it_is_what_nodes_have_recorded(setups):
    assert fairness_of(measured(setups[1], *VALUES), setups[1]) == over_nodes(dict(enumerate(VALUES)))
    told = fairness_of(measured(setups[1], 0.5, math.nan, 0.7), setups[1])
    assert (told["nodes"], told["std"]) == (2, pytest.approx(0.1))


@pytest.mark.parametrize("accuracies", [(), (0.5,), (0.5, math.nan)])
def test_what_too_few_have_recorded_has_no_spread(setups, accuracies):
    assert fairness_of(measured(setups[1], *accuracies), setups[1]) == {}


def test_nodes_that_are_alike_have_no_fairness(setups):
    assert fairness_of(measured(setups[2], *VALUES), setups[2]) == {}
    assert "fairness" not in measured(setups[2], *VALUES).summary(setups[2])


def test_a_run_that_has_left_no_models_has_none(setups):
    assert "fairness" not in measured(setups[0], 0.5, 0.6, models={}).summary(setups[0])


# What is told of it


def test_the_terminal_tells_each_group(setups, tmp_path, capsys):
    summary = measured(setups[0], *VALUES).summary(setups[0])
    tell_outcome(summary, tmp_path)
    groups = summary["fairness"]["groups"]
    expected = (
        f"own accuracy by group (nodes): 0 (3) {groups['0']['accuracy']:.4f}, 1 (1) {groups['1']['accuracy']:.4f};"
    )
    assert expected in capsys.readouterr().out
    tell_outcome(measured(setups[1], *VALUES).summary(setups[1]), tmp_path)
    assert "by group" not in capsys.readouterr().out


def test_the_report_has_a_row_for_each_group(setups, tmp_path):
    write_run(tmp_path, setups[0], measured(setups[0], *VALUES))
    write_report([load_run(tmp_path)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    groups = load_run(tmp_path).summary.fairness.groups
    assert "<h2>Fairness</h2>" in page
    for name, nodes in (("0", 3), ("1", 1)):
        assert f"<td>{name}</td><td>{nodes}</td><td>{groups[name].accuracy:.4f}</td>" in page
    assert "<td>fair accuracy</td>" in page


def test_the_report_without_groups_has_the_spread_alone(setups, tmp_path):
    write_run(tmp_path, setups[1], measured(setups[1], *VALUES))
    write_report([load_run(tmp_path)], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<td>Jain index over nodes</td><td>0.9086</td>" in page
    assert "fair accuracy" not in page


def test_a_run_whose_nodes_are_alike_has_no_figures_of_it(setups, tmp_path):
    write_run(tmp_path, setups[2], measured(setups[2], *VALUES))
    assert fairness_figures(load_run(tmp_path).summary) == {}
