"""The stream of a run's events, and its hash: what makes two runs comparable, event by event."""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Iterator
from enum import IntEnum
from hashlib import blake2b
from typing import NamedTuple

_BLOCK = 1_000
_FIELDS = 5
_BLOCK_FIELDS = _BLOCK * _FIELDS


class EventKind(IntEnum):
    """What happened."""

    TRAINED = 1
    DELIVERED = 2
    LOST = 3
    ENDED = 4


class Event(NamedTuple):
    """One thing that happened to a node."""

    time_s: float
    kind: EventKind
    node: int
    peer: int
    size_bytes: int

    def json(self) -> str:
        """One line of ``events.jsonl``."""
        return json.dumps({**self._asdict(), "kind": self.kind.name.lower()})


Sink = Callable[[bytes], object]


class Tape:
    """Hashes events in blocks as they come, and passes the blocks on to a sink.

    Args:
        sink: receives every block, as float64 fields of whole events; see :func:`events_of`.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        self._hash = blake2b(digest_size=16)
        self._block: list[float] = []
        self._sink = sink
        self._noted = 0
        self.take = self._block.extend
        """Take in the fields of one event without looking at the block's size: for the hottest kind of event only."""

    def note(self, time_s: float, kind: int, node: int, peer: int = -1, size_bytes: int = 0) -> None:
        """Take in one event."""
        self.take((time_s, kind, node, peer, size_bytes))
        if len(self._block) >= _BLOCK_FIELDS:
            self._flush()

    def flush_when_full(self) -> None:
        """To be called now and then by whoever uses :attr:`take`."""
        if len(self._block) >= _BLOCK_FIELDS:
            self._flush()

    def _flush(self) -> None:
        data = array("d", self._block).tobytes()
        self._noted += len(self._block) // _FIELDS
        self._hash.update(data)
        if self._sink is not None:
            self._sink(data)
        self._block.clear()

    @property
    def events(self) -> int:
        """Events so far."""
        return self._noted + len(self._block) // _FIELDS

    def digest(self) -> str:
        """The hash of everything so far, in hexadecimal."""
        self._flush()
        return self._hash.hexdigest()


def events_of(data: bytes) -> Iterator[Event]:
    """The events in some blocks of a tape."""
    fields = array("d", data)
    for i in range(0, len(fields), _FIELDS):
        time_s, kind, node, peer, size_bytes = fields[i : i + _FIELDS]
        yield Event(time_s, EventKind(int(kind)), int(node), int(peer), int(size_bytes))


def first_difference(one: bytes, other: bytes) -> tuple[int, Event | None, Event | None] | None:
    """Where two tapes differ first: the event's number, and what each has there (None: it has ended)."""
    if one == other:
        return None
    mine, theirs = list(events_of(one)), list(events_of(other))
    for i in range(max(len(mine), len(theirs))):
        a = mine[i] if i < len(mine) else None
        b = theirs[i] if i < len(theirs) else None
        if a != b:
            return i, a, b
    return None
