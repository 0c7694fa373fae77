"""Maps of which each node writes its own and all get to know all, by gossip.

Scuttlebutt reconciliation (van Renesse, Dumitriu, Gough and Thomas, LADIS 2008): a writer numbers its changes; a digest
has the last number known of each writer, and the answer to it what is newer, in the order of numbers, so that an answer
may be cut anywhere. Only the newest value of a key is kept, and that a key is gone is a value, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import takewhile
from typing import Annotated, NamedTuple, TypeAlias, TypeVar

import msgspec

from node.errors import BadFrame
from node.placement.rendezvous import Node

MOST_ENTRIES = 1024
"""In one answer; more takes more answers."""
MOST_KEYS = 200_000
"""Of one writer; what it writes beyond that is not kept."""
MOST_VALUE_BYTES = 4096

Count = Annotated[int, msgspec.Meta(ge=0, lt=2**62)]
Name = Annotated[str, msgspec.Meta(max_length=512)]
Value = Annotated[bytes, msgspec.Meta(max_length=MOST_VALUE_BYTES)]


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One change: a key has this value now, or is gone."""

    version: Count
    key: Name
    value: Value | None


class Delta(msgspec.Struct, frozen=True, array_like=True):
    """What a writer has changed after ``since``, by rising versions; all of it, or the first part."""

    writer: Count
    generation: Count
    since: Count
    entries: Annotated[tuple[Entry, ...], msgspec.Meta(max_length=MOST_ENTRIES)]

    @property
    def last(self) -> Known:
        """What who merges it knows then."""
        return Known(self.generation, self.entries[-1].version if self.entries else self.since)


class Known(NamedTuple):
    """The last version known of a writer in its present generation."""

    generation: Count
    version: Count


Digest: TypeAlias = Mapping[Node, Known]


class Change(NamedTuple):
    """What a merge has brought: a key of a writer has another value, or (None) is gone."""

    writer: Node
    key: str
    value: bytes | None


@dataclass
class _Map:
    generation: int
    version: int = 0
    entries: dict[str, Entry] = field(default_factory=dict)
    """By rising version."""

    def write(self, entry: Entry) -> None:
        self.entries.pop(entry.key, None)
        self.entries[entry.key] = entry
        self.version = entry.version

    def value(self, key: str) -> bytes | None:
        return self.entries[key].value if key in self.entries else None

    def after(self, version: int) -> list[Entry]:
        newest_first = takewhile(lambda entry: entry.version > version, reversed(self.entries.values()))
        return list(newest_first)[::-1]

    def has_room_for(self, key: str) -> bool:
        return key in self.entries or len(self.entries) < MOST_KEYS


class Scuttlebutt:
    """What one node knows of all writers, of which it is one.

    A generation is one life of a writer: a larger one makes all before void. Who starts again without memory takes a
    larger one, such as the time in seconds; and where somebody else knows a later self of it, it goes beyond that.
    """

    def __init__(self, me: Node, generation: int) -> None:
        self._me = me
        self._maps: dict[Node, _Map] = {me: _Map(generation)}

    def put(self, key: str, value: bytes | None) -> None:
        """Write a key of one's own; None takes it away. What is so already is no change."""
        mine = self._maps[self._me]
        if mine.value(key) != value:
            mine.write(Entry(mine.version + 1, key, value))

    def get(self, writer: Node, key: str) -> bytes | None:
        """What a writer has last written, as far as is known here."""
        return self._maps[writer].value(key) if writer in self._maps else None

    def digest(self) -> dict[Node, Known]:
        """What is known here, to ask for what is newer."""
        return {writer: Known(known.generation, known.version) for writer, known in sorted(self._maps.items())}

    def newer(self, digest: Digest, most_entries: int = MOST_ENTRIES) -> list[Delta]:
        """What somebody with this digest does not know, in all up to ``most_entries``."""
        deltas = []
        for writer, known in sorted(self._maps.items()):
            theirs = digest.get(writer, Known(0, 0))
            since = theirs.version if theirs.generation == known.generation else 0
            if theirs.generation > known.generation or since >= known.version or not most_entries:
                continue
            entries = tuple(known.after(since)[:most_entries])
            deltas.append(Delta(writer, known.generation, since, entries))
            most_entries -= len(entries)
        return deltas

    def merge(self, deltas: Iterable[Delta]) -> list[Change]:
        """Learn what is newer. Deltas that leave a gap, or are of an earlier life, are passed over."""
        changes: list[Change] = []
        for delta in deltas:
            if delta.writer == self._me:
                self.object({self._me: delta.last})
            else:
                changes += self._learn(delta)
        return changes

    def object(self, digest: Digest) -> None:
        """Where somebody knows more of this node than it does itself, begin a life beyond that one."""
        known, mine = digest.get(self._me, Known(0, 0)), self._maps[self._me]
        if known <= (mine.generation, mine.version):
            return
        again = _Map(known.generation + 1)
        for entry in mine.entries.values():
            if entry.value is not None:
                again.write(Entry(again.version + 1, entry.key, entry.value))
        self._maps[self._me] = again

    def forget(self, writer: Node) -> list[Change]:
        """Know nothing of a writer any more."""
        known = self._maps.pop(writer, _Map(0))
        return [Change(writer, key, None) for key, entry in known.entries.items() if entry.value is not None]

    def _learn(self, delta: Delta) -> list[Change]:
        known = self._maps.get(delta.writer, _Map(0))
        changes = []
        if delta.generation > known.generation or delta.writer not in self._maps:
            if delta.since:
                return []
            changes = self.forget(delta.writer)
            known = self._maps[delta.writer] = _Map(delta.generation)
        if delta.generation < known.generation or delta.since > known.version:
            return []
        for entry in delta.entries:
            if entry.version > known.version and known.has_room_for(entry.key):
                known.write(entry)
                changes.append(Change(delta.writer, entry.key, entry.value))
        return changes


def encode(said: Digest | list[Delta]) -> bytes:
    """A digest or deltas, as they go into a message."""
    return msgspec.msgpack.encode(said)


def decode_digest(data: bytes) -> Digest:
    """Read a digest from elsewhere. BadFrame where it is none."""
    return _decoded(_DIGEST, data)


def decode_deltas(data: bytes) -> list[Delta]:
    """Read deltas from elsewhere. BadFrame where they are none."""
    return _decoded(_DELTAS, data)


_DIGEST = msgspec.msgpack.Decoder(dict[Count, Known])
_DELTAS = msgspec.msgpack.Decoder(list[Delta])
_Said = TypeVar("_Said")


def _decoded(decoder: msgspec.msgpack.Decoder[_Said], data: bytes) -> _Said:
    try:
        return decoder.decode(data)
    except msgspec.MsgspecError as error:
        raise BadFrame(f"not what a node says of itself and others: {error}") from error
