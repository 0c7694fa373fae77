"""What an experiment that compresses models cannot also ask for, and what its messages may carry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.compression import Compression
from node.config import ExperimentConfig, ModSection
from node.errors import ConfigError
from node.mods import Mod, Observer
from node.op import Spec


def check(config: ExperimentConfig, kinds: Sequence[type[Mod | Observer]]) -> None:
    """ConfigError where a mod is not on all nodes and has to be, or where compression meets what reads messages."""
    compressing = [i for i, kind in enumerate(kinds) if issubclass(kind, Compression)]
    for i, (section, kind) in enumerate(zip(config.mods, kinds, strict=True)):
        if issubclass(kind, Mod) and kind.for_all_nodes and section.nodes is not None:
            raise ConfigError(
                f"mods[{i}].nodes: {section.use!r} wraps all nodes, or receivers cannot read; leave it out"
            )
    if len(compressing) > 1:
        raise ConfigError(f"mods[{compressing[1]}].use: models are compressed already; allowed is one compression")
    if compressing and config.attackers:
        raise ConfigError(
            f"mods[{compressing[0]}].use: attackers read models as they are on the wire, which compression packs; "
            "leave out one of the two"
        )


def carried(mods: Sequence[tuple[ModSection, type[Mod | Observer], Any]], shapes: frozenset[Spec]) -> frozenset[Spec]:
    """What models in messages may look like on their way."""
    for _, kind, options in mods:
        if issubclass(kind, Mod):
            shapes = kind(options).carried(shapes)
    return shapes
