"""Files and folders that nobody but their owner may read: made so, and checked whenever they are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from node import durable
from node.errors import ConfigError


def write_private(path: Path, content: bytes) -> None:
    """Write a new file, mode 0600, to the disk. ConfigError where it exists or cannot be written."""
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        durable.sync(path.parent)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}; allowed: a new file") from None


def check_private(path: Path) -> None:
    """ConfigError where a file or folder is missing, or open to others than its owner."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path}: cannot be used: {error.strerror}; restore it, or name another folder") from None
    if stat.S_IMODE(mode) & 0o077:
        wanted = "700" if stat.S_ISDIR(mode) else "600"
        raise ConfigError(f"{path}: is open to others (mode {stat.S_IMODE(mode):o}): chmod {wanted} {path}")
