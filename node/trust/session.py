"""What two members have agreed on, and the proof in every message that it belongs there."""

from __future__ import annotations

from typing import NamedTuple

from node.trust.certificate import Certificate
from node.trust.refusal import Reason, Refused


class Stamp(NamedTuple):
    """Which session a message belongs to, and its place there: 24 bytes on the wire."""

    session: bytes
    """16 bytes."""
    sequence: int
    """From 1, growing with every message of one direction."""

    def to_bytes(self) -> bytes:
        """The stamp on the wire."""
        return self.session + self.sequence.to_bytes(8, "big")

    @classmethod
    def from_bytes(cls, data: bytes) -> Stamp:
        """Read a stamp. Refused (malformed) for anything but 24 bytes."""
        if len(data) != 24:
            raise Refused(Reason.MALFORMED, f"a stamp of {len(data)} bytes; 24 are allowed")
        return cls(data[:16], int.from_bytes(data[16:], "big"))


class Session:
    """One link between two members that have proved who they are."""

    def __init__(
        self, session: bytes, peer: Certificate, incarnation: int, version: int, cipher: str, offset_s: float
    ) -> None:
        self.id = session
        self.peer = peer
        self.incarnation = incarnation
        """Which life of the peer this is."""
        self.version = version
        self.cipher = cipher
        self.offset_s = offset_s
        """By how much the peer's clock is ahead of ours, give or take a second and the round trip."""
        self._sent = 0
        self._seen = 0

    def stamp(self) -> Stamp:
        """The stamp of the next message."""
        self._sent += 1
        return Stamp(self.id, self._sent)

    def accept(self, stamp: Stamp, sender: int) -> None:
        """Take a message of the peer in, which names ``sender`` as its node. Refused (replay, sender) where it must not
        be; then nothing has changed.
        """
        if stamp.session != self.id:
            raise Refused(Reason.REPLAY, f"a message of another session than the one with node {self.peer.node}")
        if stamp.sequence <= self._seen:
            raise Refused(
                Reason.REPLAY,
                f"message {stamp.sequence} of node {self.peer.node} after message {self._seen}: repeated, or reordered",
            )
        if sender != self.peer.node:
            raise Refused(Reason.SENDER, f"node {self.peer.node} speaks for node {sender}")
        self._seen = stamp.sequence
