"""How long a live node waits for its peers' messages, and how often it goes on without some of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from node.clock import Clock
from node.mailbox import Mailbox


class TimedMailbox(Mailbox):
    """A mailbox that tells how its waits end.

    Args:
        waited: told how long each has taken, in s, and whether some that were waited for are missing. One that is over
            at once takes no time.
    """

    __slots__ = ("_waited",)

    def __init__(self, owner: int, clock: Clock, waited: Callable[[float, bool], None]) -> None:
        super().__init__(owner, clock)
        self._waited = waited

    def collect(
        self, slot: tuple[Any, ...], frm: Sequence[int] | None, *args: Any, **options: Any
    ) -> Awaitable[dict[int, Any]] | dict[int, Any]:
        """As :meth:`Mailbox.collect`."""
        wanted = None if frm is None else len(set(frm))
        outcome = super().collect(slot, frm, *args, **options)
        if isinstance(outcome, asyncio.Future):
            since_s = time.monotonic()
            outcome.add_done_callback(lambda ended: self._over(ended, wanted, time.monotonic() - since_s))
        else:
            assert isinstance(outcome, dict)
            self._note(outcome, wanted, 0.0)
        return outcome

    def _over(self, ended: asyncio.Future[dict[int, Any]], wanted: int | None, seconds: float) -> None:
        if not ended.cancelled() and ended.exception() is None:
            self._note(ended.result(), wanted, seconds)

    def _note(self, heard: dict[int, Any], wanted: int | None, seconds: float) -> None:
        self._waited(seconds, wanted is not None and len(heard) < wanted)
