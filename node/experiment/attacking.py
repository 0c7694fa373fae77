"""Attackers of an experiment: find them, let them ride on its nodes, and gather what they have measured."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import ValidationError

from node.attack.attacker import Attack, Scene
from node.attack.identities import sybil_identities
from node.attack.kinds import KINDS
from node.attack.metrics import mean_interval
from node.attack.sampling import FROM, ORIGINAL, PICTURE, numbered
from node.attack.truth import Truth
from node.config import AttackerSection, ExperimentConfig
from node.errors import ConfigError
from node.experiment.loading import explain, unknown
from node.experiment.plugins import by_path
from node.learn.data import Federation
from node.learn.models import Model
from node.op import Value
from node.participants import Participants
from node.protocol import Protocol
from node.record import Recorder
from node.row import Row
from node.topology import Topology

if TYPE_CHECKING:
    import pyarrow as pa

_SKEWED = ("dirichlet", "shards", "natural")
"""Partitions that give nodes other labels than the test set has."""
_MESSAGE = re.compile(rf"{FROM}(\d+)(#\d+)?\.(.+)")


_RATE = re.compile("_auc$|_tpr_")
"""Metrics that get intervals."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One ``[[attackers]]`` table, checked, before there are data."""

    kind: type[Attack]
    options: Any
    nodes: tuple[int, ...]
    """Attackers, with their Sybil identities."""
    owners: tuple[int, ...]
    """The attacker behind each of these identities."""


def planned(config: ExperimentConfig, roles: Mapping[int, str]) -> tuple[Planned, ...]:
    """Find every attack of an experiment. ConfigError, naming the key, for what does not exist or does not fit."""
    plans: list[Planned] = []
    first = config.nodes
    for i, section in enumerate(config.attackers):
        plans.append(_planned(section, f"attackers[{i}]", config, roles, first))
        first += len(plans[-1].owners)
    _check_apart(plans)
    return tuple(plans)


def _check_apart(plans: Sequence[Planned]) -> None:
    """Raise ConfigError for a node that lies twice, or attacks twice in one way: one would replace the other."""
    taken: dict[tuple[int, type[Attack] | None], int] = {}
    for i, plan in enumerate(plans):
        for node in plan.nodes:
            first = taken.setdefault((node, None if plan.kind.is_lie else plan.kind), i)
            if first == i:
                continue
            why = (
                f"lies already, by attackers[{first}], and of two lies one would undo the other"
                if plan.kind.is_lie
                else f"attacks like this already, by attackers[{first}], whose figures these would replace"
            )
            raise ConfigError(f"attackers[{i}].nodes: node {node} {why}; name other nodes")


def _planned(
    section: AttackerSection, key: str, config: ExperimentConfig, roles: Mapping[int, str], first: int
) -> Planned:
    """``first``: the number of the next Sybil identity."""
    if ":" not in section.kind and section.kind not in KINDS:
        raise ConfigError(f"{unknown('attack', f'{key}.kind', section.kind, KINDS)}, or module:Class")
    kind = by_path(KINDS[section.kind].path if section.kind in KINDS else section.kind, f"{key}.kind")
    if not (isinstance(kind, type) and issubclass(kind, Attack)):
        raise ConfigError(f"{key}.kind: {section.kind} is not a subclass of node.attack.attacker.Attack")
    if inspect.isabstract(kind):
        raise ConfigError(f"{key}.kind: {section.kind} leaves its attack to subclasses; name one of these")
    for node in section.nodes or ():
        if not 0 <= node < config.nodes:
            raise ConfigError(f"{key}.nodes: there is no node {node}; allowed: 0 to {config.nodes - 1}")
    learners = [node for node in range(config.nodes) if roles.get(node, "learner") == "learner"]
    nodes = tuple(sorted(set(section.nodes or learners[:1])))
    try:
        options = kind.Config(**section.options)
    except ValidationError as error:
        raise ConfigError(explain(error.errors(), kind.Config, f"{key}.")) from None
    kind.check(options, nodes, config)
    each = section.identities or 0
    if each and (idle := [node for node in nodes if node not in learners]):
        raise ConfigError(f"{key}.identities: a {roles[idle[0]]}, node {idle[0]}, has no data for them; name learners")
    names = sorted(chain(*sybil_identities(first, nodes, each).values()))
    return Planned(kind, options, tuple(names), tuple(node for node in nodes for _ in range(each)))


def poisoned(plans: Iterable[Planned], federation: Federation, seed: int) -> Federation:
    """What the nodes hold after all attackers have changed their own."""
    for plan in plans:
        federation = plan.kind.poisoned(plan.options, plan.nodes, federation, seed)
    return federation


def built(
    plans: Sequence[Planned],
    config: ExperimentConfig,
    federation: Federation,
    model: Model,
    topology: Topology,
    participants: Participants,
    protocol: type[Protocol],
    options: Any,
) -> tuple[Attack, ...]:
    """The attacks, ready to ride on nodes."""
    if not plans:
        return ()
    truth = Truth(federation, config.seed, matched=config.data.partition in _SKEWED)
    private_layers = protocol.private_layers(options)
    cut = model.cut(private_layers) if private_layers else model.dimension
    scene = Scene(config, federation, model, topology, cut, truth, participants, options)
    return tuple(plan.kind(plan.options, plan.nodes, scene) for plan in plans)


def measured(attacks: Sequence[Attack], recorder: Recorder, models: Mapping[int, Value]) -> dict[str, Any]:
    """``attacks`` of ``summary.json``: every attacked message, and what final models tell. Empty without attackers.

    What several tables have found under one name is numbered in their order: ``byzantine``, ``byzantine#2``, ...
    """
    if not attacks:
        return {}
    messages = attacked_messages(recorder.rows(), attacks[0].scene.participants)
    found: dict[str, Any] = {"messages": messages, "pooled": pooled(messages, attacks[0].scene.config.seed)}
    for attack in attacks:
        judged = attack.judge(models)
        found |= {numbered(name, found): figures for name, figures in judged.items()}
    return found


def attacked_messages(rows: Iterable[Row], participants: Participants) -> list[dict[str, Any]]:
    """One entry for each attacked message, in the order of round, attacker and victim: these, and its metrics.

    What Sybil identities have heard is their owner's; ``identity`` says which of them it was.
    """
    found: dict[tuple[int, int, int, str], dict[str, Any]] = {}
    for row in rows:
        if (told := _MESSAGE.fullmatch(row.metric)) is None:
            continue
        victim, number, metric = int(told[1]), told[2] or "", told[3]
        if metric.startswith((PICTURE, ORIGINAL)):
            continue
        attacker = participants.device(row.node)
        entry = {"round": row.round, "attacker": attacker, "victim": victim}
        if attacker != row.node:
            entry["identity"] = row.node
        found.setdefault((row.round, row.node, victim, number), entry)[metric] = row.value
    return [_without_nan(found[place]) for place in sorted(found)]


def pooled(messages: Sequence[Mapping[str, Any]], seed: int) -> dict[str, dict[str, float | None]]:
    """AUC and true positive rates over all messages, with intervals; messages of a single victim have none."""
    found = {}
    for metric in dict.fromkeys(name for message in messages for name in message if _RATE.search(name)):
        known = [(message[metric], message["victim"]) for message in messages if message.get(metric) is not None]
        values, victims = np.array([value for value, _ in known]), np.array([victim for _, victim in known])
        if (interval := mean_interval(values, victims, np.random.default_rng([seed, *metric.encode()]))) is not None:
            found[metric] = interval._asdict()
    return found


def pictures(rows: Iterable[Row], shape: tuple[int, ...]) -> pa.Table | None:
    """What attacks have reconstructed of training images, and what it was of; None where there is nothing.

    One row for each picture: round, attacker, victim, shape, and the lists reconstructed and original, from 0 to 1.
    """
    pixels: dict[tuple[int, int, int, str], dict[str, list[float]]] = {}
    for row in rows:
        told = _MESSAGE.fullmatch(row.metric)
        if told is not None and told[3].startswith((PICTURE, ORIGINAL)):
            place = (row.round, row.node, int(told[1]), told[2] or "")
            what = PICTURE if told[3].startswith(PICTURE) else ORIGINAL
            pixels.setdefault(place, {PICTURE: [], ORIGINAL: []})[what].append(row.value)
    places = [place for place in sorted(pixels) if np.isfinite(pixels[place][PICTURE]).all()]
    if not places:
        return None
    import pyarrow as pa  # only now: 30 MB that a node without pictures does without

    return pa.table(
        {
            **{name: [place[i] for place in places] for i, name in enumerate(("round", "attacker", "victim"))},
            "shape": [list(shape)] * len(places),
            "reconstructed": [pixels[place][PICTURE] for place in places],
            "original": [pixels[place][ORIGINAL] for place in places],
        }
    )


def is_of_one_message(metric: str) -> bool:
    """Whether a metric is of a single attacked message, and so in the table of these rather than among the others."""
    return metric.startswith(FROM)


def _without_nan(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: None if value != value else value for name, value in entry.items()}
