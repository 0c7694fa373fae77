"""What is held of broadcasts: in bounded memory, by age."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

KEPT = 1024
"""Payloads that can be sent again to who lacks them."""
KEPT_BYTES = 4 * 2**20
SEEN = 16_384
"""Broadcasts that are not delivered a second time; of older ones nothing is known."""
MISSING = 1024
"""Broadcasts that are known to be on their way."""
ANNOUNCERS = 8
"""Peers that are remembered to have one of those."""


class Payload(NamedTuple):
    """A broadcast, and how many links it took to come here."""

    content: bytes
    hop: int


class Archive:
    """Broadcasts that this node has had, the newest of them with their content."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()
        self._kept: OrderedDict[bytes, Payload] = OrderedDict()
        self._kept_bytes = 0

    def __contains__(self, id: bytes) -> bool:
        return id in self._seen

    def put(self, id: bytes, payload: Payload) -> None:
        """Remember a broadcast; the oldest make room."""
        self._seen[id] = None
        if len(self._seen) > SEEN:
            self._seen.popitem(last=False)
        self._kept[id] = payload
        self._kept_bytes += len(payload.content)
        while len(self._kept) > KEPT or self._kept_bytes > KEPT_BYTES:
            _, old = self._kept.popitem(last=False)
            self._kept_bytes -= len(old.content)

    def get(self, id: bytes) -> Payload | None:
        """A broadcast that can be sent again."""
        return self._kept.get(id)


class Missing:
    """Broadcasts that others have: from whom to ask for each, and when."""

    def __init__(self) -> None:
        self._announced: OrderedDict[bytes, list[int]] = OrderedDict()
        self._asks_s: dict[bytes, float] = {}

    def __contains__(self, id: bytes) -> bool:
        return id in self._announced

    def announce(self, id: bytes, peer: int, asks_s: float) -> None:
        """A peer has it; it may come by itself until ``asks_s``."""
        if id not in self._announced:
            if len(self._announced) >= MISSING:
                oldest, _ = self._announced.popitem(last=False)
                del self._asks_s[oldest]
            self._announced[id] = []
            self._asks_s[id] = asks_s
        announcers = self._announced[id]
        if peer not in announcers and len(announcers) < ANNOUNCERS:
            announcers.append(peer)

    def found(self, id: bytes) -> None:
        """It has come."""
        self._announced.pop(id, None)
        self._asks_s.pop(id, None)

    def forget_peer(self, peer: int) -> None:
        """A peer is gone; what only it had is lost."""
        for id, announcers in list(self._announced.items()):
            if peer in announcers:
                announcers.remove(peer)
            if not announcers:
                self.found(id)

    def due(self, now: float, again_s: float) -> list[tuple[bytes, int]]:
        """What to ask for now, and whom; the next one is asked at ``again_s``. Who was asked in vain is forgotten."""
        asks = []
        for id in [id for id, at_s in self._asks_s.items() if at_s <= now]:
            if announcers := self._announced[id]:
                asks.append((id, announcers.pop(0)))
                self._asks_s[id] = again_s
            else:
                self.found(id)
        return asks

    @property
    def deadline_s(self) -> float:
        """When the next one is to be asked for."""
        return min(self._asks_s.values(), default=float("inf"))
