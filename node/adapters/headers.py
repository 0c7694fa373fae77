"""The header of a safetensors file: which bytes are which tensor, read from a file that nobody vouches for.

The format: the length of the header (8 bytes, little-endian), the header (JSON: for each tensor its dtype, shape and
range of bytes behind the header), and then the tensors, one after another, without holes. No tensor is read here.
"""

from __future__ import annotations

import math
import os
import struct
from typing import Annotated, BinaryIO, TypeAlias

import msgspec

from node.errors import Corrupt

MOST_HEADER_BYTES = 16 << 20
"""A longer header is refused before it is read; an adapter's has about 100 bytes for each of its tensors."""
MOST_DIMENSIONS = 8

_NAMES = {8: "F64 I64 U64", 4: "F32 I32 U32", 2: "F16 BF16 I16 U16", 1: "F8_E4M3 F8_E5M2 I8 U8 BOOL"}
DTYPE_BYTES = {name: size for size, names in _NAMES.items() for name in names.split()}
"""Of one element, by the format's own names."""

_LENGTH = struct.Struct("<Q")
Count: TypeAlias = Annotated[int, msgspec.Meta(ge=0, lt=1 << 48)]
"""Bytes, or elements of one dimension."""
Shape: TypeAlias = Annotated[tuple[Count, ...], msgspec.Meta(max_length=MOST_DIMENSIONS)]


class Extent(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where one tensor is in its file."""

    name: str
    dtype: str
    shape: Shape
    offset: Count
    """From the beginning of the file, in bytes."""
    size_bytes: Count


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor, as the header has it."""

    dtype: str
    shape: Shape
    data_offsets: tuple[Count, Count]


def size_bytes(dtype: str, shape: Shape) -> int:
    """Of a tensor. Corrupt where the format has no such dtype."""
    if dtype not in DTYPE_BYTES:
        raise Corrupt(f"dtype {dtype[:20]!r} is none of {', '.join(DTYPE_BYTES)}")
    return DTYPE_BYTES[dtype] * math.prod(shape)


def read_extents(file: BinaryIO) -> list[Extent]:
    """All tensors of a safetensors file, sorted by name.

    Raises:
        Corrupt: it is no such file: the message says which tensor or length is wrong.
    """
    file_bytes = os.fstat(file.fileno()).st_size
    file.seek(0)
    start = file.read(_LENGTH.size)
    header_bytes = _LENGTH.unpack(start)[0] if len(start) == _LENGTH.size else 0
    most_bytes = min(MOST_HEADER_BYTES, file_bytes - _LENGTH.size)
    if not 0 < header_bytes <= most_bytes:
        raise Corrupt(f"no safetensors file: a header of {header_bytes} bytes, where at most {most_bytes} can be")
    entries = _entries(file.read(header_bytes))
    data_offset = _LENGTH.size + header_bytes
    _check_ranges(entries, file_bytes - data_offset)
    return [
        Extent(name, entry.dtype, entry.shape, data_offset + entry.data_offsets[0], _size_bytes(entry))
        for name, entry in sorted(entries.items())
    ]


def _entries(header: bytes) -> dict[str, _Entry]:
    try:
        raw = msgspec.json.decode(header, type=dict[str, msgspec.Raw])
        raw.pop("__metadata__", None)
        return {name: msgspec.json.decode(entry, type=_Entry) for name, entry in raw.items()}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise Corrupt(f"no safetensors file: its header is not what the format asks for: {error}") from None


def _check_ranges(entries: dict[str, _Entry], data_bytes: int) -> None:
    """Corrupt unless tensors follow on one another, each as long as its shape says, and end with the file."""
    end = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].data_offsets, item[0])):
        if entry.data_offsets[0] != end:
            raise Corrupt(f"tensor {name[:100]!r} begins at byte {entry.data_offsets[0]}, the one before ends at {end}")
        try:
            expected_bytes = size_bytes(entry.dtype, entry.shape)
        except Corrupt as error:
            raise Corrupt(f"tensor {name[:100]!r}: {error}") from None
        if _size_bytes(entry) != expected_bytes:
            raise Corrupt(f"tensor {name[:100]!r} has {_size_bytes(entry)} bytes, its shape says {expected_bytes}")
        end = entry.data_offsets[1]
    if end != data_bytes:
        raise Corrupt(f"the tensors have {end} bytes, and the file has {data_bytes} for them; is it cut off?")


def _size_bytes(entry: _Entry) -> int:
    return entry.data_offsets[1] - entry.data_offsets[0]
