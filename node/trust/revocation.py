"""Keys that no longer count: what the admission key says of them, and the list that every member keeps."""

from __future__ import annotations

from collections.abc import Iterator

from node.trust.certificate import TOLERANCE_S, id_text
from node.trust.refusal import Reason, Refused
from node.trust.statement import Identifier, Number, Seconds, Statement, Text


class Revocation(Statement, frozen=True):
    """From a time on, no certificate of this peer counts, whenever it was issued; signed by the admission key."""

    domain = b"starling/revocation/1\0"
    most_bytes = 512

    network: Identifier
    number: Number
    """Grows with every revocation of the network, from 1."""
    peer_id: Identifier
    at_s: Seconds
    """When it takes effect: later than now where another key takes over in peace."""
    forget_s: Seconds
    """When the last certificate of this peer has ended, and with it the need to remember."""
    why: Text = ""


class Revocations:
    """The revocations known to a node, one a peer. Who has signed them is the caller's to check."""

    def __init__(self) -> None:
        self._by_peer: dict[bytes, Revocation] = {}

    def has(self, revocation: Revocation) -> bool:
        """Whether this one, or one of the same peer that takes effect no later, is known."""
        known = self._by_peer.get(revocation.peer_id)
        return known is not None and (known.at_s, known.number) <= (revocation.at_s, revocation.number)

    def add(self, revocation: Revocation) -> None:
        """Remember it, unless the same or an earlier one of the same peer is known."""
        if not self.has(revocation):
            self._by_peer[revocation.peer_id] = revocation

    def forget(self, now_s: float) -> None:
        """Drop those whose certificates have all ended."""
        for peer, revocation in list(self._by_peer.items()):
            if now_s > revocation.forget_s + TOLERANCE_S:
                del self._by_peer[peer]

    def check(self, peer: bytes, now_s: float) -> None:
        """Refused (revoked) if the peer is revoked by now."""
        if self.is_revoked(peer, now_s):
            raise Refused(Reason.REVOKED, f"peer {id_text(peer)} is revoked: number {self._by_peer[peer].number}")

    def is_revoked(self, peer: bytes, now_s: float) -> bool:
        """Whether a peer is revoked by now."""
        known = self._by_peer.get(peer)
        return known is not None and now_s >= known.at_s

    def of(self, peer: bytes) -> Revocation | None:
        """What is known about a peer, in effect or not."""
        return self._by_peer.get(peer)

    def __iter__(self) -> Iterator[Revocation]:
        return iter(sorted(self._by_peer.values(), key=lambda revocation: revocation.number))

    def __len__(self) -> int:
        return len(self._by_peer)
