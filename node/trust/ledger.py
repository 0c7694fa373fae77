"""What a network's authority or one of its members must not forget: one file of JSON lines that only grows.

An entry is on the disk before anything follows from it. Several processes may write: each takes the lock and first
reads what the others have added. A line that a crash has cut short was never answered for, and is dropped.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from node.errors import ConfigError, Corrupt, StoreError
from node.trust.certificate import Certificate, Role
from node.trust.files import check_private, write_private
from node.trust.revocation import Revocation
from node.trust.statement import Identifier, PublicKey, Seconds
from node.trust.succession import Succession
from node.trust.token import MOST_USES, TokenId


class Founded(msgspec.Struct, frozen=True, tag="founded"):
    """The beginning of every ledger: which network it is about, and the Ed25519 key that is believed."""

    network: Identifier
    key: PublicKey


class Invited(msgspec.Struct, frozen=True, tag="invited"):
    """An invitation was made."""

    token: TokenId
    secret_hash: PublicKey
    """SHA-256, 32 bytes: whoever reads this file cannot join with it."""
    role: Role
    expires_s: Seconds
    uses: Annotated[int, msgspec.Meta(ge=1, le=MOST_USES)]


class Issued(msgspec.Struct, frozen=True, tag="issued"):
    """A certificate was issued, or became known."""

    certificate: Certificate
    token: TokenId | None = None
    """The invitation that was used for it."""
    retires: Revocation | None = None
    """Where a member has changed keys: the end of the old ones, decided in one with the new ones."""


class Revoked(msgspec.Struct, frozen=True, tag="revoked"):
    """A peer was revoked."""

    revocation: Revocation


class Succeeded(msgspec.Struct, frozen=True, tag="succeeded"):
    """The admission key was replaced."""

    succession: Succession


Entry = Founded | Invited | Issued | Revoked | Succeeded

_decoder: msgspec.json.Decoder[Entry] = msgspec.json.Decoder(Entry)


class Ledger:
    """One such file, and what it has been read into."""

    def __init__(self, path: Path, apply: Callable[[Entry], None]) -> None:
        """``apply`` takes every entry once, in order. ConfigError where the file is missing or open to others."""
        self._path = path
        self._apply = apply
        self._read_bytes = 0
        self._lines = 0
        self._reading = threading.RLock()
        check_private(path)
        self.refresh()

    @classmethod
    def create(cls, path: Path, first: Founded) -> None:
        """Begin a new file, mode 0600. ConfigError where there is one."""
        write_private(path, msgspec.json.encode(first) + b"\n")

    def refresh(self) -> None:
        """Apply what other processes have added. Corrupt for a line that is no entry; ConfigError if unreadable."""
        with self._reading:  # of two threads at once each would apply, and count, what the other does
            self._refresh()

    def _refresh(self) -> None:
        try:
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read_bytes:
                    raise Corrupt(f"{self._path}: has become shorter while it was in use; restore it, and start again")
                file.seek(self._read_bytes)
                whole, newline, _ = file.read().rpartition(b"\n")
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read: {error.strerror}") from None
        for line in (whole + newline).splitlines(keepends=True):
            self._apply(self._entry(line))
            self._read_bytes += len(line)
            self._lines += 1

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Nobody else writes while the context lasts, and all that others have written has been applied."""
        try:
            descriptor = os.open(self._path, os.O_RDWR)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be written: {error.strerror}") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with self._reading:
                self.refresh()
                yield
        finally:
            os.close(descriptor)

    def append(self, entry: Entry) -> None:
        """Write an entry to the disk; the caller applies it. StoreError where it cannot be, and then it is not there.

        Within :meth:`locked` where other processes may write.
        """
        with self._reading:
            self._append(entry)

    def _append(self, entry: Entry) -> None:
        line = msgspec.json.encode(entry) + b"\n"
        try:
            with self._path.open("r+b", buffering=0) as file:
                try:
                    file.seek(self._read_bytes)
                    written = file.write(line)
                    os.fsync(file.fileno())
                except OSError:
                    file.truncate(self._read_bytes)
                    raise
                if written != len(line):
                    file.truncate(self._read_bytes)
                    raise StoreError(f"{self._path}: cannot be written: the disk is full; make room")
        except OSError as error:
            raise StoreError(
                f"{self._path}: cannot be written: {error.strerror}; make room, or mend the disk"
            ) from None
        self._read_bytes += len(line)
        self._lines += 1

    def _entry(self, line: bytes) -> Entry:
        try:
            return _decoder.decode(line)
        except (ValueError, RecursionError) as error:
            raise Corrupt(f"{self._path}: line {self._lines + 1} is no entry ({error}); restore the file") from None
