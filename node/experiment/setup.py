"""Everything that both worlds run an experiment with, built once from its configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from node.cache import Cache
from node.config import ExperimentConfig, ModelSection, ModSection, TopologySection
from node.digests import Store
from node.errors import ConfigError
from node.experiment.loading import explain
from node.experiment.plugins import by_path, find
from node.graph import Graph
from node.learn import data, models
from node.learn.cost import training_flops
from node.learn.device import OnDevice
from node.learn.processes import ProcessExecutor
from node.learn.tensors import from_buffer, to_buffer
from node.learn.workload import Workload, prepare_torch
from node.mods import Mod, Observer, Wrapping
from node.op import Op
from node.protocol import Protocol
from node.sim.devices import check_memory
from node.sim.surroundings import Surroundings, surround
from node.solver import BatchedExecutor, Executor, InlineExecutor, Solver
from node.topology import Topology, build
from node.values import Values


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

    def solver(self) -> Solver:
        """What solves the compute graph of a simulation, with a graph of its own."""
        section = self.config.executor
        values = Values(section.memory_bytes, section.spill_folder, to_buffer, from_buffer)
        graph = Graph(self.config.seed, values=values)
        store = None
        if section.cache:
            self.workload.arithmetic(section.kind == "batched")
            cache = Cache(Path(section.cache), section.cache_bytes, to_buffer, from_buffer)
            store = Store(graph, cache, to_buffer, section.cache_windows)
        return Solver(
            graph,
            self._simulating_executor(),
            deduplicate=section.deduplicate,
            fuse=section.fuse and section.kind != "dask",  # a piece of a small batch is not worth sending
            store=store,
        )

    def _simulating_executor(self) -> Executor:
        section = self.config.executor
        match section.kind:
            case "processes":
                self.workload.warm_up(batched=False)  # so that workers inherit what torch sets up
                return ProcessExecutor(section.workers, self.workload.ops)
            case "batched" if section.device != "cpu":
                return OnDevice()
            case "dask":
                from node.learn.cluster import DaskExecutor  # takes a second to import

                config_json = self.config.model_dump_json()
                return DaskExecutor(config_json, section.workers, section.address, rebuild, self.workload.ops)
            case _:
                return self.executor()

    def surroundings(self) -> Surroundings:
        """What surrounds the nodes of a simulation."""
        config = self.config
        shape, classes = self.workload.sample_shape, self.workload.classes
        reference = config.devices.reference_model or ("" if config.devices.trace else "mlp")
        flops = training_flops(self.model, shape)
        reference_flops = None
        if reference and not config.devices.reference_flops:
            section = ModelSection(name=reference)  # of its usual width, whatever the experiment's is
            reference_flops = training_flops(models.build(section, shape, classes), shape)
        found = surround(
            config.nodes,
            config.seed,
            config.devices,
            config.network,
            config.churn,
            learners=[node for node in range(config.nodes) if self.roles.get(node, "learner") == "learner"],
            flops=flops,
            reference_flops=reference_flops,
            batch_size=config.training.batch_size,
        )
        check_memory(found.devices, self._training_bytes())
        return found

    def _training_bytes(self) -> float:
        """What training holds at least: parameters, gradients, the optimizer's state, and a batch."""
        training = self.config.training
        state = 2 if training.optimizer == "adam" else 1 if training.momentum else 0
        batch = training.batch_size * math.prod(self.workload.sample_shape)
        return 4.0 * (self.model.dimension * (2 + state) + batch)


def prepare(config: ExperimentConfig) -> Setup:
    """Check a configuration as a whole and build what it names.

    Raises:
        ConfigError: something in it does not exist, or does not fit together.
    """
    protocol, options = find_protocol(config)
    protocol.check(options, config.nodes)
    if config.executor.kind == "dask" and config.executor.memory_bytes:
        raise ConfigError("executor.memory_bytes: with dask, models are in the workers' memory; set their limits, or 0")
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


def rebuild(config_json: str) -> Mapping[str, Op[...]]:
    """The ops of an experiment by name, made anew in another process of a cluster."""
    workload = prepare(ExperimentConfig.model_validate_json(config_json)).workload
    return {op.name: op for op in workload.ops}


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
