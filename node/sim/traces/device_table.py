"""Tables of what devices are like and when they are there: .csv, .parquet and .json files, checked cell by cell."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from node.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

SUFFIXES = (".csv", ".parquet", ".json")
"""How the names of tables end."""
_MOST_NODES = 2**31
_SMALLEST = float(np.finfo(np.float64).tiny)
"""Above 0, and with a finite inverse."""


@dataclass(frozen=True, slots=True, eq=False)
class DeviceTrace:
    """Recorded devices, one a row: float64 [rows] each, None where the trace does not tell."""

    source: str
    """Names the file, and the key that asked for it, in errors."""
    numbered: bool
    """Whether row i is meant for node i; otherwise rows are in no order that matters."""
    seconds_per_sample: np.ndarray
    overhead_s: np.ndarray | None = None
    memory_bytes: np.ndarray | None = None
    up_bps: np.ndarray | None = None
    down_bps: np.ndarray | None = None
    flops_per_sample: np.ndarray | None = None
    """FLOPs of training one sample, of the model that the seconds were measured with."""

    def __len__(self) -> int:
        return len(self.seconds_per_sample)


class Columns:
    """The columns of a table; every check names the file, the column and the row, counted from 1.

    Raises:
        ConfigError: the file is no table, is empty, or has a column that is not ``known``.
    """

    def __init__(self, path: str, key: str, known: Sequence[str]) -> None:
        self.source = f"{key}: {path}"
        self._table = _read(Path(path), key)
        names = self._table.column_names
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"{self.source}: column {name!r} is there twice")
            if name not in known:
                raise ConfigError(
                    f"{self.source}: has the column {name!r}{_nearest(name, known)}; allowed: {', '.join(known)}"
                )
        if self._table.num_rows == 0:
            raise ConfigError(f"{self.source}: has no rows")

    def __contains__(self, name: str) -> bool:
        return name in self._table.column_names

    def positive(self, name: str, zero: bool = False) -> np.ndarray:
        """A column of finite numbers above 0, or from 0 on; float64 [rows]."""
        values = self._numbers(name)
        wrong = ~(np.isfinite(values) & (values >= (0 if zero else _SMALLEST)))
        if wrong.any():
            row = int(wrong.argmax())
            allowed = "finite numbers from 0 on" if zero else "finite numbers above 0"
            raise ConfigError(f"{self.source}: row {row + 1}: {name} is {values[row]:g}; allowed: {allowed}")
        return values

    def nodes(self) -> np.ndarray:
        """The column ``node``: whole numbers from 0 on; int64 [rows]."""
        values = self._numbers("node")
        wrong = ~((values >= 0) & (values < _MOST_NODES) & (values == np.floor(values)))
        if wrong.any():
            row = int(wrong.argmax())
            raise ConfigError(
                f"{self.source}: row {row + 1}: node is {values[row]:g}; allowed: whole numbers from 0 on"
            )
        return values.astype(np.int64)

    def absent(self, name: str) -> ConfigError:
        """The error for a column that has to be there."""
        there = self._table.column_names
        return ConfigError(f"{self.source}: has no column {name!r}; it has: {', '.join(there)}")

    def _numbers(self, name: str) -> np.ndarray:
        if name not in self:
            raise self.absent(name)
        column = self._table[name]
        if column.null_count:
            row = column.is_null().index(True).as_py()
            raise ConfigError(f"{self.source}: row {row + 1}: {name} is missing")
        import pyarrow as pa  # only now: 30 MB that a run without traces does without

        kind = column.type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            row = next((row for row, cell in enumerate(column) if not _reads_as_number(cell.as_py())), 0)
            raise ConfigError(f"{self.source}: row {row + 1}: {name} is {column[row].as_py()!r:.40}, not a number")
        return np.asarray(column.to_numpy(), dtype=np.float64)


_QUANTITIES = ("memory_bytes", "up_bps", "down_bps", "flops_per_sample")
_KNOWN = ("node", "seconds_per_sample", "samples_per_s", "overhead_s", *_QUANTITIES)


def read_devices(path: str, key: str = "devices.trace") -> DeviceTrace:
    """Read a table with one device a row, in the order of the column ``node`` where there is one.

    Its columns: ``seconds_per_sample`` or ``samples_per_s``, and where known ``node``, ``overhead_s`` (of each training
    step), ``memory_bytes``, ``up_bps``, ``down_bps`` (bits per second) and ``flops_per_sample``.

    Raises:
        ConfigError: the file is not such a table; names the file and the row.
    """
    columns = Columns(path, key, _KNOWN)
    seconds = _seconds_per_sample(columns)
    order = _order(columns) if "node" in columns else np.arange(len(seconds))
    return DeviceTrace(
        columns.source,
        "node" in columns,
        seconds[order],
        columns.positive("overhead_s", zero=True)[order] if "overhead_s" in columns else None,
        **{name: columns.positive(name)[order] for name in _QUANTITIES if name in columns},
    )


def write_table(path: Path, columns: Mapping[str, Sequence[float]]) -> None:
    """Write columns of equal length to a file of the kind that its name ends in, one of :data:`SUFFIXES`."""
    import pyarrow as pa
    import pyarrow.csv
    import pyarrow.parquet

    table = pa.table(dict(columns))
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    elif path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, path)
    else:
        path.write_text(json.dumps(table.to_pylist(), indent=1) + "\n", encoding="utf-8")


def _seconds_per_sample(columns: Columns) -> np.ndarray:
    if "samples_per_s" not in columns:
        return columns.positive("seconds_per_sample")
    if "seconds_per_sample" in columns:
        raise ConfigError(f"{columns.source}: has both seconds_per_sample and samples_per_s; keep one of them")
    return 1 / columns.positive("samples_per_s")


def _order(columns: Columns) -> np.ndarray:
    """The rows in the order of their nodes, which must be numbered from 0 without a gap; int64 [rows]."""
    nodes = columns.nodes()
    order = np.argsort(nodes, kind="stable")
    wrong = nodes[order] != np.arange(len(nodes))
    if not wrong.any():
        return order
    place = int(wrong.argmax())
    node = int(nodes[order[place]])
    if node < place:
        first, second = order[place - 1] + 1, order[place] + 1
        raise ConfigError(f"{columns.source}: rows {first} and {second} are both for node {node}; each node has one")
    raise ConfigError(
        f"{columns.source}: has a row for node {node} (row {order[place] + 1}) but none for node {place}; "
        "number nodes from 0 without a gap, or leave the column out and draw"
    )


def _read(path: Path, key: str) -> pa.Table:
    if not path.is_file():
        raise ConfigError(f"{key}: {path}: there is no such file")
    if path.suffix != ".json":
        try:
            from node.learn.tables import read_table  # not before it is needed: it brings an image library

            return read_table(path)
        except ConfigError as error:
            raise ConfigError(f"{key}: {error}") from None
    import pyarrow as pa

    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, OverflowError, RecursionError, pa.ArrowException) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{key}: {path}: not a readable .json table: {reason:.160}") from None


def _from_json(content: object) -> pa.Table:
    """A list of objects, one a row, or an object of columns."""
    import pyarrow as pa

    if isinstance(content, list) and all(isinstance(row, dict) for row in content):
        names = dict.fromkeys(name for row in content for name in row)
        content = {name: [row.get(name) for row in content] for name in names}
    if not (isinstance(content, dict) and all(isinstance(column, list) for column in content.values())):
        raise ValueError("it holds neither a list of objects nor an object of lists")
    for name, column in content.items():
        for row, cell in enumerate(column):
            if cell is not None and not _is_number(cell):
                raise ValueError(f"row {row + 1}: {name} is {cell!r:.40}, not a number")
    return pa.table(content)


def _is_number(cell: object) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def _reads_as_number(cell: object) -> bool:
    try:
        float(str(cell))
    except ValueError:
        return False
    return True


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]!r}?)" if near else ""
