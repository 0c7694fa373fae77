"""What the simulated network makes of a message: when it arrives, if it does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any
from typing import Protocol as Interface

from node.clock import VirtualClock
from node.config import NetworkSection
from node.sim.network.access import AccessNetwork, Lost, Sent
from node.sim.network.fair import FairNetwork
from node.sim.network.fifo import FifoNetwork
from node.sim.network.unshared import UnsharedNetwork

_MODELS: dict[str, type[AccessNetwork]] = {
    "latency": UnsharedNetwork,
    "fifo": FifoNetwork,
    "fair": FairNetwork,
}


class Network(Interface):
    """Carries messages between nodes in virtual time."""

    def carry(
        self, sender: int, to: Sequence[int], size_bytes: int, deliver: Callable[[Any], object], message: Any
    ) -> None:
        """Put one message on its way to each peer; ``deliver((peer, sender, message, size_bytes))`` on arrival."""
        ...

    def cut(self, node: int) -> None:
        """A node goes: whatever it is sending or receiving ends here, undelivered, and frees its links.

        What has left it already, or is scheduled by a model that does not follow transfers, still arrives.
        """
        ...

    def stories(self) -> Iterator[str]:
        """A line for each message that cannot go on, for who has to explain a deadlock."""
        ...


def build(
    section: NetworkSection,
    nodes: int,
    seed: int,
    clock: VirtualClock,
    *,
    up_bps: Sequence[float] | None = None,
    down_bps: Sequence[float] | None = None,
    sent: Sent | None = None,
    lost: Lost | None = None,
) -> Network:
    """The network of a section between nodes that are numbered from 0.

    Args:
        up_bps: by node, in place of the section's; likewise ``down_bps``.
        sent: told of each interval (node, start_s, end_s) for which a large message keeps an uplink busy, at the latest
            when it ends.
        lost: told (receiver, sender, size in bytes) of each message that a partition or a cut has ended.

    Raises:
        ConfigError: a rule, or a file of latencies, is wrong.
    """
    network = _MODELS[section.model](
        section, nodes, seed, clock, up_bps=up_bps, down_bps=down_bps, sent=sent, lost=lost
    )
    network.start()
    return network
