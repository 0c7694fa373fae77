"""A node on its own says what it has spent, with all that it means, over HTTP; and keeps it over restarts."""

import asyncio
import json

from node.config import ExperimentConfig
from node.daemon.standing import Phase
from node.experiment.setup import prepare
from node.live.metrics import Metrics, Reading
from node.privacy.budget import NodeAccountant
from test_daemon import WAIT_S, party


def private(nodes=2, **privacy):
    return prepare(
        ExperimentConfig(
            name="tiny",
            seed=3,
            nodes=nodes,
            clock="real",
            protocol={"use": "dpsgd", "rounds": 2},
            topology={"kind": "full"},
            model={"hidden": (8,)},
            training={"local_steps": 2},
            privacy={"mechanism": "record", "noise_multiplier": 2.0, **privacy},
        )
    )


def spent(setup, node, steps):
    accountant = NodeAccountant()
    accountant.step(2.0, 16 / setup.workload.shard_size(node), steps)
    return accountant.epsilon(1e-5)


async def test_status_and_metrics_show_no_epsilon_alone(tmp_path):
    setup = private(view="T3")
    async with party(setup, tmp_path) as nodes:
        for node in range(2):
            nodes.start(node)
        await nodes.phase(Phase.FINISHED)
        _, status = await nodes.get(0, "status")
        _, metrics = await nodes.get(0, "metrics")
        await nodes.stop()
    epsilon = spent(setup, 0, 4)
    status = json.loads(status)
    assert status["epsilon"] == epsilon
    assert status["privacy"].startswith(f"({epsilon:.4g}, 1e-05)-DP per record, add-remove, against T3")
    labels = 'adjacency="add_remove",conversion="rdp",delta="1e-05",mechanism="record",unit="record",view="T3"'
    [line] = [line for line in metrics.splitlines() if line.startswith("starling_privacy_epsilon")]
    name, _, value = line.rpartition(" ")
    assert ",".join(sorted(name.removeprefix("starling_privacy_epsilon{").removesuffix("}").split(","))) == labels
    assert float(value) == epsilon
    assert 'starling_privacy_delta{mechanism="record"} 1e-05' in metrics
    summary = nodes.summary(0)
    assert summary["privacy"]["epsilon"] == {"mean": epsilon, "max": epsilon}


async def test_another_experiment_on_the_same_state_adds_to_what_was_spent(tmp_path):
    setup = private()
    for _ in range(2):
        async with party(setup, tmp_path) as nodes:
            for node in range(2):
                nodes.start(node)
            await nodes.phase(Phase.FINISHED)
            await nodes.stop()
        setup = private(clip=0.5)  # another experiment: its own checkpoints, the same data
    assert nodes.summary(1)["privacy"]["epsilon"]["max"] == spent(setup, 1, 8)


async def test_a_node_whose_budget_is_spent_ends_as_failed(tmp_path):
    enough_for_one = 1.001 * spent(private(nodes=1), 0, 2)
    setup = private(nodes=1, epsilon=enough_for_one)
    async with party(setup, tmp_path) as nodes:
        nodes.start(0)
        async with asyncio.timeout(WAIT_S):
            assert await nodes.tasks[0] == 3
    summary = nodes.summary(0)
    assert summary["status"] == "failed"
    assert summary["error"].startswith("node 0 has spent its privacy")


def test_a_gauge_without_a_meaning_is_as_it_was():
    reading = Reading({"round": 3.0})
    assert b"\nstarling_round 3.0\n" in Metrics(lambda: reading).text()
