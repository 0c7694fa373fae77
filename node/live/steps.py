"""Whether a node begins new training steps: its operator may hold them, or have it leave where nothing is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager


class Steps:
    """What every training step of a node passes. All of it belongs to the event loop.

    A node that drains leaves when its next checkpoint is kept. Where it has kept none yet, or nothing has begun since,
    it leaves when the next step would begin.

    Args:
        took: told how long each step has taken, in s.
    """

    def __init__(self, took: Callable[[float], None] = lambda seconds: None) -> None:
        self.is_draining = False
        """Whether the node leaves as soon as it can; that is not taken back."""
        self._took = took
        self._open = asyncio.Event()
        self._open.set()
        self._waiting = 0
        self._keeps = False
        self._has_begun = False
        self._leave: Callable[[], None] | None = None

    @property
    def is_held(self) -> bool:
        """Whether no new step begins."""
        return not self._open.is_set()

    def hold(self) -> None:
        """Begin no new step; one that is at work goes on."""
        self._open.clear()

    def release(self) -> None:
        """Let steps begin again."""
        self._open.set()

    def drain(self, leave: Callable[[], None]) -> None:
        """Call ``leave`` once, at the next point where nothing is lost. A held node goes on until there."""
        self.is_draining, self._leave = True, leave
        if self._waiting and self._is_settled:
            self._part()
        else:
            self.release()

    def kept(self) -> None:
        """A checkpoint is on the disk."""
        self._keeps, self._has_begun = True, False
        if self.is_draining:
            self._part()

    @asynccontextmanager
    async def next(self) -> AsyncIterator[None]:
        """One step: waits while steps are held, and is timed."""
        if self.is_draining and self._is_settled:
            self._part()
        self._waiting += 1
        try:
            await self._open.wait()
        finally:
            self._waiting -= 1
        self._has_begun = True
        began_s = time.monotonic()
        yield
        self._took(time.monotonic() - began_s)

    @property
    def _is_settled(self) -> bool:
        return not (self._keeps and self._has_begun)

    def _part(self) -> None:
        self.hold()
        leave, self._leave = self._leave, None
        if leave is not None:
            leave()
