"""Adapters and files under names: into a store's catalogue, and out of it as they were."""

from __future__ import annotations

from pathlib import Path

from node.adapters.artifact import Artifact
from node.adapters.keeping import keep, kept, restore
from node.errors import ConfigError, Missing, StoreError
from node.store.catalogue import Catalogue, Entry

ADAPTER, FILE = "adapter", "file"


def publish_adapter(catalogue: Catalogue, folder: Path, name: str, base_fingerprint: str) -> Entry:
    """Keep an adapter's folder and let a name point at it.

    Raises:
        ConfigError: the folder has what is refused.
        Corrupt: its tensors are not those of an adapter.
        StoreError: the disk or the quota has no room.
    """
    version = keep(catalogue.store, folder, name, base_fingerprint)
    artifact = kept(catalogue.store, version)
    sizes = {file.object: file.size_bytes for file in artifact.files}
    catalogue.add({**sizes, version: catalogue.store.manifest(version).size_bytes})
    catalogue.publish(name, version, ADAPTER, sizes)
    return catalogue[name]


def publish_file(catalogue: Catalogue, path: Path, name: str) -> Entry:
    """Keep any file and let a name point at it. StoreError where the disk or the quota has no room."""
    manifest = catalogue.store.add(path)
    catalogue.add({manifest.id: manifest.size_bytes})
    catalogue.publish(name, manifest.id, FILE, ())
    return catalogue[name]


def adapter_of(catalogue: Catalogue, name: str) -> Artifact:
    """The adapter of a name. Missing where there is none, or the name is a file's."""
    entry = catalogue[name]
    if entry.kind != ADAPTER:
        raise Missing(f"{name!r} is a {entry.kind}, no adapter")
    return kept(catalogue.store, entry.version)


def write(catalogue: Catalogue, name: str, out: Path) -> None:
    """Write what a name points at as it was, to a folder or file that is not there yet.

    Raises:
        ConfigError: something is there already.
        Missing: there is no such name.
        StoreError: the store has lost or damaged a part; nothing is left behind.
    """
    entry = catalogue[name]
    if out.exists():
        raise ConfigError(f"{out}: is there already; name something that is not")
    new = out.with_name(f"{out.name}.new")
    try:
        if entry.kind == ADAPTER:
            restore(catalogue.store, kept(catalogue.store, entry.version), new)
        else:
            with catalogue.store.open(entry.version) as stored, new.open("wb") as copy:
                stored.verify()
                copy.write(stored.view())
        new.replace(out)
    except OSError as error:
        raise StoreError(f"{out}: cannot be written: {error.strerror}") from None
    finally:
        _remove(new)


def _remove(path: Path) -> None:
    if path.is_dir():
        for file in path.iterdir():
            file.unlink()
        path.rmdir()
    else:
        path.unlink(missing_ok=True)
