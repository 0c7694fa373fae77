"""What ``starling attack`` does: add an attacker to an experiment, run it, and tell what has leaked."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from node.cli import running
from node.config import ExperimentConfig
from node.errors import ConfigError
from node.experiment.loading import from_flag, load, validated

_OWN = "attack"
"""Begins the keys of ``--set`` that are the attack's own."""
_PLACES = ("round", "attacker", "victim")


def run(
    kind: str, experiment: str, nodes: Sequence[int] | None, sets: Sequence[str], out: Path | None, quiet: bool
) -> tuple[dict[str, Any], Path]:
    """Run an experiment with one more attacker; gives the summary and the folder.

    Args:
        nodes: who attacks; None: the first learner.
        sets: ``key=value``, of the experiment; ``attack.key=value``, of the attack.
    """
    own = attack_options(sets)
    others = [override for override in sets if from_flag(override)[0][0] != _OWN]
    return running.run_config(with_attacker(load(experiment, others, os.environ), kind, nodes, own), out, quiet)


def attack_options(sets: Sequence[str]) -> dict[str, Any]:
    """The attack's own keys among some overrides."""
    own = {".".join(key[1:]): value for key, value in map(from_flag, sets) if key[0] == _OWN}
    if "" in own:
        raise ConfigError(f"--set {_OWN}=…: write {_OWN}.KEY=VALUE")
    return own


def with_attacker(
    config: ExperimentConfig, kind: str, nodes: Sequence[int] | None, options: Mapping[str, Any]
) -> ExperimentConfig:
    """The experiment with one more attacker."""
    values = config.model_dump(exclude_none=True)
    table = {"kind": kind, **options, **({"nodes": tuple(nodes)} if nodes else {})}
    values["attackers"] = (*values["attackers"], table)
    return validated(values, config.name)


def tell(summary: Mapping[str, Any], folder: Path) -> None:
    """What was measured, in a few lines."""
    running.tell_outcome(dict(summary), folder)
    for line in findings(summary.get("attacks", {})):
        typer.echo(f"  {line}")


def findings(attacks: Mapping[str, Any]) -> Iterator[str]:
    """One line for every metric of messages, and of final models."""
    messages = attacks.get("messages", [])
    if messages:
        rounds = sorted({message["round"] for message in messages})
        yield f"{len(messages)} messages of {len(rounds)} rounds attacked:"
    for metric in dict.fromkeys(name for message in messages for name in message if name not in _PLACES):
        known = [message[metric] for message in messages if message.get(metric) is not None]
        if known:
            mean = sum(known) / len(known)
            spread = f"lowest {min(known):8.4f}   highest {max(known):8.4f}{_interval(attacks, metric)}"
            yield f"  {metric:<32} mean {mean:8.4f}   {spread}"
    for name, figures in attacks.items():
        if name.split("#")[0] == "final":
            yield from _of_final_models(figures)
    for name, figures in attacks.items():
        if name.split("#")[0] not in ("messages", "pooled", "final") and isinstance(figures, Mapping):
            yield f"{name}: " + ", ".join(f"{key} {_short(value)}" for key, value in figures.items())


def _of_final_models(final: Mapping[str, Any]) -> Iterator[str]:
    yield f"final models of {len(final['nodes'])} nodes attacked (worst: node {final['worst']['node']}):"
    for metric, mean in final["mean"].items():
        if mean is not None:
            yield f"  {metric:<32} mean {mean:8.4f}   worst node {final['worst'][metric]:8.4f}"
    for group, figures in final["groups"].items() if len(final["groups"]) > 1 else ():
        yield f"  group {group} ({figures['nodes']} nodes): membership_auc {figures['membership_auc']:.4f}"
    for metric, figures in final.get("pooled", {}).items():
        yield f"  {metric:<32} all samples {figures['estimate']:.4f}{_interval(final, metric)}"
    if "epsilon_at_least" in final:
        yield f"  an attack on them proves epsilon >= {final['epsilon_at_least']:.4g} at delta {final['delta']:g}"


def _interval(figures: Mapping[str, Any], metric: str) -> str:
    interval = figures.get("pooled", {}).get(metric)
    if not interval or interval["low"] is None:
        return ""
    return f"   95% interval {interval['low']:.4f} to {interval['high']:.4f}"


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
