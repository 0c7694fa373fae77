"""When a run reached an accuracy, and how many bytes had been sent by then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ROUNDING = 1e-9
"""By how much a mean may miss the target: sums of many numbers are not exact."""
_ALL_BUT_WORST = 0.9


class Course(NamedTuple):
    """One metric as nodes recorded it: arrays of one length; a later entry of a node replaces its earlier one."""

    time_s: Floats
    node: Integers
    value: Floats

    def ordered(self) -> Course:
        """In the order of time, without what is infinite or not a number."""
        known = np.isfinite(self.value)
        time_s, node, value = self.time_s[known], self.node[known], self.value[known]
        order = np.argsort(time_s, kind="stable")
        return Course(time_s[order], node[order], value[order])


class Reached(NamedTuple):
    """When, and with how many bytes sent by the nodes that record them; None: never, or nobody recorded bytes."""

    time_s: float | None
    sent_bytes: float | None


_NEVER = Reached(None, None)


def reached(accuracy: Course, bytes_sent: Course, target: float) -> tuple[Reached, Reached]:
    """When the mean over nodes, and when all but the worst tenth of the nodes, first reach an accuracy.

    Each node counts with its latest value. Looked up at every time at which somebody recorded, not between; nothing
    counts before every node that records accuracy in this run has done so.
    """
    accuracy, bytes_sent = accuracy.ordered(), bytes_sent.ordered()
    nodes = np.unique(accuracy.node).size
    if not nodes:
        return _NEVER, _NEVER
    before = _before(accuracy)
    news = np.isnan(before)
    last_of_its_time = np.append(accuracy.time_s[1:] != accuracy.time_s[:-1], True)
    counts = last_of_its_time & (np.cumsum(news) == nodes)
    mean = np.cumsum(np.where(news, accuracy.value, accuracy.value - before)) / nodes
    at_target = (accuracy.value >= target - _ROUNDING).astype(np.int64) - (before >= target - _ROUNDING)
    enough = np.cumsum(at_target) >= _ALL_BUT_WORST * nodes - _ROUNDING
    mean_reached = np.flatnonzero(counts & (mean >= target - _ROUNDING))
    worst_reached = np.flatnonzero(counts & enough)
    return _cost(accuracy, bytes_sent, mean_reached), _cost(accuracy, bytes_sent, worst_reached)


def _cost(accuracy: Course, bytes_sent: Course, found: Integers) -> Reached:
    if not found.size:
        return _NEVER
    time_s = float(accuracy.time_s[found[0]])
    if not bytes_sent.value.size:
        return Reached(time_s, None)
    until = int(np.searchsorted(bytes_sent.time_s, time_s, side="right"))
    latest = dict(zip(bytes_sent.node[:until].tolist(), bytes_sent.value[:until].tolist(), strict=True))
    return Reached(time_s, float(sum(latest[node] for node in sorted(latest))))


def _before(course: Course) -> Floats:
    """Each entry's predecessor of the same node; not a number for a node's first."""
    order = np.argsort(course.node, kind="stable")
    node, value = course.node[order], course.value[order]
    before = np.full(value.size, np.nan)
    again = np.flatnonzero(node[1:] == node[:-1]) + 1
    before[order[again]] = value[again - 1]
    return before


def summarised(accuracy: Course, bytes_sent: Course, targets: Sequence[float]) -> dict[str, dict[str, float | None]]:
    """What ``summary.json`` says of each target, the mean's and that of all but the worst tenth of the nodes."""
    found = {f"{target:g}": reached(accuracy, bytes_sent, target) for target in targets}
    return {
        "time_to_accuracy_s": {target: mean.time_s for target, (mean, _) in found.items()},
        "bytes_to_accuracy": {target: mean.sent_bytes for target, (mean, _) in found.items()},
        "time_to_accuracy_worst_decile_s": {target: worst.time_s for target, (_, worst) in found.items()},
        "bytes_to_accuracy_worst_decile": {target: worst.sent_bytes for target, (_, worst) in found.items()},
    }
