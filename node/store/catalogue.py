"""What a store is keeping, and under which names: an index in SQLite, which survives whatever happens to its process.

An entry is something published: a version, and the objects that it is made of. A name points at one version, and
publishing another moves the name. What no name points at is collected; what is being published is not.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.errors import Corrupt, Missing, StoreError
from node.store.objects import Store
from node.transfer.manifest import ObjectId

FILE_NAME = "catalogue.sqlite"
YOUNG_S = 3_600.0
"""An object so young is not collected: somebody may be about to name it."""

_SCHEMA = 1
_TABLES = f"""
CREATE TABLE names (name TEXT PRIMARY KEY, version TEXT NOT NULL, kind TEXT NOT NULL, published_s REAL NOT NULL) STRICT;
CREATE TABLE parts (version TEXT NOT NULL, object TEXT NOT NULL, PRIMARY KEY (version, object)) STRICT, WITHOUT ROWID;
CREATE TABLE sizes (object TEXT PRIMARY KEY, size_bytes INTEGER NOT NULL, added_s REAL NOT NULL) STRICT, WITHOUT ROWID;
CREATE INDEX parts_by_object ON parts (object);
PRAGMA user_version = {_SCHEMA};
"""


@dataclass(frozen=True)
class Entry:
    """What a name points at."""

    name: str
    version: ObjectId
    kind: str
    """``adapter`` or ``file``."""
    size_bytes: int
    """Of all its objects, some of which others may share."""
    published_s: float


class Catalogue:
    """The index of one store's folder; any number of processes may use it at once.

    Args:
        store: where the objects are.
        folder: where the index is.
        now_s: the time, in seconds since 1970.
        quota_bytes: how much all objects may take together; None: as much as the disk has.
    """

    def __init__(self, store: Store, folder: Path, now_s: Callable[[], float], quota_bytes: int | None = None) -> None:
        """StoreError where the index cannot be made, Corrupt where it is none of ours."""
        self.store = store
        self.quota_bytes = quota_bytes
        self._now_s = now_s
        self._path = folder / FILE_NAME
        with self._explained():
            self._base = sqlite3.connect(self._path, isolation_level=None, timeout=30.0)
            self._base.executescript("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL;")
            self._prepare()
        self._reconcile()

    def add(self, sizes_bytes: Mapping[ObjectId, int]) -> None:
        """Objects have been put into the store; from now on they count, and nobody collects them while they are young.

        Raises:
            StoreError: there is no room for all of them within the quota; those that nobody else has are removed again.
        """
        with self._changing() as base:
            base.executemany(
                "INSERT INTO sizes VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET added_s = excluded.added_s",
                [(id, size_bytes, self._now_s()) for id, size_bytes in sizes_bytes.items()],
            )
        if self._is_over():
            self.collect(young_s=0.0, keep=sizes_bytes)
        if self._is_over():
            self._drop([id for id in sizes_bytes if not self._users(id)])
            raise StoreError(
                f"{self._path.parent}: no room for {sum(sizes_bytes.values())} bytes within the quota of"
                f" {self.quota_bytes}; remove something, or allow more"
            )

    def publish(self, name: str, version: ObjectId, kind: str, parts: Collection[ObjectId]) -> ObjectId | None:
        """Let a name point at a version that is in the store with all its parts; gives the one it pointed at before.

        Raises:
            Missing: a part is not in the store.
        """
        for part in (version, *parts):
            if part not in self.store:
                raise Missing(f"{name}: object {part[:16]} of it is not in the store; add it first")
        with self._changing() as base:
            before = base.execute("SELECT version FROM names WHERE name = ?", (name,)).fetchone()
            base.execute("DELETE FROM parts WHERE version = ?", (version,))
            base.executemany("INSERT INTO parts VALUES (?, ?)", [(version, part) for part in {version, *parts}])
            base.execute("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", (name, version, kind, self._now_s()))
        return None if before is None else str(before[0])

    def __getitem__(self, name: str) -> Entry:
        """What a name points at. Missing where there is none of that name."""
        found = self._entries("WHERE name = ?", name)
        if not found:
            raise Missing(f"{name!r} is not in {self._path.parent}; starling store ls lists what is")
        return found[0]

    def entries(self) -> list[Entry]:
        """Everything that has a name, sorted."""
        return self._entries("ORDER BY name")

    def parts(self, version: ObjectId) -> list[ObjectId]:
        """The objects of a version, sorted; none where it is not known."""
        return [row[0] for row in self._read("SELECT object FROM parts WHERE version = ? ORDER BY object", version)]

    def remove(self, name: str) -> Entry:
        """Forget a name; what it pointed at stays until it is collected. Missing where there is none."""
        entry = self[name]
        with self._changing() as base:
            base.execute("DELETE FROM names WHERE name = ?", (name,))
        return entry

    def used_bytes(self) -> int:
        """What all objects take together."""
        return int(self._read("SELECT COALESCE(SUM(size_bytes), 0) FROM sizes")[0][0])

    def collect(
        self,
        young_s: float = YOUNG_S,
        keep: Collection[ObjectId] = (),
        among: Collection[ObjectId] | None = None,
    ) -> list[ObjectId]:
        """Remove the objects that no name leads to; gives them, sorted.

        Args:
            young_s: those that were added less long ago stay.
            keep: these stay.
            among: only these are looked at, and their age does not matter; None: all.
        """
        with self._changing() as base:
            base.execute("DELETE FROM parts WHERE version NOT IN (SELECT version FROM names)")
            rows = base.execute(
                "SELECT object FROM sizes WHERE added_s <= ?"
                " AND object NOT IN (SELECT object FROM parts) ORDER BY object",
                (self._now_s() - (young_s if among is None else 0.0),),
            )
            unwanted = [row[0] for row in rows if row[0] not in keep and (among is None or row[0] in among)]
        self._drop(unwanted)
        return unwanted

    def verify(self) -> Iterator[tuple[ObjectId, StoreError | None]]:
        """Read every object; gives each with what is wrong with it, None where nothing is."""
        for (object,) in self._read("SELECT object FROM sizes ORDER BY object"):
            try:
                with self.store.open(object) as stored:
                    stored.verify()
            except StoreError as error:
                yield object, error
            else:
                yield object, None

    def close(self) -> None:
        """Use it no more."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _prepare(self) -> None:
        with self._changing() as base:
            version = base.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                for statement in filter(str.strip, _TABLES.split(";")):
                    base.execute(statement)
            elif version != _SCHEMA:
                raise Corrupt(f"{self._path}: is of version {version}, and this program knows {_SCHEMA}; upgrade it")

    def _reconcile(self) -> None:
        """Enter what the store has and the index does not know: whoever added it died before it could say so."""
        known = {row[0] for row in self._read("SELECT object FROM sizes")}
        there = self.store.ids()
        with self._changing() as base:
            for id in there:
                if id not in known:
                    size_bytes = self.store.manifest(id).size_bytes
                    base.execute("INSERT OR IGNORE INTO sizes VALUES (?, ?, ?)", (id, size_bytes, self._now_s()))

    def _drop(self, objects: Collection[ObjectId]) -> None:
        # From the disk first: should it end between the two, the next to open the index finds nothing that is missing.
        for object in objects:
            self.store.remove(object)
        with self._changing() as base:
            base.executemany("DELETE FROM sizes WHERE object = ?", [(object,) for object in objects])

    def _is_over(self) -> bool:
        return self.quota_bytes is not None and self.used_bytes() > self.quota_bytes

    def _users(self, object: ObjectId) -> int:
        return int(self._read("SELECT COUNT(*) FROM parts WHERE object = ?", object)[0][0])

    def _entries(self, which: str, *values: str) -> list[Entry]:
        rows = self._read(
            "SELECT name, version, kind, (SELECT COALESCE(SUM(size_bytes), 0) FROM parts JOIN sizes USING (object)"
            f" WHERE parts.version = names.version), published_s FROM names {which}",
            *values,
        )
        return [Entry(*row) for row in rows]

    def _read(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._base.execute(query, values).fetchall()

    @contextmanager
    def _changing(self) -> Iterator[sqlite3.Connection]:
        """All of the changes inside, or none, also where two processes make some at once."""
        with self._explained():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield self._base
            except BaseException:
                self._base.execute("ROLLBACK")
                raise
            self._base.execute("COMMIT")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise StoreError(f"{self._path}: {error}; is the disk full, or another program at it?") from None
            raise Corrupt(f"{self._path}: {error}; move it away, and publish again what the store has") from None
