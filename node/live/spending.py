"""What a live node has spent of its privacy, on disk: safe before the training that it is spent on begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from node.durable import replace
from node.errors import Corrupt, StoreError


class Spending:
    """One file of a node's folder, replaced as a whole: a BLAKE2b digest, then JSON.

    It outlives experiments, because what was spent on the same data adds up. There is no older one to fall back to: it
    would have forgotten something.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def keep(self, state: Mapping[str, Any]) -> None:
        """Keep a state, and return when it is safe. Raises StoreError where it cannot be: then nothing may be spent."""
        body = msgspec.json.encode(state)
        try:
            replace(self._path, hashlib.blake2b(body).hexdigest().encode() + b"\n" + body + b"\n")
        except OSError as error:
            raise StoreError(
                f"{self._path}: what is spent of the privacy budget cannot be written: {error.strerror}; "
                "without it nothing may be trained"
            ) from error

    def load(self) -> dict[str, Any] | None:
        """What was kept last, or None where nothing ever was. Raises Corrupt where it is damaged."""
        try:
            digest, _, body = self._path.read_bytes().partition(b"\n")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be read: {error.strerror}") from error
        body = body.removesuffix(b"\n")
        if hashlib.blake2b(body).hexdigest().encode() != digest:
            raise Corrupt(
                f"{self._path}: is damaged, and with it what this node has spent of its privacy; restore it from a copy"
            )
        state: dict[str, Any] = msgspec.json.decode(body)
        return state
