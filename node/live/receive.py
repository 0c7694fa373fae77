"""What arrives from peers, frame by frame, becomes messages: all the checks, no sockets.

A peer here is a CURVE key's holder, known from the link; nothing that a frame says about its sender is looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeAlias

from node.codec import Header, Limits, decode_header
from node.errors import FrameTooLarge
from node.live.buffers import BufferPool
from node.live.frames import PACED, UNPACED, Chunk, Framing, Refused, read_announce, read_small
from node.live.places import Places
from node.live.wires import Wire

_ALIGN_BYTES = 64
_KEEP_BYTES = 64 << 20
"""Memory that has been used and is kept for what comes next, at the most."""


Delivery: TypeAlias = tuple[int, Header, list[memoryview]]
"""A message that is here with all its payloads, and who sent it."""


class _Transfer:
    """A message whose payloads arrive in chunks, in order, each where it belongs in one reused buffer."""

    def __init__(self, header: Header, chunk_bytes: int) -> None:
        self.header = header
        self._chunk_bytes = chunk_bytes
        self.buffers: list[memoryview] = []
        """None before :meth:`make_room`: until there is a place for the message it takes no memory."""
        self._buffer, self._offset = 0, 0

    def make_room(self, pool: BufferPool) -> None:
        starts, end = [], 0
        for spec in self.header.specs:
            starts.append(end)
            end += -(-spec.size_bytes // _ALIGN_BYTES) * _ALIGN_BYTES
        room = pool.take(end)
        specs = self.header.specs
        self.buffers = [room[start : start + spec.size_bytes] for start, spec in zip(starts, specs, strict=True)]
        self._skip_full()

    @property
    def complete(self) -> bool:
        return self._buffer == len(self.buffers)

    def slot(self, chunk: Chunk) -> memoryview:
        if not self.buffers:
            raise Refused("transfer", f"a chunk of transfer {chunk.transfer}, which has no place yet")
        if (chunk.buffer, chunk.offset) != (self._buffer, self._offset):
            raise Refused(
                "chunk",
                f"a chunk at {chunk.buffer}:{chunk.offset} where {self._buffer}:{self._offset} comes next",
            )
        return self.buffers[self._buffer][self._offset : self._offset + self._chunk_bytes]

    def advance(self, size_bytes: int) -> None:
        self._offset += size_bytes
        self._skip_full()

    def _skip_full(self) -> None:
        while not self.complete and self._offset == self.buffers[self._buffer].nbytes:
            self._buffer, self._offset = self._buffer + 1, 0


class _Inbox:
    """What one peer has on its way to us."""

    def __init__(self) -> None:
        self.wire: Wire | None = None
        self.transfers: dict[int, _Transfer] = {}

    @property
    def arriving_bytes(self) -> int:
        return sum(transfer.header.size_bytes for transfer in self.transfers.values())


class Receiver:
    """Checks and assembles. Every method raises a TransportError for a frame that is refused; its state stays whole."""

    def __init__(self, limits: Limits, framing: Framing = UNPACED) -> None:
        self._limits = limits
        self._chunk_bytes = framing.chunk_bytes
        self._pool = BufferPool(_KEEP_BYTES)
        # Paced senders do not wait for places: there is one for everybody.
        self._places = Places(math.inf if framing is PACED else limits.all_arriving_bytes)
        self._inboxes: dict[int, _Inbox] = {}

    def connection(self, peer: int, wire: Wire) -> None:
        """Frames of ``peer`` now come over a wire: what was arriving over an earlier one ends there."""
        inbox = self._inboxes.get(peer)
        if inbox is None:
            inbox = self._inboxes[peer] = _Inbox()
        if inbox.wire is not wire:
            inbox.wire = wire
            for number in list(inbox.transfers):
                self._end(peer, number)

    def is_on(self, peer: int, wire: Wire) -> bool:
        """Whether frames of ``peer`` have come over this wire last."""
        return peer in self._inboxes and self._inboxes[peer].wire is wire

    def forget(self, peer: int) -> None:
        """The peer has gone: free all that it left half-way."""
        for number in list(self._inboxes[peer].transfers) if peer in self._inboxes else ():
            self._end(peer, number)
        self._inboxes.pop(peer, None)

    def small(self, peer: int, frame: memoryview) -> Iterator[Delivery]:
        """The messages of a SMALL frame, up to the first that is refused."""
        for header_bytes, payload in read_small(frame):
            header = decode_header(header_bytes, self._limits)
            if header.size_bytes != len(header_bytes) + len(payload):
                raise Refused("malformed", f"a payload of {len(payload)} bytes is not what its header announces")
            buffers: list[memoryview] = []
            at = 0
            for spec in header.specs:
                # A copy of its own: aligned, writable, and not holding on to the rest of the frame.
                buffers.append(memoryview(bytearray(payload[at : at + spec.size_bytes])))
                at += spec.size_bytes
            yield peer, header, buffers

    def announce(self, peer: int, frame: memoryview) -> None:
        """An ANNOUNCE, if all bounds hold; :meth:`give_places` says when it may come."""
        number, header_bytes = read_announce(frame)
        header = decode_header(header_bytes, self._limits)
        inbox = self._inboxes[peer]
        if number in inbox.transfers:
            raise Refused("transfer", f"transfer {number} is announced twice")
        if header.size_bytes == len(header_bytes):
            raise Refused("transfer", f"transfer {number} announces no payload")
        if len(inbox.transfers) >= self._limits.transfers:
            raise Refused("transfer", f"more than {self._limits.transfers} transfers at a time")
        if inbox.arriving_bytes + header.size_bytes > self._limits.arriving_bytes:
            raise FrameTooLarge(f"more than {self._limits.arriving_bytes} bytes arriving from one peer")
        inbox.transfers[number] = _Transfer(header, self._chunk_bytes)
        self._places.ask((peer, number), header.size_bytes)

    def give_places(self, now_s: float) -> Iterator[tuple[int, Wire, int]]:
        """Allocate room for announced messages as far as there is any; each with its peer and wire."""
        for peer, number in self._places.give(now_s):
            inbox = self._inboxes[peer]
            inbox.transfers[number].make_room(self._pool)
            assert inbox.wire is not None
            yield peer, inbox.wire, number

    @property
    def due_s(self) -> float | None:
        """When :meth:`give_places` may give some although nothing has come; None: never."""
        return self._places.due_s

    def read_nothing(self, now_s: float) -> None:
        """Nothing is read just now, so nobody can be blamed for what does not come."""
        self._places.renew(now_s)

    def _end(self, peer: int, number: int) -> None:
        del self._inboxes[peer].transfers[number]
        self._places.leave((peer, number))

    def slot(self, peer: int, chunk: Chunk) -> memoryview:
        """Where the payload of the next chunk goes; its length is exactly the payload's."""
        transfers = self._inboxes[peer].transfers
        if chunk.transfer not in transfers:
            raise Refused("transfer", f"a chunk of unknown transfer {chunk.transfer}")
        try:
            return transfers[chunk.transfer].slot(chunk)
        except Refused:
            self._end(peer, chunk.transfer)
            raise

    def arrived(self, peer: int, chunk: Chunk, wanted_bytes: int, got_bytes: int) -> Delivery | None:
        """The payload is in its slot. The whole message, if that was the last chunk of it."""
        transfer = self._inboxes[peer].transfers[chunk.transfer]
        if got_bytes != wanted_bytes:
            self._end(peer, chunk.transfer)
            raise Refused("chunk", f"a chunk of {got_bytes} bytes where {wanted_bytes} are announced")
        transfer.advance(got_bytes)
        if not transfer.complete:
            return None
        self._end(peer, chunk.transfer)
        return peer, transfer.header, transfer.buffers
