"""What peers' frames say: each belongs to the holder of its wire's key, and a bad one costs its sender."""

from __future__ import annotations

import contextlib
import math
import time
from typing import NamedTuple

import zmq

from node.codec import Limits
from node.errors import FrameTooLarge, TransportError
from node.live import frames
from node.live.frames import Refused
from node.live.links import Links
from node.live.pacing import Delay, Pace, Pacer, earliest
from node.live.passing import Passing
from node.live.receive import Delivery, Receiver
from node.live.refusals import Refusals
from node.live.wires import Part, Wire


class _Arrival(NamedTuple):
    """What has been read from a peer, and has yet to pass a paced downlink."""

    peer: int
    wire: Wire | None
    """Where a chunk is owed a credit."""
    delivery: Delivery | None
    """The message that is whole with it; neither: the peer's good-bye."""


class Inbound:
    """Frames become messages, whichever wires they have come over; all of it belongs to the I/O thread."""

    passing: Passing

    def __init__(self, limits: Limits, links: Links, refusals: Refusals, pace: Pace | None = None) -> None:
        self.banned: set[int] = set()
        self.apart: list[Delivery] = []
        """Messages that have come over other wires than connections of the entrance, and are not handed over yet."""
        self._links = links
        self._refusals = refusals
        self._traffic = links.traffic
        self._receiver = Receiver(limits, frames.PACED if pace else frames.UNPACED)
        # Uplinks have limited the bursts already, so a downlink that is looked at late loses nothing.
        self._downlink: Pacer[_Arrival] | None = pace and Pacer(pace.down_bps, burst_s=math.inf)
        self._path: Delay[_Arrival] = Delay(pace.latency_s if pace else 0.0)
        self._heard_s: dict[int, float] = {}
        self._leaving: list[int] = []
        self._owed: dict[int, int] = {}

    def frame(
        self, peer: int, wire: Wire, frame: memoryview, more: Part | None, batch: list[Delivery] | None = None
    ) -> None:
        """Take in a frame of a peer; the messages that are whole with it go to the batch, or are kept ``apart``."""
        if peer in self.banned:
            self._refusals.counts["cut_off"] += 1
            return
        try:
            kind = frame[0] if len(frame) else 0
            if (more is not None) != (kind in frames.IN_TWO_PARTS):
                raise Refused("parts", f"a frame of kind {kind} {'with' if more else 'without'} a second part")
            if kind in frames.STEERING:
                self._links.steered(peer, wire, frame)
            elif kind == frames.PROBE:
                self._links.probed(peer, wire)
            elif kind in (frames.RELAY, frames.GONE):
                self.passing.take(peer, frame, more)
            else:
                self._sent(peer, wire, kind, frame, more, self.apart if batch is None else batch)
        except TransportError as error:
            self._refuse(peer, error)

    def _sent(
        self, peer: int, wire: Wire, kind: int, frame: memoryview, more: Part | None, batch: list[Delivery]
    ) -> None:
        if kind == frames.BYE:
            self._bye(peer, wire)
            return
        self._links.check_sender(wire)
        self._receiver.connection(peer, wire)
        if kind == frames.SMALL:
            self._small(peer, frame, batch)
        elif kind == frames.CHUNK and more is not None:
            self._chunk(peer, wire, frame, more, batch)
        elif kind == frames.ANNOUNCE:
            self._receiver.announce(peer, frame)
            self.give_places(time.monotonic())
        else:
            raise Refused("kind", f"a frame of unknown kind {kind}")
        self._links.heard(peer)

    def take_apart(self) -> list[Delivery]:
        """The messages that have come over other wires than connections of the entrance."""
        batch, self.apart = self.apart, []
        return self.counted(batch)

    def pass_on(self, now_s: float) -> list[Delivery]:
        """The messages that have passed the paced downlink and the latency by now."""
        batch: list[Delivery] = []
        assert self._downlink is not None
        while (passed := self._downlink.take(now_s)) is not None:
            at_s, arrival = passed
            if arrival.wire is not None:
                self._credit(arrival.peer, arrival.wire, arrival.delivery is not None)
            if arrival.wire is None or arrival.delivery is not None:
                self._path.add(at_s, arrival)
        while (arrived := self._path.take(now_s)) is not None:
            if arrived.delivery is not None:
                batch.append(arrived.delivery)
            else:
                self._leaving.append(arrived.peer)
        return self.counted(batch)

    @property
    def due_s(self) -> float | None:
        """When :meth:`pass_on` or :meth:`give_places` is to be called; None: not before something is read."""
        places_s = self._receiver.due_s
        return earliest(self._downlink.due_s, self._path.due_s, places_s) if self._downlink is not None else places_s

    @property
    def held_bytes(self) -> int:
        """Read, and waiting for the paced downlink."""
        return self._downlink.queued_bytes if self._downlink is not None else 0

    def counted(self, batch: list[Delivery]) -> list[Delivery]:
        """The batch, counted as received."""
        self._traffic.messages_received += len(batch)
        self._traffic.bytes_received += sum(header.size_bytes for _, header, _ in batch)
        return batch

    @property
    def is_left(self) -> bool:
        """Whether somebody has said good-bye whom :meth:`let_go` has yet to lose."""
        return bool(self._leaving)

    def let_go(self) -> None:
        """Lose those who have said good-bye; after what was read before it has been delivered."""
        while self._leaving:
            peer = self._leaving.pop()
            self._links.lose(peer)
            self._links.redial(peer)

    def ended(self, peer: int, wire: Wire) -> None:
        """A wire has broken: what was on its way over it does not come."""
        if self._receiver.is_on(peer, wire):
            self._receiver.forget(peer)
        self._links.broken(peer, wire)
        self.passing.broken(peer, wire)

    def _bye(self, peer: int, wire: Wire) -> None:
        if self._links.answers_bye(wire):
            with contextlib.suppress(zmq.ZMQError):
                wire.send(frames.BYE_FRAME)
        self._receiver.forget(peer)
        if self._downlink is None:
            self._leaving.append(peer)
        else:
            self._downlink.add_last(_Arrival(peer, None, None), time.monotonic())

    def _chunk(self, peer: int, wire: Wire, frame: memoryview, more: Part, batch: list[Delivery]) -> None:
        chunk = frames.read_chunk(frame)
        slot = self._receiver.slot(peer, chunk)
        got_bytes = more.into(slot)
        delivery = self._receiver.arrived(peer, chunk, slot.nbytes, got_bytes)
        if self._downlink is not None:
            began_s, self._heard_s[peer] = self._heard_s[peer], time.monotonic()
            self._downlink.add(peer, got_bytes, _Arrival(peer, wire, delivery), began_s)
            return
        if delivery is not None:
            batch.append(delivery)
        self._credit(peer, wire, delivery is not None)

    def _small(self, peer: int, frame: memoryview, batch: list[Delivery]) -> None:
        if self._downlink is None:
            batch += self._receiver.small(peer, frame)
            return
        now_s = time.monotonic()
        for delivery in self._receiver.small(peer, frame):
            size_bytes = delivery[1].size_bytes
            began_s = now_s - self._downlink.takes_s(size_bytes)
            self._downlink.add_first(size_bytes, _Arrival(peer, None, delivery), began_s)

    def give_places(self, now_s: float, reading: bool = True) -> None:
        """Tell senders whose announced messages may come now; none while nothing is read."""
        if not reading:
            self._receiver.read_nothing(now_s)
            return
        for peer, wire, transfer in self._receiver.give_places(now_s):
            self._heard_s[peer] = now_s
            with contextlib.suppress(zmq.ZMQError):  # as for credits
                wire.send(frames.place(transfer))

    def _credit(self, peer: int, wire: Wire, whole: bool) -> None:
        """Count a chunk that has made room, and tell the sender once it matters."""
        owed = self._owed.get(peer, 0) + 1
        if whole or owed >= frames.CREDIT_CHUNKS:
            with contextlib.suppress(zmq.ZMQError):  # the peer has gone, or does not read its credits
                wire.send(frames.credit(owed))
            owed = 0
        self._owed[peer] = owed

    def refuse_content(self, peer: int, detail: str) -> None:
        """A message that was read whole is no good: its sender pays as for a bad frame."""
        if self._refusals.by_peer("content", peer, time.monotonic(), detail):
            self._ban(peer)

    def _refuse(self, peer: int, error: TransportError) -> None:
        reason = "too_large" if isinstance(error, FrameTooLarge) else getattr(error, "reason", "malformed")
        if self._refusals.by_peer(reason, peer, time.monotonic(), str(error)):
            self._ban(peer)

    def _ban(self, peer: int) -> None:
        self.banned.add(peer)
        self._receiver.forget(peer)
        self._links.lose(peer)
