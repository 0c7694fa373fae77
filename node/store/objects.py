"""Large objects on disk, each under the name that follows from its content: models, checkpoints, adapters.

An object is a file and its manifest. It is there once its manifest is, and it is whole then, whenever the power fails.
What is still being written or fetched is in ``partial``; which of its chunks are there is told by their digests alone,
never by a note that may be older or newer than the bytes.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from node import durable
from node.errors import BadFrame, Corrupt, Missing
from node.store.partial import Partial, install, refusing
from node.transfer.manifest import CHUNK_BYTES, Manifest, ObjectId, is_id


class Store:
    """A folder of objects. Objects never change: any number of threads and processes may read."""

    def __init__(self, folder: Path) -> None:
        """A folder that is not there is made; StoreError where it cannot be."""
        self._objects = folder / "objects"
        self._partial = folder / "partial"
        with refusing(folder):
            self._objects.mkdir(parents=True, exist_ok=True)
            self._partial.mkdir(exist_ok=True)

    def __contains__(self, id: ObjectId) -> bool:
        return is_id(id) and self._manifest_path(id).exists()

    def ids(self) -> list[ObjectId]:
        """All objects, sorted."""
        return sorted(path.stem for path in self._objects.glob("*.manifest") if is_id(path.stem))

    def manifest(self, id: ObjectId) -> Manifest:
        """The chunks of an object. Missing where there is none, Corrupt where its manifest is damaged."""
        path = self._manifest_path(id)
        with refusing(path):
            try:
                return Manifest.from_bytes(path.read_bytes(), id)
            except FileNotFoundError:
                raise Missing(f"object {id[:16]} is not in {self._objects.parent}; fetch it from a peer") from None
            except BadFrame as error:
                raise Corrupt(
                    f"object {id[:16]} in {self._objects.parent}: {error}; remove it, fetch it again"
                ) from None

    def add(self, source: Path | BinaryIO) -> Manifest:
        """Keep what a file holds, a chunk in memory at a time; gives the manifest, in which the id is.

        Raises:
            StoreError: the file cannot be read, or the disk is full.
            FrameTooLarge: it has too many chunks.
        """
        with refusing(self._partial):
            if isinstance(source, Path):
                with source.open("rb") as file:
                    return self._add(file)
            return self._add(source)

    def open(self, id: ObjectId) -> Stored:
        """An object to read from. Missing or Corrupt where there is none to read."""
        return self.reading(self.manifest(id))

    def reading(self, manifest: Manifest) -> Stored:
        """The same, where the manifest has been read before."""
        path = self._objects / manifest.id
        with refusing(path):
            try:
                return Stored(manifest, path)
            except FileNotFoundError:
                raise Corrupt(f"object {manifest.id[:16]} has lost its content; remove it, fetch it again") from None

    def begin(self, manifest: Manifest) -> Partial:
        """Where the chunks of an object are put together; those that an earlier attempt has kept are there already."""
        return Partial(manifest, self._partial, self._objects)

    def remove(self, id: ObjectId) -> None:
        """Forget an object, and what there is of it in part; nothing happens where there is none."""
        if is_id(id):
            with refusing(self._objects):
                # The manifest first: an object without one is not there.
                for path in (self._manifest_path(id), self._objects / id, self._partial / id):
                    path.unlink(missing_ok=True)
                durable.sync(self._objects)

    def _add(self, file: BinaryIO) -> Manifest:
        new = self._partial / f"new.{os.getpid()}.{id(file)}"
        try:
            with new.open("wb") as copy:
                manifest = Manifest.of(_copied(file, copy))
                copy.flush()
                os.fsync(copy.fileno())
            install(new, manifest, self._objects)
        finally:
            new.unlink(missing_ok=True)
        return manifest

    def _manifest_path(self, id: ObjectId) -> Path:
        if not is_id(id):
            raise Missing(f"{id[:80]!r} is no object's id; an id is 64 hexadecimal digits")
        return self._objects / f"{id}.manifest"


class Stored:
    """One object, open for reading: chunk by chunk into a buffer of the caller's, or as a view of the whole."""

    def __init__(self, manifest: Manifest, path: Path) -> None:
        self.manifest = manifest
        self._file = path.open("rb", buffering=0)
        if os.fstat(self._file.fileno()).st_size != manifest.size_bytes:
            self._file.close()
            raise Corrupt(f"object {manifest.id[:16]} has another size on disk; remove it and fetch it again")

    def read(self, index: int, into: memoryview) -> int:
        """Read a chunk into the beginning of a buffer; gives its size in bytes. From any thread."""
        size_bytes = self.manifest.chunk_size(index)
        if os.preadv(self._file.fileno(), [into[:size_bytes]], self.manifest.offset(index)) != size_bytes:
            raise Corrupt(f"object {self.manifest.id[:16]} ends in chunk {index}; remove it and fetch it again")
        return size_bytes

    def view(self) -> memoryview:
        """The whole object, read-only, mapped: pages are read when they are touched, and may be dropped again."""
        if not self.manifest.size_bytes:
            return memoryview(b"")
        return memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))

    def verify(self) -> None:
        """Corrupt, with the number of the first wrong chunk, unless every chunk is what it should be."""
        room = memoryview(bytearray(self.manifest.chunk_bytes))
        for index in range(self.manifest.chunks):
            if not self.manifest.matches(index, room[: self.read(index, room)]):
                raise Corrupt(f"chunk {index} of object {self.manifest.id[:16]} is damaged; remove and fetch it again")

    def close(self) -> None:
        """Read no more; views stay."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _copied(source: BinaryIO, copy: BinaryIO) -> Iterator[bytes]:
    while chunk := source.read(CHUNK_BYTES):
        copy.write(chunk)
        yield chunk
