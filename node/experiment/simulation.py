"""What only a simulation runs an experiment with: surroundings, and a solver of one graph for all nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from node.cache import Cache
from node.clock import VirtualClock
from node.config import ExperimentConfig, ModelSection
from node.digests import Store
from node.errors import ConfigError
from node.experiment.setup import Setup, prepare
from node.graph import Graph
from node.learn import models
from node.learn.cost import training_flops
from node.learn.device import OnDevice
from node.learn.processes import ProcessExecutor
from node.learn.tensors import from_buffer, to_buffer
from node.op import Op
from node.sim import network
from node.sim.devices import check_memory
from node.sim.faults import surrounded
from node.sim.surroundings import Surroundings, surround
from node.solver import Executor, Solver
from node.values import Values

_LEAST_MODELS = 3
"""Models that have to be in memory together: two that are mixed, and their sum."""


@dataclass(frozen=True)
class Simulation:
    """A simulated world to be, checked: nothing in its configuration can be wrong any more."""

    setup: Setup
    surroundings: Surroundings
    solver: Solver


def simulation(setup: Setup) -> Simulation:
    """Build what a simulation needs; close its solver when it is over.

    Raises:
        ConfigError: a key of ``[devices]``, ``[network]``, ``[churn]``, ``[[faults]]`` or ``[executor]``, or a file
            that it names, is wrong.
    """
    _check_executor(setup)
    return Simulation(setup, _surroundings(setup), _solver(setup))


def _check_executor(setup: Setup) -> None:
    section = setup.config.executor
    needed = _LEAST_MODELS * setup.model.spec.size_bytes
    if section.kind == "dask" and section.memory_bytes:
        raise ConfigError("executor.memory_bytes: with dask, models are in the workers' memory; set their limits, or 0")
    if section.memory_bytes and section.memory_bytes < needed:
        raise ConfigError(
            f"executor.memory_bytes: {section.memory_bytes} is less than the {needed} bytes of {_LEAST_MODELS} models; "
            "allowed: at least as much as one mix takes (its models and their sum), or 0"
        )
    for key, idle in (("kernel", "auto"), ("device", "cpu")):
        if section.kind != "batched" and getattr(section, key) != idle:
            raise ConfigError(f'executor.{key}: only kind = "batched" has a choice; set that, or {key} = "{idle}"')
    if section.address and section.kind != "dask":
        raise ConfigError('executor.address: is a Dask scheduler\'s; set kind = "dask", or leave it out')


def _surroundings(setup: Setup) -> Surroundings:
    config = setup.config
    shape, classes = setup.workload.sample_shape, setup.workload.classes
    reference = config.devices.reference_model or ("" if config.devices.trace else "mlp")
    reference_flops = None
    if reference and not config.devices.reference_flops:
        section = ModelSection(name=reference)  # of its usual width, whatever the experiment's is
        try:
            reference_flops = training_flops(models.build(section, shape, classes), shape)
        except ConfigError as error:
            raise ConfigError(str(error).replace("model.name", "devices.reference_model")) from None
    found = surround(
        config.nodes,
        config.seed,
        config.devices,
        config.network,
        config.churn,
        learners=[node for node in range(config.nodes) if setup.roles.get(node, "learner") == "learner"],
        flops=training_flops(setup.model, shape),
        reference_flops=reference_flops,
        batch_size=config.training.batch_size,
    )
    check_memory(found.devices, _training_bytes(setup))
    with closing(VirtualClock()) as clock:  # only to see that rules and files are right
        network.build(config.network, config.nodes, config.seed, clock)
    return surrounded(found, config.faults, config.nodes)


def _training_bytes(setup: Setup) -> float:
    """What training holds at least: parameters, gradients, the optimizer's state, and a batch."""
    training = setup.config.training
    state = 2 if training.optimizer == "adam" else 1 if training.momentum else 0
    batch = training.batch_size * math.prod(setup.workload.sample_shape)
    return 4.0 * (setup.model.dimension * (2 + state) + batch)


def _solver(setup: Setup) -> Solver:
    section = setup.config.executor
    graph = Graph(setup.config.seed, values=Values(section.memory_bytes, section.spill_folder, to_buffer, from_buffer))
    store = None
    if section.cache:
        setup.workload.arithmetic(section.kind == "batched")
        cache = Cache(Path(section.cache), section.cache_bytes, to_buffer, from_buffer)
        store = Store(graph, cache, to_buffer, section.cache_windows)
    return Solver(
        graph,
        _executor(setup),
        deduplicate=section.deduplicate,
        fuse=section.fuse and section.kind != "dask",  # a piece of a small batch is not worth sending
        store=store,
    )


def _executor(setup: Setup) -> Executor:
    section = setup.config.executor
    match section.kind:
        case "processes":
            setup.workload.warm_up(batched=False)  # so that workers inherit what torch sets up
            return ProcessExecutor(section.workers, setup.ops)
        case "batched" if section.device != "cpu":
            return OnDevice()
        case "dask":
            from node.learn.cluster import DaskExecutor  # takes a second to import

            config_json = setup.config.model_dump_json()
            return DaskExecutor(config_json, section.workers, section.address, rebuild, setup.ops)
        case _:
            return setup.executor()


def rebuild(config_json: str) -> Mapping[str, Op[...]]:
    """The ops of an experiment by name, made anew in another process of a cluster."""
    setup = prepare(ExperimentConfig.model_validate_json(config_json))
    return {op.name: op for op in setup.ops}
