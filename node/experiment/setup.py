"""Everything that both worlds run an experiment with, built once from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from pydantic import ValidationError

from node.config import ExperimentConfig, ModSection, TopologySection
from node.errors import ConfigError
from node.experiment.loading import explain
from node.experiment.plugins import by_path, find
from node.learn import data, models
from node.learn.workload import Workload, prepare_torch
from node.mods import Mod, Observer, Wrapping
from node.protocol import Protocol
from node.solver import BatchedExecutor, Executor, InlineExecutor
from node.topology import Topology, build


@dataclass(frozen=True)
class Setup:
    """An experiment, checked and ready to run."""

    config: ExperimentConfig
    protocol: type[Protocol]
    options: Any
    roles: Mapping[int, str]
    topology: Topology
    model: models.Model
    workload: Workload
    mods: tuple[tuple[ModSection, type[Mod | Observer], Any], ...]

    def make_protocol(self) -> Protocol:
        """A protocol instance for one node."""
        return self.protocol(self.options)

    def wrapping(self, node: int) -> Wrapping | None:
        """The mods and observers of one node, None where it has none."""
        own = [make(options) for section, make, options in self.mods if section.nodes is None or node in section.nodes]
        if not own:
            return None
        return Wrapping(
            [mod for mod in own if isinstance(mod, Mod)], [seen for seen in own if isinstance(seen, Observer)]
        )

    def executor(self) -> Executor:
        """What solves the compute graph of a node of its own, in a real run: processes and clusters are for many."""
        return BatchedExecutor() if self.config.executor.kind == "batched" else InlineExecutor()


def prepare(config: ExperimentConfig) -> Setup:
    """Check a configuration as a whole and build what it names.

    Raises:
        ConfigError: something in it does not exist, or does not fit together.
    """
    protocol, options = find_protocol(config)
    protocol.check(options, config.nodes)
    roles = protocol.roles(config.nodes)
    for section in protocol.topologies(options):
        build(section, config.nodes, config.seed)
    section = config.topology if protocol.uses_topology else TopologySection(kind="star")
    topology = build(section, config.nodes, config.seed)
    mods = tuple(_mod(section, i, config.nodes) for i, section in enumerate(config.mods))
    if ":" in config.model.name:
        by_path(config.model.name, "model.name")
    prepare_torch()
    federation = _federate(config, roles)
    model = models.build(config.model, tuple(federation.train.features.shape[1:]), federation.train.classes)
    executor = config.executor
    choice = (executor.kernel, executor.device) if executor.kind == "batched" else ("auto", "cpu")
    workload = Workload(federation, model, config.training, config.seed, *choice)
    return Setup(config, protocol, options, roles, topology, model, workload, mods)


def find_protocol(config: ExperimentConfig) -> tuple[type[Protocol], Any]:
    """The protocol class of an experiment, and its options."""
    protocol = find(config.protocol.use, Protocol, "protocol.use", "starling.protocols")
    return protocol, _options(protocol, config.protocol.options, "protocol.")


def _options(owner: type[Any], values: dict[str, Any], prefix: str) -> Any:
    try:
        return owner.Config(**values)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), owner.Config, prefix)) from None


def _mod(section: ModSection, number: int, nodes: int) -> tuple[ModSection, type[Mod | Observer], Any]:
    key = f"mods[{number}]"
    if ":" not in section.use:
        raise ConfigError(f"{key}.use: {section.use!r} must be written as module:Class")
    found = by_path(section.use, f"{key}.use")
    if not (isinstance(found, type) and issubclass(found, Mod | Observer)):
        raise ConfigError(f"{key}.use: {section.use} is neither a node.Mod nor a node.Observer")
    for node in section.nodes or ():
        if not 0 <= node < nodes:
            raise ConfigError(f"{key}.nodes: there is no node {node}; allowed: 0 to {nodes - 1}")
    return section, found, _options(found, section.options, f"{key}.")


def _federate(config: ExperimentConfig, roles: Mapping[int, str]) -> data.Federation:
    """Divide the data among the learners; nodes of other roles get none."""
    idle = sorted(node for node, role in roles.items() if role != "learner" and node < config.nodes)
    federation = data.federate(config.data, config.nodes - len(idle), config.seed)
    if not idle:
        return federation
    learners = np.setdiff1d(np.arange(config.nodes), idle)
    return data.Federation(
        federation.train,
        federation.test,
        _spread(federation.shards, learners, config.nodes),
        _spread(federation.local_tests, learners, config.nodes),
    )


def _spread(shards: data.Shards, learners: np.ndarray, nodes: int) -> data.Shards:
    sizes = np.zeros(nodes, dtype=np.int64)
    sizes[learners] = np.diff(shards.offsets)
    return data.Shards(np.concatenate([[0], np.cumsum(sizes)]), shards.indices)
