"""What all models of the network have in common: each node behind an uplink and a downlink of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from node.clock import VirtualClock
from node.config import NetworkSection
from node.sim.draws import per_node
from node.sim.network import latency
from node.sim.network.rules import Rule, Rules

Deliver = Callable[[Any], object]
Parcel = tuple[int, int, Any, int]
"""What is delivered: receiver, sender, message, size in bytes."""
Sent = Callable[[int, float, float], None]
"""Told of a node whose uplink was busy, from when and until when."""
Lost = Callable[[int, int, int], None]
"""Told of a message that will not arrive: receiver, sender, size in bytes."""

_NEVER = float("inf")


class AccessNetwork(ABC):
    """A :class:`~node.sim.network.Network` whose links are the nodes' own; models differ in how large transfers meet.

    A message to oneself uses no link. A small one takes its latency and the time for its bytes at the slower end, and
    meets nobody. Where a link carries nothing for a while, messages wait at their sender until it does again.
    """

    def __init__(
        self,
        section: NetworkSection,
        nodes: int,
        seed: int,
        clock: VirtualClock,
        *,
        up_bps: Sequence[float] | None = None,
        down_bps: Sequence[float] | None = None,
        sent: Sent | None = None,
        lost: Lost | None = None,
    ) -> None:
        self._clock = clock
        self._post = clock.post
        self._between = latency.build(section.latency_s, nodes, seed)
        self._up_bps = per_node(section.up_bps, nodes, seed, "up_bps") if up_bps is None else up_bps
        self._down_bps = per_node(section.down_bps, nodes, seed, "down_bps") if down_bps is None else down_bps
        self._up_s = [8.0 / bps for bps in self._up_bps]
        self._down_s = [8.0 / bps for bps in self._down_bps]
        """Seconds for each byte at present; infinity where a rule stops a link."""
        self._small_bytes = section.small_bytes
        self._rules = Rules(section, nodes, seed)
        self._is_plain = not self._rules
        self._waiting: list[tuple[Deliver, Parcel]] = []
        self._sent = sent
        self._lost = lost or (lambda peer, sender, size_bytes: None)

    def start(self) -> None:
        """Let the rules that hold from the beginning hold, and those that hold later do so in time."""
        self._rules.start(self._clock, self._rule_changed)

    def carry(self, sender: int, to: Sequence[int], size_bytes: int, deliver: Deliver, message: Any) -> None:
        """Put one message on its way to each peer; ``deliver((peer, sender, message, size_bytes))`` on arrival."""
        for peer in to:
            parcel = (peer, sender, message, size_bytes)
            if peer == sender:
                self._post(0.0, deliver, parcel)
            elif not self._is_plain and self._rules.is_lost(sender, peer):
                self._lost(peer, sender, size_bytes)
            elif size_bytes <= self._small_bytes:
                self._carry_alone(deliver, parcel)
            else:
                self._transfer(deliver, parcel)

    @abstractmethod
    def _transfer(self, deliver: Deliver, parcel: Parcel) -> None:
        """Put a large message on its way to another node."""

    def _carry_alone(self, deliver: Deliver, parcel: Parcel) -> float:
        """Put a message on its way as if there were no others; gives the seconds that its bytes take."""
        peer, sender, _, size_bytes = parcel
        s_per_byte = max(self._up_s[sender], self._down_s[peer])
        if s_per_byte == _NEVER:
            self._waiting.append((deliver, parcel))
            return 0.0
        transfer_s = self._wire_bytes(sender, peer, size_bytes) * s_per_byte
        latency_s = self._latency_s(sender, peer, size_bytes)
        self._post(self._in_order_s(parcel, latency_s) + transfer_s, deliver, parcel)
        return transfer_s

    def _wire_bytes(self, sender: int, peer: int, size_bytes: int) -> float:
        """Bytes that a message makes its links carry: what is lost is sent again."""
        return size_bytes if self._is_plain else size_bytes / (1 - self._rules.loss(sender, peer))

    def _latency_s(self, sender: int, peer: int, size_bytes: int) -> float:
        """Latency of a message that is sent now; draws what there is to draw."""
        latency_s = self._between(sender, peer)
        return latency_s if self._is_plain else self._rules.latency_s(sender, peer, size_bytes, latency_s)

    def _in_order_s(self, parcel: Parcel, delay_s: float) -> float:
        """A delay from now, made longer where jitter would let a message overtake the one before it."""
        if self._is_plain:
            return delay_s
        peer, sender, _, size_bytes = parcel
        return self._rules.in_order_s(sender, peer, size_bytes <= self._small_bytes, self._clock.now, delay_s)

    def cut(self, node: int) -> None:
        """A node goes: whatever it is sending or receiving ends here, undelivered, and frees its links."""
        kept: list[tuple[Deliver, Parcel]] = []
        for deliver, parcel in self._waiting:
            peer, sender, _, size_bytes = parcel
            if node in (peer, sender):
                self._lost(peer, sender, size_bytes)
            else:
                kept.append((deliver, parcel))
        self._waiting = kept

    def stories(self) -> Iterator[str]:
        """A line for each message that cannot go on, for who has to explain a deadlock."""
        for _, (peer, sender, _, size_bytes) in self._waiting:
            stopped = f"the uplink of node {sender}" if self._up_s[sender] == _NEVER else f"the downlink of node {peer}"
            yield f"a message from node {sender} to node {peer} ({size_bytes} bytes) waits: {stopped} carries nothing"

    def _rule_changed(self, rule: Rule, begins: bool) -> None:
        if rule.kind == "rate":
            self._change_rates(rule)
            waiting, self._waiting = self._waiting, []
            for deliver, (peer, sender, message, size_bytes) in waiting:
                self.carry(sender, (peer,), size_bytes, deliver, message)

    def _change_rates(self, rule: Rule) -> None:
        for node in range(len(self._up_s)):
            if rule.has_uplink(node):
                self._set_up(node, self._up_bps[node] * self._rules.up_factor(node))
            if rule.has_downlink(node):
                self._set_down(node, self._down_bps[node] * self._rules.down_factor(node))

    def _set_up(self, node: int, bps: float) -> None:
        self._up_s[node] = 8.0 / bps if bps else _NEVER

    def _set_down(self, node: int, bps: float) -> None:
        self._down_s[node] = 8.0 / bps if bps else _NEVER
