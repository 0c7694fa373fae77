"""The chunks of a layered object, numbered in the order in which the layers are used."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

from node.errors import BadFrame, Corrupt

MOST_CHUNKS = 1 << 20
"""Of one object."""


class Chunk(NamedTuple):
    """Where a chunk belongs."""

    layer: int
    offset: int
    """Bytes from the beginning of the layer."""
    size_bytes: int


class Layout:
    """Layers of given sizes, each cut into chunks of ``chunk_bytes`` but its last. A layer may be empty."""

    def __init__(self, sizes_bytes: Sequence[int], chunk_bytes: int) -> None:
        if chunk_bytes < 1 or min(sizes_bytes, default=0) < 0:
            raise Corrupt(f"layers of {list(sizes_bytes)} bytes in chunks of {chunk_bytes}: sizes are not negative")
        self.sizes_bytes = tuple(sizes_bytes)
        self.chunk_bytes = chunk_bytes
        self._ends = list(accumulate(-(-size_bytes // chunk_bytes) for size_bytes in sizes_bytes))
        if self.chunks > MOST_CHUNKS:
            raise Corrupt(f"an object of {self.chunks} chunks of {chunk_bytes} bytes; allowed: up to {MOST_CHUNKS}")

    @property
    def layers(self) -> int:
        """How many there are."""
        return len(self.sizes_bytes)

    @property
    def chunks(self) -> int:
        """How many there are, of all layers."""
        return self._ends[-1] if self._ends else 0

    def of_layer(self, layer: int) -> range:
        """The chunks of a layer."""
        return range(self._ends[layer - 1] if layer else 0, self._ends[layer])

    def chunk(self, number: int) -> Chunk:
        """Where a chunk belongs."""
        layer = bisect_right(self._ends, number)
        offset = (number - self.of_layer(layer).start) * self.chunk_bytes
        return Chunk(layer, offset, min(self.chunk_bytes, self.sizes_bytes[layer] - offset))

    def number(self, layer: int, offset: int) -> int:
        """The chunk that begins there. BadFrame where none does: the numbers come from somebody else."""
        if 0 <= layer < self.layers and 0 <= offset < self.sizes_bytes[layer] and offset % self.chunk_bytes == 0:
            return self.of_layer(layer).start + offset // self.chunk_bytes
        raise BadFrame(f"no chunk begins at offset {offset} of layer {layer}")
