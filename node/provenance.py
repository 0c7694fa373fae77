"""How every value of a run came to be and who received it: a log on disk, for those who account for it afterwards.

Lines of JSON in the run's folder ``lineage/``. A simulation writes one file, ``all.jsonl``, for its values have numbers
that hold for all nodes. A real process numbers its values by itself, and anew in every life: each writes a file of its
own, ``NODE-LIFE.jsonl``, which also says by a digest which bytes left the process and which came. That links what
arrived to what was sent, and what a restarted node has loaded to what it saved, and puts nothing new on the wire;
values of one node that are equal to the last bit are one. A message that was lost is in no file; one that nobody read
is there all the same: it was seen. The last line of a file says how many there are before it: what is missing would
make less of what was given away.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import Any, Self, TypeAlias

import msgspec

from node import codec
from node.errors import ConfigError, StoreError
from node.message import Message
from node.op import Ref, Static

PUBLIC = 0
"""The number, in :func:`read`, of what everybody knows: the model that all start from."""

_ALL = "all.jsonl"
_BUFFER_BYTES = 1 << 20


class Made(msgspec.Struct, frozen=True, tag="made", array_like=True):
    """A node has recorded an op."""

    node: int
    value: int
    op: str
    inputs: tuple[int, ...]
    static: dict[str, Any]
    """What is infinite or not a number is None."""


class Received(msgspec.Struct, frozen=True, tag="received", array_like=True):
    """A message has come to a node, with these values."""

    node: int
    sender: int
    values: tuple[int, ...]


class _Left(msgspec.Struct, frozen=True, tag="left", array_like=True):
    """A value has left the process."""

    node: int
    value: int
    digest: str


class _Came(msgspec.Struct, frozen=True, tag="came", array_like=True):
    """A value has come into the process, from another node or from what this one has saved."""

    node: int
    value: int
    digest: str


class _End(msgspec.Struct, frozen=True, tag="end", array_like=True):
    """Nothing more has happened."""

    rows: int
    """All those before it."""


Step: TypeAlias = Made | Received
_Row: TypeAlias = Made | Received | _Left | _Came


class Log:
    """Writes one process's file, a piece at a time; a :class:`~node.world.Lineage`.

    Args:
        path: the file; what it holds already stays.
        buffer_bytes: what is held back until there is so much of it; 0: nothing, so that a process which is killed
            leaves no gap.
    """

    def __init__(self, path: Path, buffer_bytes: int) -> None:
        self._path = path
        self._buffer_bytes = buffer_bytes
        self._encoder = msgspec.json.Encoder(enc_hook=repr)
        self._lines = bytearray()
        self._rows = 0
        self.flush()

    @classmethod
    def of_all(cls, folder: Path) -> Log:
        """The log of a simulation, in a run's ``lineage`` folder."""
        return cls(folder / _ALL, _BUFFER_BYTES)

    @classmethod
    def of_life(cls, folder: Path, node: int) -> Log:
        """The log of a real node's process, in a run's ``lineage`` folder: each gets a new file."""
        paths = (folder / f"{node}-{life}.jsonl" for life in count())
        return cls(next(path for path in paths if not path.exists()), 0)

    def made(self, node: int, value: Ref, op: str, inputs: Sequence[Ref], static: Static) -> None:
        """A node has recorded an op. Metrics are left out, also where they are its inputs: they are never sent."""
        if not value.spec.names:
            known = tuple([ref.id for ref in inputs if not ref.spec.names])
            self._write(Made(node, value.id, op, known, dict(static)))

    def received(self, node: int, sender: int, message: Message) -> None:
        """A message has come to a node. What it sends to itself tells it nothing."""
        if sender != node and (refs := codec.refs(message)):
            self._write(Received(node, sender, tuple([ref.id for ref in refs])))

    def left(self, node: int, value: Ref, content: memoryview) -> None:
        """A value's bytes are about to leave the process."""
        self._write(_Left(node, value.id, _digest(value, content)))

    def came(self, node: int, value: Ref, content: memoryview) -> None:
        """A value's bytes have come into the process."""
        self._write(_Came(node, value.id, _digest(value, content)))

    def flush(self) -> None:
        """Write what is held back. Raises StoreError where the folder takes no more."""
        lines, self._lines = self._lines, bytearray()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:  # never left open: processes are forked meanwhile, and killed
                file.write(lines)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be written: {error.strerror or error}") from error

    def close(self) -> None:
        """Say that this was all, and write it. Raises StoreError as :meth:`flush`."""
        self._write(_End(self._rows))
        self.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, row: _Row | _End) -> None:
        self._rows += 1
        self._lines += self._encoder.encode(row) + b"\n"
        if len(self._lines) > self._buffer_bytes:
            self.flush()


def read(folder: Path, nodes: int = 0, note: Callable[[str], None] = lambda gap: None) -> list[Step]:
    """What happened in a run, cause before effect, from its ``lineage`` folder; values are numbered across all files.

    A real node's file may break off: a node can be killed. What is then known is told, and ``note`` is told of the gap.

    Args:
        nodes: how many there were; 0: nobody knows.
        note: told of everything that the files show to be missing from them.

    Raises:
        ConfigError: there are no such files, or they are not whole: rows are missing, a line makes no sense, or
            something was used or received of which no file says how it was made.
    """
    files = [_File(path, note) for path in sorted(folder.glob("*.jsonl"))]
    if not files:
        raise ConfigError(f"{folder}: there is no log of who made and received what; run with record.lineage = true")
    for absent in _absent({file.path.stem for file in files}, nodes):
        note(f"{absent} is missing")
    join = _Join()
    steps: list[Step] = []
    while waiting := [file for file in files if file.rows]:
        rows = sum(len(file.rows) for file in waiting)
        for file in waiting:
            steps.extend(join.advance(file))
        if rows == sum(len(file.rows) for file in waiting):
            raise ConfigError(_stuck(waiting[0]))
    return steps


class _File:
    """A process's rows that have not been joined yet, and what its values are called across all files."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self.path = path
        self.rows = deque(_rows(path, note))
        self.numbers: dict[int, int] = {}
        self.came: dict[int, str] = {}
        """Digests of values whose origin is not known yet."""


class _Join:
    """Numbers the values of all files, and finds out what came from where."""

    def __init__(self) -> None:
        self._numbers = count(PUBLIC + 1)
        self._left: dict[tuple[int, str], int] = {}

    def advance(self, file: _File) -> Iterator[Step]:
        """What a file says next, up to what was not sent yet."""
        while file.rows:
            row = file.rows[0]
            match row:
                case _Came():
                    file.came[row.value] = row.digest
                case _Left():
                    if not self._resolve(file, row.node, (row.value,)):
                        return
                    self._left.setdefault((row.node, row.digest), file.numbers[row.value])
                case Received():
                    if not self._resolve(file, row.sender, row.values):
                        return
                    yield Received(row.node, row.sender, tuple([file.numbers[value] for value in row.values]))
                case Made():
                    # What it has not received it has loaded: it is one of its own, of an earlier life.
                    if not self._resolve(file, row.node, row.inputs):
                        return
                    file.numbers[row.value] = number = next(self._numbers)
                    inputs = tuple([file.numbers[value] for value in row.inputs])
                    yield Made(row.node, number, row.op, inputs, row.static)
            file.rows.popleft()

    def _resolve(self, file: _File, sender: int, values: Sequence[int]) -> bool:
        """Number the values that came from a node; False: it has not sent all of them yet."""
        for value in values:
            if value in file.numbers:
                continue
            if value not in file.came:
                if value >= 0:
                    raise ConfigError(f"{file.path}: value {value} was made by no row before its use; rows are missing")
                file.numbers[value] = PUBLIC  # no op makes such a one, and nobody has sent it: it was there
                continue
            number = self._left.get((sender, file.came[value]))
            if number is None:
                return False
            file.numbers[value] = number
            del file.came[value]
        return True


def _stuck(file: _File) -> str:
    row = file.rows[0]
    whose = f"node {row.sender}" if isinstance(row, Received) else f"an earlier life of node {row.node}"
    return (
        f"{file.path}: node {row.node} got a value from {whose}, and no file in {file.path.parent} says how it was"
        " made; put the files of all nodes and lives there"
    )


def _rows(path: Path, note: Callable[[str], None]) -> list[_Row]:
    """The rows of a file, without its end; without an end, a real node's process may have been killed."""
    decoder: msgspec.json.Decoder[_Row | _End] = msgspec.json.Decoder(Made | Received | _Left | _Came | _End)
    rows: list[_Row] = []
    end: _End | None = None
    for number, line in enumerate(_lines(path), 1):
        if not line.endswith(b"\n"):
            break
        try:
            row = decoder.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}, line {number}: no record of who made and got what: {error}") from None
        if end is not None:
            raise ConfigError(f"{path}, line {number}: there is more than its end, which must be its last line")
        if isinstance(row, _End):
            end = row
        else:
            rows.append(row)
    if end is None:
        if path.name == _ALL:
            raise ConfigError(f"{path}: breaks off after {len(rows)} rows; only a whole simulation is accounted for")
        note(f"{path.name} breaks off after {len(rows)} rows: its process was killed, or rows are missing")
    elif end.rows != len(rows):
        raise ConfigError(f"{path}: has {len(rows)} rows of {end.rows}; the others are missing")
    return rows


def _lines(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as lines:
            yield from lines
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from error


def _absent(found: Collection[str], nodes: int) -> Iterator[str]:
    """The files of real processes that there must have been, besides those that were found."""
    if found == {Path(_ALL).stem}:
        return
    last = dict.fromkeys(range(nodes), 0)
    for stem in found:
        whose, _, life = stem.partition("-")
        if whose.isdecimal() and life.isdecimal():
            last[int(whose)] = max(int(life), last.get(int(whose), 0))
    for node, latest in sorted(last.items()):
        yield from (f"{node}-{life}.jsonl" for life in range(latest + 1) if f"{node}-{life}" not in found)


def _digest(value: Ref, content: memoryview) -> str:
    digest = blake2b(f"{value.spec.dtype}{list(value.spec.shape)}".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()
