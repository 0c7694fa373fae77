"""Reading what peers send: each message belongs to the holder of the link's key, and a bad one costs its sender."""

from __future__ import annotations

import contextlib
import math
import os
import socket as stdlib_socket
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from node.codec import Limits
from node.errors import FrameTooLarge, TransportError
from node.identity import Roster
from node.live import frames
from node.live.arrivals import Arrivals, remote_address
from node.live.door import Knock, Visitors
from node.live.frames import Refused
from node.live.links import Links
from node.live.pacing import Delay, Pace, Pacer, earliest
from node.live.receive import Delivery, Receiver
from node.live.refusals import Refusals
from node.live.sockets import Socket

BATCH_FRAMES = BATCH_MESSAGES = 256
"""Read per wake-up, and so handed to the event loop in one call; the last frame may bring more messages."""

PROBE_FOR_S = 0.5
"""For how long connections are probed after one of them has ended."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class _Arrival(NamedTuple):
    """What has been read from a peer, and has yet to pass a paced downlink."""

    peer: int
    connection: bytes | None
    """Where a chunk is owed a credit."""
    delivery: Delivery | None
    """The message that is whole with it; neither: the peer's good-bye."""


class Inbound:
    """The socket that peers reach us at; all of it belongs to the I/O thread."""

    def __init__(
        self,
        router: Socket,
        limits: Limits,
        links: Links,
        refusals: Refusals,
        pace: Pace | None = None,
        on_knock: Callable[[Knock], None] | None = None,
        visitors: Visitors | None = None,
    ) -> None:
        """``on_knock`` gets what is said at the door, as much as ``visitors`` bear; without it there is none."""
        self.router = router
        self.monitor = router.get_monitor_socket(
            _FAILED | zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        self.disconnected_s: float | None = None
        """When some connection has ended of which it is not known yet whose it was."""
        self.banned: set[int] = set()
        self.parting: set[int] = set()
        """Who has been told that we stop, and has not hung up yet."""
        self.visitors = visitors
        self._on_knock = on_knock
        self._arrivals = Arrivals()
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
        self._peers: dict[str, int] = {}
        # With encryption the name of a link is its key, vouched for by the handshake.
        self._name = b"User-Id" if router.mechanism == zmq.CURVE else b"Identity"

    def admit(self, roster: Roster) -> None:
        """From now on these may send, and nobody else."""
        if self._name == b"User-Id":
            self._peers = {z85.encode(card.curve_key).decode(): card.node for card in roster}
        else:
            self._peers = {str(card.node): card.node for card in roster}

    def read(self) -> list[Delivery]:
        """The messages that have arrived whole, a batch at most."""
        batch: list[Delivery] = []
        for _ in range(BATCH_FRAMES):
            if len(batch) >= BATCH_MESSAGES:
                break
            try:
                envelope = self.router.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            first = self.router.recv(copy=False)
            self._message(envelope, first, batch)
            if first.more:
                while self.router.get(zmq.RCVMORE):
                    self.router.recv(copy=False)
        return self._counted(batch)

    def pass_on(self, now_s: float) -> list[Delivery]:
        """The messages that have passed the paced downlink and the latency by now."""
        batch: list[Delivery] = []
        assert self._downlink is not None
        while (passed := self._downlink.take(now_s)) is not None:
            at_s, arrival = passed
            if arrival.connection is not None:
                self._credit(arrival.peer, arrival.connection, arrival.delivery is not None)
            if arrival.connection is None or arrival.delivery is not None:
                self._path.add(at_s, arrival)
        while (arrived := self._path.take(now_s)) is not None:
            if arrived.delivery is not None:
                batch.append(arrived.delivery)
            else:
                self._leaving.append(arrived.peer)
        return self._counted(batch)

    @property
    def due_s(self) -> float | None:
        """When :meth:`pass_on` or :meth:`give_places` is to be called; None: not before something is read."""
        places_s = self._receiver.due_s
        return earliest(self._downlink.due_s, self._path.due_s, places_s) if self._downlink is not None else places_s

    @property
    def held_bytes(self) -> int:
        """Read, and waiting for the paced downlink."""
        return self._downlink.queued_bytes if self._downlink is not None else 0

    def _counted(self, batch: list[Delivery]) -> list[Delivery]:
        self._traffic.messages_received += len(batch)
        self._traffic.bytes_received += sum(header.size_bytes for _, header, _ in batch)
        return batch

    def let_go(self) -> None:
        """Lose those who have said good-bye; after what was read before it has been delivered."""
        while self._leaving:
            self._links.lose(self._leaving.pop())

    def probe(self, now_s: float) -> None:
        """Find the connections that have ended. ZeroMQ does not say whose; sending to one of them does, a bit later."""
        if self.disconnected_s is not None and now_s - self.disconnected_s > PROBE_FOR_S:
            self.disconnected_s = None
        for peer, connection in self._receiver.connections():
            try:
                self.router.send_multipart([connection, frames.PROBE_FRAME], zmq.NOBLOCK)
            except zmq.Again:
                continue
            except zmq.ZMQError:
                self._receiver.forget(peer)
                self.parting.discard(peer)
                self._links.watch(peer)

    def say_bye(self) -> None:
        """Tell those who send to us, and to whom we have no link that tells them, that we stop; they hang up."""
        for peer, connection in self._receiver.connections():
            if not self._links.has(peer):
                with contextlib.suppress(zmq.ZMQError):
                    self.router.send_multipart([connection, frames.BYE_FRAME], zmq.NOBLOCK)
                    self.parting.add(peer)

    def on_monitor(self) -> None:
        """Follow one event of the monitor."""
        event = parse_monitor_message(self.monitor.recv_multipart())
        match event["event"]:
            case zmq.EVENT_ACCEPTED:
                self._arrivals.accepted(event["value"], remote_address(event["value"]))
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._arrivals.succeeded()
            case zmq.EVENT_DISCONNECTED:
                self.disconnected_s = time.monotonic()
                if refused := self._arrivals.disconnected(event["value"]):
                    self._refusals.by_address("handshake", refused[0], time.monotonic(), refused[1])
            case failed:
                name = zmq.Event(failed).name
                self._arrivals.failed(f"{name} {event['value']}: not a Starling node, or another key")

    def _message(self, envelope: zmq.Frame, first: zmq.Frame, batch: list[Delivery]) -> None:
        peer = self._peers.get(envelope.get(self._name))
        if first.buffer[:1] == frames.KNOCK_KIND and not first.more and peer not in self.banned:
            self._knock(envelope, first)
        elif peer is None:
            self._refusals.counts["stranger"] += 1
        elif peer in self.banned:
            self._refusals.counts["cut_off"] += 1
        else:
            try:
                self._receiver.connection(peer, envelope.bytes)
                self._frame(peer, envelope.bytes, first, batch)
            except TransportError as error:
                self._refuse(peer, error, envelope)

    def _knock(self, envelope: zmq.Frame, first: zmq.Frame) -> None:
        address = str(envelope.get("Peer-Address"))
        if self._on_knock is None or self.visitors is None:
            self._refusals.counts["stranger"] += 1
        elif len(first.buffer) > 1 + frames.KNOCK_BYTES:
            self._refusals.by_address("too_large", address, time.monotonic(), f"knocks with {len(first.buffer)} bytes")
            _cut(envelope)
        elif not self.visitors.admits(address, time.monotonic()):
            self._refusals.by_address("rate", address, time.monotonic(), "knocks too often")
        else:
            key = z85.decode(envelope.get(self._name))
            self._on_knock(Knock(envelope.bytes, key, address, first.bytes[1:]))

    def answer(self, connection: bytes, payload: bytes) -> None:
        """Answer one who has knocked; nothing happens where he has gone."""
        with contextlib.suppress(zmq.ZMQError):
            self.router.send_multipart([connection, frames.KNOCK_KIND + payload], zmq.NOBLOCK)

    def _frame(self, peer: int, connection: bytes, first: zmq.Frame, batch: list[Delivery]) -> None:
        frame = first.buffer
        kind = frame[0] if len(frame) else 0
        if first.more != (kind == frames.CHUNK):
            raise Refused("parts", f"a frame of kind {kind} {'with' if first.more else 'without'} a second part")
        if kind == frames.SMALL:
            self._small(peer, frame, batch)
        elif kind == frames.CHUNK:
            self._chunk(peer, connection, frame, batch)
        elif kind == frames.ANNOUNCE:
            self._receiver.announce(peer, frame)
            self.give_places(time.monotonic())
        elif kind == frames.BYE:
            with contextlib.suppress(zmq.ZMQError):
                self.router.send_multipart([connection, frames.BYE_FRAME], zmq.NOBLOCK)
            self._receiver.forget(peer)
            self.parting.discard(peer)
            if self._downlink is None:
                self._leaving.append(peer)
            else:
                self._downlink.add_last(_Arrival(peer, None, None), time.monotonic())
            return
        else:
            raise Refused("kind", f"a frame of unknown kind {kind}")
        self._links.heard(peer)

    def _chunk(self, peer: int, connection: bytes, frame: memoryview, batch: list[Delivery]) -> None:
        chunk = frames.read_chunk(frame)
        slot = self._receiver.slot(peer, chunk)
        got_bytes = self.router.recv_into(slot)
        if self.router.get(zmq.RCVMORE):
            raise Refused("parts", "a chunk of more than two parts")
        delivery = self._receiver.arrived(peer, chunk, slot.nbytes, got_bytes)
        if self._downlink is not None:
            began_s, self._heard_s[peer] = self._heard_s[peer], time.monotonic()
            self._downlink.add(peer, got_bytes, _Arrival(peer, connection, delivery), began_s)
            return
        if delivery is not None:
            batch.append(delivery)
        self._credit(peer, connection, delivery is not None)

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
        for peer, connection, transfer in self._receiver.give_places(now_s):
            self._heard_s[peer] = now_s
            with contextlib.suppress(zmq.ZMQError):  # as for credits
                self.router.send_multipart([connection, frames.place(transfer)], zmq.NOBLOCK)

    def _credit(self, peer: int, connection: bytes, whole: bool) -> None:
        """Count a chunk that has made room, and tell the sender once it matters."""
        owed = self._owed.get(peer, 0) + 1
        if whole or owed >= frames.CREDIT_CHUNKS:
            with contextlib.suppress(zmq.ZMQError):  # the peer has gone, or does not read its credits
                self.router.send_multipart([connection, frames.credit(owed)], zmq.NOBLOCK)
            owed = 0
        self._owed[peer] = owed

    def refuse_content(self, peer: int, detail: str) -> None:
        """A message that was read whole is no good: its sender pays as for a bad frame."""
        if self._refusals.by_peer("content", peer, time.monotonic(), detail):
            self._ban(peer)

    def _refuse(self, peer: int, error: TransportError, envelope: zmq.Frame) -> None:
        reason = "too_large" if isinstance(error, FrameTooLarge) else getattr(error, "reason", "malformed")
        if self._refusals.by_peer(reason, peer, time.monotonic(), str(error)):
            self._ban(peer)
            _cut(envelope)

    def _ban(self, peer: int) -> None:
        self.banned.add(peer)
        self._receiver.forget(peer)
        self._links.lose(peer)


def _cut(envelope: zmq.Frame) -> None:
    # ZeroMQ has no call that ends one connection of a ROUTER; ending it underneath is seen as the peer's going away.
    with contextlib.suppress(OSError, zmq.ZMQError):
        connection = stdlib_socket.socket(fileno=os.dup(envelope.get(zmq.SRCFD)))
        with connection:
            connection.shutdown(stdlib_socket.SHUT_RDWR)
