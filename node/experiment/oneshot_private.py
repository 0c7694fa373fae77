"""Uploads under differential privacy: as much noise in every client's training as a stated epsilon asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from node.config import ExperimentConfig
from node.experiment.setup import Setup, prepare
from node.learn.batches import batches_per_pass
from node.privacy.budget import NodeAccountant
from node.privacy.gaussian import calibrate
from node.privacy.ledger import Ledger


def calibrated(config: ExperimentConfig) -> ExperimentConfig:
    """The same with the least noise that lets every client train once within ``privacy.epsilon``.

    All clients take the same noise multiplier: that of the one which spends most, who has the fewest samples.

    Raises:
        ConfigError: no noise is enough, or the experiment cannot be prepared.
    """
    if not config.privacy.epsilon:
        return config
    unlimited = _with(config, epsilon=0.0)
    setup = prepare(unlimited)
    sizes = sorted({size for node in range(config.nodes) if (size := setup.workload.shard_size(node))})
    needed = calibrate(lambda sigma: max(_cost(unlimited, sigma, size) for size in sizes), config.privacy.epsilon)
    return _with(config, noise_multiplier=needed)


def spent(setup: Setup, states: Mapping[int, Mapping[str, Any]]) -> dict[str, float]:
    """What clients have spent: ``epsilon`` of the one that has spent most, ``epsilon_mean`` over all that train."""
    privacy = setup.config.privacy
    accountants = [NodeAccountant.restored(state) for _, state in sorted(states.items())]
    each = [accountant.epsilon(privacy.delta, privacy.accountant) for accountant in accountants]
    return {"epsilon": max(each), "epsilon_mean": sum(each) / len(each)} if each else {}


def _cost(config: ExperimentConfig, sigma: float, samples: int) -> float:
    """Epsilon of one client's training."""
    training = config.training
    ledger = Ledger(_with(config, noise_multiplier=sigma).privacy, training.batch_size, lambda node: samples)
    steps = training.local_epochs * batches_per_pass(samples, training.batch_size) or training.local_steps
    ledger.charge(0, steps)
    return ledger.spent(0)["epsilon"]


def _with(config: ExperimentConfig, **privacy: float) -> ExperimentConfig:
    return config.model_copy(update={"privacy": config.privacy.model_copy(update=privacy)})
