"""The bytes of a bulk transfer on a TCP socket of its own, beside the links that carry messages.

::

    receiver: transfer (16 bytes)  proof of the key (16)      then, after each chunk that it has kept:  total u32
    sender:   index u32  sealed chunk                          for each chunk, in order

Integers are big-endian. Everything that matters is authenticated by the key; a false total ends the transfer.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Self

from node.errors import Unreachable

HELLO = struct.Struct(">16s16s")
NUMBER = struct.Struct(">I")
STALL_S = 60.0
"""A connection on which nothing moves for so long has broken. A peer that dies is noticed earlier, by its link."""


class Wire:
    """One connection, on the event loop. Every method raises OSError or Unreachable once it has broken."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._loop = asyncio.get_running_loop()

    @classmethod
    async def dial(cls, host: str, port: int) -> Self:
        """Connect; OSError where nobody answers."""
        loop = asyncio.get_running_loop()
        family, kind, protocol, _, address = (await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM))[0]
        wire = cls(socket.socket(family, kind, protocol))
        try:
            async with asyncio.timeout(STALL_S):
                await loop.sock_connect(wire._socket, address)
        except BaseException:
            wire.close()
            raise
        return wire

    async def send(self, data: bytes | memoryview) -> None:
        """Send all of it."""
        async with asyncio.timeout(STALL_S):
            await self._loop.sock_sendall(self._socket, data)

    async def receive(self, into: memoryview) -> None:
        """Fill a buffer; Unreachable where the other end closes before it is full."""
        async with asyncio.timeout(STALL_S) as stall:
            while into:
                count = await self._loop.sock_recv_into(self._socket, into)
                if not count:
                    raise Unreachable("the other end has closed the transfer's connection")
                into = into[count:]
                stall.reschedule(self._loop.time() + STALL_S)

    async def receive_number(self) -> int:
        """A number, as :data:`NUMBER` has it."""
        room = bytearray(NUMBER.size)
        await self.receive(memoryview(room))
        number: int = NUMBER.unpack(room)[0]
        return number

    def close(self) -> None:
        """Break off; nobody may be sending or receiving any more."""
        self._socket.close()
