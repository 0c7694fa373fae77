"""Privacy of an experiment: what its ``[privacy]`` table makes of training, and what a run may say of it afterwards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node.config import ExperimentConfig, PrivacySection
from node.identity import Identity, Roster
from node.learn.batches import batches_per_pass
from node.learn.models import Model
from node.privacy import mechanisms
from node.privacy.budget import NodeAccountant
from node.privacy.clipping import noised_update
from node.privacy.ledger import Keep, Ledger, guarantee
from node.privacy.mechanisms import NetworkMechanisms
from node.privacy.node_noise import NodeNoise
from node.privacy.training import Noise, PrivateTraining, source

States = Mapping[int, Mapping[str, Any]]
"""Accountants' states, by node."""

_PUBLIC: Mapping[str, Sequence[str]] = {"record": ("number of records of each node",), "node": ()}
"""What counts as public: sampling rates follow from how many records nodes hold."""

_POINTLESS: Mapping[str, str] = {
    "epsilon": "a budget needs a mechanism: record or node",
    "when_spent": "a budget needs a mechanism: record or node",
    **dict.fromkeys(("noise_multiplier", "clip", "gradients"), "nothing is noised without a mechanism: record or node"),
    **dict.fromkeys(("accountant", "view"), "nothing is accounted for without a mechanism: record or node"),
}
"""Keys that say nothing where ``mechanism`` is none, and why: ``delta`` is also attacks', ``noise`` also protocols'."""


def noise_of(config: ExperimentConfig) -> Noise:
    """Where noise comes from, ``auto`` decided."""
    asked = config.privacy.noise
    if asked == "auto":
        return "secret" if config.clock == "real" else "seeded"
    return asked


def training_of(config: ExperimentConfig, model: Model) -> PrivateTraining | None:
    """What trains in place of all kernels; None where single records are not protected.

    Raises:
        ConfigError: the model mixes records, or has layers whose gradients are not known record by record.
    """
    if config.privacy.mechanism != "record":
        return None
    return PrivateTraining(model, config.training, config.privacy, noise_of(config))


def node_noise_of(config: ExperimentConfig) -> Callable[[], NodeNoise] | None:
    """Makes the mod that noises a node's updates; None where nodes are not protected as wholes."""
    privacy = config.privacy
    if privacy.mechanism != "node":
        return None
    op = noised_update(source(noise_of(config)))  # one for all nodes: equal ops are solved together
    return lambda: NodeNoise(op, privacy.clip, privacy.noise_multiplier)


def mechanisms_of(
    config: ExperimentConfig, model: Model, identity: Identity | None, roster: Roster | None
) -> NetworkMechanisms:
    """What protocols hide models with, for the nodes of a simulation, or for a real one of this identity."""
    sizes = [part.stop - part.start for _, part, _ in model.parts]
    if noise_of(config) == "seeded":
        return mechanisms.insecure(config.seed, config.name, sizes)
    if identity is None or roster is None:
        return mechanisms.unrepeatable(sizes)
    return mechanisms.secured(identity, roster, sizes)


def ledger_of(config: ExperimentConfig, records: Callable[[int], int], keep: Keep | None) -> Ledger | None:
    """What counts what nodes spend; None where nothing is protected. ``records``: how many a node holds."""
    if config.privacy.mechanism == "none":
        return None
    return Ledger(config.privacy, config.training.batch_size, records, keep or (lambda node, state: None))


def pointless(privacy: PrivacySection) -> str:
    """What a ``[privacy]`` without a mechanism sets in vain, and why; empty where nothing."""
    if privacy.mechanism != "none":
        return ""
    usual = PrivacySection()
    found = (f"{key}: {why}" for key, why in _POINTLESS.items() if getattr(privacy, key) != getattr(usual, key))
    return next(found, "")


def unaffordable(config: ExperimentConfig, samples: Sequence[int], first_steps: int) -> str:
    """Whose first training costs more than its whole budget, in words; empty where everybody can begin.

    Args:
        samples: how many each node that trains holds.
        first_steps: steps of a node's first training, where its protocol takes its own number; 0: the experiment's.

    Raises:
        ConfigError: the accountant is not installed, or has no bound for such steps.
    """
    if config.privacy.mechanism == "none" or not config.privacy.epsilon:
        return ""
    training, fewest = config.training, dict[int, int]()
    unlimited = config.privacy.model_copy(update={"epsilon": 0.0})
    for held in samples:
        passes = training.local_epochs * batches_per_pass(held, training.batch_size)
        steps = first_steps or passes or training.local_steps
        fewest[steps] = min(held, fewest.get(steps, held))  # of equally many steps, those on the fewest cost most
    for steps, held in sorted(fewest.items()):
        ledger = Ledger(unlimited, training.batch_size, {0: held}.__getitem__)
        ledger.charge(0, steps)
        cost = ledger.spent(0)["epsilon"]
        if cost > config.privacy.epsilon:
            return f"a node with {held} records spends {cost:.4g} on its first training"
    return ""


def statement(
    config: ExperimentConfig,
    states: States,
    side_channels: Sequence[str],
    warnings: Sequence[str],
    hides_models: bool = False,
    network: Mapping[str, Any] | None = None,
    releases: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """The ``privacy`` object of a summary; empty where there is nothing to say.

    ``hides_models``: whether the protocol itself draws noise or shares secrets. ``epsilon`` is over the nodes that
    hold data, whether they have spent any or not; None in it is infinite. ``public`` is what no guarantee covers, and
    others can tell or work out. ``network``: what :func:`node.experiment.exposure.stated` gives. ``releases``: what the
    protocol tells under an epsilon of its own, which no other figure here contains.
    """
    privacy, is_seeded = config.privacy, noise_of(config) == "seeded"
    said: dict[str, Any] = {"side_channels": list(side_channels), "warnings": list(warnings)}
    if hides_models:
        said["insecure_keys"] = is_seeded
    if releases:
        told = {"unit": "record", "adjacency": "add_remove", "delta": 0.0}
        said["releases"] = {name: {"epsilon": epsilon, **told} for name, epsilon in releases.items()}
        said |= {"noise": noise_of(config), "insecure_noise": is_seeded}
    if network:
        said["network"] = dict(network)
    if privacy.mechanism == "none":
        is_told = side_channels or warnings or hides_models or network or releases
        return {"mechanism": "none", **said} if is_told else {}
    accountants = [NodeAccountant.restored(state) for _, state in sorted(states.items())]
    spent = [accountant.epsilon(privacy.delta, privacy.accountant) for accountant in accountants] or [0.0]
    most = guarantee(privacy, max(spent))
    return {
        "mechanism": privacy.mechanism,
        "guarantee": str(most),
        "epsilon": {"mean": _finite(math.fsum(spent) / len(spent)), "max": _finite(max(spent))},
        "delta": privacy.delta,
        "unit": most.unit,
        "adjacency": most.adjacency,
        "view": most.view,
        "adaptive": most.adaptive,
        "conversion": most.conversion,
        "budget": privacy.epsilon or None,
        "sigma": privacy.noise_multiplier,
        "clip": privacy.clip,
        "sampling": privacy.sampling if privacy.mechanism == "record" else "all",
        "public": list(_PUBLIC[privacy.mechanism]),
        "noise": noise_of(config),
        "insecure_noise": is_seeded,
        **said,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
