"""Which chunks of an object are on their way, and which are still missing: both ends of a transfer, without sockets."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Self

from node.errors import BadFrame, Corrupt
from node.transfer.manifest import Bytes, Manifest

WINDOW_CHUNKS = 8
"""Chunks that one receiver may have on their way to it: sent, and not yet verified and kept."""


class ChunkSet:
    """Some of an object's chunks; on the wire a bit for each, the first chunk's lowest."""

    def __init__(self, chunks: int, members: Iterable[int] = ()) -> None:
        self._is_in = bytearray(chunks)
        self._count = 0
        for index in members:
            self.add(index)

    @classmethod
    def from_bytes(cls, data: Bytes, chunks: int) -> Self:
        """Read the set of some of ``chunks`` chunks. BadFrame where it has another length, or others in it."""
        bits = int.from_bytes(data, "little")
        if len(data) != -(-chunks // 8) or bits >> chunks:
            raise BadFrame(f"{len(data)} bytes do not name some of {chunks} chunks")
        return cls(chunks, (index for index in range(chunks) if data[index // 8] >> index % 8 & 1))

    def to_bytes(self) -> bytes:
        """A bit for each chunk."""
        data = bytearray(-(-len(self._is_in) // 8))
        for index in self:
            data[index // 8] |= 1 << index % 8
        return bytes(data)

    def add(self, index: int) -> None:
        """Put a chunk in."""
        self._count += not self._is_in[index]
        self._is_in[index] = 1

    def remove(self, index: int) -> None:
        """Take a chunk out."""
        self._count -= self._is_in[index]
        self._is_in[index] = 0

    def __contains__(self, index: int) -> bool:
        return 0 <= index < len(self._is_in) and bool(self._is_in[index])

    def __iter__(self) -> Iterator[int]:
        return (index for index, is_in in enumerate(self._is_in) if is_in)

    def __len__(self) -> int:
        return self._count


class Sending:
    """What one attempt sends: each wanted chunk once, in order, at most a window ahead of what is acknowledged."""

    def __init__(self, wanted: ChunkSet, window: int = WINDOW_CHUNKS) -> None:
        self._left = iter(wanted)
        self._total = len(wanted)
        self._window = window
        self.sent = 0
        """Chunks that have been given out by :meth:`next`."""
        self.acknowledged = 0
        """Chunks that the receiver has verified and kept."""

    @property
    def is_open(self) -> bool:
        """Whether :meth:`next` has a chunk now."""
        return self.sent < self._total and self.sent - self.acknowledged < self._window

    @property
    def is_over(self) -> bool:
        """Whether the receiver has everything that it wanted."""
        return self.acknowledged == self._total

    def next(self) -> int | None:
        """The chunk to send next; None while the window is full, and after the last."""
        if not self.is_open:
            return None
        self.sent += 1
        return next(self._left)

    def acknowledge(self, total: int) -> None:
        """The receiver says how many chunks of this attempt it has kept. BadFrame where it was sent fewer."""
        if not self.acknowledged <= total <= self.sent:
            raise BadFrame(f"{total} chunks acknowledged, of {self.sent} sent and {self.acknowledged} known")
        self.acknowledged = total


class Receiving:
    """What of an object is here; a chunk counts when its bytes are those that the manifest promises."""

    def __init__(self, manifest: Manifest, present: Iterable[int] = ()) -> None:
        self.manifest = manifest
        self.missing = ChunkSet(manifest.chunks, range(manifest.chunks))
        self.received = 0
        """Chunks that have arrived, in all attempts."""
        self._missing_bytes = manifest.size_bytes
        for index in present:
            self._keep(index)

    @property
    def present_bytes(self) -> int:
        """Bytes of the object that are here."""
        return self.manifest.size_bytes - self._missing_bytes

    def expect(self, index: int) -> int:
        """The size in bytes of a chunk that is announced; BadFrame for one that is not missing."""
        if index not in self.missing:
            raise BadFrame(f"chunk {index} of object {self.manifest.id[:16]} is not missing")
        return self.manifest.chunk_size(index)

    def check(self, index: int, chunk: Bytes, sender: int) -> None:
        """Corrupt, with the sender's name, unless the bytes are that chunk's. Changes nothing: for any thread."""
        if not self.manifest.matches(index, chunk):
            raise Corrupt(
                f"node {sender} sent a wrong chunk {index} of object {self.manifest.id[:16]}: its copy is damaged, or "
                "it lies; fetch from another node"
            )

    def arrived(self, index: int) -> None:
        """A chunk has been checked and kept."""
        self.received += 1
        self._keep(index)

    def _keep(self, index: int) -> None:
        if index in self.missing:
            self.missing.remove(index)
            self._missing_bytes -= self.manifest.chunk_size(index)
