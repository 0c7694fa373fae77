"""What must not, or should not, be combined in one experiment. A new row is a rule in :data:`RULES`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from node.config import ChurnSection, ExperimentConfig, PrivacySection
from node.errors import ConfigError
from node.experiment import aggregation, gossiping
from node.experiment.privacy import noise_of, pointless, unaffordable
from node.learn.robust import rules
from node.privacy import rdp
from node.privacy.training import sampling_rate
from node.private import LEAST_SENDERS
from node.protocol import Protocol


@dataclass(frozen=True)
class Case:
    """An experiment, as rules look at it."""

    config: ExperimentConfig
    protocol: type[Protocol]
    samples: Sequence[int]
    """Samples of every node that holds any."""
    neighbourhoods: Sequence[int] = ()
    """Numbers of models that nodes aggregate in a full round, where a robust rule does it."""
    is_standardised: bool = False
    """Whether features are scaled by what all nodes' records are together."""
    peers: int = 0
    """Nodes and Sybil identities; 0: there are none of these."""

    @property
    def privacy(self) -> PrivacySection:
        """Its ``[privacy]``."""
        return self.config.privacy

    @cached_property
    def options(self) -> Any:
        """The protocol's own options."""
        return self.protocol.Config(**self.config.protocol.options)

    @property
    def is_private(self) -> bool:
        """Whether differential privacy is claimed."""
        return self.privacy.mechanism != "none"

    @property
    def draws_noise(self) -> bool:
        """Whether differential privacy is claimed of anything."""
        return self.is_private or bool(self.protocol.releases(self.options))

    @property
    def is_secret(self) -> bool:
        """Whether there is noise that can never be drawn a second time."""
        return (self.is_private or self.protocol.hides(self.options)) and noise_of(self.config) == "secret"

    def uses(self, *names: str) -> bool:
        """Whether the protocol is one of these."""
        return self.config.protocol.use in names

    @property
    def may_lose_nodes(self) -> bool:
        """Whether the run goes on without nodes that go."""
        return self.options.deadline_s > 0 or self.config.churn != ChurnSection()

    @cached_property
    def fewest_senders(self) -> int:
        """How many nodes send to the node that hears fewest."""
        return gossiping.fewest_senders(self.config, self.peers)

    @cached_property
    def gossip_doubt(self) -> str:
        """What too few gossip rounds leave undone; empty where they are enough, or no gossip is."""
        return gossiping.doubt(self.config, self.options, self.peers) if self.uses("muffliato") else ""

    @property
    def pointless(self) -> str:
        """A key of ``[privacy]`` that says nothing without a mechanism, and why; empty where there is none."""
        return pointless(self.privacy)

    @cached_property
    def unaffordable(self) -> str:
        """Which node cannot even begin on its budget, in words; empty where all can."""
        return unaffordable(self.config, self.samples, self.protocol.first_steps(self.options))

    @property
    def fewest(self) -> int:
        """Samples of the smallest node."""
        return min(self.samples, default=1)

    @property
    def has_random_batches(self) -> bool:
        """Whether some node's steps take only a part of its records."""
        batch_size = self.config.training.batch_size
        return self.privacy.mechanism == "record" and any(sampling_rate(batch_size, n) < 1 for n in self.samples)

    @property
    def rule(self) -> rules.Rule:
        """How models are aggregated."""
        return rules.RULES[self.config.aggregation.rule]

    @property
    def rule_refusal(self) -> str:
        """Why the rule cannot tolerate so many liars; empty where it can."""
        return aggregation.refusal(self.config.aggregation, self.neighbourhoods)

    @property
    def rule_doubt(self) -> str:
        """What the rule does not promise with so many liars; empty where nothing is to be said."""
        return aggregation.doubt(self.config.aggregation, self.neighbourhoods)

    @property
    def side_channels(self) -> str:
        """What the protocol shows of its data besides models, in words; empty where nothing."""
        return ", ".join(side_channels(self.protocol, self.options))


class Rule(NamedTuple):
    """One combination."""

    action: Literal["reject", "warn"]
    applies: Callable[[Case], bool]
    says: str
    """One line that names the key; ``{case.…}`` are filled in."""


RULES: tuple[Rule, ...] = (
    Rule("reject", lambda case: bool(case.rule_refusal), "aggregation.tolerance: {case.rule_refusal}"),
    Rule("warn", lambda case: bool(case.rule_doubt), "aggregation.tolerance: {case.rule_doubt}"),
    Rule(
        "warn",
        lambda case: case.is_private and case.rule.needs_losses,
        "aggregation.rule: {case.config.aggregation.rule} chooses models by losses on private data: it is not accounted"
        " for, and others may notice the choice",
    ),
    Rule(
        "warn",
        lambda case: case.is_private and case.config.aggregation.is_robust and case.privacy.noise_multiplier > 0,
        "aggregation.rule: noise drives honest models apart, and a rule that judges by distance may take them for lies",
    ),
    Rule("reject", lambda case: bool(case.pointless), "privacy.{case.pointless}"),
    Rule(
        "reject",
        lambda case: case.is_private and case.privacy.epsilon > 0 and not case.privacy.noise_multiplier,
        "privacy.noise_multiplier: without noise there is no epsilon that a budget could hold; allowed: above 0, or"
        " privacy.epsilon = 0",
    ),
    Rule(
        "reject",
        lambda case: case.is_private and case.privacy.accountant == "pld" and not _has_pld(),
        "privacy.accountant: pld needs dp-accounting, which is not installed; pip install 'starling-node[privacy]', or"
        ' choose "rdp"',
    ),
    Rule(
        "reject",
        lambda case: case.has_random_batches and case.privacy.accountant == "gdp",
        'privacy.accountant: gdp has no bound for random batches; allowed: "rdp" or "pld", or a training.batch_size of'
        " all samples of every node",
    ),
    Rule(
        "reject",
        lambda case: (
            case.is_private
            and case.privacy.accountant == "rdp"
            and 0 < case.privacy.epsilon < rdp.least_epsilon(case.privacy.delta)
        ),
        "privacy.epsilon: {case.privacy.epsilon:g} is less than rdp can show, by the orders that it looks at; allowed:"
        ' more, or privacy.accountant = "pld", or "gdp" where every step takes all records',
    ),
    Rule(
        "reject",
        lambda case: case.privacy.when_spent == "stop" and bool(case.unaffordable),
        "privacy.epsilon: {case.privacy.epsilon:g} at delta {case.privacy.delta:g} is spent before the run begins:"
        " {case.unaffordable}; allow more, add noise, or train for fewer steps",
    ),
    Rule(
        "warn",
        lambda case: case.privacy.when_spent == "relay" and bool(case.unaffordable),
        "privacy.epsilon: {case.privacy.epsilon:g} lets some nodes only relay, from the start: {case.unaffordable}",
    ),
    Rule(
        "reject",
        lambda case: case.is_secret and case.config.clock == "virtual" and bool(case.config.executor.cache),
        'executor.cache: secret noise must not be used again; leave the cache out, or set privacy.noise = "seeded"',
    ),
    Rule(
        "reject",
        lambda case: case.is_secret and case.config.clock == "virtual" and case.config.executor.kind == "dask",
        "executor.kind: dask makes the values of a lost worker again, with other noise that nobody has accounted for;"
        ' choose another, or set privacy.noise = "seeded"',
    ),
    Rule(
        "reject",
        lambda case: (
            case.is_private
            and case.privacy.when_spent == "relay"
            and (case.protocol.judges_on_data or case.rule.needs_losses)
        ),
        'privacy.when_spent: "relay" promises that data are not touched any more, and here models are compared by their'
        ' losses on them; allowed: "stop"',
    ),
    Rule(
        "reject",
        lambda case: case.is_private and case.config.protocol.use == "dispfl" and case.options.prune > 0,
        "protocol.prune: masks regrow by a gradient that no privacy budget covers; allowed with privacy.mechanism: 0",
    ),
    Rule(
        "reject",
        lambda case: case.uses("secagg") and case.fewest_senders < LEAST_SENDERS,
        "topology: a node with {case.fewest_senders} neighbours can learn their models from their sum, together with"
        " one of them; secagg allows 3 neighbours or more",
    ),
    Rule(
        "reject",
        lambda case: (
            case.uses("muffliato", "decor", "zipdl") and case.privacy.mechanism == "node" and case.options.clip > 0
        ),
        'protocol.clip: would cut noise that privacy.mechanism = "node" has added; allowed with it: 0',
    ),
    Rule(
        "warn",
        lambda case: (
            case.uses("muffliato", "decor", "zipdl")
            and case.options.noise > 0
            and case.privacy.mechanism != "node"
            and not getattr(case.options, "clip", 0)
        ),
        "noise on models whose updates are not clipped guarantees nothing: there is no epsilon",
    ),
    Rule(
        "warn",
        lambda case: bool(case.gossip_doubt),
        "protocol.gossip_rounds: {case.gossip_doubt}; only the exact accountant holds (privacy.network in the summary)",
    ),
    Rule(
        "warn",
        lambda case: case.uses("zipdl", "decor") and case.may_lose_nodes,
        "noise for nodes that drop out does not cancel: residual_variance says how much is left",
    ),
    Rule(
        "warn",
        lambda case: case.uses("shatter"),
        "virtual nodes of one host share its network address, and the times of messages tell more: unlinkability is"
        " provided only as far as relays hide both",
    ),
    Rule(
        "warn",
        lambda case: case.protocol.hides(case.options) and case.config.clock == "real" and not case.is_secret,
        'insecure keys (privacy.noise = "seeded"): whoever knows the seed can subtract noise and masks; only to compare'
        " worlds",
    ),
    Rule(
        "warn",
        lambda case: case.is_private and not case.privacy.noise_multiplier,
        "no noise (privacy.noise_multiplier = 0): there is no guarantee",
    ),
    Rule(
        "warn",
        lambda case: case.draws_noise and case.config.clock == "real" and noise_of(case.config) == "seeded",
        'insecure noise (privacy.noise = "seeded"): whoever knows the seed can subtract it; only to compare worlds',
    ),
    Rule(
        "warn",
        lambda case: case.is_private and case.privacy.delta * case.fewest >= 1,
        "privacy.delta = {case.privacy.delta:g} is not below 1/{case.fewest}, of the smallest node: it would allow to"
        " publish a record",
    ),
    Rule(
        "warn",
        lambda case: case.is_private and bool(case.side_channels),
        "the protocol shows more than noised models ({case.side_channels}): it is not accounted for, and may depend on"
        " private data",
    ),
    Rule(
        "warn",
        lambda case: case.is_private and case.is_standardised,
        "data.name: one-dimensional features are standardised with the statistics of all nodes' records, which is not"
        " accounted for",
    ),
    Rule(
        "warn",
        lambda case: case.is_private,
        "hyper-parameters that were tuned on private data are not accounted for, nor is what is evaluated on it",
    ),
)


def check(
    config: ExperimentConfig,
    protocol: type[Protocol],
    samples: Sequence[int] = (),
    neighbourhoods: Sequence[int] = (),
    is_standardised: bool = False,
    peers: int = 0,
) -> list[str]:
    """Hold an experiment against all rules; gives what to warn of.

    Args:
        samples: how many each node holds; 0 for those that are to hold none.
        neighbourhoods: how many models nodes aggregate, where a robust rule does it.
        is_standardised: whether features are scaled by what all nodes' records are together.
        peers: nodes and Sybil identities; 0: there are none of these.

    Raises:
        ConfigError: a combination cannot be right.
    """
    case = Case(config, protocol, [count for count in samples if count], neighbourhoods, is_standardised, peers)
    warnings = []
    for rule in RULES:  # one by one: what a rule refuses, those after it need not understand
        if rule.applies(case):
            says = rule.says.format(case=case)
            if rule.action == "reject":
                raise ConfigError(says)
            warnings.append(says)
    return warnings


def side_channels(protocol: type[Protocol], options: Any) -> tuple[str, ...]:
    """What a protocol of this configuration shows of its data besides models."""
    return tuple(protocol.shows(options))


def _has_pld() -> bool:
    return importlib.util.find_spec("dp_accounting") is not None
