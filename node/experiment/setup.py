"""Everything that both worlds run an experiment with, built once from its configuration."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from pydantic import ValidationError

from node.attack.attacker import Attack
from node.config import ExperimentConfig, ModSection, TopologySection
from node.emulated import Emulated
from node.errors import ConfigError
from node.experiment import (
    aggregation,
    attacking,
    combinations,
    compressing,
    exposure,
    identities,
    oneshot,
    privacy,
    unifying,
)
from node.experiment.loading import explain, unknown
from node.experiment.plugins import by_path, find, registered
from node.identity import Identity, Roster
from node.inference import Inference
from node.learn import data, models
from node.learn.blank import BLANK
from node.learn.robust import configured
from node.learn.workload import Workload, prepare_torch
from node.mods import Mod, Observer, Wrapping
from node.op import Op, Spec
from node.participants import Participants
from node.privacy.ledger import Keep, Ledger
from node.privacy.mechanisms import NetworkMechanisms
from node.protocol import Protocol
from node.solver import BatchedExecutor, Executor, InlineExecutor
from node.topology import Topology, build
from node.world import shapes


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
    participants: Participants
    """The nodes, and identities beyond them."""
    shapes: frozenset[Spec]
    """What a model, or a part of one, in a message may look like."""
    attacks: tuple[Attack, ...] = ()
    node_noise: Callable[[], Mod] | None = None
    """Makes the mod that protects a node as a whole, where nodes are."""
    warnings: tuple[str, ...] = ()
    """What the experiment combines and had better not."""
    neighbourhoods: Mapping[int, int] = field(default_factory=dict)
    """How many nodes aggregate how many models in a full round, where a robust rule does it."""

    @property
    def is_logged(self) -> bool:
        """Whether the run logs how every value came to be and who received it."""
        return exposure.is_logged(self.config, self.protocol, self.options)

    def make_protocol(self) -> Protocol:
        """A protocol instance for one node."""
        return self.protocol(self.options)

    def wrapping(self, node: int) -> Wrapping | None:
        """The mods and observers of a participant, None where it has none: a virtual node is no place of its own."""
        if self.participants.owner(node) is not None:
            return None
        own: list[Mod | Observer] = [] if self.node_noise is None else [self.node_noise()]
        own += [make(options) for section, make, options in self.mods if section.nodes is None or node in section.nodes]
        own += [rider for attack in self.attacks for rider in attack.wrapping(node)]
        if not own:
            return None
        wrapping = Wrapping(
            [mod for mod in own if isinstance(mod, Mod)], [seen for seen in own if isinstance(seen, Observer)]
        )
        wrapping.carried(self.shapes)
        return wrapping

    def ledger(self, keep: Keep | None = None) -> Ledger | None:
        """What counts what nodes spend of their privacy, from nothing; None where nothing is protected."""
        return privacy.ledger_of(self.config, self.workload.shard_size, keep)

    def mechanisms(self, identity: Identity | None = None, roster: Roster | None = None) -> NetworkMechanisms:
        """What hides models: with a node's identity and the roster of its network where the node is a real one."""
        return privacy.mechanisms_of(self.config, self.model, identity, roster)

    def inference(self) -> Inference | None:
        """What there is to serve; what is sent of an adapter without content are zeros."""
        found = self.protocol.inference(self.options, self.config.nodes)
        return replace(found, blank=BLANK) if isinstance(found, Emulated) else found

    @property
    def ops(self) -> tuple[Op[...], ...]:
        """Those that cannot be imported by their names."""
        return (*self.workload.ops, *(op for attack in self.attacks for op in attack.ops))

    def executor(self) -> Executor:
        """What solves the compute graph of a node of its own, in a real run: processes and clusters are for many."""
        return BatchedExecutor() if self.config.executor.kind == "batched" else InlineExecutor()


def prepare(config: ExperimentConfig) -> Setup:
    """Check a configuration as a whole and build what it names.

    Raises:
        ConfigError: something in it does not exist, or does not fit together.
    """
    protocol, options = find_protocol(config)
    peers = config.nodes + identities.sybils_of(config)
    protocol.check(options, peers)
    _check_local_tests(protocol, options, config)
    _check_optimizer(protocol, options, config)
    unifying.check(config, protocol, options)
    oneshot.check(config, protocol, options)
    roles = protocol.roles(options, peers)
    for section in protocol.topologies(options):
        _topology(section, config, peers)
    topology = _topology(config.topology if protocol.uses_topology else TopologySection(kind="star"), config, peers)
    neighbourhoods = aggregation.neighbourhoods(config, protocol, options, topology)
    mods = tuple(_mod(section, i, config.nodes) for i, section in enumerate(config.mods))
    compressing.check(config, [found for _, found, _ in mods])
    if ":" in config.model.name:
        by_path(config.model.name, "model.name")
    prepare_torch()
    plans = attacking.planned(config, roles)
    sybils = [owner for plan in plans for owner in plan.owners]
    participants = identities.participants_of(config, sybils, protocol, options)
    held = identities.held_by_all(_federate(config, roles), participants)
    federation = attacking.poisoned(plans, held, config.seed)
    model = models.build(config.model, tuple(federation.train.features.shape[1:]), federation.train.classes)
    oneshot.check_model(model, federation, protocol, options)
    executor = config.executor
    choice = (executor.kernel, executor.device) if executor.kind == "batched" else ("auto", "cpu")
    private = privacy.training_of(config, model)
    rule, student = configured(config.aggregation), unifying.student_of(config, federation)
    workload = Workload(federation, model, config.training, config.seed, *choice, private, rule, student)
    attacks = attacking.built(plans, config, federation, model, topology, participants, protocol, options)
    facts = federation.shards.sizes.tolist(), tuple(neighbourhoods), federation.train.is_standardised
    warnings = tuple(combinations.check(config, protocol, *facts, peers))
    wrapped = attacks, privacy.node_noise_of(config), warnings, neighbourhoods
    may = compressing.carried(mods, shapes(workload, protocol.private_layers(options)))
    return Setup(config, protocol, options, roles, topology, model, workload, mods, participants, may, *wrapped)


def _topology(section: TopologySection, config: ExperimentConfig, peers: int) -> Topology:
    try:
        return build(section, peers, config.seed)
    except ConfigError as error:
        if peers == config.nodes:
            raise
        more = peers - config.nodes
        raise ConfigError(f"{error} (attackers.identities adds {more} peers to the {config.nodes} nodes)") from None


def _check_local_tests(protocol: type[Protocol], options: Any, config: ExperimentConfig) -> None:
    if protocol.uses_local_tests(options) and not config.data.local_test_fraction:
        raise ConfigError(
            f"data.local_test_fraction: protocol {config.protocol.use!r} with these options compares what nodes train "
            "on with what they hold out, which is nothing; write a share above 0"
        )


def _check_optimizer(protocol: type[Protocol], options: Any, config: ExperimentConfig) -> None:
    training = config.training
    is_plain = training.optimizer == "sgd" and not training.momentum and not training.weight_decay
    if protocol.needs_plain_sgd(options) and not is_plain:
        raise ConfigError(
            f"training.optimizer: protocol {config.protocol.use!r} with these options counts steps as gradients; "
            "allowed: 'sgd', with training.momentum = 0 and training.weight_decay = 0"
        )


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
    bundled = registered("starling.mods")
    if ":" not in section.use and section.use not in bundled:
        raise ConfigError(f"{unknown('mod', f'{key}.use', section.use, bundled)}, or module:Class")
    found = by_path(bundled[section.use].value if section.use in bundled else section.use, f"{key}.use")
    if not (isinstance(found, type) and issubclass(found, Mod | Observer)):
        raise ConfigError(f"{key}.use: {section.use} is neither a node.Mod nor a node.Observer")
    for node in section.nodes or ():
        if not 0 <= node < nodes:
            raise ConfigError(f"{key}.nodes: there is no node {node}; allowed: 0 to {nodes - 1}")
    return section, found, _options(found, section.options, f"{key}.")


def _federate(config: ExperimentConfig, roles: Mapping[int, str]) -> data.Federation:
    """Divide the data among the learners; nodes of other roles get none."""
    idle = sorted(node for node, role in roles.items() if role != "learner" and node < config.nodes)
    learners = np.setdiff1d(np.arange(config.nodes), idle)
    federation = data.federate(config.data, max(1, len(learners)), config.seed, config.public)
    if not idle:
        return federation
    if not len(learners):
        nothing = _spread(data.Shards(np.zeros(1, np.int64), np.zeros(0, np.int64)), learners, config.nodes)
        return replace(federation, shards=nothing, local_tests=nothing)
    return data.Federation(
        federation.train,
        federation.test,
        _spread(federation.shards, learners, config.nodes),
        _spread(federation.local_tests, learners, config.nodes),
        federation.public,
    )


def _spread(shards: data.Shards, learners: np.ndarray, nodes: int) -> data.Shards:
    sizes = np.zeros(nodes, dtype=np.int64)
    sizes[learners] = np.diff(shards.offsets)
    return data.Shards(np.concatenate([[0], np.cumsum(sizes)]), shards.indices)
