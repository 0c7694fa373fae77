"""Who takes part in an experiment beyond its nodes, and what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from node.config import ExperimentConfig
from node.experiment.privacy import noise_of
from node.learn.data import Federation, Shards
from node.participants import Participants
from node.protocol import Protocol
from node.record import Recorder, spread


def sybils_of(config: ExperimentConfig) -> int:
    """How many Sybil identities attackers register."""
    return sum(table.identities * len(set(table.nodes or (0,))) for table in config.attackers if table.identities)


def participants_of(
    config: ExperimentConfig, sybils: Iterable[int], protocol: type[Protocol], options: Any
) -> Participants:
    """Everybody. Whose virtual nodes are whose is drawn as all secrets of the run are: by its seed, or in secret.

    Args:
        sybils: the owner of each Sybil identity.
        options: the protocol's.
    """
    is_seeded = noise_of(config) == "seeded"
    rng = np.random.default_rng([config.seed, *b"virtual"] if is_seeded else int.from_bytes(os.urandom(16)))
    return Participants.drawn(config.nodes, tuple(sybils), protocol.virtual_nodes(options), rng)


def held_by_all(federation: Federation, participants: Participants) -> Federation:
    """What everybody holds: a Sybil identity what its owner does, a virtual node nothing."""
    if participants.are_nodes_alone:
        return federation
    shards, local_tests = (_of_all(held, participants) for held in (federation.shards, federation.local_tests))
    return replace(federation, shards=shards, local_tests=local_tests)


def _of_all(shards: Shards, participants: Participants) -> Shards:
    owned = [shards.of(owner) for owner in participants.sybils]
    sizes = [*shards.sizes, *map(len, owned), *[0] * len(participants.virtual)]
    return Shards(np.concatenate([[0], np.cumsum(sizes)]), np.concatenate([shards.indices, *owned]))


def of_nodes(recorder: Recorder, participants: Participants) -> dict[str, dict[str, float]]:
    """Mean, standard deviation, smallest and largest of each metric's last values, over the nodes that recorded it.

    What identities have sent is their device's; all else that they have recorded are measurements of attackers.
    """
    spreads = recorder.summary()
    if "bytes_sent" in spreads and not participants.are_nodes_alone:
        sent: dict[int, float] = {}
        for number, sent_bytes in recorder.latest("bytes_sent").items():
            device = participants.device(number)
            sent[device] = sent.get(device, 0.0) + sent_bytes
        spreads["bytes_sent"] = spread(list(sent.values()))
    return spreads


def statement(participants: Participants) -> dict[str, Any]:
    """The ``identities`` object of a summary: how many there are, and the node that each is on, by rising number."""
    if participants.are_nodes_alone:
        return {}
    owners = [participants.device(number) for number in range(participants.nodes, participants.total)]
    return {"sybil": len(participants.sybils), "virtual": len(participants.virtual), "owners": owners}
