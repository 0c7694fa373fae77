"""What a node does with frames that are for, or from, somebody else than the peer that they come from."""

from __future__ import annotations

from typing import Protocol as Interface

from node.identity import Roster
from node.live.wires import Part, Wire


class Passing(Interface):
    """The part of a relay (:mod:`node.live.relay`), or of one who needs relays (:mod:`node.live.detours`)."""

    @property
    def due_s(self) -> float | None:
        """When :meth:`pump` is to be called although nothing has come; None: never."""
        ...

    def admit(self, roster: Roster) -> None:
        """From now on these are the members."""
        ...

    def take(self, peer: int, frame: memoryview, more: Part | None) -> None:
        """A RELAY or a GONE has come from a peer. A TransportError where it should not have."""
        ...

    def broken(self, peer: int, wire: Wire) -> None:
        """A wire has broken."""
        ...

    def pump(self, now_s: float) -> None:
        """Do what is due."""
        ...
