"""What carries frames between this node and one peer: a socket that dials it, or a connection that it has opened to us.

All of it belongs to the I/O thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias
from typing import Protocol as Interface

import zmq
from zmq.utils.monitor import parse_monitor_message

from node.errors import Unreachable
from node.identity import Card
from node.live import frames
from node.live.sockets import Socket, Sockets

_EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)

Payload: TypeAlias = "bytes | memoryview | zmq.Frame"


class Path(NamedTuple):
    """How a peer is reached."""

    kind: str
    """``direct``: it is dialled; ``outbound``: over the connection that it has opened; ``relay``: through another."""
    via: int | None = None
    """The peer that relays."""

    def shown(self) -> dict[str, str | int]:
        """For people and programs to read."""
        return {"path": self.kind} if self.via is None else {"path": self.kind, "via": self.via}


class Wire(Interface):
    """Takes frames for one peer."""

    @property
    def path(self) -> Path:
        """How the frames go."""
        ...

    def send(self, frame: bytes, payload: Payload | None = None) -> None:
        """Send a frame, and its second part, uncopied, where it has one. zmq.Again where it would have to wait."""
        ...


class Part(Interface):
    """The second part of a frame that has come, not read yet."""

    def into(self, slot: memoryview) -> int:
        """Read it into a buffer, as far as that reaches; gives its size in bytes."""
        ...

    def whole(self) -> zmq.Frame:
        """Read it as it is."""
        ...


class Receiving(Interface):
    """The other side of a wire that serves both."""

    def frame(self, peer: int, wire: Wire, frame: memoryview, more: Part | None) -> None:
        """Take in a frame of a peer."""
        ...

    def ended(self, peer: int, wire: Wire) -> None:
        """A wire has broken."""
        ...


class Following(NamedTuple):
    """The part that follows what was just read from a socket."""

    socket: Socket

    def into(self, slot: memoryview) -> int:
        """Read it into a buffer, as far as that reaches; gives its size in bytes."""
        size_bytes: int = self.socket.recv_into(slot)
        self._end()
        return size_bytes

    def whole(self) -> zmq.Frame:
        """Read it as it is."""
        frame = self.socket.recv(copy=False)
        self._end()
        return frame

    def _end(self) -> None:
        if self.socket.get(zmq.RCVMORE):
            raise frames.Refused("parts", "a frame of more than two parts")


BATCH_FRAMES = 256
"""Read from one socket per wake-up."""


class Dialled:
    """A socket that dials a peer, again and again. Unreachable for an impossible address."""

    path = Path("direct")

    def __init__(self, sockets: Sockets, card: Card) -> None:
        self.socket = sockets.dealer(card)
        self.monitor = self.socket.get_monitor_socket(_EVENTS)
        try:
            self.socket.connect(card.address)
        except zmq.ZMQError as error:
            self.close(0)
            raise Unreachable(f"node {card.node} cannot be at {card.address}: {error.strerror}") from None

    def send(self, frame: bytes, payload: Payload | None = None) -> None:
        """Send a frame. zmq.Again while there is no connection, or too much waits in it."""
        if payload is None:
            self.socket.send(frame, zmq.NOBLOCK)
        else:
            self.socket.send(frame, zmq.NOBLOCK | zmq.SNDMORE)
            self.socket.send(payload, zmq.NOBLOCK, copy=False)

    def arrived(self) -> Iterator[tuple[memoryview, Part | None]]:
        """The frames that have come, each with its second part where it has one; a batch at most."""
        for _ in range(BATCH_FRAMES):
            try:
                first = self.socket.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            yield first.buffer, Following(self.socket) if first.more else None
            while first.more and self.socket.get(zmq.RCVMORE):
                self.socket.recv(copy=False)

    def event(self) -> dict[str, Any]:
        """One event of the monitor."""
        return dict(parse_monitor_message(self.monitor.recv_multipart()))

    def close(self, linger_ms: int) -> None:
        """Close the sockets; what ZeroMQ already has may still leave within the linger."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)


class Opened:
    """A connection that a peer has opened to our ROUTER."""

    path = Path("outbound")

    def __init__(self, router: Socket, connection: bytes) -> None:
        self.connection = connection
        self._router = router

    def send(self, frame: bytes, payload: Payload | None = None) -> None:
        """Send a frame. zmq.Again while too much waits in the connection, and for good once that has ended."""
        try:
            if payload is None:
                self._router.send_multipart([self.connection, frame], zmq.NOBLOCK)
            else:
                self._router.send(self.connection, zmq.NOBLOCK | zmq.SNDMORE)
                self._router.send(frame, zmq.NOBLOCK | zmq.SNDMORE)
                self._router.send(payload, zmq.NOBLOCK, copy=False)
        except zmq.Again:
            raise
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            raise zmq.Again(error.errno) from None

    def is_there(self) -> bool:
        """Whether the connection is, as far as ZeroMQ knows: to find out, something is sent."""
        try:
            self._router.send_multipart([self.connection, frames.PROBE_FRAME], zmq.NOBLOCK)
        except zmq.Again:
            return True
        except zmq.ZMQError:
            return False
        return True
