"""Shatter's virtual nodes: which of them are whose, and to whom they pass their chunks (Biswas et al., PoPETs 2025).

Each node owns k of them, one for each chunk. All of it follows from a public beacon, anew in every round: a virtual
node's number is drawn, and tells nobody whose it is who does not know the draw. Here everybody can know it, because a
message has to find its way to the owner's one address: unlinkability would need an address for each virtual node.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from node.config import TopologySection
from node.privacy.chunks import chunk_size
from node.private import Hop
from node.topology import build


class DrawnNodes:
    """The virtual nodes of an experiment; a :class:`~node.private.VirtualNodes`."""

    def __init__(self, nodes: int, chunks: int, degree: int, dimension: int, beacon: str) -> None:
        """``dimension``: parameters of the model. Raises ConfigError where there is no such graph."""
        seed = int.from_bytes(hashlib.blake2b(beacon.encode(), digest_size=8, person=b"virtual").digest())
        self._graph = build(TopologySection(kind="random-regular", degree=degree), nodes * chunks, seed)
        self._seed = seed
        self._chunks = chunks
        self._dimension = dimension
        self._beacon = beacon
        self._dealt = functools.lru_cache(maxsize=4)(self._deal)

    def outgoing(self, node: int, round: int) -> Sequence[Hop]:
        """What a node sends, in the order of lanes."""
        hops = []
        lanes: Counter[int] = Counter()
        for chunk, to in self._edges(node, round):
            hops.append(Hop(to, lanes[to], chunk))
            lanes[to] += 1
        return hops

    def incoming(self, node: int, round: int) -> Mapping[int, int]:
        """How many chunks come to a node, by sender: as many as go there, for the graph is undirected."""
        return dict(sorted(Counter(to for _, to in self._edges(node, round)).items()))

    def chunk_size(self, chunk: int, round: int) -> int:
        """Coordinates of a chunk."""
        return chunk_size(self._dimension, self._chunks, chunk, self._beacon, round)

    def _edges(self, node: int, round: int) -> Iterator[tuple[int, int]]:
        """The chunk and the receiving node of each edge to a virtual node of another node."""
        places, owners = self._dealt(round)
        for place in sorted(places[node * self._chunks : (node + 1) * self._chunks].tolist()):
            for other in self._graph.neighbours(place, round):
                if owners[other] // self._chunks != node:
                    yield int(owners[place] % self._chunks), int(owners[other] // self._chunks)

    def _deal(self, round: int) -> tuple[np.ndarray, np.ndarray]:
        """A round's numbers of all virtual nodes, and which virtual node has each number."""
        sequence = np.random.SeedSequence(self._seed, spawn_key=(round,))
        owners = np.random.default_rng(sequence).permutation(self._graph.nodes)
        return np.argsort(owners), owners
