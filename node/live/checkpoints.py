"""A live node's saved state: at every instant one whole generation on disk, whenever the power fails."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import structlog

from node.durable import sync, write
from node.errors import Corrupt
from node.op import Spec

Saved = tuple[dict[str, Any], dict[str, tuple[Spec, bytes]]]
"""Plain values, and tensors as spec and raw elements, both by name."""


class Checkpoints:
    """Two generations of one node's state in a folder; without a folder, nothing is kept.

    A file is a BLAKE2b digest, then msgpack. It is written under another name, synced and renamed.
    """

    def __init__(self, folder: Path | None, write: Callable[[Path, bytes], None] = write) -> None:
        """``write`` has a file on the disk when it returns, or raises OSError."""
        self._folder = folder
        self._write_file = write
        self._is_failing = False

    @property
    def is_kept(self) -> bool:
        """Whether there is any use in saving."""
        return self._folder is not None

    def saved_s(self) -> float | None:
        """When the newest state was kept, in s since the epoch; None: there is none."""
        for name in ("current", "previous"):  # for a moment, between two renames, there is only the one before
            with contextlib.suppress(OSError):
                if self._folder is not None:
                    return (self._folder / f"checkpoint.{name}").stat().st_mtime
        return None

    def save(self, plain: Mapping[str, Any], tensors: Mapping[str, tuple[Spec, bytes]]) -> bool:
        """Keep a state; whether it is. The one before stays as a fallback.

        On a full disk it stays the newest, and there is a warning: one, until something could be kept again.
        """
        body = msgspec.msgpack.encode((dict(plain), {name: (tuple(s), data) for name, (s, data) in tensors.items()}))
        assert self._folder is not None
        try:
            self._write(self._folder, hashlib.blake2b(body).digest() + body)
        except OSError as error:
            if not self._is_failing:
                structlog.get_logger().warning("checkpoint not saved", folder=str(self._folder), reason=str(error))
            self._is_failing = True
            return False
        if self._is_failing:
            structlog.get_logger().info("checkpoint saved again", folder=str(self._folder))
        self._is_failing = False
        return True

    def _write(self, folder: Path, data: bytes) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        new, current, previous = (folder / f"checkpoint.{name}" for name in ("new", "current", "previous"))
        self._write_file(new, data)
        if current.exists():
            current.replace(previous)
        new.replace(current)
        sync(folder)

    def load(self) -> Saved | None:
        """The newest whole state, or None where nothing was ever saved. Raises Corrupt where none is whole."""
        if self._folder is None:
            return None
        found = [path for name in ("current", "previous") if (path := self._folder / f"checkpoint.{name}").exists()]
        for path in found:
            data = path.read_bytes()
            if hashlib.blake2b(data[64:]).digest() == data[:64]:
                return _parse(data[64:])
            structlog.get_logger().warning("checkpoint is torn, falling back", path=str(path))
        if found:
            raise Corrupt(f"{self._folder}: no checkpoint is whole; move the folder away to start anew")
        return None


def _parse(body: bytes) -> Saved:
    plain, tensors = msgspec.msgpack.decode(body)
    return plain, {name: (Spec(tuple(s[0]), s[1], tuple(s[2])), data) for name, (s, data) in tensors.items()}
