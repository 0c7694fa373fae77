"""What mechanisms that use the network ask of a topology: how fast it mixes, and how many neighbours everybody has."""

from __future__ import annotations

from typing import Any

import numpy as np

from node.config import ExperimentConfig
from node.privacy.gossip import muffliato_rounds, spectral_gap
from node.topology import build

_MOST_NODES = 2048
"""Beyond so many the eigenvalues of the mixing matrix take longer than a check may."""


def fewest_senders(config: ExperimentConfig, peers: int = 0) -> int:
    """How many peers send to the one that hears fewest, in the first round; ``peers``: how many, 0: the nodes."""
    peers = peers or config.nodes
    topology = build(config.topology, peers, config.seed)
    return min(len(topology.sources(peer)) for peer in range(peers))


def doubt(config: ExperimentConfig, options: Any, peers: int = 0) -> str:
    """Why Muffliato's gossip rounds are too few for all nodes to have nearly the same model; empty: they are not.

    What is added by ``[privacy]`` counts as noise, too; without any, in large networks, and where plain gossip is not
    symmetric, there is no answer.

    Args:
        config: the experiment.
        options: the protocol's.
        peers: how many there are; 0: the nodes.

    Raises:
        ConfigError: mixing is not symmetric, which accelerated gossip needs, or nodes are out of reach of others.
    """
    privacy, peers = config.privacy, peers or config.nodes
    added = privacy.noise_multiplier * privacy.clip if privacy.mechanism == "node" else 0.0
    sigma = max(added, options.noise)
    if not sigma or peers > _MOST_NODES:
        return ""
    matrix = build(config.topology, peers, config.seed).matrix()
    if not (options.accelerated or np.array_equal(matrix, matrix.T)):
        return ""
    needed = muffliato_rounds(spectral_gap(matrix), peers, sigma, options.accelerated)
    if options.gossip_rounds >= needed:
        return ""
    return f"{options.gossip_rounds} is below the {needed} after which all nodes have nearly the same model"
