"""One fetch for all who want the same thing at one time, and errors that are forgotten in time."""

from __future__ import annotations

from enum import Enum, auto
from typing import Generic, NamedTuple, TypeAlias, TypeVar

from node.caching.policy import Key

Waiter = TypeVar("Waiter")


class Fetch(Enum):
    """What a want comes to."""

    STARTED = auto()
    """Nobody fetches it yet: the caller does."""
    JOINED = auto()
    """Somebody fetches it already."""


class Errored(NamedTuple):
    """It failed a moment ago, and is not tried again before ``retry_at_s``."""

    error: str
    retry_at_s: float


Answer: TypeAlias = Fetch | Errored


class Inflight(Generic[Waiter]):
    """Who waits for what is on its way. Waiters are whatever the caller wakes: a future, the number of a request."""

    def __init__(self, retry_after_s: float) -> None:
        self._retry_after_s = retry_after_s
        self._waiters: dict[Key, list[Waiter]] = {}
        self._errors: dict[Key, Errored] = {}

    def want(self, key: Key, waiter: Waiter, now_s: float) -> Answer:
        """Somebody wants a key that is not here. Errored, and nothing to wait for, soon after a failure."""
        if key in self._waiters:
            self._waiters[key].append(waiter)
            return Fetch.JOINED
        error = self._errors.get(key)
        if error is not None and now_s < error.retry_at_s:
            return error
        self._waiters[key] = [waiter]
        return Fetch.STARTED

    def arrived(self, key: Key) -> list[Waiter]:
        """It is here: whom to tell, in order of asking."""
        self._errors.pop(key, None)
        return self._waiters.pop(key, [])

    def failed(self, key: Key, error: str, now_s: float) -> list[Waiter]:
        """It could not be fetched: whom to tell, in order of asking. Who comes soon after gets the same error."""
        self._errors = {key: known for key, known in self._errors.items() if now_s < known.retry_at_s}
        self._errors[key] = Errored(error, now_s + self._retry_after_s)
        return self._waiters.pop(key, [])

    def give_up(self, key: Key, waiter: Waiter) -> bool:
        """Somebody wants it no more; whether nobody does, so that the fetch can be cancelled."""
        waiters = self._waiters.get(key, [])
        if waiter not in waiters:
            return False
        waiters.remove(waiter)
        if not waiters:
            del self._waiters[key]
        return not waiters

    def __contains__(self, key: Key) -> bool:
        return key in self._waiters
