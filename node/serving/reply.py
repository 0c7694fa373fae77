"""An answer as its client reads it: pieces of text through a queue that is bounded, and an end or an error."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from node.adapters.slots import Held
from node.errors import StarlingError
from node.workloads.latencies import Served

Finish = Literal["stop", "length"]


class Piece(NamedTuple):
    """Text that is new, and in the last piece why there is no more."""

    text: str
    finish: Finish | None = None


@dataclass
class Timing:
    """When what happened to a request, in seconds on the event loop's clock."""

    arrived_s: float
    resident_s: float | None = None
    """When its adapters were there, if they were not at once."""
    begun_s: float | None = None
    token_s: list[float] = field(default_factory=list)

    @property
    def load_wait_s(self) -> float:
        """How long it waited for its adapters alone."""
        return 0.0 if self.resident_s is None else self.resident_s - self.arrived_s

    def served(self) -> Served:
        """What is left to say in the end; it has generated one token at least."""
        begun_s = self.token_s[0] if self.begun_s is None else self.begun_s
        return Served(
            sent_s=self.arrived_s,
            token_s=tuple(self.token_s),
            load_wait_s=self.load_wait_s,
            queue_s=begun_s - self.arrived_s - self.load_wait_s,
            prefill_s=self.token_s[0] - begun_s,
        )


class Reply:
    """The answer to one request."""

    def __init__(self, arrived_s: float, most_unread: int, prompt_tokens: int, wake: Callable[[], None]) -> None:
        """``most_unread``: pieces that wait for a client, before nothing more is generated for it."""
        self.timing = Timing(arrived_s)
        self.prompt_tokens = prompt_tokens
        self.generated = 0
        self.held: tuple[Held, ...] = ()
        """The versions that it is generated with, once it has begun."""
        self.is_cancelled = self.is_over = False
        self._most_unread = most_unread
        self._pieces: asyncio.Queue[Piece | StarlingError] = asyncio.Queue()
        self._wake = wake

    @property
    def is_full(self) -> bool:
        """Whether its client reads more slowly than it is generated."""
        return self._pieces.qsize() >= self._most_unread

    def put(self, piece: Piece) -> None:
        """There is more to read."""
        self._pieces.put_nowait(piece)

    def fail(self, error: StarlingError) -> None:
        """It ends with an error."""
        self._pieces.put_nowait(error)

    def cancel(self) -> None:
        """The client has gone; nothing happens where all is generated."""
        if not self.is_over:
            self.is_cancelled = True
            self._wake()

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """All of it, to the end; who stops reading before cancels it.

        Raises:
            StarlingError: what it failed with.
        """
        try:
            while True:
                was_full = self.is_full
                piece = await self._pieces.get()
                if was_full:
                    self._wake()
                if isinstance(piece, StarlingError):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            self.cancel()

    async def whole(self) -> tuple[str, Finish]:
        """The whole text, and why it ended."""
        text, finish = [], None
        async for piece in self.pieces():
            text.append(piece.text)
            finish = piece.finish
        assert finish
        return "".join(text), finish
