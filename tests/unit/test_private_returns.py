"""A private node that was away pays for what it trains, once for each time, and for nothing that it has missed."""

import pytest

from node.experiment.loading import load
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual

ROUNDS = 24
STEPS = 2
AWAY_ROUNDS = 12
RECORD = [
    "clock=virtual",
    "nodes=4",
    "topology.kind=full",
    "model.hidden=[8]",
    f"training.local_steps={STEPS}",
    f"protocol.rounds={ROUNDS}",
    "protocol.deadline_s=100",
    "privacy.mechanism=record",
    "privacy.noise_multiplier=2",
]


@pytest.fixture(scope="module")
def results():
    """A run undisturbed, and one in which node 1 goes while it trains in its fourth round."""
    plain = run_virtual(prepare(load("digits-gossip", RECORD, {})), lambda *_: None)
    round_s = plain.time_s / ROUNDS
    away = f'{{kind="restart", nodes=[1], at_s={3.5 * round_s}, for_s={AWAY_ROUNDS * round_s}}}'
    detected = f"churn.detect_s={0.1 * round_s}"
    overrides = [*RECORD, f"faults=[{away}]", detected]
    return plain, run_virtual(prepare(load("digits-gossip", overrides, {})), lambda *_: None)


def steps_of(result, node):
    return sum(count for _, _, count in result.spent[node]["steps"])


def rounds_of(result, node):
    return sorted({row.round for row in result.recorder.rows() if row.node == node})


def test_trainings_that_were_missed_are_not_charged(results):
    plain, away = results
    assert away.status == "finished", away.error
    trained = rounds_of(away, 1)
    assert len(trained) <= ROUNDS - AWAY_ROUNDS + 2
    # One of its rounds was begun and lost, which is charged; one was taken over, which is not.
    assert steps_of(away, 1) == len(trained) * STEPS
    assert {steps_of(away, node) for node in (0, 2, 3)} == {steps_of(plain, 0)} == {ROUNDS * STEPS}


def test_so_it_ends_with_less_spent_than_if_it_had_stayed(results):
    plain, away = results
    before, after = plain.recorder.latest("epsilon"), away.recorder.latest("epsilon")
    assert after[1] < before[1]
    assert {node: after[node] for node in (0, 2, 3)} == {node: before[node] for node in (0, 2, 3)}


def test_what_it_has_spent_never_falls(results):
    _, away = results
    epsilons = [row.value for row in away.recorder.rows() if row.node == 1 and row.metric == "epsilon"]
    assert epsilons == sorted(epsilons)


def test_it_ends_where_the_others_do(results):
    _, away = results
    assert rounds_of(away, 1)[-1] == ROUNDS - 1
    accuracies = away.recorder.latest("accuracy")
    assert abs(accuracies[1] - accuracies[0]) < 0.1
