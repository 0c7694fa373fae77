"""What a run measures: a long table of metrics, some of whose values are not computed yet."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from node.errors import ProtocolError
from node.op import Ref, Value
from node.row import Row

if TYPE_CHECKING:
    import pyarrow as pa

_SENT = "bytes_sent"
"""The metric with which a node tells the bytes that it has sent in all."""


class _Instant:
    """A time at which something was recorded, and the bytes that all nodes together had sent by its end."""

    __slots__ = ("is_kept", "sent_bytes", "time_s")

    def __init__(self, time_s: float, sent_bytes: float) -> None:
        self.time_s = time_s
        self.sent_bytes = sent_bytes
        self.is_kept = False


class _Skipped(NamedTuple):
    """A round that is kept only if it is its node's last."""

    instant: _Instant
    round: int
    fields: Mapping[str, Ref | float]


class Recorder:
    """The metrics of a run, column by column.

    Args:
        every: keep every n-th round of a node, and its last one; what is not kept is never computed.
    """

    def __init__(self, every: int = 1) -> None:
        self._every = every
        self._time_s = array("d")
        self._node = array("q")
        self._round = array("q")
        self._metric = array("I")
        self._value = array("d")
        self._metrics: dict[str, int] = {}
        self._names: list[str] = []
        self._pending: list[tuple[int, str, Ref]] = []
        self._skipped: dict[int, _Skipped] = {}
        self._instant = _Instant(-math.inf, 0.0)
        self._instants: list[_Instant] = []
        self._latest_sent: dict[int, float] = {}

    def add(self, time_s: float, node: int, round: int, fields: Mapping[str, Ref | float]) -> None:
        """Take in one node's round, not before those that came earlier. A Ref must be of metrics or a single number."""
        if self._every > 1:
            self._count(time_s, node, fields.get(_SENT))
            if round % self._every:
                before = self._skipped.get(node)
                if before is not None and before.round == round:
                    fields = {**before.fields, **fields}
                self._skipped[node] = _Skipped(self._instant, round, fields)
                return
            self._skipped.pop(node, None)
            self._keep_instant(self._instant)
        self._keep(time_s, node, round, fields)

    def _count(self, time_s: float, node: int, sent: Ref | float | None) -> None:
        """Add up what all nodes have sent, in skipped rounds too."""
        if time_s != self._instant.time_s:
            self._instant = _Instant(time_s, self._instant.sent_bytes)
        if sent is not None and not isinstance(sent, Ref):
            self._instant.sent_bytes += sent - self._latest_sent.get(node, 0.0)
            self._latest_sent[node] = sent

    def _keep_instant(self, instant: _Instant) -> None:
        if not instant.is_kept:
            instant.is_kept = True
            self._instants.append(instant)

    def _keep(self, time_s: float, node: int, round: int, fields: Mapping[str, Ref | float]) -> None:
        for name, value in fields.items():
            if not isinstance(value, Ref):
                self.append(Row(time_s, node, round, name, float(value)))
                continue
            for metric, part in _parts(name, value):
                self._pending.append((len(self._value), part, value))
                self.append(Row(time_s, node, round, metric, math.nan))

    def append(self, row: Row) -> None:
        """Take in one number."""
        metric = self._metrics.get(row.metric)
        if metric is None:
            metric = self._metrics[row.metric] = len(self._names)
            self._names.append(row.metric)
        self._time_s.append(row.time_s)
        self._node.append(row.node)
        self._round.append(row.round)
        self._metric.append(metric)
        self._value.append(row.value)

    def keep_last(self) -> None:
        """The run is over: keep each node's last round, whatever ``every`` says."""
        for node in sorted(self._skipped):
            instant, round, fields = self._skipped[node]
            self._keep_instant(instant)
            self._keep(instant.time_s, node, round, fields)
        self._skipped.clear()

    def wanted(self) -> list[Ref]:
        """The values that have to be solved before :meth:`settle`."""
        return [ref for _, _, ref in self._pending]

    def settle(self, values: Mapping[int, Value]) -> None:
        """Fill in what is among the solved values (by Ref id), and let those Refs go."""
        waiting = []
        for row, part, ref in self._pending:
            if ref.id not in values:
                waiting.append((row, part, ref))
                continue
            value = values[ref.id]
            self._value[row] = float(value[part] if part else value)
        self._pending = waiting

    @property
    def settled(self) -> int:
        """How many numbers from the first on are known."""
        return self._pending[0][0] if self._pending else len(self._value)

    def drop_pending(self) -> None:
        """Forget what was recorded but never solved, after a run that did not end by itself."""
        self._skipped.clear()
        if not self._pending:
            return
        dropped = {row for row, _, _ in self._pending}
        self._pending.clear()
        kept = [row for i, row in enumerate(self.rows()) if i not in dropped]
        for column in (self._time_s, self._node, self._round, self._metric, self._value):
            del column[:]
        for row in kept:
            self.append(row)

    def rounds(self) -> int:
        """Rounds that at least one node has recorded."""
        return max(self._round, default=-1) + 1

    def __len__(self) -> int:
        """Numbers so far."""
        return len(self._value)

    def rows(self, start: int = 0, end: int | None = None) -> Iterator[Row]:
        """The numbers from the ``start``-th up to the ``end``-th, in the order in which they came."""
        for i in range(start, len(self._value) if end is None else end):
            name = self._names[self._metric[i]]
            yield Row(self._time_s[i], self._node[i], self._round[i], name, self._value[i])

    def latest(self, metric: str) -> dict[int, float]:
        """The last known value of a metric for each node, by node."""
        _, nodes, values = self.samples(metric)
        latest = dict(zip(nodes.tolist(), values.tolist(), strict=True))
        return dict(sorted(latest.items()))

    def samples(self, metric: str) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Times, nodes and values of a metric, as far as they are known, in the order in which they came."""
        known = np.frombuffer(self._metric, dtype=np.uint32) == self._metrics.get(metric, -1)
        known[[row for row, _, _ in self._pending]] = False
        time_s, node, value = (
            np.frombuffer(self._time_s),
            np.frombuffer(self._node, np.int64),
            np.frombuffer(self._value),
        )
        return time_s[known], node[known], value[known]

    def sent(self) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
        """Times, nodes and latest totals of ``bytes_sent`` in bytes, complete at every time at which a row was kept.

        Where rounds are skipped, some nodes' totals may have no row: node -1 then stands for all nodes together.
        """
        if self._every == 1 or not self._latest_sent:
            return self.samples(_SENT)
        instants = self._instants
        time_s = np.array([instant.time_s for instant in instants])
        return time_s, np.full(len(instants), -1), np.array([instant.sent_bytes for instant in instants])

    def summary(self) -> dict[str, dict[str, float]]:
        """Mean, standard deviation, smallest and largest of each metric's last values over the nodes."""
        return {name: spread(list(self.latest(name).values())) for name in sorted(self._names) if self.latest(name)}

    def table(self) -> pa.Table:
        """The long table: time_s, node, round, metric, value. A copy: rows may be added while it is in use."""
        import pyarrow as pa  # only now: 30 MB that a node does without until it writes

        metrics = pa.DictionaryArray.from_arrays(
            pa.array(np.frombuffer(self._metric, dtype=np.uint32).astype(np.int32)), pa.array(self._names, pa.string())
        )
        return pa.table(
            {
                "time_s": pa.array(np.array(self._time_s)),
                "node": pa.array(np.array(self._node)),
                "round": pa.array(np.array(self._round)),
                "metric": metrics.cast(pa.string()),
                "value": pa.array(np.array(self._value)),
            }
        )

    def content(self) -> bytes:
        """All numbers, as bytes that are equal where the numbers are."""
        columns = (self._time_s, self._node, self._round, self._metric, self._value)
        return b"".join([*[column.tobytes() for column in columns], *[name.encode() + b"\n" for name in self._names]])

    def write(self, path: Path) -> None:
        """Write the table as Parquet."""
        import pyarrow.parquet as pq

        pq.write_table(self.table(), path)


def spread(values: list[float]) -> dict[str, float]:
    """Mean, population standard deviation, smallest and largest of some numbers."""
    numbers = np.array(values, dtype=np.float64)
    return {
        "mean": float(numbers.mean()),
        "std": float(numbers.std()),
        "min": float(numbers.min()),
        "max": float(numbers.max()),
    }


def _parts(name: str, ref: Ref) -> list[tuple[str, str]]:
    """The metrics that a recorded Ref yields, each with the name of its part in the value ('' for a lone number).

    ``own_accuracy`` is the accuracy of whatever was recorded under that name.
    """
    names = ref.spec.names
    for part in names:
        if name == part or name.endswith(f"_{part}"):
            return [(name, part)]
    if names:
        return [(f"{name}.{part}", part) for part in names]
    if ref.spec.shape:
        raise ProtocolError(f"record({name}=…) takes a number or metrics; this Ref is a tensor {list(ref.spec.shape)}")
    return [(name, "")]
