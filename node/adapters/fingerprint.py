"""Which base model an adapter is for: a digest of the model's tensors, whatever its folder is called."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from node.adapters.headers import Extent, read_extents
from node.errors import ConfigError, Corrupt

_PIECE_BYTES = 1 << 20


def base_fingerprint(folder: Path) -> str:
    """SHA-256 over name, dtype, shape and SHA-256 of each tensor in a model's folder, sorted by name; 64 hex digits.

    How the tensors are divided into files changes nothing.

    Raises:
        ConfigError: there are no safetensors files.
        Corrupt: one of them is damaged, or has a tensor that another has, too.
    """
    paths = sorted(folder.glob("*.safetensors"))
    if not paths:
        raise ConfigError(f"{folder}: has no .safetensors file; name the folder of a model that transformers has saved")
    lines = sorted(line for path in paths for line in _tensors(path))
    names = [name for name, _ in lines]
    for name, following in pairwise(names):
        if name == following:
            raise Corrupt(f"{folder}: tensor {name!r} is in two files")
    return hashlib.sha256("".join(line for _, line in lines).encode()).hexdigest()


def _tensors(path: Path) -> Iterator[tuple[str, str]]:
    """Each tensor's name, and its line in what is hashed."""
    try:
        with path.open("rb") as file:
            for extent in read_extents(file):
                shape = ",".join(map(str, extent.shape))
                yield extent.name, f"{extent.name}\0{extent.dtype}\0{shape}\0{_sha256(file, extent)}\n"
    except Corrupt as error:
        raise Corrupt(f"{path}: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None


def _sha256(file: BinaryIO, extent: Extent) -> str:
    digest, left = hashlib.sha256(), extent.size_bytes
    file.seek(extent.offset)
    while left:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise Corrupt(f"tensor {extent.name!r} is cut off")
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()
