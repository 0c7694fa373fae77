"""Adapters in a store: folders go in and come out byte for byte, layers are cut from the original files."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from node.adapters.artifact import MOST_BYTES, Artifact, Layer, describe
from node.adapters.directory import read_directory
from node.errors import ConfigError, Corrupt
from node.store.objects import Store
from node.transfer.manifest import ObjectId


def keep(store: Store, folder: Path, name: str, base_fingerprint: str) -> ObjectId:
    """Keep a folder that PEFT has saved; gives the adapter's version, the object id of its artifact.

    Raises:
        ConfigError: the folder has what is refused (:func:`node.adapters.directory.read_directory`).
        Corrupt: its tensors are not those of an adapter.
        StoreError: the disk refuses.
    """
    directory = read_directory(folder)
    objects = {file: store.add(folder / file).id for file in directory.files}
    artifact = describe(directory, name, base_fingerprint, objects)
    return store.add(io.BytesIO(artifact.to_bytes())).id


def kept(store: Store, version: ObjectId) -> Artifact:
    """The artifact of a version. Missing where the store does not have it, Corrupt where it is none."""
    manifest = store.manifest(version)
    if manifest.size_bytes > MOST_BYTES:
        raise Corrupt(f"object {version[:16]} is no adapter: it has {manifest.size_bytes} bytes")
    with store.reading(manifest) as stored:
        stored.verify()
        return Artifact.from_bytes(bytes(stored.view()))


def layer_bytes(store: Store, artifact: Artifact, layer: Layer) -> bytes:
    """One layer of an adapter whose files the store has, verified.

    Raises:
        Corrupt: the file is damaged on disk.
        Missing: the store does not have it.
    """
    file = next(file for file in artifact.files if file.name == layer.file)
    with store.open(file.object) as stored:
        whole = stored.view()
        data = b"".join(whole[offset : offset + length] for offset, length in layer.ranges)
    check_layer(artifact, layer, data)
    return data


def check_layer(artifact: Artifact, layer: Layer, data: bytes | bytearray | memoryview) -> None:
    """Corrupt unless these are the bytes of that layer."""
    if hashlib.sha256(data).hexdigest() != layer.sha256:
        raise Corrupt(f"adapter {artifact.name}: layer {layer.name} is damaged; fetch it again")


def restore(store: Store, artifact: Artifact, folder: Path) -> None:
    """Write an adapter's folder as it was; it must not be there yet.

    Raises:
        ConfigError: the folder is there.
        StoreError: a file is missing or damaged in the store; the folder is incomplete then.
    """
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise ConfigError(f"{folder}: is there already; name a folder that is not") from None
    for file in artifact.files:
        with store.open(file.object) as stored, (folder / file.name).open("wb") as copy:
            stored.verify()
            copy.write(stored.view())
