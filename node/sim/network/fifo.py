"""Uplinks and downlinks as queues: one message after another at each end."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from node.clock import Priority, VirtualClock
from node.config import NetworkSection
from node.sim.network.access import AccessNetwork, Deliver, Parcel

_NEVER = float("inf")


@dataclass(slots=True)
class _Life:
    """A node from one cut to the next."""

    cut_s: float = _NEVER


@dataclass(slots=True)
class _Crossing:
    deliver: Deliver
    parcel: Parcel
    start_s: float
    end_s: float
    """When its last byte leaves the sender."""
    down_s: float
    """How long its bytes take at the receiver."""
    sender: _Life
    peer: _Life
    """Those of sender and receiver when it was sent."""


class FifoNetwork(AccessNetwork):
    """First in, first out at both ends, in O(1) for each message.

    Cut-through: the receiver's downlink begins when the first byte is there, so that a message which waits for nobody
    takes the time of the slower end once, not of both. Messages queue at a downlink in the order of their first bytes.
    Rates are those at the time of sending. A cut frees the queues of the node that goes; the other ends go on waiting
    for what is under way until it would have ended.
    """

    def __init__(self, section: NetworkSection, nodes: int, seed: int, clock: VirtualClock, **told: Any) -> None:
        super().__init__(section, nodes, seed, clock, **told)
        self._up_free_s = [0.0] * nodes
        self._down_free_s = [0.0] * nodes
        self._lives: defaultdict[int, _Life] = defaultdict(_Life)

    def _transfer(self, deliver: Deliver, parcel: Parcel) -> None:
        peer, sender, _, size_bytes = parcel
        up_s, down_s = self._up_s[sender], self._down_s[peer]
        if up_s == _NEVER or down_s == _NEVER:
            self._waiting.append((deliver, parcel))
            return
        now_s = self._clock.now
        wire_bytes = self._wire_bytes(sender, peer, size_bytes)
        start_s = max(now_s, self._up_free_s[sender])
        end_s = self._up_free_s[sender] = start_s + wire_bytes * up_s
        if self._sent is not None:
            self._sent(sender, start_s, end_s)
        lives = self._lives[sender], self._lives[peer]
        crossing = _Crossing(deliver, parcel, start_s, end_s, wire_bytes * down_s, *lives)
        delay_s = start_s - now_s + self._latency_s(sender, peer, size_bytes)
        self._post(self._in_order_s(parcel, delay_s), self._reach, crossing, Priority.TRANSFER)

    def _reach(self, crossing: _Crossing) -> None:
        """The first byte is at the receiver's downlink; the last comes as much later as it was sent later."""
        peer, now_s = crossing.parcel[0], self._clock.now
        if self._is_over(crossing):
            return
        start_s = max(now_s, self._down_free_s[peer])
        end_s = max(start_s + crossing.down_s, now_s + crossing.end_s - crossing.start_s)
        self._down_free_s[peer] = end_s
        self._post(end_s - now_s, self._arrive, crossing)

    def _arrive(self, crossing: _Crossing) -> None:
        if not self._is_over(crossing):
            crossing.deliver(crossing.parcel)

    def _is_over(self, crossing: _Crossing) -> bool:
        """Whether an end was cut since it was sent (the sender: before the last byte had left); tells of the loss."""
        peer, sender, _, size_bytes = crossing.parcel
        is_over = crossing.peer.cut_s < _NEVER or crossing.sender.cut_s < crossing.end_s
        if is_over:
            self._lost(peer, sender, size_bytes)
        return is_over

    def cut(self, node: int) -> None:
        """A node goes: its queues are empty, and nothing of what was in them is delivered."""
        super().cut(node)
        now_s = self._clock.now
        self._lives.pop(node, _Life()).cut_s = now_s
        self._up_free_s[node] = self._down_free_s[node] = now_s
