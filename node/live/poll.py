"""Waiting for sockets and for other threads at once."""

from __future__ import annotations

import contextlib
import socket as stdlib_socket
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq

from node.live.sockets import Socket


class Poll:
    """Calls the handler of each socket that is ready, then what other threads have posted.

    Everything but :meth:`post` belongs to the one thread that polls.
    """

    def __init__(self) -> None:
        self._poller = zmq.Poller()
        self._handlers: dict[Socket | int, Callable[[], None]] = {}
        self._posted: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._asleep = False
        self._wake_reader, self._wake_writer = stdlib_socket.socketpair()
        self._wake_reader.setblocking(False)
        self._wake_writer.setblocking(False)
        self._poller.register(self._wake_reader.fileno(), zmq.POLLIN)
        self._handlers[self._wake_reader.fileno()] = self._drain_wake_ups

    def post(self, function: Callable[..., None], *args: Any) -> None:
        """Have the polling thread call ``function`` soon; from any thread, in order."""
        self._posted.append((function, args))
        # Whoever falls asleep says so before its last look at the deque: one of the two sees the other.
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(OSError):  # full: it is being woken already; closed: nobody is there
                self._wake_writer.send(b"\0")

    def add(self, socket: Socket, handler: Callable[[], None]) -> None:
        """Call ``handler`` whenever the socket can be read."""
        self._poller.register(socket, zmq.POLLIN)
        self._handlers[socket] = handler

    def writing(self, socket: Socket, wanted: bool) -> None:
        """Whether the handler is also wanted when the socket can be written."""
        self._poller.register(socket, zmq.POLLIN | zmq.POLLOUT if wanted else zmq.POLLIN)

    def reading(self, socket: Socket, wanted: bool) -> None:
        """Whether the socket is read at all."""
        self._poller.register(socket, zmq.POLLIN if wanted else 0)

    def remove(self, socket: Socket) -> None:
        """Forget a socket that is about to be closed."""
        self._poller.register(socket, 0)
        self._handlers.pop(socket, None)

    def turn(self, timeout_ms: int | None) -> None:
        """Wait for something to do, for at most ``timeout_ms``, and do it."""
        self._asleep = True
        ready = self._poller.poll(0 if self._posted else timeout_ms)
        self._asleep = False
        for socket, _ in ready:
            handler = self._handlers.get(socket)
            if handler is not None:  # an earlier handler of this turn may have closed the socket
                handler()
        for _ in range(len(self._posted)):
            function, args = self._posted.popleft()
            function(*args)

    def close(self) -> None:
        """Let go of the wake-up; what is posted later is dropped."""
        self._wake_reader.close()
        self._wake_writer.close()

    def _drain_wake_ups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while self._wake_reader.recv(4096):
                pass
