"""What a large object is made of: chunks, each with a digest of its own, and one name that follows from all of them.

Whoever knows an object's id can tell its manifest from a false one, and with the manifest each chunk, wherever it comes
from. A manifest on the wire or on disk is a version byte, the object's size (u64) and that of its chunks (u32), both
little-endian, and the SHA-256 digests of the chunks. Its SHA-256, behind a domain tag, is the object's id.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Self, TypeAlias

from node.errors import BadFrame, Corrupt, FrameTooLarge

ObjectId: TypeAlias = str
"""The id of an object: 64 hexadecimal digits."""

Bytes: TypeAlias = bytes | bytearray | memoryview

CHUNK_BYTES = 1 << 20
"""Of every chunk but the last. 1 MiB measured fastest; a receiver verifies and keeps whole chunks only."""
LEAST_CHUNK_BYTES = 256 << 10
"""The smallest and (:data:`CHUNK_BYTES`) largest chunks that a manifest from elsewhere may ask for."""
MOST_CHUNKS = 30_000
"""Of one object, so that its manifest fits the header of a message."""

_DOMAIN = b"starling/object/1\0"
_VERSION = 1
_HEAD = struct.Struct("<BQI")
_DIGEST_BYTES = hashlib.sha256().digest_size
_ID = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """The chunks of one object."""

    size_bytes: int
    chunk_bytes: int
    digests: bytes
    """SHA-256 of each chunk, one after another."""

    @classmethod
    def of(cls, chunks: Iterable[Bytes], chunk_bytes: int = CHUNK_BYTES) -> Self:
        """The manifest of an object that comes in chunks, each of ``chunk_bytes`` but the last.

        Raises:
            FrameTooLarge: there are more than ``MOST_CHUNKS``.
        """
        size_bytes, digests = 0, bytearray()
        for chunk in chunks:
            size_bytes += len(chunk)
            digests += hashlib.sha256(chunk).digest()
            if len(digests) > MOST_CHUNKS * _DIGEST_BYTES:
                raise FrameTooLarge(f"an object of more than {MOST_CHUNKS} chunks of {chunk_bytes} bytes; divide it")
        return cls(size_bytes, chunk_bytes, bytes(digests))

    @classmethod
    def from_bytes(cls, data: Bytes, id: ObjectId) -> Self:
        """Read the manifest of an object. Corrupt where it is not this object's, BadFrame where it is none."""
        if _digest(data) != id:
            raise Corrupt(f"the manifest is not that of object {id[:16]}")
        if len(data) < _HEAD.size or data[0] != _VERSION:
            raise BadFrame(f"not a manifest: {len(data)} bytes, version {data[0] if data else 'missing'}")
        _, size_bytes, chunk_bytes = _HEAD.unpack_from(data)
        manifest = cls(size_bytes, chunk_bytes, bytes(data[_HEAD.size :]))
        if not LEAST_CHUNK_BYTES <= chunk_bytes <= CHUNK_BYTES or not manifest._adds_up():
            raise BadFrame(f"not a manifest: {size_bytes} bytes in chunks of {chunk_bytes}, {len(data)} bytes long")
        return manifest

    def to_bytes(self) -> bytes:
        """The manifest on the wire and on disk."""
        return _HEAD.pack(_VERSION, self.size_bytes, self.chunk_bytes) + self.digests

    @cached_property
    def id(self) -> ObjectId:
        """The name of the object."""
        return _digest(self.to_bytes())

    @property
    def chunks(self) -> int:
        """How many there are."""
        return len(self.digests) // _DIGEST_BYTES

    def offset(self, index: int) -> int:
        """Where a chunk begins in the object, in bytes."""
        return index * self.chunk_bytes

    def chunk_size(self, index: int) -> int:
        """Bytes of one chunk."""
        return min(self.chunk_bytes, self.size_bytes - self.offset(index))

    def matches(self, index: int, chunk: Bytes) -> bool:
        """Whether these are the bytes of that chunk."""
        at = index * _DIGEST_BYTES
        return hashlib.sha256(chunk).digest() == self.digests[at : at + _DIGEST_BYTES]

    def _adds_up(self) -> bool:
        chunks = -(-self.size_bytes // self.chunk_bytes)
        return chunks <= MOST_CHUNKS and len(self.digests) == chunks * _DIGEST_BYTES


def is_id(text: str) -> bool:
    """Whether a text is the id of an object, and so the name of a file and nothing more."""
    return _ID.fullmatch(text) is not None


def _digest(encoded: Bytes) -> ObjectId:
    hash = hashlib.sha256(_DOMAIN)
    hash.update(encoded)
    return hash.hexdigest()
