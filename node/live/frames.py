"""What travels on a link: the layout of every frame between two transports.

A node sends to a peer over its own link to that peer: small messages, and large ones as an announcement followed by
chunks. On the same link the peer says when there is a place for it, and gives credits for the chunks that it has taken.
With a node that cannot be dialled, the one connection that it has opened serves both directions. Integers are
little-endian.

::

    SMALL     kind  [header length u32, payload length u32, header, payload] ...     several messages share a frame
    ANNOUNCE  kind  transfer u64  header
    CHUNK     kind  transfer u64  buffer u32  offset u64  |  payload                 two parts
    BYE       kind                                                                   I stop; or, in answer: go
    CREDIT    kind  chunks u32                                                       receiver to sender
    PROBE     kind                                                                   are you there? Or: I am here
    KNOCK     kind  payload                                                          from a stranger, or its answer
    PLACE     kind  transfer u64                                                     receiver to sender: chunks may come
    RELAY     kind  peer u64  |  sealed                            two parts, for a peer; from a relay: from this peer
    GONE      kind  peer u64                                       from a relay: it cannot pass on to this peer
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

from node.codec import Encoded, Limits
from node.errors import BadFrame

SMALL, ANNOUNCE, CHUNK, BYE, CREDIT, PROBE, KNOCK, PLACE, RELAY, GONE = range(1, 11)

STEERING = (CREDIT, PLACE)
"""What a receiver says to a sender, and nobody else."""
IN_TWO_PARTS = (CHUNK, RELAY)

SMALL_BYTES = 64 << 10
"""A message below this travels in a SMALL frame; so does one without payload."""
PACK_BYTES = 256 << 10
"""Small messages that wait together share frames of up to this size."""
CHUNK_BYTES = 1 << 20
"""Payload of every chunk but the last of a buffer. 1 MiB measured fastest of 64 KiB to 16 MiB."""
WINDOW_CHUNKS = 8
"""Chunks that may be on their way to one peer: what a small message can have in front of it."""
CREDIT_CHUNKS = WINDOW_CHUNKS // 4
"""Chunks that are credited together, so that the sender is not woken for each."""
KNOCK_BYTES = 8 << 10
"""What one who knocks may say at once."""
ANSWER_BYTES = 1 << 20
"""What he is answered at most."""


class Framing(NamedTuple):
    """How messages are cut; the same at both ends of a link."""

    small_bytes: int
    chunk_bytes: int


UNPACED = Framing(SMALL_BYTES, CHUNK_BYTES)
PACED = Framing(1_500, 32 << 10)
"""Fine enough that flows which share a slow link take turns as packets do. Half of it costs twice the wake-ups: at 20
Mbit/s measured 0.8 CPU-seconds a second for eight nodes that send all the time, instead of 0.45."""

_SMALL = struct.Struct("<II")
_ANNOUNCE = struct.Struct("<BQ")
_CHUNK = struct.Struct("<BQIQ")
_CREDIT = struct.Struct("<BI")
_PLACE = struct.Struct("<BQ")
_RELAY = struct.Struct("<BQ")

CHUNK_HEAD_BYTES = _CHUNK.size
"""The first part of a CHUNK."""
LENGTHS_BYTES = _SMALL.size
"""What a SMALL frame adds to each message in it."""

BYE_FRAME = bytes([BYE])
PROBE_FRAME = bytes([PROBE])
KNOCK_KIND = bytes([KNOCK])


class Refused(BadFrame):
    """A frame that costs its sender a refusal; ``reason`` is the counter it falls under."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Chunk(NamedTuple):
    """Where the payload of one CHUNK belongs."""

    transfer: int
    buffer: int
    offset: int


def max_frame_bytes(limits: Limits) -> int:
    """The longest frame that a link lets through: a chunk, or the longest header, and what encryption adds."""
    return max(CHUNK_BYTES, limits.header_bytes, PACK_BYTES) + 4096


def is_small(encoded: Encoded, small_bytes: int = SMALL_BYTES) -> bool:
    """Whether a message travels whole in a SMALL frame."""
    return encoded.size_bytes < small_bytes or encoded.size_bytes == len(encoded.header)


def small_parts(encoded: Encoded) -> tuple[bytes | memoryview, ...]:
    """The pieces of one message inside a SMALL frame, to be joined behind the kind byte."""
    header = encoded.header
    return _SMALL.pack(len(header), encoded.size_bytes - len(header)), header, *encoded.buffers


def read_small(frame: memoryview) -> Iterator[tuple[memoryview, memoryview]]:
    """Each header and payload of a SMALL frame; Refused where a length reaches beyond the frame."""
    at, end = 1, len(frame)
    while at < end:
        body = at + _SMALL.size
        if body > end:
            raise Refused("truncated", f"a frame of {end} bytes ends inside a message's lengths")
        header_bytes, payload_bytes = _SMALL.unpack_from(frame, at)
        payload = body + header_bytes
        at = payload + payload_bytes
        if at > end:
            raise Refused("truncated", f"lengths {header_bytes} + {payload_bytes} reach beyond a frame of {end} bytes")
        yield frame[body:payload], frame[payload:at]


def announce(transfer: int, header: bytes) -> bytes:
    """An ANNOUNCE frame."""
    return _ANNOUNCE.pack(ANNOUNCE, transfer) + header


def read_announce(frame: memoryview) -> tuple[int, memoryview]:
    """Transfer id and header of an ANNOUNCE frame."""
    if len(frame) <= _ANNOUNCE.size:
        raise Refused("truncated", f"an announcement of {len(frame)} bytes")
    return _ANNOUNCE.unpack_from(frame)[1], frame[_ANNOUNCE.size :]


def chunk(transfer: int, buffer: int, offset: int) -> bytes:
    """The first part of a CHUNK."""
    return _CHUNK.pack(CHUNK, transfer, buffer, offset)


def read_chunk(frame: memoryview) -> Chunk:
    """What the first part of a CHUNK says."""
    if len(frame) != _CHUNK.size:
        raise Refused("truncated", f"a chunk header of {len(frame)} bytes; it has {_CHUNK.size}")
    return Chunk(*_CHUNK.unpack(frame)[1:])


def credit(chunks: int) -> bytes:
    """A CREDIT frame: as many more chunks may be sent."""
    return _CREDIT.pack(CREDIT, chunks)


def read_credit(frame: memoryview | bytes) -> int:
    """Chunks of a CREDIT frame."""
    if len(frame) != _CREDIT.size:
        raise Refused("truncated", f"a credit of {len(frame)} bytes; it has {_CREDIT.size}")
    chunks: int = _CREDIT.unpack(frame)[1]
    return chunks


def place(transfer: int) -> bytes:
    """A PLACE frame."""
    return _PLACE.pack(PLACE, transfer)


def read_place(frame: memoryview | bytes) -> int:
    """Transfer id of a PLACE frame."""
    if len(frame) != _PLACE.size:
        raise Refused("truncated", f"a place of {len(frame)} bytes; it has {_PLACE.size}")
    transfer: int = _PLACE.unpack(frame)[1]
    return transfer


def relay(peer: int) -> bytes:
    """The first part of a RELAY."""
    return _RELAY.pack(RELAY, peer)


def gone(peer: int) -> bytes:
    """A GONE frame."""
    return _RELAY.pack(GONE, peer)


def read_peer(frame: memoryview | bytes) -> int:
    """The peer that a RELAY or a GONE names."""
    if len(frame) != _RELAY.size:
        raise Refused("truncated", f"a relayed frame's head of {len(frame)} bytes; it has {_RELAY.size}")
    peer: int = _RELAY.unpack(frame)[1]
    return peer
