"""What the transport's tests share: nodes on loopback sockets, and a peer that follows no rules."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import zmq

from node.codec import Encoded, Header, Limits, decode, encode
from node.identity import Card, Identity, Roster
from node.live import frames
from node.live.transport import Transport
from node.message import Message
from node.op import Ref, Spec

WAIT_S = 10.0
_released: deque[int] = deque()


class Model(Message, name="loopback/model/1"):
    number: int
    model: Ref


class Parts(Message, name="loopback/parts/1"):
    parts: tuple[Ref, ...]


class Note(Message, name="loopback/note/1"):
    number: int
    text: str = ""


def note(number: int, text: str = "") -> Encoded:
    return encode(Note(number=number, text=text), lambda ref: memoryview(b""))


def model(number: int, array: np.ndarray) -> Encoded:
    ref = Ref(0, Spec(array.shape, str(array.dtype)), _released)
    return encode(Model(number=number, model=ref), lambda ref: memoryview(array))


def parts(*arrays: np.ndarray) -> Encoded:
    refs = [Ref(i, Spec(array.shape, str(array.dtype)), _released) for i, array in enumerate(arrays)]
    return encode(Parts(parts=tuple(refs)), lambda ref: memoryview(arrays[ref.id]))


class Party:
    """A node that remembers what it has received."""

    def __init__(self, node: int, *, start: bool = True, **options: Any) -> None:
        self.node = node
        self.identity: Identity = options.pop("identity", None) or Identity.generate()
        self.heard: list[tuple[int, Any]] = []
        self.buffers: list[list[memoryview]] = []
        self.lost: list[int] = []
        self.back: list[int] = []
        self._changed = asyncio.Event()
        options.setdefault("grace_s", 0.3)
        self.transport = Transport(
            node, self.identity, on_message=self._hear, on_lost=self._lose, on_back=self._regain, **options
        )
        if start:
            self.transport.start()

    @property
    def card(self) -> Card:
        return self.identity.card(self.node, self.transport.address, "loopback")

    @property
    def notes(self) -> list[int]:
        return [message.number for _, message in self.heard if isinstance(message, Note)]

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until something received or lost makes the condition true."""
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()

    async def hears(self, count: int) -> None:
        await self.until(lambda: len(self.heard) >= count)

    def _hear(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        self.heard.append((sender, decode(header, buffers, lambda view, spec: Ref(0, spec, _released))))
        self.buffers.append(buffers)
        self._changed.set()

    def _lose(self, peer: int) -> None:
        self.lost.append(peer)
        self._changed.set()

    def _regain(self, peer: int) -> None:
        self.back.append(peer)
        self._changed.set()


def acquaint(*parties: Party) -> Roster:
    """Admit all to each other."""
    roster = Roster([party.card for party in parties])
    for party in parties:
        party.transport.admit(roster)
    return roster


class Rogue:
    """A peer without a transport: a bare DEALER that has a member's keys (or a stranger's) and sends what it likes."""

    def __init__(self, victim: Card, identity: Identity, *, server_key: bytes | None = None) -> None:
        self.identity = identity
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.reconnect_ivl = 10
        self.socket.curve_serverkey = server_key or victim.curve_key
        self.socket.curve_publickey = identity.curve_public
        self.socket.curve_secretkey = identity.curve_secret
        # Without limit, or a rogue that is refused for seconds on end fills it, and ZeroMQ waits for a reader.
        self.monitor = self.context.socket(zmq.PAIR)
        self.monitor.rcvhwm = 0
        self.socket.monitor("inproc://rogue", zmq.EVENT_ALL)
        self.monitor.connect("inproc://rogue")
        self.socket.connect(victim.address)

    def send(self, *parts: bytes) -> None:
        self.socket.send_multipart(list(parts))

    def send_note(self, number: int) -> None:
        self.send(small(note(number)))

    def event(self, *wanted: int) -> int:
        """Wait for one of these events of the connection."""
        while self.monitor.poll(int(WAIT_S * 1000)):
            event = int.from_bytes(self.monitor.recv_multipart()[0][:2], "little")
            if event in wanted:
                return event
        raise TimeoutError(f"none of the events {wanted}")

    def close(self) -> None:
        self.socket.disable_monitor()
        self.context.destroy(0)


def small(*messages: Encoded) -> bytes:
    """A SMALL frame."""
    return bytes([frames.SMALL]) + b"".join(part for message in messages for part in frames.small_parts(message))


SMALL_LIMITS = Limits(
    message_bytes=20 << 20, header_bytes=1 << 18, arriving_bytes=24 << 20, queue_bytes=1 << 20, refusals=10
)
