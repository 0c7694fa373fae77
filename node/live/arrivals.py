"""Who has connected and not proved yet who they are: so that a refusal can name where it came from.

ZeroMQ's monitor names a connection's descriptor when it is accepted and when it ends, but not when its handshake
succeeds or fails. In between, order and elimination have to do: nobody who may have proved himself is ever accused.
"""

from __future__ import annotations

import contextlib
import os
import socket

_MOST_PENDING = 4_096


class Arrivals:
    """Connections between their acceptance and their handshake's end, by file descriptor. No I/O."""

    def __init__(self) -> None:
        self._pending: dict[int, str] = {}
        self._failure: str | None = None

    def accepted(self, descriptor: int, address: str) -> None:
        """Somebody has connected from an address."""
        if len(self._pending) >= _MOST_PENDING:
            del self._pending[next(iter(self._pending))]
        self._pending[descriptor] = address

    def succeeded(self) -> None:
        """A handshake has succeeded: it may be that of any connection that is pending."""
        self._pending.clear()

    def failed(self, detail: str) -> None:
        """A handshake has failed; the connection that ends next is the one."""
        self._failure = detail

    def disconnected(self, descriptor: int) -> tuple[str, str] | None:
        """A connection has ended: where from and why, if it never proved who it was."""
        address, failure = self._pending.pop(descriptor, None), self._failure
        self._failure = None
        if failure is not None:
            return address or "unknown", failure
        if address is not None:
            return address, "ended without a handshake: not a Starling node"
        return None


def remote_address(descriptor: int) -> str:
    """The other end of a connection that ZeroMQ holds, ``unknown`` where it is gone already."""
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(descriptor)) as connection:
        host, port, *_ = connection.getpeername()
        return f"tcp://{host}:{port}"
    return "unknown"
