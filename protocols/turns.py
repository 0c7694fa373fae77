"""What comes one by one, taken in the order of the senders' numbers as far as few enough have to wait for that."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Hands what senders send on, each after all of lower numbers.

    At most ``window`` wait for those of lower numbers: one more, and the lowest that has come is handed on before its
    turn.
    """

    def __init__(self, senders: Iterable[int], window: int, each: Callable[[int, T], None]) -> None:
        self._turns = deque(sorted(senders))
        self._window = window
        self._each = each
        self._waiting: dict[int, T] = {}
        self._done: set[int] = set()

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def put(self, sender: int, item: T) -> None:
        """Take in what a sender has sent."""
        self._waiting[sender] = item
        while self._waiting and (self._next() in self._waiting or len(self._waiting) > self._window):
            self._hand_on()

    def finish(self) -> None:
        """Hand on all that waits: nothing more will come."""
        while self._waiting:
            self._hand_on()

    def _next(self) -> int:
        """Whose turn it is; -1: everybody has had one."""
        while self._turns and self._turns[0] in self._done:
            self._turns.popleft()
        return self._turns[0] if self._turns else -1

    def _hand_on(self) -> None:
        sender = min(self._waiting)
        self._done.add(sender)
        self._each(sender, self._waiting.pop(sender))
