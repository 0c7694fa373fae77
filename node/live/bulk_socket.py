"""The bytes of a bulk transfer on a TCP socket of its own, beside the links that carry messages.

::

    receiver: transfer (16 bytes)  proof of the key (16)      then, after each chunk that it has kept:  total u32
    sender:   index u32  sealed chunk                          for each chunk, in order

Integers are big-endian. Everything that matters is authenticated by the key; a false total ends the transfer.

Dialling, and what a stranger says first, wait on the event loop. A transfer that was granted has a thread, and blocking
calls there: over the loop's sockets the same chunks took half as much processor time again, and moved half as fast.
"""

from __future__ import annotations

import asyncio
import select
import socket
import struct
from collections.abc import Callable
from concurrent.futures import Executor
from contextlib import suppress
from typing import ParamSpec, Self

from node.errors import Unreachable
from node.live.bulk_pace import SLICE_BYTES, Place

HELLO = struct.Struct(">16s16s")
NUMBER = struct.Struct(">I")
STALL_S = 60.0
"""A connection on which nothing moves for so long has broken. A peer that dies is noticed earlier, by its link."""

P = ParamSpec("P")


async def introduction(connection: socket.socket) -> tuple[bytes, bytes]:
    """The transfer that a caller names, and its proof. OSError or Unreachable where it breaks off before."""
    loop = asyncio.get_running_loop()
    room = bytearray(HELLO.size)
    rest = memoryview(room)
    while rest:
        count = await loop.sock_recv_into(connection, rest)
        if not count:
            raise Unreachable("a caller has gone before it said which transfer it is for")
        rest = rest[count:]
    transfer, proof = HELLO.unpack(room)
    return transfer, proof


class Wire:
    """One connection, of a thread that it blocks. Sending and receiving raise OSError or Unreachable once it breaks."""

    def __init__(self, connection: socket.socket, place: Place | None = None) -> None:
        """Where there is a ``place``, what is sent waits for its turn there."""
        connection.settimeout(STALL_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket = connection
        self._place = place
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)

    @classmethod
    async def dial(cls, host: str, port: int) -> Self:
        """Connect; OSError where nobody answers."""
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setblocking(False)
            async with asyncio.timeout(STALL_S):
                await loop.sock_connect(connection, address)
            return cls(connection)
        except BaseException:
            connection.close()
            raise

    async def lend(self, threads: Executor, call: Callable[P, None], *args: P.args, **kwargs: P.kwargs) -> None:
        """Run a call that uses the connection, in a thread. Cancelled, the connection breaks, and the call with it."""
        job = asyncio.wrap_future(threads.submit(call, *args, **kwargs))
        try:
            await asyncio.shield(job)
        except asyncio.CancelledError:
            self.break_off()
            while not job.done():  # cancelled again, it has still not ended
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([job])
            job.exception()
            raise

    def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        if self._place is None:
            self._socket.sendall(data)
            return
        for start in range(0, len(data), SLICE_BYTES):
            part = data[start : start + SLICE_BYTES]
            self._place.take_turn(len(part))
            self._socket.sendall(part)

    def receive(self, into: memoryview) -> None:
        """Fill a buffer; Unreachable where the other end closes before it is full."""
        while into:
            count = self._socket.recv_into(into)
            if not count:
                raise Unreachable("the other end has closed the transfer's connection")
            into = into[count:]

    def receive_number(self) -> int:
        """A number, as :data:`NUMBER` has it."""
        room = bytearray(NUMBER.size)
        self.receive(memoryview(room))
        number: int = NUMBER.unpack(room)[0]
        return number

    def has_arrived(self) -> bool:
        """Whether there is something to receive now, or the other end has closed."""
        return bool(self._poll.poll(0))

    def break_off(self) -> None:
        """End whatever is sent or received on it, now and later; on the event loop."""
        if self._place is not None:
            self._place.give_up()
        with suppress(OSError):  # the other end was first
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let the connection go; nobody may be sending or receiving any more."""
        self._socket.close()
