"""An object on its way to this disk, chunk by chunk, in any order, over any number of attempts and lives."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from node import durable
from node.errors import StoreError
from node.transfer.manifest import Bytes, Manifest


class Partial:
    """Some chunks of an object, each at its place in one file. Only one of an object may be open at a time."""

    def __init__(self, manifest: Manifest, partial: Path, objects: Path) -> None:
        """StoreError where the disk has no room or refuses. What an earlier life has kept is read and verified."""
        self.manifest = manifest
        self._path = partial / manifest.id
        self._objects = objects
        with refusing(self._path):
            is_new = not self._path.exists()
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self.present = () if is_new else tuple(self._found())
                os.truncate(self._file, manifest.size_bytes)
            except BaseException:
                self.close()
                raise

    present: tuple[int, ...]
    """The chunks that were there when it was opened, sorted."""

    def write(self, index: int, chunk: Bytes) -> None:
        """Put a chunk at its place; it has been verified. From any thread; StoreError where the disk refuses."""
        with refusing(self._path):
            written = os.pwrite(self._file, chunk, self.manifest.offset(index))
        if written != len(chunk):
            raise StoreError(f"{self._path}: only {written} of {len(chunk)} bytes were written; is the disk full?")

    def finish(self) -> None:
        """All chunks are there: from now on it is an object of the store, also after a power failure."""
        with refusing(self._path):
            os.fsync(self._file)
            install(self._path, self.manifest, self._objects)
        self.close()

    def close(self) -> None:
        """Write no more; what is there stays for another attempt."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _found(self) -> Iterator[int]:
        room = memoryview(bytearray(self.manifest.chunk_bytes))
        for index in range(self.manifest.chunks):
            chunk = room[: self.manifest.chunk_size(index)]
            read = os.preadv(self._file, [chunk], self.manifest.offset(index))
            if read == len(chunk) and self.manifest.matches(index, chunk):
                yield index


def install(data: Path, manifest: Manifest, objects: Path) -> None:
    """Let a synced file be the object of a manifest."""
    data.replace(objects / manifest.id)
    durable.sync(objects)
    durable.replace(objects / f"{manifest.id}.manifest", manifest.to_bytes())


@contextlib.contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Say in one line what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"{error.filename or path}: {error.strerror}; make room, or name another folder") from error
