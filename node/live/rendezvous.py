"""Bring nodes together that start at any time: nobody begins before it can reach everybody, and everybody it.

Each node greets every other until it has been welcomed. A welcome is an answer, so it proves both directions. What
peers that are further on send meanwhile is kept for the run to come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import structlog

from node.codec import Header, encode
from node.errors import TransportError
from node.live.transport import Transport
from node.message import Message
from node.op import Ref

Receive = Callable[[int, Header, list[memoryview]], None]
Lose = Callable[[int], None]


class Hello(Message, name="starling/hello/1"):
    """A node asks whether it can be heard."""


class Welcome(Message, name="starling/welcome/1"):
    """It can."""


_MOST_EARLY = 4_096
"""Messages that are kept for a world that has not begun yet."""


class Rendezvous:
    """Stands between a transport and a world; the transport calls :meth:`receive`, :meth:`lose` and :meth:`regain`."""

    def __init__(self, peers: Iterable[int]) -> None:
        self.transport: Transport | None = None
        self._absent = dict.fromkeys(sorted(peers))
        self._early: list[tuple[int, Header, list[memoryview]]] = []
        self._receive: Receive = self._keep
        self._lose: Lose | None = None
        self._regain: Lose = lambda peer: None
        self._saying: set[asyncio.Task[None]] = set()
        self._attended: dict[type[Message], Receive] = {}

    @property
    def absent(self) -> list[int]:
        """The peers that have not welcomed us yet, or have gone again, sorted."""
        return sorted(self._absent)

    async def greet(self) -> None:
        """Ask those who are absent once more."""
        for peer in self.absent:
            await self._say(peer, Hello())

    def hand_over(self, receive: Receive, lose: Lose, regain: Lose = lambda peer: None) -> None:
        """Pass everything on from now, after what has come already."""
        self._receive, self._lose, self._regain = receive, lose, regain
        early, self._early = self._early, []
        for message in early:
            receive(*message)

    def attend(self, kind: type[Message], receive: Receive) -> None:
        """Have messages of a kind taken in by somebody else than the world, from now."""
        self._attended[kind] = receive

    def _keep(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        if len(self._early) < _MOST_EARLY:
            self._early.append((sender, header, buffers))

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """Take in what a peer says."""
        if header.type is Hello:
            saying = asyncio.get_running_loop().create_task(self._say(sender, Welcome()))
            self._saying.add(saying)
            saying.add_done_callback(self._saying.discard)
        elif header.type is Welcome:
            self._absent.pop(sender, None)
        else:
            self._attended.get(header.type, self._receive)(sender, header, buffers)

    def lose(self, peer: int) -> None:
        """A peer has gone; while nothing has begun, it is waited for again."""
        if self._lose is None:
            self._absent[peer] = None
        else:
            self._lose(peer)

    def regain(self, peer: int) -> None:
        """A peer that had gone is there again."""
        self._regain(peer)

    async def _say(self, peer: int, message: Message) -> None:
        assert self.transport is not None
        try:
            await self.transport.send(peer, encode(message, _no_buffer))
        except TransportError as error:
            structlog.get_logger().debug("not heard", peer=peer, message=message.wire_name, reason=str(error))


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"a greeting carries no {ref}")
