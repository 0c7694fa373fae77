"""Attackers that hear models which are not finite: what they find is no number, and the run goes on."""

import json
import math

import numpy as np
import pytest

from node.attack import lira
from node.attack.kinds import KINDS
from node.attack.scores import SCORES, probabilities
from node.config import ExperimentConfig
from node.experiment.result import write_run
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual

OPTIONS = {
    "membership": {"references": 4, "reference_epochs": 1, "trajectory": True, "tune_rmia": True},
    "inversion": {"iterations": 3},
    "byzantine": {"attack": "alie"},
    "reconstruction": {"rounds": 2},
}
PLACES = ("round", "attacker", "victim")
TABULAR = ("attribute",)


def ran(folder, *attackers, liar="nan", everybody=False, **tables):
    """Ring of six, of which node 5 sends what is not finite from the first round on; its summary."""
    is_tabular = any(attacker["kind"] in TABULAR for attacker in attackers)
    values = {
        "nodes": 6,
        "topology": {"kind": "ring"},
        "data": {"name": "breast_cancer" if is_tabular else "digits"},
        "model": {"name": "softmax"},
        "protocol": {"use": "dpsgd", "rounds": 2},
        "training": {"local_steps": 1, **({"lr": 1e38} if everybody else {})},
        "attackers": [
            *attackers,
            *([] if everybody else [{"kind": "byzantine", "nodes": [5], "attack": "nonfinite", "value": liar}]),
        ],
        **tables,
    }
    setup = prepare(ExperimentConfig.model_validate(values))
    result = run_virtual(setup, lambda *_: None)
    assert result.status == "finished", result.error
    summary = write_run(folder, setup, result)
    json.dumps(summary, allow_nan=False)
    return summary


def attacker(kind):
    every = {} if kind in ("reconstruction", "byzantine") else {"every": 1, "most": 9}
    return {"kind": kind, "nodes": [0], **every, **OPTIONS.get(kind, {})}


def of_victim(summary, victim):
    """Every figure that the attacked messages of one node have."""
    messages = [message for message in summary["attacks"]["messages"] if message["victim"] == victim]
    return [value for message in messages for key, value in message.items() if key not in PLACES]


@pytest.mark.parametrize("liar", ["nan", "inf"])
@pytest.mark.parametrize("kind", KINDS)
def test_models_that_are_not_finite_end_no_run(tmp_path, kind, liar):
    summary = ran(tmp_path, attacker(kind), liar=liar)
    if kind == "byzantine":
        assert {"byzantine", "byzantine#2"} <= set(summary["attacks"])
    elif kind == "linkability":  # all that can be said is a guess
        assert {m["linkability_accuracy"] for m in summary["attacks"]["messages"] if m["victim"] == 5} == {0.2}
    else:
        assert set(of_victim(summary, 5)) == {None}
    if kind not in ("byzantine", "reconstruction"):
        assert any(value is not None for value in of_victim(summary, 1))


@pytest.mark.parametrize("kind", KINDS)
def test_nor_do_nodes_that_all_diverge(tmp_path, kind):
    summary = ran(tmp_path, attacker(kind), everybody=True)
    assert kind == "byzantine" or summary["attacks"]["messages"]


def test_what_does_not_follow_from_finite_models_is_no_number(tmp_path):
    """Of all that was heard, one model is enough: every update is told by all of them."""
    summary = ran(tmp_path, attacker("reconstruction"))
    assert {value for victim in range(1, 6) for value in of_victim(summary, victim)} == {None}


def test_forests_learn_from_no_outputs_that_are_not_finite(tmp_path):
    summary = ran(tmp_path, {**attacker("attribute"), "method": "outputs"})
    assert set(of_victim(summary, 5)) == {None}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_no_score_of_what_is_not_finite_is_a_warning(score):
    logits = np.array([[math.inf, 0.0], [math.nan, 0.0], [-math.inf, -math.inf], [0.0, 1.0]])
    found = score(logits, np.array([0, 1, 0, 1]))
    assert found.shape == (4,)
    assert math.isfinite(found[3])


def test_probabilities_of_infinite_logits_are_no_numbers():
    found = probabilities(np.array([[math.inf, 0.0], [1.0, 1.0]]))
    assert np.isnan(found[0]).any()
    assert found[1].tolist() == [0.5, 0.5]


def test_references_that_have_diverged_are_left_out():
    inside = np.array([[True, False], [False, True], [True, False], [False, True]])
    references = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]])
    target = np.array([2.0, 3.0])
    assert np.isfinite(lira.offline(target, references, inside)).all()
    some = np.where(np.arange(4)[:, None] == 1, np.nan, references)
    assert np.isfinite(lira.offline(target, some, inside)).all()
    assert np.isnan(lira.offline(target, references * np.nan, inside)).all()
