"""The bytes of a layered object while it comes: each chunk is checked on its own, and each layer when it is whole."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

from node.errors import Corrupt
from node.streaming.layout import Layout


class LayerDigests(NamedTuple):
    """SHA-256 of a layer and of each of its chunks, in hexadecimal digits."""

    layer: str
    chunks: tuple[str, ...]


class Assembly:
    """Buffers for all layers, allocated when the first chunk of one has proved right."""

    def __init__(self, layout: Layout, digests: Sequence[LayerDigests]) -> None:
        counts = [len(layout.of_layer(layer)) for layer in range(layout.layers)]
        if counts != [len(layer.chunks) for layer in digests]:
            raise Corrupt(f"layers of {counts} chunks with digests of {[len(layer.chunks) for layer in digests]}")
        self._layout = layout
        self._digests = digests
        self._buffers: dict[int, bytearray] = {}

    def matches(self, number: int, data: bytes | memoryview) -> bool:
        """Whether these are the bytes of that chunk. Changes nothing: for any thread."""
        chunk = self._layout.chunk(number)
        index = number - self._layout.of_layer(chunk.layer).start
        right = self._digests[chunk.layer].chunks[index]
        return len(data) == chunk.size_bytes and hashlib.sha256(data).hexdigest() == right

    def write(self, number: int, data: bytes | memoryview) -> None:
        """Keep a chunk that has proved right."""
        layer, offset, size_bytes = self._layout.chunk(number)
        if layer not in self._buffers:
            self._buffers[layer] = bytearray(self._layout.sizes_bytes[layer])
        self._buffers[layer][offset : offset + size_bytes] = data

    def layer(self, layer: int) -> memoryview:
        """The bytes of a layer that is ready, read-only.

        Raises:
            Corrupt: they are not what the layer's own digest says, though every chunk was: who made the object lied.
        """
        data = self._buffers.get(layer, bytearray())
        if hashlib.sha256(data).hexdigest() != self._digests[layer].layer:
            raise Corrupt(
                f"layer {layer} has another digest than its chunks together: the object is damaged; remove it"
            )
        return memoryview(data).toreadonly()
