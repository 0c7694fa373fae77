"""What a supervisor and its nodes say to each other, over a socket pair: length-prefixed msgpack."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Self, TypeAlias

import msgspec

_MOST_BYTES = 1 << 30


class Shown(msgspec.Struct, tag="shown"):
    """A node listens, and shows its card."""

    card: bytes


class Work(msgspec.Struct):
    """What a node has done so far."""

    tasks: int = 0
    messages: int = 0
    bytes_sent: int = 0
    refused_messages: int = 0
    traffic: dict[str, int] = {}
    """Bytes sent, by the wire name of messages."""


class Measured(msgspec.Struct, tag="measured"):
    """Rows of a node's metrics: time_s, node, round, metric, value; and the work that they took so far."""

    rows: list[tuple[float, int, int, str, float]]
    work: Work = msgspec.field(default_factory=Work)


class Spent(msgspec.Struct, tag="spent"):
    """What a node has spent of its privacy, with the training that it is about to begin."""

    state: dict[str, Any]


class Alive(msgspec.Struct, tag="alive"):
    """A node's event loop turns; said every few seconds."""


class Finished(msgspec.Struct, tag="finished"):
    """A node's protocol has ended."""

    model: bytes | None
    time_s: float
    events: int
    tape: bytes
    tasks: int
    batches: int
    forced_solves: int
    messages: int
    bytes_sent: int
    private_bytes: int
    refused_messages: int = 0
    traffic: dict[str, int] = {}


class Failed(msgspec.Struct, tag="failed"):
    """A node cannot go on."""

    error: str


class Begin(msgspec.Struct, tag="begin"):
    """The cards of all nodes: talk to them, and to nobody else, and begin; said again when a node has a new one."""

    cards: list[bytes]
    elapsed_s: float = 0.0
    """Since the run began."""


class Stop(msgspec.Struct, tag="stop"):
    """End now, in order."""


Said: TypeAlias = Shown | Measured | Spent | Alive | Finished | Failed | Begin | Stop
_decoder = msgspec.msgpack.Decoder(Said)


def framed(said: Said) -> bytes:
    """Something as it is said: what many are told, they share the bytes of."""
    data = msgspec.msgpack.encode(said)
    return len(data).to_bytes(4, "little") + data


class Channel:
    """One end of the pair."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Self:
        """Talk over one end of a connected socket pair."""
        return cls(*await asyncio.open_connection(sock=end))

    def say(self, said: Said) -> None:
        """Queue something for the other side; nothing happens where it has gone."""
        self.put(framed(said))

    def put(self, frame: bytes) -> None:
        """The same for what is :func:`framed`."""
        if not self._writer.is_closing():
            self._writer.write(frame)

    async def flush(self) -> None:
        """Wait until what was said has been taken over; gives up where the other side has gone."""
        try:
            await self._writer.drain()
        except ConnectionError:
            return

    async def hear(self) -> Said | None:
        """The next thing that the other side says; None: it has gone, or says what nobody understands."""
        try:
            size = int.from_bytes(await self._reader.readexactly(4), "little")
            if size > _MOST_BYTES:
                return None
            said: Said = _decoder.decode(await self._reader.readexactly(size))
        except (asyncio.IncompleteReadError, ConnectionError, msgspec.DecodeError):
            return None
        return said

    async def close(self) -> None:
        """Send what is queued and close."""
        await self.flush()
        self._writer.close()
