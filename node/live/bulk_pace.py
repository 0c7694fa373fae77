"""Whose turn it is to send bulk, where a node's bulk traffic is held to a rate: an equal share for each peer."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import CancelledError

from node.errors import Unreachable
from node.live.pacing import Pacer

SLICE_BYTES = 64 << 10
"""What is sent in one turn, so that a slow rate is kept to smoothly."""


class Turns:
    """Lets slices of several peers' transfers pass at a rate together; belongs to the event loop."""

    def __init__(self, rate_bps: float) -> None:
        self._pacer: Pacer[asyncio.Future[None]] = Pacer(rate_bps)
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, peer: int, size_bytes: int) -> None:
        """Wait until so many bytes to a peer may leave."""
        turn = asyncio.get_running_loop().create_future()
        self._pacer.add(peer, size_bytes, turn, time.monotonic())
        self._pass()
        await turn

    def _pass(self) -> None:
        now_s = time.monotonic()
        while (passed := self._pacer.take(now_s)) is not None:
            if not passed[1].done():  # its transfer may have ended meanwhile
                passed[1].set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        due_s = self._pacer.due_s
        loop = asyncio.get_running_loop()
        self._timer = None if due_s is None else loop.call_later(max(due_s - now_s, 0.0), self._pass)


class Place:
    """One transfer's place among those that take turns, for its thread to wait at. Made on the event loop."""

    def __init__(self, turns: Turns, peer: int) -> None:
        self._turns = turns
        self._peer = peer
        self._loop = asyncio.get_running_loop()
        self._waiting: asyncio.Task[None] | None = None
        self._is_given_up = False

    def take_turn(self, size_bytes: int) -> None:
        """Wait, in a thread, until so many bytes may leave; Unreachable once the place was given up."""
        try:
            asyncio.run_coroutine_threadsafe(self._turn(size_bytes), self._loop).result()
        except CancelledError:
            raise Unreachable("the transfer has been broken off") from None

    def give_up(self) -> None:
        """Wait no more, now and later; on the event loop."""
        self._is_given_up = True
        if self._waiting is not None:
            self._waiting.cancel()

    async def _turn(self, size_bytes: int) -> None:
        if self._is_given_up:
            raise asyncio.CancelledError
        self._waiting = asyncio.current_task()
        await self._turns.take(self._peer, size_bytes)
