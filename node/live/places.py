"""Which announced messages may come now, so that what arrives from all peers together stays within a bound. No I/O.

Whoever announces gets a place, at once while there is room, else in the order of asking: a peer announces its next
message after its last, so peers take turns. A message larger than all room comes when it is alone. A place counts for a
while only: one whose sender is slow, or silent on purpose, keeps others waiting no longer than that.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, TypeAlias

PATIENCE_S = 2.0
"""For how long a place counts while others wait."""

Transfer: TypeAlias = tuple[int, int]
"""A peer, and the number that it has given its message."""


class _Place(NamedTuple):
    size_bytes: int
    since_s: float


class Places:
    """A state machine; whoever drives it says what time it is, in seconds of a clock that never goes back."""

    def __init__(self, room_bytes: float) -> None:
        self._room_bytes = room_bytes
        self._taken_bytes = 0
        self._taken: dict[Transfer, _Place] = {}
        """Those that count, the oldest first."""
        self._asking: deque[tuple[Transfer, int]] = deque()

    @property
    def due_s(self) -> float | None:
        """When :meth:`give` is to be called although nobody asks or leaves; None: never."""
        if not self._asking or not self._taken:
            return None
        return next(iter(self._taken.values())).since_s + PATIENCE_S

    def ask(self, transfer: Transfer, size_bytes: int) -> None:
        """A message has been announced."""
        self._asking.append((transfer, size_bytes))

    def leave(self, transfer: Transfer) -> None:
        """A message is here, or will not come."""
        if (place := self._taken.pop(transfer, None)) is not None:
            self._taken_bytes -= place.size_bytes
        elif any(transfer == waits for waits, _ in self._asking):
            self._asking = deque(each for each in self._asking if each[0] != transfer)

    def give(self, now_s: float) -> list[Transfer]:
        """Those that may come from now on."""
        given = []
        while self._asking:
            transfer, size_bytes = self._asking[0]
            if self._taken_bytes and self._taken_bytes + size_bytes > self._room_bytes:
                oldest, place = next(iter(self._taken.items()))
                if now_s - place.since_s < PATIENCE_S:
                    break
                self.leave(oldest)
                continue
            self._asking.popleft()
            self._taken[transfer] = _Place(size_bytes, now_s)
            self._taken_bytes += size_bytes
            given.append(transfer)
        return given

    def renew(self, now_s: float) -> None:
        """Nothing has been read for a while, which no sender could help: their time begins anew."""
        self._taken = {transfer: place._replace(since_s=now_s) for transfer, place in self._taken.items()}
