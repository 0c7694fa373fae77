"""What the simulated network makes of a message: when it arrives."""

from __future__ import annotations

from collections.abc import Sequence

from node.config import Distribution, Geography, LatencyMatrix, NetworkSection
from node.sim.devices import per_node, per_pair


class Network:
    """Latency plus transfer time over the slower of the two ends; transfers do not meet.

    As live, a small message may overtake a large one that was sent before it.
    """

    def __init__(self, section: NetworkSection, nodes: int, seed: int) -> None:
        self._latency_s = section.latency_s
        self._seed = seed
        self._seconds_per_byte_up = [8.0 / bps for bps in per_node(section.up_bps, nodes, seed, "up_bps")]
        self._seconds_per_byte_down = [8.0 / bps for bps in per_node(section.down_bps, nodes, seed, "down_bps")]

    def delays_s(self, sender: int, to: Sequence[int], size_bytes: int) -> list[float]:
        """Seconds from sending to each delivery. A message to oneself uses no link."""
        latency, seed = self._latency_s, self._seed
        up, down = self._seconds_per_byte_up[sender], self._seconds_per_byte_down
        delays = []
        for peer in to:
            if peer == sender:
                delays.append(0.0)
                continue
            latency_s = per_pair(latency, sender, peer, seed) if isinstance(latency, Distribution) else latency
            assert not isinstance(latency_s, LatencyMatrix | Geography)
            slower = down[peer]
            delays.append(latency_s + size_bytes * (up if up > slower else slower))
        return delays
