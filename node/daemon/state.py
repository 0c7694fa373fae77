"""What belongs to one node alone, on disk: its keys, the token of its control interface, and a lock on both."""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from node import durable
from node.errors import ConfigError
from node.identity import Identity

_TOKEN_BYTES = 32


@dataclass(frozen=True)
class State:
    """An open state folder."""

    folder: Path
    identity: Identity
    token: str
    """What changing anything over HTTP takes; a secret."""

    def __repr__(self) -> str:
        return f"<State {self.folder}>"


@contextmanager
def open_state(folder: Path) -> Iterator[State]:
    """Hold a state folder for as long as the context lasts, with keys and token made at the first time.

    Raises:
        ConfigError: it cannot be written to, another process holds it, or a secret in it is damaged or open to others.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise ConfigError(f"state: {folder} cannot be used: {error.strerror}; name a folder of this user") from None
    try:
        _lock(folder, descriptor)
        yield State(folder, _identity(folder / "keys" / "node.key"), _token(folder / "admin.token"))
    finally:
        os.close(descriptor)


def next_identity(state: State) -> Identity:
    """The keys that are to take over from the node's own, made at the first time. ConfigError: they cannot be kept."""
    return _identity(state.folder / "keys" / "next.key")


def take_over(state: State) -> None:
    """Have the next keys be the node's own from its next start; those before are gone."""
    keys = state.folder / "keys"
    try:
        (keys / "next.key").replace(keys / "node.key")
        durable.sync(keys)
    except OSError as error:
        raise ConfigError(f"state: {keys / 'next.key'} cannot take over: {error.strerror}; try again") from None


def _lock(folder: Path, descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ConfigError(
            f"state: {folder} is in use by another process; stop that node, or give this one a folder of its own"
        ) from None
    except OSError as error:
        raise ConfigError(f"state: {folder} cannot be locked: {error.strerror}; put it on a local disk") from None


def _identity(path: Path) -> Identity:
    if not path.exists():
        new = path.with_suffix(".new")  # whoever is killed here leaves no half of a key under the real name
        new.unlink(missing_ok=True)
        Identity.generate().save(new)
        new.rename(path)
    return Identity.load(path)


def _token(path: Path) -> str:
    try:
        if not path.exists():
            new = path.with_suffix(".new")
            new.unlink(missing_ok=True)
            with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_urlsafe(_TOKEN_BYTES) + "\n")
            new.rename(path)
        if stat.S_IMODE(path.stat().st_mode) & 0o077:
            raise ConfigError(f"state: {path} is open to others; remove it: the next start makes a new one")
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"state: {path} cannot be used: {error}") from None
    if len(token) < _TOKEN_BYTES:
        raise ConfigError(f"state: {path} holds no token; remove it: the next start makes a new one")
    return token
