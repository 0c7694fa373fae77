"""Which adapters can be asked for, and which version each name means: one assignment moves a name.

A request is given the version of its name when it comes, and ends with it, whatever becomes of the name.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.adapters.artifact import Artifact
from node.adapters.keeping import kept
from node.adapters.publishing import ADAPTER
from node.errors import Missing, StoreError
from node.store.catalogue import Catalogue
from node.store.objects import Store
from node.transfer.manifest import ObjectId

PROMPTS_FILE = "prompts.txt"
"""In an adapter's folder: example prompts, one a line, by which it is selected."""
MOST_PROMPTS = 1_000
_MOST_PROMPTS_BYTES = 1 << 20


@dataclass(frozen=True)
class Named:
    """An adapter that can be asked for."""

    name: str
    version: ObjectId
    root: str
    """Where it comes from: a folder or a store, as whoever asks may know it."""
    prompts: tuple[str, ...] = ()
    """Examples of what it is good for; without any it is never selected."""
    is_pinned: bool = False
    """Whether it is never evicted."""


class Registry:
    """Adapters by name."""

    def __init__(self) -> None:
        self._named: dict[str, Named] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._named

    def __len__(self) -> int:
        return len(self._named)

    def __getitem__(self, name: str) -> Named:
        """Missing where there is none of that name."""
        if name not in self._named:
            raise Missing(f"The model `{name[:200]}` does not exist.")
        return self._named[name]

    def all(self) -> list[Named]:
        """Sorted by name."""
        return [self._named[name] for name in sorted(self._named)]

    def put(self, named: Named) -> Named | None:
        """Let a name mean this from now on; gives what it meant before."""
        before = self._named.get(named.name)
        self._named[named.name] = named
        return before

    def remove(self, name: str) -> Named:
        """Forget a name. Missing where there is none."""
        named = self[name]
        del self._named[name]
        return named

    def names_of(self, version: ObjectId) -> list[str]:
        """The names that mean a version, sorted."""
        return [named.name for named in self.all() if named.version == version]


def prompts_of(store: Store, artifact: Artifact) -> tuple[str, ...]:
    """The example prompts that came with an adapter; none where it has no such file. StoreError where it is damaged."""
    for file in artifact.files:
        if file.name == PROMPTS_FILE and file.size_bytes <= _MOST_PROMPTS_BYTES:
            with store.open(file.object) as stored:
                stored.verify()
                lines = bytes(stored.view()).decode(errors="replace").splitlines()
            return tuple(line.strip() for line in lines if line.strip())[:MOST_PROMPTS]
    return ()


def registered(catalogue: Catalogue) -> tuple[Registry, list[StoreError]]:
    """All adapters of a store, and what is wrong with those that cannot be read."""
    registry, errors = Registry(), list[StoreError]()
    for entry in catalogue.entries():
        if entry.kind == ADAPTER:
            try:
                prompts = prompts_of(catalogue.store, kept(catalogue.store, entry.version))
            except StoreError as error:
                errors.append(error)
            else:
                registry.put(Named(entry.name, entry.version, entry.version, prompts))
    return registry, errors
