"""What befalls the messages that a node sends while something is wrong with its network: a state machine without I/O.

Kernels without netem are common, so the transport does it itself, a message at a time: what TCP carries would not show
the loss of a packet anyway.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from node.codec import Encoded


class Impairment(NamedTuple):
    """Something is wrong with the way to some peers, from when until when (seconds of the run)."""

    start_s: float
    end_s: float
    loss: float = 0.0
    """Share of messages that are lost."""
    garbage: float = 0.0
    """Share of messages in whose place come random bytes, as many as their headers have."""
    delay_s: float = 0.0
    jitter_s: float = 0.0
    """Mean of an exponential time on top."""
    peers: frozenset[int] | None = None
    """Whom messages go to; None: all."""


class Leaving(NamedTuple):
    """A message that may leave."""

    peer: int
    encoded: Encoded
    keep: object
    unsent_bytes: int = 0
    """By how much it is smaller than what was to be sent."""


class Shaper:
    """Loses, spoils and holds back what a node sends; messages to one peer keep their order.

    Args:
        seed: of all draws, with ``node``: one generator for each peer, so that others' traffic does not matter.
        began_s: when the run began, on the clock of the times that methods are given.
    """

    def __init__(self, impairments: Sequence[Impairment], seed: int, node: int, began_s: float) -> None:
        self._impairments = impairments
        self._seed = (seed, node)
        self._began_s = began_s
        self._rngs: dict[int, np.random.Generator] = {}
        self._last_s: dict[int, float] = {}
        self._held: list[tuple[float, int, Leaving]] = []
        self._added = 0

    @property
    def idle(self) -> bool:
        """Whether nothing is held back."""
        return not self._held

    @property
    def due_s(self) -> float | None:
        """When to look again; None: not before something is added."""
        return self._held[0][0] if self._held else None

    def add(self, leaving: Leaving, now_s: float) -> bool:
        """A message is sent; False: it is lost, and :meth:`take` never gives it."""
        peer = leaving.peer
        delay_s = 0.0
        for impairment in self._in_force(peer, now_s - self._began_s):
            rng = self._rng(peer)
            if impairment.loss and rng.random() < impairment.loss:
                return False
            if impairment.garbage and rng.random() < impairment.garbage:
                leaving = _spoilt(leaving, rng)
            delay_s += impairment.delay_s + (rng.exponential(impairment.jitter_s) if impairment.jitter_s else 0.0)
        due_s = self._last_s[peer] = max(now_s + delay_s, self._last_s.get(peer, -math.inf))
        self._added += 1
        heapq.heappush(self._held, (due_s, self._added, leaving))
        return True

    def take(self, now_s: float) -> Leaving | None:
        """The next message that may leave by now; call it until there is none."""
        return heapq.heappop(self._held)[2] if self._held and self._held[0][0] <= now_s else None

    def _in_force(self, peer: int, now_s: float) -> Iterator[Impairment]:
        for impairment in self._impairments:
            if impairment.start_s <= now_s < impairment.end_s and (
                impairment.peers is None or peer in impairment.peers
            ):
                yield impairment

    def _rng(self, peer: int) -> np.random.Generator:
        return self._rngs.get(peer) or self._rngs.setdefault(peer, np.random.default_rng([*self._seed, peer]))


def _spoilt(leaving: Leaving, rng: np.random.Generator) -> Leaving:
    """Random bytes in place of a message: without payload, which would be chunks that nobody has asked for."""
    size_bytes = len(leaving.encoded.header)
    spoilt = leaving.encoded._replace(header=rng.bytes(size_bytes), buffers=[], size_bytes=size_bytes)
    unsent_bytes = leaving.unsent_bytes + leaving.encoded.size_bytes - size_bytes
    return leaving._replace(encoded=spoilt, unsent_bytes=unsent_bytes)
