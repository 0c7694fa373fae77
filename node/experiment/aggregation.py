"""The robust rule of an experiment: whether it fits the protocol and the neighbourhoods, and what a summary says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from node.attack.identities import byzantine_neighbours
from node.attack.observers.byzantine import ByzantineNodes
from node.config import AggregationSection, ExperimentConfig
from node.errors import ConfigError
from node.learn.robust.rules import RULES, too_few, wrong
from node.protocol import Protocol
from node.topology import Topology

if TYPE_CHECKING:
    from node.experiment.setup import Setup

_MOST_LOOKED_AT = 1_000_000
"""Neighbourhoods of nodes in rounds that are searched for liars, where each round has a graph of its own."""


def neighbourhoods(
    config: ExperimentConfig, protocol: type[Protocol], options: Any, topology: Topology
) -> dict[int, int]:
    """How many nodes aggregate how many models in a full round, by rising number; only where a rule is set.

    Raises:
        ConfigError: the rule does not exist, or is not for this protocol.
    """
    section = config.aggregation
    if reason := _wrong(section):
        raise ConfigError(f"aggregation.rule: {reason}")
    if not section.is_robust:
        return {}
    if not protocol.aggregates:
        raise ConfigError(
            f"aggregation.rule: protocol {config.protocol.use!r} does not aggregate models that others could replace; "
            'allowed: "mean", without pre'
        )
    _check_losses(config, protocol, options)
    peers = topology.nodes
    who = sorted(protocol.roles(options, peers)) or range(peers)  # a server, where there is one
    models = protocol.aggregated(options, peers)
    sizes = [len(topology.sources(node)) + 1 if models is None else models for node in who]
    return dict(sorted(Counter(size for size in sizes if size > 1).items()))


def _wrong(section: AggregationSection) -> str:
    if "progress" in section.options:
        return f"{section.rule!r}: progress follows from the round; leave it out"
    return wrong(section.rule, section.pre, section.options)


def _check_losses(config: ExperimentConfig, protocol: type[Protocol], options: Any) -> None:
    """A rule that needs losses needs whole models, and training data where they are aggregated."""
    if RULES[config.aggregation.rule].needs_losses and (
        protocol.roles(options, config.nodes) or protocol.private_layers(options)
    ):
        raise ConfigError(
            f"aggregation.rule: {config.aggregation.rule!r} judges whole models by their loss on the node's own data; "
            f"with {config.protocol.use!r}, who aggregates has no data, or no whole models"
        )


def refusal(section: AggregationSection, sizes: Sequence[int]) -> str:
    """Why neighbourhoods of these sizes cannot tolerate so many liars; empty: they can."""
    for size in (min(sizes), max(sizes)) if section.is_robust and sizes else ():
        if reason := too_few(section.rule, size, section.tolerance, section.pre, section.options):
            which = "smallest" if size == min(sizes) else "largest"
            return f"{reason} (the {which} neighbourhood: {size} models)"
    return ""


def doubt(section: AggregationSection, sizes: Sequence[int]) -> str:
    """What the rule does not promise in the smallest of these neighbourhoods; empty: nothing to say."""
    if not section.is_robust or not sizes:
        return ""
    reason = RULES[section.rule].warns(min(sizes), section.tolerance)
    return reason and f"{section.rule!r} in the smallest neighbourhood: {reason}"


def statement(setup: Setup) -> dict[str, Any]:
    """The ``aggregation`` object of a summary; empty where there is no rule and nobody lies.

    ``byzantine_neighbours`` says how many neighbourhoods of honest nodes, one for each round whose graph is its own,
    have how many liars; ``over_tolerance`` how many have more than the rule is set to tolerate.
    """
    section, liars = setup.config.aggregation, _liars(setup)
    if not section.is_robust and not liars:
        return {}
    said: dict[str, Any] = {"rule": section.rule, "pre": list(section.pre), "tolerance": section.tolerance}
    said |= {"options": section.options} if section.options else {}
    said |= {"neighbourhoods": _by_name(setup.neighbourhoods)} if setup.neighbourhoods else {}
    if liars and setup.protocol.uses_topology:
        heard = liars_heard(setup, liars)
        said["byzantine_neighbours"] = _by_name(heard)
        said["over_tolerance"] = sum(count for number, count in heard.items() if number > section.tolerance)
    return said


def _liars(setup: Setup) -> list[int]:
    attacks = [attack for attack in setup.attacks if isinstance(attack, ByzantineNodes)]
    return sorted({node for attack in attacks for node in attack.nodes})


def liars_heard(setup: Setup, liars: Sequence[int]) -> dict[int, int]:
    """How many neighbourhoods of honest nodes have how many liars, by rising number of liars."""
    nodes, topology = range(setup.participants.peers), setup.topology
    rounds = getattr(setup.options, "rounds", 1) if topology.fresh else 1
    found: Counter[int] = Counter()
    for round in range(max(1, min(rounds, _MOST_LOOKED_AT // len(nodes)))):
        found.update(byzantine_neighbours({node: topology.sources(node, round) for node in nodes}, liars))
    return dict(sorted(found.items()))


def _by_name(counts: Mapping[int, int]) -> dict[str, int]:
    return {str(number): count for number, count in counts.items()}
