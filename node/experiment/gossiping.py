"""What mechanisms that use the network ask of a topology: how fast it mixes, and how many neighbours everybody has."""

from __future__ import annotations

from typing import Any

import numpy as np

from node.config import ExperimentConfig
from node.privacy.gossip import muffliato_rounds, spectral_gap
from node.topology import build

_MOST_NODES = 2048
"""Beyond so many the eigenvalues of the mixing matrix take longer than a check may."""


def fewest_senders(config: ExperimentConfig) -> int:
    """How many nodes send to the node that hears fewest, in the first round."""
    topology = build(config.topology, config.nodes, config.seed)
    return min(len(topology.sources(node)) for node in range(config.nodes))


def doubt(config: ExperimentConfig, options: Any) -> str:
    """Why Muffliato's gossip rounds are too few for all nodes to have nearly the same model; empty: they are not.

    ``options``: the protocol's. What is added by ``[privacy]`` counts as noise, too; without any, in large networks,
    and where plain gossip is not symmetric, there is no answer.

    Raises:
        ConfigError: mixing is not symmetric, which accelerated gossip needs, or nodes are out of reach of others.
    """
    privacy = config.privacy
    added = privacy.noise_multiplier * privacy.clip if privacy.mechanism == "node" else 0.0
    sigma = max(added, options.noise)
    if not sigma or config.nodes > _MOST_NODES:
        return ""
    matrix = build(config.topology, config.nodes, config.seed).matrix()
    if not (options.accelerated or np.array_equal(matrix, matrix.T)):
        return ""
    needed = muffliato_rounds(spectral_gap(matrix), config.nodes, sigma, options.accelerated)
    if options.gossip_rounds >= needed:
        return ""
    return f"{options.gossip_rounds} is below the {needed} after which all nodes have nearly the same model"
