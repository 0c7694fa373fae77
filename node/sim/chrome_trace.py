"""What every simulated node does when, for trace viewers (Perfetto, chrome://tracing).

Format: "Trace Event Format", Google, 2016. One process, one thread a node; virtual time.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from node.errors import ConfigError

MOST_NODES = 1_000
MOST_INTERVALS = 1_000_000
"""About 120 MB; viewers take little more."""

_PROCESS = 0
_NAMES = {"train": "train", "lost": "train (lost)", "send": "send", "offline": "offline"}


class ChromeTrace:
    """A watcher of :class:`node.usage.Usage` that writes while the run goes on. Use as a context manager.

    However the run ends, the file is valid JSON; its ``otherData`` says what it leaves out.

    Args:
        path: where to. ConfigError where that cannot be written to.
        nodes: of the run; those numbered from ``most_nodes`` on are left out.
        most_intervals: what comes after so many is left out.
    """

    def __init__(
        self, path: Path, nodes: int, most_nodes: int = MOST_NODES, most_intervals: int = MOST_INTERVALS
    ) -> None:
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{path}: the trace cannot be written: {error.strerror or error}") from None
        self._nodes, self._most_nodes, self._most_intervals = nodes, most_nodes, most_intervals
        self._intervals = self._left_out = 0
        self._busy_until: dict[int, int] = {}
        self._file.write('{"displayTimeUnit": "ms", "traceEvents": [\n')
        name = json.dumps({"name": "simulated nodes"})
        self._file.write(f'{{"ph": "M", "pid": {_PROCESS}, "tid": 0, "name": "process_name", "args": {name}}}')

    def __call__(self, node: int, kind: str, start_s: float, end_s: float) -> None:
        """Write one interval. Those of one node that overlap, as transfers do, are async events: slices must nest."""
        if node >= self._most_nodes or self._intervals >= self._most_intervals or not math.isfinite(start_s + end_s):
            self._left_out += 1
            return
        self._intervals += 1
        start_ns = round(start_s * 1e9)
        end_ns = max(round(end_s * 1e9), start_ns)
        if node not in self._busy_until:
            self._introduce(node)
        event = {"pid": _PROCESS, "tid": node, "name": _NAMES[kind], "cat": kind}
        if kind == "send" or start_ns < self._busy_until[node]:
            event["id"] = str(self._intervals)
            self._write({"ph": "b", "ts": start_ns / 1000, **event})
            self._write({"ph": "e", "ts": end_ns / 1000, **event})
            return
        self._busy_until[node] = end_ns
        self._write({"ph": "X", "ts": start_ns / 1000, "dur": (end_ns - start_ns) / 1000, **event})

    def _introduce(self, node: int) -> None:
        self._busy_until[node] = 0
        event = {"ph": "M", "pid": _PROCESS, "tid": node}
        self._write({**event, "name": "thread_name", "args": {"name": f"node {node}"}})
        self._write({**event, "name": "thread_sort_index", "args": {"sort_index": node}})

    def _write(self, event: Mapping[str, Any]) -> None:
        self._file.write(",\n" + json.dumps(event, allow_nan=False))

    def close(self) -> None:
        """End the file. Safe to call twice."""
        if self._file.closed:
            return
        shown = min(self._nodes, self._most_nodes)
        other: dict[str, Any] = {"clock": "virtual", "nodes": self._nodes, "nodes_shown": shown}
        if self._left_out:
            other["intervals_left_out"] = self._left_out
            other["note"] = (
                f"not everything is here: at most the first {self._most_nodes:,} nodes and {self._most_intervals:,} "
                f"intervals are kept; {self._left_out:,} intervals were left out"
            )
        with self._file:
            self._file.write(f'\n], "otherData": {json.dumps(other)}}}\n')

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
