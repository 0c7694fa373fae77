"""The way in for those whom a node does not know yet: one short question at a time, and its answer.

A link is open to the holders of the roster's keys alone. Where a node keeps a door, a stranger's link is let through
the handshake of ZeroMQ too, but nothing that comes over it is read but knocks: small frames that whoever minds the door
answers or not. CURVE has proved the key that a knock came under, and has encrypted it; what the key's holder may do is
for the knock to say and for the doorkeeper to believe.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

from node.errors import DeadlineExceeded, NotAMember, Unreachable
from node.identity import Identity
from node.live import frames
from node.live.names import check_resolves

_MOST_ADDRESSES = 4_096
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL

Talk = TypeVar("Talk")


class Knock(NamedTuple):
    """A question at the door."""

    connection: bytes
    """Where the answer goes."""
    curve_key: bytes
    """The CURVE public key that the link was made with, 32 bytes: its holder is who asks."""
    address: str
    """Where the link comes from, for the log."""
    payload: bytes


class Visitors:
    """How much of strangers a node bears: a bucket of handshakes and knocks for each address. No I/O.

    Args:
        burst: how many may come at once.
        rate_per_s: how many more may come every second.
    """

    def __init__(self, burst: float = 1_000.0, rate_per_s: float = 50.0) -> None:
        self._burst = burst
        self._rate_per_s = rate_per_s
        self._left: dict[str, tuple[float, float]] = {}

    def admits(self, address: str, now_s: float) -> bool:
        """Whether one more may come from an address; times in seconds of any one clock."""
        left, since_s = self._left.pop(address, (self._burst, now_s))
        left = min(self._burst, left + (now_s - since_s) * self._rate_per_s)
        if len(self._left) >= _MOST_ADDRESSES:
            del self._left[next(iter(self._left))]  # the one that was here longest ago
        may = left >= 1.0
        self._left[address] = (left - may, now_s)
        return may


def visit(
    identity: Identity,
    address: str,
    curve_key: bytes,
    talk: Callable[[Callable[[bytes], bytes]], Talk],
    timeout_s: float,
) -> Talk:
    """Knock at a node's door and talk there; blocks, so call it in a thread.

    Args:
        identity: whose CURVE key the link is made with.
        address: where the node listens, ``tcp://host:port``.
        curve_key: the CURVE public key that the node must have there, 32 bytes.
        talk: the conversation; gets a function that asks one question (bytes) and gives its answer.
        timeout_s: for the whole of it.

    Raises:
        Unreachable: there is no such address, or its name does not resolve.
        NotAMember: the node there has another key, or keeps no door.
        DeadlineExceeded: it did not answer in time.
    """
    check_resolves(address)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.linger = 0
        socket.maxmsgsize = frames.ANSWER_BYTES + 4096
        socket.ipv6 = "[" in address
        socket.curve_serverkey = curve_key
        socket.curve_publickey = identity.curve_public
        socket.curve_secretkey = identity.curve_secret
        monitor = socket.get_monitor_socket(_REFUSED)
        try:
            socket.connect(address)
            return talk(_Asking(socket, monitor, address, time.monotonic() + timeout_s))
        except zmq.ZMQError as error:
            raise Unreachable(f"{address}: no node can be there: {error.strerror}") from None
        finally:
            socket.disable_monitor()
            monitor.close(0)


class _Asking:
    def __init__(self, socket: zmq.Socket[bytes], monitor: zmq.Socket[bytes], address: str, deadline_s: float) -> None:
        self._socket = socket
        self._monitor = monitor
        self._address = address
        self._deadline_s = deadline_s

    def __call__(self, payload: bytes) -> bytes:
        self._socket.send(frames.KNOCK_KIND + payload)
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._monitor, zmq.POLLIN)
        while ready := dict(poller.poll(max(0, math.ceil((self._deadline_s - time.monotonic()) * 1000)))):
            if self._socket in ready:
                frame = self._socket.recv()
                if frame[:1] == frames.KNOCK_KIND:
                    return frame[1:]
                continue
            event = zmq.Event(parse_monitor_message(self._monitor.recv_multipart())["event"])
            raise NotAMember(
                f"{self._address}: has another key there, or lets nobody in that it does not know ({event.name})"
            )
        raise DeadlineExceeded(f"{self._address}: no answer in time; is the node running, and this address its own?")
