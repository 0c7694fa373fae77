"""A node's open requests: a state machine without I/O."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

from node.clock import Clock, Priority
from node.errors import DeadlineExceeded, Unreachable
from node.message import Message


class Requests:
    """Questions that a node has asked, and nobody has answered yet."""

    __slots__ = ("_clock", "_open", "_owner", "asked")

    def __init__(self, owner: int, clock: Clock, asked: int = 0) -> None:
        self._owner = owner
        self._clock = clock
        self.asked = asked
        """Requests so far, in earlier lives too: no answer can be taken for that to another question."""
        self._open: dict[int, tuple[int, asyncio.Future[Any]]] = {}

    def ask(self, to: int, message: Message, timeout_s: float | None) -> tuple[int, asyncio.Future[Any]]:
        """Open a request: its number, and what its answer or failure comes to."""
        self.asked += 1
        number = self.asked
        future: asyncio.Future[Any] = self._clock.create_future()
        self._open[number] = (to, future)
        if timeout_s is not None:
            late = DeadlineExceeded(
                f"node {to} has not answered node {self._owner}'s {message.wire_name} in {timeout_s} s"
            )
            # By number: a timer that held the future would keep the answer's models alive until the deadline.
            self._clock.post(timeout_s, self._expire, (number, late), Priority.TIMER)
        return number, future

    def _expire(self, arg: tuple[int, DeadlineExceeded]) -> None:
        number, late = arg
        _, future = self._open.get(number, (None, None))
        if future is not None and not future.done():
            future.set_exception(late)

    def close(self, number: int) -> None:
        """Nobody waits for the answer any longer."""
        self._open.pop(number, None)

    def answered(self, sender: int, message: Message, number: int) -> None:
        """Take in an answer; one that was not asked for, or comes from somebody else, is passed over."""
        to, future = self._open.get(number, (None, None))
        if to == sender and future is not None and not future.done():
            future.set_result(message)

    def lose(self, peer: int) -> None:
        """A peer is gone: it answers nothing any more."""
        for to, future in list(self._open.values()):
            if to == peer and not future.done():
                future.set_exception(Unreachable(f"node {peer} went before it answered node {self._owner}"))

    def stories(self) -> Iterator[str]:
        """One line for each answer that the node waits for."""
        for to, future in self._open.values():
            if not future.done():
                yield f"node {self._owner} waits for an answer of node {to}"
