"""The two kinds of socket, with every option that matters set explicitly, and the context that they live in."""

from __future__ import annotations

import threading
from typing import TypeAlias

import zmq
from zmq.utils.garbage import gc as zero_copy

from node.codec import Limits
from node.errors import ConfigError
from node.identity import Card, Identity
from node.live.admission import DOMAIN
from node.live.frames import max_frame_bytes

Socket: TypeAlias = "zmq.Socket[bytes]"

QUEUE_FRAMES = 64
"""Frames that ZeroMQ holds per link and direction, beyond what is counted in bytes."""

SILENCE_S = 10
"""How long a connection over which nothing is acknowledged lives."""

_MAX_SOCKETS = 16_384

_open_lock = threading.Lock()
_open_contexts = 0


class Sockets:
    """A context of its own, and the sockets made in it, for one node and one thread."""

    def __init__(self, node: int, identity: Identity, limits: Limits, encrypted: bool) -> None:
        global _open_contexts
        with _open_lock:
            _open_contexts += 1
        self._node = node
        self._identity = identity
        self._limits = limits
        self._encrypted = encrypted
        self.context: zmq.Context[Socket] = zmq.Context()
        self.context.set(zmq.MAX_SOCKETS, _MAX_SOCKETS)

    def router(self, bind: tuple[str, int] | None) -> Socket:
        """The socket that all peers reach us at, bound; ConfigError for an address that cannot be had.

        None: at none, so that nobody does.
        """
        socket = self._socket(zmq.ROUTER)
        socket.router_mandatory = True
        socket.router_handover = False
        if self._encrypted:
            socket.curve_server = True
            socket.curve_secretkey = self._identity.curve_secret
            socket.zap_domain = DOMAIN
        if bind is None:
            return socket
        listen, port = bind
        socket.ipv6 = "[" in listen
        try:
            socket.bind(f"tcp://{listen}:{port or '*'}")
        except zmq.ZMQError as error:
            raise ConfigError(
                f"listen: {listen}:{port} cannot be bound: {error.strerror}; allowed are an address of this machine "
                "and a free port, or port 0 for any"
            ) from None
        return socket

    def dealer(self, card: Card) -> Socket:
        """A socket towards one peer, not yet connected."""
        socket = self._socket(zmq.DEALER)
        # Without a connection there is no queue: what waits is ours, counted in bytes, and starts again cleanly.
        socket.immediate = True
        socket.reconnect_ivl = 50
        socket.reconnect_ivl_max = 2_000
        socket.ipv6 = "[" in card.address
        if self._encrypted:
            socket.curve_serverkey = card.curve_key
            socket.curve_publickey = self._identity.curve_public
            socket.curve_secretkey = self._identity.curve_secret
        else:
            socket.routing_id = str(self._node).encode()
        return socket

    def close(self, linger_ms: int) -> None:
        """Close what is open and wait, up to the linger, for what is still leaving."""
        global _open_contexts
        self.context.destroy(linger_ms)
        with _open_lock:
            _open_contexts -= 1
            # pyzmq frees what was sent uncopied in a thread of the whole process; the last one out stops it.
            if not _open_contexts:
                zero_copy.stop()

    def _socket(self, kind: int) -> Socket:
        socket = self.context.socket(kind)
        socket.sndhwm = socket.rcvhwm = QUEUE_FRAMES
        socket.maxmsgsize = max_frame_bytes(self._limits)
        socket.linger = 0
        socket.handshake_ivl = 10_000
        # The kernel finds connections that are dead. ZeroMQ's own heartbeats end the process where a connection breaks
        # while its queue is full, as after a suspend (libzmq 4.3.5).
        socket.heartbeat_ivl = 0
        socket.tcp_keepalive = 1
        socket.tcp_keepalive_idle = socket.tcp_keepalive_intvl = 2
        socket.tcp_keepalive_cnt = SILENCE_S // 2
        socket.tcp_maxrt = SILENCE_S * 1000
        return socket
