"""Latency plus the time for the bytes at the slower end: transfers do not meet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from node.clock import VirtualClock
from node.config import NetworkSection
from node.sim.network.access import AccessNetwork, Deliver, Parcel


class UnsharedNetwork(AccessNetwork):
    """The cheapest model: each message has its links to itself, whatever else is under way.

    As live, a small message may overtake a large one that was sent before it. What is under way cannot be cut: its
    arrival is scheduled when it is sent.
    """

    def __init__(self, section: NetworkSection, nodes: int, seed: int, clock: VirtualClock, **told: Any) -> None:
        super().__init__(section, nodes, seed, clock, **told)
        self._constant_s = float(section.latency_s) if isinstance(section.latency_s, int | float) else None

    def carry(self, sender: int, to: Sequence[int], size_bytes: int, deliver: Deliver, message: Any) -> None:
        """Put one message on its way to each peer; most messages of a simulation go through this loop."""
        if not self._is_plain:
            super().carry(sender, to, size_bytes, deliver, message)
            return
        constant_s, up_s, down_s = self._constant_s, self._up_s[sender], self._down_s
        longest_s = 0.0
        timed: list[tuple[float, Parcel]] = []
        for peer in to:
            if peer == sender:
                timed.append((0.0, (peer, sender, message, size_bytes)))
                continue
            latency_s = self._between(sender, peer) if constant_s is None else constant_s
            slower = down_s[peer]
            transfer_s = size_bytes * (up_s if up_s > slower else slower)
            if transfer_s > longest_s:
                longest_s = transfer_s
            timed.append((latency_s + transfer_s, (peer, sender, message, size_bytes)))
        self._clock.post_each(timed, deliver)
        if self._sent is not None and size_bytes > self._small_bytes and longest_s:
            now_s = self._clock.now
            self._sent(sender, now_s, now_s + longest_s)

    def _transfer(self, deliver: Deliver, parcel: Parcel) -> None:
        transfer_s = self._carry_alone(deliver, parcel)
        if self._sent is not None and transfer_s:
            now_s = self._clock.now
            self._sent(parcel[1], now_s, now_s + transfer_s)
