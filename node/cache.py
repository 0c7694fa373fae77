"""Solved values on disk, by what they follow from: a run that shares a beginning with an earlier one reuses it.

A value's digest (:mod:`node.digests`) covers everything that its bits follow from, and nothing else. Values are kept in
*packs*, one file for all that one window has left behind, written under another name, synced and renamed. Every value
is checked when it is read, and a torn or rotten one counts as absent. Past its limit the folder loses the packs that
were not used for longest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable, Mapping
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec
import structlog

from node.errors import ConfigError
from node.op import Spec, Value

DIGEST_BYTES = 16
_MAGIC = b"starling-pack-1\n"
_LENGTH = struct.Struct("<Q")
_SUFFIX = ".pack"
_MOST_INDEX_BYTES = 1 << 30

ToBuffer = Callable[[Value], memoryview]
FromBuffer = Callable[[bytearray, Spec], Value]


class _Place(NamedTuple):
    pack: Path
    offset: int
    size_bytes: int
    check: bytes
    spec: Spec | None
    """None: a mapping of metrics."""


class Cache:
    """Values by digest in a folder, which several runs may use at once.

    Args:
        limit_bytes: size of the folder past which what was not used for longest goes.

    Raises:
        ConfigError: the folder cannot be made.
    """

    def __init__(self, folder: Path, limit_bytes: int, to_buffer: ToBuffer, from_buffer: FromBuffer) -> None:
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._to_buffer = to_buffer
        self._from_buffer = from_buffer
        self._places: dict[bytes, _Place] = {}
        self._used: set[Path] = set()
        self.reused = 0
        self.written_bytes = 0
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"executor.cache: {folder}: cannot be used: {error.strerror or error}") from None
        for pack in sorted(folder.glob(f"*{_SUFFIX}")):
            self._places.update(_index(pack))

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._places

    def get(self, digest: bytes) -> Value | None:
        """A value, or None where there is none that is whole."""
        place = self._places.get(digest)
        if place is None:
            return None
        data = _read(place)
        if data is None:
            del self._places[digest]
            structlog.get_logger().warning("cached value is not whole; it is solved again", pack=str(place.pack))
            return None
        if place.pack not in self._used:
            self._used.add(place.pack)
            _touch(place.pack)
        self.reused += 1
        return msgspec.msgpack.decode(data) if place.spec is None else self._from_buffer(data, place.spec)

    def put(self, values: Mapping[bytes, tuple[Value, Spec]]) -> None:
        """Keep some values by digest, in one pack; a full disk costs the pack and a warning, not the run."""
        entries = [(digest, *self._encoded(*value)) for digest, value in values.items() if digest not in self._places]
        if not entries:
            return
        name = blake2b(b"".join(digest for digest, _, _ in entries), digest_size=DIGEST_BYTES).hexdigest()
        pack = self._folder / f"{name}{_SUFFIX}"
        try:
            self.written_bytes += _write(pack, entries)
        except OSError as error:
            structlog.get_logger().warning("values not cached", folder=str(self._folder), reason=str(error))
            return
        self._used.add(pack)
        self._places.update(_index(pack))
        self._trim()

    def _encoded(self, value: Value, spec: Spec) -> tuple[Spec | None, memoryview]:
        if spec.names:
            return None, memoryview(msgspec.msgpack.encode(value))
        return spec, self._to_buffer(value)

    def _trim(self) -> None:
        """Let the packs go that were not used for longest, until the folder is within its limit."""
        found = []
        for pack in self._folder.glob(f"*{_SUFFIX}"):
            try:
                status = pack.stat()
            except FileNotFoundError:
                continue  # another run has trimmed it
            found.append((status.st_mtime_ns, pack, status.st_size))
        size_bytes = sum(size for _, _, size in found)
        for _, pack, size in sorted(found):
            if size_bytes <= self._limit_bytes:
                return
            pack.unlink(missing_ok=True)
            size_bytes -= size
            self._places = {digest: place for digest, place in self._places.items() if place.pack != pack}


def _index(pack: Path) -> dict[bytes, _Place]:
    """What a pack holds; nothing where it is not whole."""
    try:
        with pack.open("rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return {}
            (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
            if length > _MOST_INDEX_BYTES:
                return {}
            entries = msgspec.msgpack.decode(file.read(length))
            start = file.tell()
        return {
            digest: _Place(pack, start + offset, size, check, spec and Spec(tuple(spec[0]), spec[1]))
            for digest, offset, size, check, spec in entries
        }
    except (OSError, struct.error, msgspec.MsgspecError, ValueError, TypeError):
        return {}


def _read(place: _Place) -> bytearray | None:
    data = bytearray(place.size_bytes)
    try:
        with place.pack.open("rb") as file:
            file.seek(place.offset)
            whole = file.readinto(data) == len(data)
    except OSError:
        return None
    return data if whole and _check(data) == place.check else None


def _check(data: bytearray | memoryview) -> bytes:
    return blake2b(data, digest_size=DIGEST_BYTES).digest()


def _write(pack: Path, entries: Iterable[tuple[bytes, Spec | None, memoryview]]) -> int:
    """Write a pack, whole or not at all; gives its size in bytes."""
    index, offset, entries = [], 0, list(entries)
    for digest, spec, data in entries:
        index.append((digest, offset, data.nbytes, _check(data), spec and (spec.shape, spec.dtype)))
        offset += data.nbytes
    head = msgspec.msgpack.encode(index)
    temporary = pack.with_name(f".{pack.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.writelines([_MAGIC, _LENGTH.pack(len(head)), head, *[data for _, _, data in entries]])
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(pack)
    finally:
        temporary.unlink(missing_ok=True)
    return offset + len(head)


def _touch(pack: Path) -> None:
    try:
        os.utime(pack)
    except FileNotFoundError:
        return  # another run has trimmed it: what was read is good all the same
