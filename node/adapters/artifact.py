"""What a store keeps of an adapter: its files as they are, and, layer by layer, where its tensors are in them.

An artifact is canonical JSON (sorted keys, no spaces) and an object of the store itself; its object id is the version
of the adapter. A layer's bytes are those of its tensors, in the order of their names, cut from the original file; each
of its chunks has a digest, so that several sources may send them and a wrong one is known.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, BinaryIO, Literal, Self, TypeAlias

import msgspec

from node.adapters.configuration import MOST_RANK, Layout, Settings
from node.adapters.directory import WEIGHTS_FILE, Directory, check_pairs, is_file_name, layer_of, layer_order, module_of
from node.adapters.headers import Count, Extent, Shape, size_bytes
from node.errors import ConfigError, Corrupt
from node.transfer.manifest import ObjectId

MOST_BYTES = 16 << 20
"""Of an artifact. One of 7 targets in 80 layers has about 0.2 MB."""
CHUNK_BYTES = 256 << 10

Digest: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A SHA-256, in hexadecimal digits."""
Range: TypeAlias = tuple[Count, Count]
"""Offset and length in a file, in bytes."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,199}")


class File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A file of the adapter's folder."""

    name: str
    object: Digest
    size_bytes: Count


class LayerTensor(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a layer."""

    name: str
    dtype: str
    shape: Shape


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The tensors of one transformer layer."""

    name: str
    """Its number, or ``rest``."""
    file: str
    ranges: tuple[Range, ...]
    """Of the tensors, in their order; one after another they are the layer."""
    tensors: tuple[LayerTensor, ...]
    """Sorted by name."""
    size_bytes: Count
    sha256: Digest
    chunks: tuple[Digest, ...]
    """SHA-256 of each chunk of ``chunk_bytes``, of which the last may be shorter."""


class Artifact(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One version of an adapter."""

    name: str
    base_fingerprint: Digest
    """Of the model that it adapts (:func:`node.adapters.fingerprint.base_fingerprint`)."""
    rank: Annotated[int, msgspec.Meta(ge=1, le=MOST_RANK)]
    alpha: float
    use_rslora: bool
    targets: tuple[str, ...]
    """The last parts of the adapted modules' names, sorted."""
    layout: Layout
    chunk_bytes: Annotated[int, msgspec.Meta(ge=1 << 10, le=64 << 20)]
    files: tuple[File, ...]
    """Sorted by name."""
    layers: tuple[Layer, ...]
    """In the order of a forward pass."""
    kind: Literal["adapter"] = "adapter"
    schema: Literal[1] = 1

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Read an artifact that nobody vouches for.

        Raises:
            Corrupt: it is none, or what it says of its layers does not add up.
        """
        if len(data) > MOST_BYTES:
            raise Corrupt(f"no adapter: {len(data)} bytes, where at most {MOST_BYTES} are allowed")
        try:
            artifact = msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise Corrupt(f"no adapter: {error}") from None
        if artifact.to_bytes() != data:
            raise Corrupt("no adapter: its JSON is not canonical")
        artifact._check()
        return artifact

    def to_bytes(self) -> bytes:
        """The artifact as it is kept."""
        return msgspec.json.encode(self, order="sorted")

    @property
    def settings(self) -> Settings:
        """What the adapter's numbers mean."""
        return Settings(self.rank, self.alpha, self.use_rslora, self.targets, self.layout)

    @property
    def size_bytes(self) -> int:
        """Of all its layers."""
        return sum(layer.size_bytes for layer in self.layers)

    def shapes(self) -> dict[str, tuple[int, int]]:
        """(out, in) of each module that is adapted, sorted by its name."""
        sides: dict[str, dict[str, int]] = {}
        for layer in self.layers:
            for tensor in layer.tensors:
                module, side = module_of(tensor.name)
                sides.setdefault(module, {})[side] = tensor.shape[0 if side == "B" else 1]
        return {module: (sides[module]["B"], sides[module]["A"]) for module in sorted(sides)}

    def _check(self) -> None:
        """Corrupt unless names are files' names, layers are in their files and chunks are as many as they must be."""
        files = {file.name: file for file in self.files}
        if not _NAME.fullmatch(self.name):
            raise Corrupt(f"no adapter: {self.name[:100]!r} cannot be the name of one")
        if list(files) != sorted(files) or len(files) != len(self.files) or not all(map(is_file_name, files)):
            raise Corrupt(f"adapter {self.name}: its files have names that cannot be, or are not sorted by name")
        extents = []
        for layer in self.layers:
            if layer.file not in files:
                raise Corrupt(f"layer {layer.name[:40]!r} is in {layer.file!r}, which is no file of the adapter")
            _check_layer(layer, files[layer.file].size_bytes, self.chunk_bytes)
            extents.extend(_extents(layer))
        names = [layer.name for layer in self.layers]
        if names != sorted(set(names), key=layer_order):
            raise Corrupt("no adapter: its layers are not in the order of a forward pass")
        check_pairs(tuple(extents), self.settings)


def describe(
    directory: Directory,
    name: str,
    base_fingerprint: str,
    objects: Mapping[str, ObjectId],
    chunk_bytes: int = CHUNK_BYTES,
) -> Artifact:
    """The artifact of a folder whose files are objects already: ``objects`` are their ids, by file name.

    Raises:
        ConfigError: an adapter cannot have such a name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"adapter {name[:100]!r}: allowed: up to 200 letters, digits, '.', '_', '-' and '/'")
    with (directory.folder / WEIGHTS_FILE).open("rb") as file:
        layers = tuple(_layers(directory, file, chunk_bytes))
    return Artifact(
        name=name,
        base_fingerprint=base_fingerprint,
        rank=directory.settings.rank,
        alpha=directory.settings.alpha,
        use_rslora=directory.settings.use_rslora,
        targets=tuple(sorted({module_of(each.name)[0].rpartition(".")[2] for each in directory.extents})),
        layout=directory.settings.layout,
        chunk_bytes=chunk_bytes,
        files=tuple(
            File(each, objects[each], (directory.folder / each).stat().st_size) for each in sorted(directory.files)
        ),
        layers=layers,
    )


def _layers(directory: Directory, file: BinaryIO, chunk_bytes: int) -> Iterator[Layer]:
    members: dict[str, list[Extent]] = {}
    for extent in directory.extents:
        members.setdefault(layer_of(module_of(extent.name)[0]), []).append(extent)
    for name in sorted(members, key=layer_order):
        extents = members[name]
        data = bytearray()
        for extent in extents:
            file.seek(extent.offset)
            data += file.read(extent.size_bytes)
        yield Layer(
            name=name,
            file=WEIGHTS_FILE,
            ranges=tuple((extent.offset, extent.size_bytes) for extent in extents),
            tensors=tuple(LayerTensor(extent.name, extent.dtype, extent.shape) for extent in extents),
            size_bytes=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            chunks=tuple(
                hashlib.sha256(data[at : at + chunk_bytes]).hexdigest() for at in range(0, len(data), chunk_bytes)
            ),
        )


def _extents(layer: Layer) -> list[Extent]:
    return [
        Extent(tensor.name, tensor.dtype, tensor.shape, *where)
        for tensor, where in zip(layer.tensors, layer.ranges, strict=True)
    ]


def _check_layer(layer: Layer, file_bytes: int, chunk_bytes: int) -> None:
    what = f"layer {layer.name[:40]!r}"
    names = [tensor.name for tensor in layer.tensors]
    if not names or names != sorted(set(names)) or len(names) != len(layer.ranges):
        raise Corrupt(f"{what}: tensors are missing, not sorted by name, or not as many as ranges")
    for extent in _extents(layer):
        if extent.offset + extent.size_bytes > file_bytes:
            raise Corrupt(f"{what}: tensor {extent.name[:100]!r} ends behind its file of {file_bytes} bytes")
        if extent.size_bytes != size_bytes(extent.dtype, extent.shape):
            raise Corrupt(f"{what}: tensor {extent.name[:100]!r} has not as many bytes as its shape says")
        if layer_of(module_of(extent.name)[0]) != layer.name:
            raise Corrupt(f"{what}: tensor {extent.name[:100]!r} is of another layer")
    if layer.size_bytes != sum(length for _, length in layer.ranges):
        raise Corrupt(f"{what}: its ranges do not add up to {layer.size_bytes} bytes")
    if len(layer.chunks) != -(-layer.size_bytes // chunk_bytes):
        raise Corrupt(f"{what}: {len(layer.chunks)} chunks of {chunk_bytes} bytes for {layer.size_bytes} bytes")
