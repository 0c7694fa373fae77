"""The socket that peers reach us at, and the door in it for those who are none; all of it belongs to the I/O thread."""

from __future__ import annotations

import contextlib
import os
import socket as stdlib_socket
import time
from collections.abc import Callable

import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from node.identity import Roster
from node.live import frames
from node.live.arrivals import Arrivals, remote_address
from node.live.door import Knock, Visitors
from node.live.inbound import Inbound
from node.live.links import Links
from node.live.receive import Delivery
from node.live.refusals import Refusals
from node.live.sockets import Socket
from node.live.wires import Following, Opened

BATCH_FRAMES = BATCH_MESSAGES = 256
"""Read per wake-up, and so handed to the event loop in one call; the last frame may bring more messages."""

PROBE_FOR_S = 0.5
"""For how long connections are probed after one of them has ended."""

_FAILED = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL


class Entrance:
    """Reads what comes in over connections that others have opened, and knows whose each is."""

    def __init__(
        self,
        router: Socket,
        inbound: Inbound,
        links: Links,
        refusals: Refusals,
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
        self.parting: set[int] = set()
        """Who has been told that we stop, and has not hung up yet."""
        self.visitors = visitors
        self._on_knock = on_knock
        self._arrivals = Arrivals()
        self._inbound = inbound
        self._links = links
        self._refusals = refusals
        self._roster: Roster | None = None
        self._wires: dict[int, Opened] = {}
        self._peers: dict[str, int] = {}
        # With encryption the name of a link is its key, vouched for by the handshake.
        self._name = b"User-Id" if router.mechanism == zmq.CURVE else b"Identity"

    def admit(self, roster: Roster) -> None:
        """From now on these may send, and nobody else."""
        if self._name == b"User-Id":
            self._peers = {z85.encode(card.curve_key).decode(): card.node for card in roster}
        else:
            self._peers = {str(card.node): card.node for card in roster}
        before, self._roster = self._roster, roster
        for peer in list(self._wires):
            if before is None or peer not in roster or roster.card(peer).curve_key != before.card(peer).curve_key:
                self._forget(peer)

    def wire(self, peer: int) -> Opened | None:
        """The connection that a peer was heard on last, while it is there."""
        return self._wires.get(peer)

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
            self._frame(envelope, first, batch)
            if first.more:
                while self.router.get(zmq.RCVMORE):
                    self.router.recv(copy=False)
        return self._inbound.counted(batch)

    def probe(self, now_s: float) -> None:
        """Find the connections that have ended. ZeroMQ does not say whose; sending to one of them does, a bit later."""
        if self.disconnected_s is not None and now_s - self.disconnected_s > PROBE_FOR_S:
            self.disconnected_s = None
        for peer, wire in list(self._wires.items()):
            if not wire.is_there():
                self._forget(peer)
                self._links.watch(peer)

    def say_bye(self) -> None:
        """Tell those who send to us, and to whom we have no link that tells them, that we stop; they hang up."""
        for peer, wire in self._wires.items():
            if not self._links.has(peer):
                with contextlib.suppress(zmq.ZMQError):
                    wire.send(frames.BYE_FRAME)
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

    def answer(self, connection: bytes, payload: bytes) -> None:
        """Answer one who has knocked; nothing happens where he has gone."""
        with contextlib.suppress(zmq.ZMQError):
            self.router.send_multipart([connection, frames.KNOCK_KIND + payload], zmq.NOBLOCK)

    def _frame(self, envelope: zmq.Frame, first: zmq.Frame, batch: list[Delivery]) -> None:
        peer = self._peers.get(envelope.get(self._name))
        if first.buffer[:1] == frames.KNOCK_KIND and not first.more and peer not in self._inbound.banned:
            self._knock(envelope, first)
        elif peer is None:
            self._refusals.counts["stranger"] += 1
        else:
            was_banned = peer in self._inbound.banned
            wire = self._wire(peer, envelope.bytes)
            self._inbound.frame(peer, wire, first.buffer, Following(self.router) if first.more else None, batch)
            if peer in self._inbound.banned and not was_banned:
                _cut(envelope)
            elif first.buffer == frames.BYE_FRAME and not first.more:
                self._forget(peer)

    def _wire(self, peer: int, connection: bytes) -> Opened:
        wire = self._wires.get(peer)
        if wire is None or wire.connection != connection:
            wire = self._wires[peer] = Opened(self.router, connection)
            self._links.reached(peer, wire)
        return wire

    def _forget(self, peer: int) -> None:
        wire = self._wires.pop(peer)
        self.parting.discard(peer)
        self._inbound.ended(peer, wire)

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


def _cut(envelope: zmq.Frame) -> None:
    # ZeroMQ has no call that ends one connection of a ROUTER; ending it underneath is seen as the peer's going away.
    with contextlib.suppress(OSError, zmq.ZMQError):
        connection = stdlib_socket.socket(fileno=os.dup(envelope.get(zmq.SRCFD)))
        with connection:
            connection.shutdown(stdlib_socket.SHUT_RDWR)
