"""Members tell each other what their clocks show, so that one whose own is wrong hears of it: nobody else would say."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence

import numpy as np
import structlog

from node import codec
from node.codec import Header
from node.errors import TransportError
from node.live.transport import Transport
from node.message import Message
from node.op import Ref
from node.trust.skew import Skew

TELL_EVERY_S = 30.0
TELL = 8
"""How many are told each time."""


class Time(Message, name="starling/time/1"):
    """What the sender's clock shows. How long the message was on its way is small beside what would be wrong."""

    unix_s: int
    """Seconds since 1970."""


class Timekeeping:
    """One member's part in it. All of it belongs to the event loop.

    Args:
        nodes: how many members there are to be.
        peers: who is there.
    """

    def __init__(self, transport: Transport, nodes: int, peers: Callable[[], Sequence[int]]) -> None:
        self._transport = transport
        self._nodes = nodes
        self._peers = peers
        self._skew = Skew()
        self._telling: asyncio.Task[None] | None = None
        self._rng = np.random.default_rng(int.from_bytes(os.urandom(16)))
        self._log = structlog.get_logger()

    def start(self) -> None:
        """Begin to tell others."""
        self._telling = asyncio.get_running_loop().create_task(self._tell())

    def close(self) -> None:
        """Tell nobody any more."""
        if self._telling is not None:
            self._telling.cancel()

    @property
    def ahead_s(self) -> float:
        """By how much the members' clocks are ahead of this machine's."""
        return self._skew.median_s

    def observe(self, peer: int, ahead_s: float) -> None:
        """A member's clock is so far ahead of ours just now."""
        now_s = time.time()
        self._skew.observe(peer, now_s + ahead_s, now_s)
        if warning := self._skew.warning(self._nodes - 1):
            self._log.warning("clock", detail=warning)

    def lose(self, peer: int) -> None:
        """A member has gone."""
        self._skew.lose(peer)

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """A member tells its :class:`Time`; what is none costs it."""
        try:
            said = codec.decode(header, buffers, _no_value)
        except TransportError as error:
            self._transport.refuse(sender, str(error))
            return
        assert isinstance(said, Time)
        self.observe(sender, said.unix_s - time.time())

    async def _tell(self) -> None:
        while True:
            peers, encoded = self._peers(), codec.encode(Time(unix_s=int(time.time())), _no_buffer)
            for position in self._rng.permutation(len(peers))[:TELL]:
                self._transport.post(peers[int(position)], encoded)
            await asyncio.sleep(TELL_EVERY_S)


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"a time carries no {ref}")


def _no_value(buffer: memoryview, spec: object) -> Ref:
    raise AssertionError("a time carries no values")
