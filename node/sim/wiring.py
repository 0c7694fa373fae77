"""The links of participants that are not alone on their device: they share the device's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from node.clock import VirtualClock
from node.participants import Participants
from node.sim.network import Network
from node.sim.network.access import Deliver


class Wiring:
    """Carries between participants over a network of their devices; a :class:`~node.sim.network.Network`.

    What stays on one device is there at once, and uses no link.
    """

    def __init__(self, network: Network, clock: VirtualClock, participants: Participants) -> None:
        self._network = network
        self._clock = clock
        self._participants = participants

    def carry(self, sender: int, to: Sequence[int], size_bytes: int, deliver: Deliver, message: Any) -> None:
        """Put one message on its way to each participant."""
        device = self._participants.device
        for peer in to:
            parcel = (peer, sender, message, size_bytes)
            if device(peer) == device(sender):
                self._clock.post(0.0, deliver, parcel)
            else:
                self._network.carry(device(sender), (device(peer),), size_bytes, _arrive, (deliver, parcel))

    def cut(self, node: int) -> None:
        """A participant goes: where it is the device itself, all of the device's transfers end."""
        if node < self._participants.nodes:
            self._network.cut(node)

    def stories(self) -> Iterator[str]:
        """A line for each message that cannot go on, between devices."""
        yield from self._network.stories()


def _arrive(arg: tuple[int, int, Any, int]) -> None:
    deliver, parcel = arg[2]
    deliver(parcel)
