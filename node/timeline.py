"""What all nodes did when, as a picture of bounded size: groups of nodes by bins of time."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TRAINING, SENDING, OFFLINE = range(3)
ACTIVITIES = ("training", "sending", "offline", "waiting")
"""What a node's time is divided into; waiting is what the other three leave."""
_PLACE = ("group", "nodes", "start_s", "end_s")

Floats = NDArray[np.float64]
Integers = NDArray[np.int32] | NDArray[np.int64]


@dataclass(frozen=True)
class Timeline:
    """Shares of time, for groups of nodes and bins of time; of groups, the quickest to train comes first."""

    nodes: Integers
    """How many nodes each group has, shape (groups,)."""
    edges_s: Floats
    """Where bins begin, and the last one's end, shape (bins + 1,)."""
    shares: Floats
    """By group, bin and activity, shape (groups, bins, 4); the four sum to 1."""

    def write(self, path: Path) -> None:
        """Write as Parquet: one row for each group and bin, in this order."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        groups, bins, _ = self.shares.shape
        place = (
            np.repeat(np.arange(groups), bins),
            np.repeat(self.nodes, bins),
            np.tile(self.edges_s[:-1], groups),
            np.tile(self.edges_s[1:], groups),
        )
        flat = self.shares.reshape(groups * bins, len(ACTIVITIES)).astype(np.float32)
        columns = dict(zip((*_PLACE, *ACTIVITIES), (*place, *flat.T), strict=True))
        pq.write_table(pa.table(columns), path, compression="zstd")

    @classmethod
    def read(cls, path: Path) -> Timeline:
        """Read what :meth:`write` wrote. OSError or ValueError where it is something else."""
        import pyarrow.parquet as pq

        table = pq.read_table(path, partitioning=None)
        missing = [
            name for name in ("group", "nodes", "start_s", "end_s", *ACTIVITIES) if name not in table.schema.names
        ]
        if missing:
            raise ValueError(f"column {missing[0]!r} is missing")
        group, nodes, start_s, end_s = (table[name].to_numpy() for name in ("group", "nodes", "start_s", "end_s"))
        _, first, counts = np.unique(group, return_index=True, return_counts=True)
        if not group.size or np.ptp(counts):
            raise ValueError("there must be one row for each group and bin")
        bins = int(counts[0])
        shares = np.stack([table[name].to_numpy() for name in ACTIVITIES], axis=1).astype(np.float64)
        edges_s = np.append(start_s[:bins], end_s[bins - 1])
        return cls(nodes[first], edges_s, shares.reshape(first.size, bins, len(ACTIVITIES)))


class Raster:
    """Adds up seconds by group, bin and activity. Where time runs over, bins double their width.

    It keeps the differences between neighbouring bins, so that an interval costs the same whatever its length.

    Args:
        group_of: each node's group, shape (nodes,), counted from 0.
        span_s: what all bins together should cover at first; above 0.
    """

    BINS = 512

    def __init__(self, group_of: Integers, span_s: float) -> None:
        self._group_of = group_of
        self._nodes = np.bincount(group_of)
        self._bin_s = float(2.0 ** np.ceil(np.log2(span_s / self.BINS)))
        self._steps = np.zeros((self._nodes.size, self.BINS + 2, OFFLINE + 1))

    def add(self, node: Integers, activity: Integers, start_s: Floats, end_s: Floats) -> None:
        """Take in intervals, all arrays of one length; those of one node must not overlap."""
        while end_s.size and end_s.max() > self._bin_s * self.BINS:
            self._widen()
        for time_s, sign in ((start_s, 1.0), (end_s, -1.0)):
            place = time_s / self._bin_s
            bin = place.astype(np.int64)
            rest = sign * self._bin_s * (bin + 1 - place)  # of this bin; what it lacks to a whole one is the next one's
            np.add.at(self._steps, (self._group_of[node], bin, activity), rest)
            np.add.at(self._steps, (self._group_of[node], bin + 1, activity), sign * self._bin_s - rest)

    def _seconds(self) -> Floats:
        return np.cumsum(self._steps, axis=1)[:, : self.BINS]

    def _widen(self) -> None:
        pairs = self._seconds().reshape(self._nodes.size, self.BINS // 2, 2, -1).sum(axis=2)
        self._steps[:] = 0.0
        self._steps[:, : self.BINS // 2] = pairs
        self._steps[:, 1 : self.BINS // 2 + 1] -= pairs
        self._bin_s *= 2

    def timeline(self, end_s: float) -> Timeline:
        """The picture from 0 to ``end_s``, which is above 0."""
        bins = min(self.BINS, int(np.ceil(end_s / self._bin_s)))
        edges_s = np.minimum(np.arange(bins + 1) * self._bin_s, end_s)
        busy = np.maximum(self._seconds()[:, :bins], 0.0)
        whole = self._nodes[:, None, None] * np.diff(edges_s)[None, :, None]
        waiting = np.maximum(whole - busy.sum(axis=2, keepdims=True), 0.0)
        seconds = np.concatenate([busy, waiting], axis=2)
        return Timeline(self._nodes, edges_s, seconds / seconds.sum(axis=2, keepdims=True))
