"""What has passed between a node and its peers, by kind of message and by peer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

MOST_PEERS = 64
"""Peers that are counted apart; the others are one."""

OTHERS = "other"


class Way(NamedTuple):
    """Messages of one kind, to or from one peer."""

    direction: str
    """``sent`` or ``received``."""
    kind: str
    """The wire name of the messages."""
    peer: str
    """Its number, or ``other``."""


class Passed(NamedTuple):
    """How much has passed on a way."""

    messages: int
    size_bytes: int
    """Headers and payloads."""


class Tally:
    """Counts; the first peers that anything passes to or from have a place of their own."""

    def __init__(self) -> None:
        self._passed: dict[Way, Passed] = {}
        self._named: set[int] = set()

    def note(self, direction: str, kind: str, peer: int, size_bytes: int) -> None:
        """One message has passed."""
        if len(self._named) < MOST_PEERS:
            self._named.add(peer)
        way = Way(direction, kind, str(peer) if peer in self._named else OTHERS)
        messages, before_bytes = self._passed.get(way, (0, 0))
        self._passed[way] = Passed(messages + 1, before_bytes + size_bytes)

    def size_bytes(self, direction: str) -> int:
        """All that has passed in a direction."""
        return sum(passed.size_bytes for way, passed in self._passed.items() if way.direction == direction)

    def read(self) -> Mapping[Way, Passed]:
        """All of it, sorted."""
        return dict(sorted(self._passed.items()))
