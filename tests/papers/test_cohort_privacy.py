"""Differential privacy inside cohorts: every training is charged, whoever leads, and whatever comes of it."""

import numpy as np
import pytest

from node.config import ExperimentConfig
from node.errors import BudgetSpent
from node.experiment.setup import prepare
from node.experiment.virtual import run_virtual
from node.privacy.budget import NodeAccountant

ROUNDS, STEPS, NOISE = 6, 2, 2.0
NODES = 10


def ran(schedule=(), privacy=None, data=None, training=None, **protocol):
    """Two cohorts of five; a training takes about a second."""
    stopping = {"rule": "budget", "most_rounds": ROUNDS}
    sections = {
        "nodes": NODES,
        "seed": 3,
        "clock": "virtual",
        "protocol": {"use": "cpfl", "cohorts": 2, "checkpoint": "last", "stopping": stopping, **protocol},
        "data": {"name": "digits", "partition": "iid", "local_test_fraction": 0.1, **(data or {})},
        "model": {"name": "softmax"},
        "training": {"local_steps": STEPS, **(training or {})},
        "privacy": {"mechanism": "record", "noise_multiplier": NOISE, **(privacy or {})},
        "devices": {"seconds_per_sample": 0.5},
        "churn": {"detect_s": 5.0, "schedule": schedule},
    }
    setup = prepare(ExperimentConfig.model_validate(sections))
    return setup, run_virtual(setup, lambda *_: None)


def spent(result):
    """What each node says it has spent, last."""
    return {row.node: row.value for row in result.recorder.rows() if row.metric == "epsilon"}


def trainings(setup, node, epsilon):
    """How many trainings cost a node so much."""
    for count in range(1, 4 * ROUNDS):
        accountant = NodeAccountant()
        accountant.step(NOISE, 16 / setup.workload.shard_size(node), STEPS * count)
        if accountant.epsilon(1e-5) == epsilon:
            return count
    raise AssertionError(f"no number of trainings costs node {node} {epsilon}")


def leaders(result):
    return {row.node for row in result.recorder.rows() if row.metric == "validation_loss" and row.round < ROUNDS}


def times_s(result, leader):
    """When the leader's rounds were committed."""
    rows = [row for row in result.recorder.rows() if (row.node, row.metric) == (leader, "validation_loss")]
    return {row.round: row.time_s for row in rows}


@pytest.mark.parametrize("config", [{}, {"server": "yogi"}, {"correction": "scaffold"}, {"branching": 2}])
def test_each_training_is_charged_once(config):
    setup, result = ran(**config)
    assert result.status == "finished", result.error
    epsilons = spent(result)
    assert {node: trainings(setup, node, epsilon) for node, epsilon in epsilons.items()} == dict.fromkeys(
        range(NODES), ROUNDS
    )


def test_only_those_that_are_asked_spend():
    setup, result = ran(sample=2)
    counts = [trainings(setup, node, epsilon) for node, epsilon in spent(result).items() if epsilon]
    assert sum(counts) == 2 * 2 * ROUNDS


@pytest.mark.parametrize("config", [{}, {"correction": "scaffold"}])
@pytest.mark.parametrize("round", [0, 2, 4])
def test_what_was_spent_outlives_leaders_and_restarts(config, round):
    """A leader goes and comes back: nobody forgets what it has spent, and a round is repeated at most once."""
    undisturbed = ran(**config)[1]
    lost = min(leaders(undisturbed))
    time_s = times_s(undisturbed, lost)[round] + 0.2  # the next round is under way
    schedule = [
        {"time_s": time_s, "node": lost, "what": "crash"},
        {"time_s": time_s + 8, "node": lost, "what": "return"},
    ]
    setup, result = ran(schedule, **config)
    assert result.status == "finished", result.error
    counts = {node: trainings(setup, node, epsilon) for node, epsilon in spent(result).items()}
    assert len(counts) == NODES
    assert all(ROUNDS <= count <= ROUNDS + 1 for node, count in counts.items() if node != lost)
    assert round + 1 <= counts[lost] <= ROUNDS + 1
    assert len(leaders(result)) == 3


def test_a_budget_ends_the_run_or_the_training():
    _, result = ran()
    most = max(spent(result).values())
    privacy = {"epsilon": most * 0.8, "when_spent": "relay"}
    _, relayed = ran(privacy=privacy)
    assert relayed.status == "finished", relayed.error
    assert max(spent(relayed).values()) <= privacy["epsilon"]
    _, stopped = ran(privacy={**privacy, "when_spent": "stop"})
    assert stopped.status == "failed"
    assert BudgetSpent.__name__ in str(stopped.error) or "epsilon" in str(stopped.error)


def test_control_variates_stay_where_training_ended():
    """Who may not train any more sends the model back as it came, and no change of its control."""
    most = max(spent(ran(correction="scaffold")[1]).values())
    _, relayed = ran(privacy={"epsilon": most * 0.8, "when_spent": "relay"}, correction="scaffold")
    assert relayed.status == "finished", relayed.error
    assert all(np.isfinite(np.asarray(model)).all() for model in relayed.models.values())


def test_the_summary_says_what_noise_does_not_cover():
    for sampling, shown in (("random", False), ("oort", True)):
        setup, result = ran(sampling=sampling, sample=3)
        told = result.summary(setup)["privacy"]["side_channels"]
        assert ("training loss" in told) is shown
        assert "validation loss" in told
