"""Files that are there after a power failure: whole, under their name, with what they had before or after."""

from __future__ import annotations

import os
from pathlib import Path


def write(path: Path, data: bytes) -> None:
    """Write a file, and return when its bytes are on the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync(folder: Path) -> None:
    """Return when the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, data: bytes) -> None:
    """Give a file, or a new one, other contents: all of them or none, whenever the power fails."""
    new = path.with_name(f"{path.name}.new")
    write(new, data)
    new.replace(path)
    sync(path.parent)
