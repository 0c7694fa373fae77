"""One node's way to one peer: a wire, what waits to be sent, and the window that keeps models from piling up.

Small messages go first, packed together. A large one goes as chunks, at most a window of them on their way, so that a
small message never has more than a window in front of it. When a wire breaks and there is one again, the message that
was on its way in chunks starts again; what had been handed over whole is taken for sent.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import TypeAlias

import zmq

from node.codec import Encoded
from node.identity import Card
from node.live import frames
from node.live.wires import Wire


class Account:
    """Bytes on their way to one peer. Two threads read it; each of the fields has one that writes it."""

    __slots__ = ("accepted_bytes", "left_bytes", "wanted")

    def __init__(self) -> None:
        self.accepted_bytes = 0
        """Taken from callers; the event loop's."""
        self.wanted = False
        """Whether a caller waits for room; the event loop's."""
        self.left_bytes = 0
        """Sent or given up; the I/O thread's."""

    @property
    def queued_bytes(self) -> int:
        """What waits, or is on its way in chunks."""
        return self.accepted_bytes - self.left_bytes


class Traffic:
    """Messages and their bytes (header and payloads) that have passed; the I/O thread writes."""

    def __init__(self) -> None:
        self.messages_sent = self.bytes_sent = self.messages_received = self.bytes_received = 0
        self.disconnects = self.reconnects = 0
        """How often a link has broken, and been made again."""
        self.dropped = Counter({"fault": 0, "gone": 0})  # all of them at once: the event loop reads it meanwhile
        """Messages that were to be sent and never left, by reason."""


Outgoing: TypeAlias = tuple[Encoded, object]
"""A message to send, and what its owner wants held until it has left."""


class _Bulk:
    """A message on its way in chunks."""

    def __init__(self, number: int, outgoing: Outgoing, chunk_bytes: int) -> None:
        self.number = number
        self.outgoing = outgoing
        self.announced = self.placed = False
        self.position = 0
        self.pieces = [
            (index, offset, buffer[offset : offset + chunk_bytes])
            for index, buffer in enumerate(outgoing[0].buffers)
            for offset in range(0, buffer.nbytes, chunk_bytes)
        ]


class Link:
    """The sending side towards one peer; all of it belongs to the I/O thread."""

    def __init__(
        self, card: Card, wire: Wire | None, account: Account, traffic: Traffic, now_s: float, paced: bool = False
    ) -> None:
        """``wire`` is one that is yet to come up; None: it is not known which it will be."""
        self.granted = 0 if paced else math.inf
        """Pieces of large messages that may leave; where the link is paced, whoever paces it grants them one by one."""
        self.awaiting_grant = False
        """Whether a piece has been announced to whoever paces the link; theirs."""
        self._framing = frames.PACED if paced else frames.UNPACED
        self.card = card
        self.wire = wire
        self.account = account
        self.connected = self._was_connected = False
        self.blocked = False
        self.down_since_s = now_s
        self._traffic = traffic
        self._small: deque[Outgoing] = deque()
        self._packed: tuple[bytes, list[int]] | None = None
        self._bulk: deque[_Bulk] = deque()
        self._transfers = 0
        self._in_flight: deque[tuple[int, Outgoing]] = deque()
        self._sent = self._acknowledged = 0

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent."""
        return not (self._small or self._packed or self._bulk or self._in_flight)

    @property
    def next_bytes(self) -> int:
        """Size of the next piece of a large message that waits for its grant alone; 0: there is none."""
        if self.granted or not self._bulk or self._sent - self._acknowledged >= frames.WINDOW_CHUNKS:
            return 0
        bulk = self._bulk[0]
        if not bulk.announced:
            return len(bulk.outgoing[0].header)
        return bulk.pieces[bulk.position][2].nbytes if bulk.placed else 0

    def add(self, outgoing: Outgoing) -> None:
        """Queue a message; :meth:`pump` sends it."""
        if frames.is_small(outgoing[0], self._framing.small_bytes):
            self._small.append(outgoing)
        else:
            self._transfers += 1
            self._bulk.append(_Bulk(self._transfers, outgoing, self._framing.chunk_bytes))

    def pump(self) -> None:
        """Hand over as much as wire and window take."""
        if self.wire is None:
            return
        try:
            self._pump_small(self.wire)
            self._pump_bulk(self.wire)
            self.blocked = False
        except zmq.Again:
            self.blocked = True

    def drop(self) -> None:
        """Give up everything queued: the peer has gone."""
        packed = len(self._packed[1]) if self._packed else 0
        self._traffic.dropped["gone"] += packed + len(self._small) + len(self._bulk)
        if self._packed:
            self.account.left_bytes += sum(self._packed[1])
        for outgoing in [*self._small, *(bulk.outgoing for bulk in self._bulk)]:
            self.account.left_bytes += outgoing[0].size_bytes
        self._small.clear()
        self._bulk.clear()
        self._packed = None
        self._give_up_in_flight()

    def credited(self, chunks: int) -> None:
        """The peer has taken chunks out of the window."""
        self._acknowledged = min(self._acknowledged + chunks, self._sent)
        while self._in_flight and self._in_flight[0][0] <= self._acknowledged:
            self._has_left([self._in_flight.popleft()[1][0].size_bytes])

    def placed(self, transfer: int) -> None:
        """The peer has a place for an announced message: its chunks may come."""
        if self._bulk and self._bulk[0].announced and self._bulk[0].number == transfer:
            self._bulk[0].placed = True

    def up(self, wire: Wire, now_s: float) -> None:
        """There is a wire, this one; what was on its way over another starts again."""
        if self.connected and wire is not self.wire:
            self.down(now_s)
        self._traffic.reconnects += self._was_connected and not self.connected
        self.wire, self.connected, self._was_connected = wire, True, True

    def down(self, now_s: float) -> None:
        """The wire has broken."""
        if not self.connected:
            return
        self.connected = False
        self._traffic.disconnects += 1
        self.down_since_s = now_s
        self._give_up_in_flight()
        for bulk in self._bulk:
            bulk.announced, bulk.placed, bulk.position = False, False, 0

    def _pump_small(self, wire: Wire) -> None:
        while self._packed or self._small:
            if self._packed is None:
                self._packed = self._pack()
            frame, sizes = self._packed
            wire.send(frame)
            self._packed = None
            self._has_left(sizes)

    def _pack(self) -> tuple[bytes, list[int]]:
        parts: list[bytes | memoryview] = [bytes([frames.SMALL])]
        sizes: list[int] = []
        room = frames.PACK_BYTES
        while self._small and (not sizes or self._small[0][0].size_bytes <= room):
            encoded = self._small.popleft()[0]
            parts += frames.small_parts(encoded)
            sizes.append(encoded.size_bytes)
            room -= encoded.size_bytes + frames.LENGTHS_BYTES
        return b"".join(parts), sizes

    def _pump_bulk(self, wire: Wire) -> None:
        while self._bulk and self.granted and self._sent - self._acknowledged < frames.WINDOW_CHUNKS:
            bulk = self._bulk[0]
            if not bulk.announced:
                wire.send(frames.announce(bulk.number, bulk.outgoing[0].header))
                bulk.announced = True
                bulk.placed = self._framing is frames.PACED  # it takes turns as in a simulation, without round trips
                self.granted -= 1
                continue
            if not bulk.placed:
                break
            index, offset, piece = bulk.pieces[bulk.position]
            wire.send(frames.chunk(bulk.number, index, offset), piece)
            self._sent += 1
            self.granted -= 1
            bulk.position += 1
            if bulk.position == len(bulk.pieces):
                self._bulk.popleft()
                self._in_flight.append((self._sent, bulk.outgoing))

    def _has_left(self, sizes: list[int]) -> None:
        size_bytes = sum(sizes)
        self.account.left_bytes += size_bytes
        self._traffic.messages_sent += len(sizes)
        self._traffic.bytes_sent += size_bytes

    def _give_up_in_flight(self) -> None:
        self.account.left_bytes += sum(outgoing[0].size_bytes for _, outgoing in self._in_flight)
        self._in_flight.clear()
        self._sent = self._acknowledged = 0
