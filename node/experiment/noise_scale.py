"""How much noise there is in nodes' first updates, and so how many cohorts a network could be divided into.

McCandlish, Kaplan, Amodei: An Empirical Model of Large-Batch Training, 2018, with nodes in the place of samples.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from node.cohorts import advised_count, gradient_noise_scale
from node.config import ExperimentConfig
from node.experiment.setup import prepare
from node.op import Key, Task

ROUNDS = 3
"""Of all nodes, from the common initial model on."""
LEAST_HOLDERS = 2
"""Nodes with a class that each cohort should have, if they are spread evenly."""


class NoiseScale(NamedTuple):
    """Of one experiment."""

    participants: float
    """Beyond so many in a round, more hardly save rounds; infinite where no signal is seen."""
    advised_cohorts: int
    """As many as have so many participants each, and still see every class."""


def noise_scale(config: ExperimentConfig, rounds: int = ROUNDS) -> NoiseScale:
    """Train a few rounds of federated averaging in one network, and look at the updates.

    Takes no part in any run, and follows from the configuration alone.

    Raises:
        ConfigError: the experiment cannot be prepared, or fewer than two of its nodes have data.
    """
    setup = prepare(config)
    workload, executor = setup.workload, setup.executor()
    nodes = [node for node in range(config.nodes) if workload.shard_size(node)]
    weights = np.array([workload.shard_size(node) for node in nodes], dtype=np.float64)
    model: Any = workload.init.solve(Task((), {}, Key(config.seed, 0, 0)))
    every = []
    for round in range(rounds):
        lr = workload.lr(round)
        tasks = [
            Task((model,), {"steps": workload.steps(node), "lr": lr, "proximal": 0.0}, Key(config.seed, node, round))
            for node in nodes
        ]
        trained = np.stack([np.asarray(value) for value in executor.solve(workload.train, tasks)])
        every.append(list(trained.astype(np.float64) - np.asarray(model)))
        model = model + model.new_tensor(np.average(every[-1], axis=0, weights=weights))
    found = gradient_noise_scale(every)
    histograms = {node: workload.label_histogram(node) for node in nodes}
    return NoiseScale(found, advised_count(found, histograms, least_holders=LEAST_HOLDERS))
