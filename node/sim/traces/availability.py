"""When nodes are there, by record: files of intervals, and FedScale's availability of phones."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from node.config import ChurnSection
from node.errors import ConfigError
from node.sim.draws import draw_rows
from node.sim.traces import fedscale
from node.sim.traces.device_table import SUFFIXES, Columns

_COLUMNS = ("node", "online_s", "offline_s")


class Availability:
    """When one node is there: intervals that hold their beginning but not their end. Has no state: ask in any order.

    Args:
        online_at_0: whether the node is there at first.
        flips_s: when that changes, not falling; two at one time are none.
        period_s: after how long all begins anew; None: what is after the last flip stays.
    """

    def __init__(self, online_at_0: bool, flips_s: Sequence[float], period_s: float | None = None) -> None:
        flips = _without_pairs(flips_s if period_s is None else [flip for flip in flips_s if flip < period_s])
        at_0 = flips[:1] == [0.0]
        self._first = online_at_0 ^ at_0
        self._flips = flips[1:] if at_0 else flips
        self._period_s = period_s

    def online(self, t_s: float) -> bool:
        """Whether the node is there at a time, in seconds from 0 on."""
        start_s = 0.0 if self._period_s is None else self._period_s * self._cycle(t_s, self._period_s)
        # The very sums that `changes` gives, so that both always agree on an instant.
        passed = bisect_right(self._flips, t_s, key=lambda flip: start_s + flip)
        return self._first ^ bool(passed % 2)

    def changes(self, start_s: float) -> Iterator[tuple[float, bool]]:
        """Each change after a time: when, and whether the node is there from then on; endless where it repeats."""
        if self._period_s is None:
            yield from ((t_s, online) for t_s, online in self._of_cycle(0.0) if t_s > start_s)
            return
        if not self._flips:
            return
        for cycle in count(self._cycle(start_s, self._period_s)):
            begin_s = self._period_s * cycle
            if cycle and len(self._flips) % 2 and begin_s > start_s:
                yield begin_s, self._first
            yield from ((t_s, online) for t_s, online in self._of_cycle(begin_s) if t_s > start_s)

    def _of_cycle(self, begin_s: float) -> Iterator[tuple[float, bool]]:
        online = self._first
        for flip in self._flips:
            online = not online
            yield begin_s + flip, online

    @staticmethod
    def _cycle(t_s: float, period_s: float) -> int:
        """The last period that has begun; a quotient alone may be one off where ``period * cycle`` is rounded."""
        cycle = int(t_s // period_s) + 1
        while period_s * cycle > t_s:
            cycle -= 1
        return cycle


def availability(section: ChurnSection, nodes: int, seed: int) -> Sequence[Availability] | None:
    """When each node is there, by ``churn.trace``; None where there is no trace.

    A table gives the intervals of numbered nodes; one without a row is always there. FedScale's clients are drawn by
    the seed, with replacement only where there are fewer of them than nodes.

    Raises:
        ConfigError: the file cannot be read or does not hold intervals; names file and row, or the key.
    """
    if not section.trace:
        if section.after is not None:
            raise ConfigError("churn.after: says what follows the end of churn.trace, and there is none; leave it out")
        return None
    if Path(section.trace).suffix in SUFFIXES:
        return _of_table(section, nodes)
    if section.after not in (None, "repeat"):
        raise ConfigError(f"churn.after: a FedScale file repeats, so {section.after!r} never comes; leave it out")
    clients = [Availability(*presence) for presence in fedscale.read_presence(section.trace)]
    return [clients[row] for row in draw_rows(len(clients), nodes, seed, "presence").tolist()]


def _of_table(section: ChurnSection, nodes: int) -> list[Availability]:
    if section.after is None:
        raise ConfigError(
            f"churn.after: {section.trace} has an end; say what follows it: 'repeat', 'hold' (each node stays as it "
            "is) or 'offline'"
        )
    columns = Columns(section.trace, "churn.trace", _COLUMNS)
    of, begins, ends = columns.nodes(), columns.positive("online_s", zero=True), columns.positive("offline_s")
    _check_intervals(columns.source, begins, ends)
    order = np.lexsort((begins, of))
    _check_overlaps(columns.source, of, begins, ends, order)
    flips = np.stack([begins[order], ends[order]], axis=1)
    bounds = np.searchsorted(of[order], np.arange(nodes + 1))
    end_s = float(ends.max())
    always = Availability(True, ())
    return [
        _of_node(flips[start:stop].ravel().tolist(), end_s, section.after) if start < stop else always
        for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ]


def _of_node(flips_s: list[float], end_s: float, after: str) -> Availability:
    """``end_s``: the end of the whole file, when the last of all nodes' intervals ends."""
    if after == "repeat":
        return Availability(False, flips_s, end_s)
    if after == "hold" and flips_s[-1] == end_s:
        flips_s = flips_s[:-1]
    return Availability(False, flips_s)


def _check_intervals(source: str, begins: np.ndarray, ends: np.ndarray) -> None:
    wrong = begins >= ends
    if wrong.any():
        row = int(wrong.argmax())
        raise ConfigError(
            f"{source}: row {row + 1}: offline_s is {ends[row]:g}; allowed: later than online_s, {begins[row]:g}"
        )


def _check_overlaps(source: str, of: np.ndarray, begins: np.ndarray, ends: np.ndarray, order: np.ndarray) -> None:
    one, next_one = order[:-1], order[1:]
    wrong = (of[one] == of[next_one]) & (begins[next_one] < ends[one])
    if wrong.any():
        place = int(wrong.argmax())
        raise ConfigError(
            f"{source}: rows {one[place] + 1} and {next_one[place] + 1} overlap: node {of[one[place]]} is there "
            f"until {ends[one[place]]:g} s and comes at {begins[next_one[place]]:g} s; merge them"
        )


def _without_pairs(flips_s: Sequence[float]) -> list[float]:
    """Two flips at one time cancel out."""
    kept: list[float] = []
    for flip in flips_s:
        if kept and kept[-1] == flip:
            kept.pop()
        else:
            kept.append(flip)
    return kept
