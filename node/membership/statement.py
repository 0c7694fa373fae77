"""What members sign about members, and how much of it is believed.

A member's own word (ALIVE, LEFT) carries its incarnation, which nobody else can raise. An accusation (SUSPECT, DEAD) is
its author's, and is about exactly one word: with any newer word of its owner it is void.
"""

from __future__ import annotations

import enum
from typing import Annotated, NamedTuple
from typing import Protocol as Interface

import msgspec

RECORD_BYTES = 1024
"""No record is longer."""
SIGNATURE_BYTES = 128
MOST_JUMP = 2**20
"""Incarnations that a member can have gone through since it was last heard of; a larger jump is refused."""

_DOMAIN = b"starling/membership/1\0"

Peer = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Incarnation = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]


class State(enum.IntEnum):
    """How sure it is that a peer is there. Of one incarnation, the higher state is the newer one."""

    PASSIVE = -1
    """Known by hearsay; this node does not watch it (partial views only, never said)."""
    ALIVE = 0
    SUSPECT = 1
    """It did not answer somebody; it may still object."""
    DEAD = 2
    """It did not object in time; only a higher incarnation brings it back."""
    LEFT = 3
    """By its own word."""


class Statement(NamedTuple):
    """That a peer is in a state, signed by its author."""

    state: State
    peer: Peer
    incarnation: Incarnation
    author: Peer
    """The peer itself, where it says ALIVE or LEFT; else who accuses it."""
    record: Annotated[bytes, msgspec.Meta(max_length=RECORD_BYTES)] = b""
    """What the peer shows of itself (address, keys), opaque here; accusations have none."""
    signature: Annotated[bytes, msgspec.Meta(max_length=SIGNATURE_BYTES)] = b""

    @property
    def is_own_word(self) -> bool:
        """Whether it is by the peer that it is about."""
        return self.state is State.ALIVE or self.state is State.LEFT

    @property
    def is_well_formed(self) -> bool:
        """Whether its author may say this at all; whether it has, the signature tells."""
        if self.is_own_word:
            return self.author == self.peer
        return self.state is not State.PASSIVE and self.author != self.peer and not self.record

    @property
    def signed_bytes(self) -> bytes:
        """What the signature is over: a domain tag, so that it passes for nothing else, and all other fields."""
        return _DOMAIN + msgspec.msgpack.encode(self[:-1])

    @property
    def size_bytes(self) -> int:
        """In a message, at most."""
        return len(self.record) + len(self.signature) + 38


class Signatures(Interface):
    """How a node signs, and whom it believes; given by the driver."""

    def sign(self, content: bytes) -> bytes:
        """This node's signature over some bytes; at most 128 bytes."""
        ...

    def verify(self, statement: Statement) -> bool:
        """Whether the author is a member and has signed this, and the record, if there is one, is its own."""
        ...


class Unsigned:
    """No signatures, and everybody is believed: for simulations, where nobody forges. Sizes are as with Ed25519."""

    def sign(self, content: bytes) -> bytes:
        """64 zeros."""
        return bytes(64)

    def verify(self, statement: Statement) -> bool:
        """True."""
        return True
