"""What each node spends its time on: training, sending, waiting, being offline."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

import numpy as np

from node.timeline import OFFLINE, SENDING, TRAINING, Floats, Integers, Raster, Timeline

Watcher = Callable[[int, str, float, float], None]
"""Told of each interval: node, kind (``train``, ``lost``, ``send`` or ``offline``), start and end in seconds."""

_GROUPS = 500
"""Rows of the picture: with more nodes than that, a row is a group of nodes of like speed."""
_BUFFERED = 65_536


class Usage:
    """Sums for each node, and a picture binned over time.

    Intervals may come in any order and overlap; where a node does several things at once, offline goes before training
    and training before sending, each second counting once. Intervals wait in a buffer and are then taken apart in the
    order of time, so that a call costs little. One that comes when all others of its time have left the buffer (later
    by half of its length, in intervals) may count as sending what was something else; training is always exact.

    Args:
        nodes: how many.
        watcher: gets every interval as it comes.
    """

    def __init__(self, nodes: int, watcher: Watcher | None = None) -> None:
        self._nodes = nodes
        self._watcher = watcher
        self._limit = max(_BUFFERED, 4 * nodes)
        self._who, self._start_s, self._end_s = array("i"), array("d"), array("d")
        self._last_sent = array("i", [-1]) * nodes
        self._seconds = np.zeros((OFFLINE + 1, nodes))
        self._lost_s = self._discarded_s = self._closed_s = 0.0
        self._raster: Raster | None = None

    def trained(self, node: int, start_s: float, end_s: float) -> None:
        """Take in a training that came to its end."""
        if self._watcher is not None:
            self._watcher(node, "train", start_s, end_s)
        self._append(node << 2 | TRAINING, start_s, end_s)

    def lost(self, node: int, start_s: float, end_s: float, seconds: float) -> None:
        """Take in what was left of a training that was cut short because the node went away.

        Args:
            seconds: that the device has spent on the whole of it.
        """
        if self._watcher is not None:
            self._watcher(node, "lost", start_s, end_s)
        self._lost_s += seconds
        self._append(node << 2 | TRAINING, start_s, end_s)

    def discarded(self, node: int, seconds: float) -> None:
        """Of what a node has trained, so much was for nothing: the result came too late, or one too many."""
        self._discarded_s += seconds

    def sent(self, node: int, start_s: float, end_s: float) -> None:
        """Take in a time in which a node's uplink was busy; such times of one node may overlap."""
        if self._watcher is not None:
            self._watcher(node, "send", start_s, end_s)
        last = self._last_sent[node]
        if last >= 0 and start_s <= self._end_s[last] and end_s >= self._start_s[last]:
            # Several transfers at once, as to all neighbours, are one entry: the buffer then reaches further back.
            self._start_s[last] = min(start_s, self._start_s[last])
            self._end_s[last] = max(end_s, self._end_s[last])
            return
        self._last_sent[node] = len(self._who)
        self._append(node << 2 | SENDING, start_s, end_s)

    def offline(self, node: int, start_s: float, end_s: float) -> None:
        """Take in a time in which a node was away."""
        if self._watcher is not None:
            self._watcher(node, "offline", start_s, end_s)
        self._append(node << 2 | OFFLINE, start_s, end_s)

    def close(self, end_s: float) -> None:
        """The run has ended: what is after ``end_s`` does not count."""
        self._closed_s = end_s
        self._settle(end_s)

    def _append(self, who: int, start_s: float, end_s: float) -> None:
        self._who.append(who)
        self._start_s.append(start_s)
        self._end_s.append(end_s)
        if len(self._who) >= self._limit:
            # At most half of the buffer ends after the median; what else belongs before it has probably come.
            self._settle(float(np.median(np.frombuffer(self._end_s))))

    def _settle(self, until_s: float) -> None:
        """Take apart and add up what happened until a time; what comes after it, or reaches beyond it, waits."""
        who, start_s, end_s = (np.array(column) for column in (self._who, self._start_s, self._end_s))
        if self._raster is None and until_s > 0:
            self._raster = Raster(self._groups(who, end_s - start_s), until_s)
        after = end_s > until_s
        self._who = array("i", who[after].tobytes())
        self._start_s = array("d", np.maximum(start_s[after], until_s).tobytes())
        self._end_s = array("d", end_s[after].tobytes())
        self._last_sent = array("i", [-1]) * self._nodes
        before = start_s < until_s
        node, activity, start_s, end_s = _disjoint(who[before], start_s[before], np.minimum(end_s[before], until_s))
        sums = np.bincount(activity * self._nodes + node, end_s - start_s, self._seconds.size)
        self._seconds += sums.reshape(self._seconds.shape)
        if self._raster is not None:
            self._raster.add(node, activity, start_s, end_s)

    def _groups(self, who: Integers, seconds: Floats) -> Integers:
        """Each node's row of the picture: its own, or that of a group that trained about as fast until now."""
        if self._nodes <= _GROUPS:
            return np.arange(self._nodes)
        training = (who & 3) == TRAINING
        times = np.bincount(who[training] >> 2, minlength=self._nodes)
        sums = np.bincount(who[training] >> 2, seconds[training], self._nodes)
        mean_s = np.where(times, sums / np.maximum(times, 1), np.inf)
        groups = np.empty(self._nodes, dtype=np.int64)
        groups[np.argsort(mean_s, kind="stable")] = np.arange(self._nodes) * _GROUPS // self._nodes
        return groups

    def summary(self) -> dict[str, Any]:
        """Device hours, online hours, utilisation (training by online time) over nodes, and shares of all time.

        Shares sum to 1. A node that was never online has no utilisation; one that never trained has 0. All is as of
        :meth:`close`.
        """
        training, sending, offline = self._seconds
        online = np.maximum(self._closed_s - offline, 0.0)
        sending = np.minimum(sending, np.maximum(online - training, 0.0))
        waiting = np.maximum(online - training - sending, 0.0)
        spent = {"training": training, "sending": sending, "waiting": waiting, "offline": offline}
        total_s = sum(float(seconds.sum()) for seconds in spent.values())
        shares = {name: float(seconds.sum()) / total_s if total_s else 0.0 for name, seconds in spent.items()}
        busy = training[online > 0] / online[online > 0] if (online > 0).any() else np.zeros(1)
        hours = {"total": float(training.sum()), "lost": self._lost_s, "discarded": self._discarded_s}
        return {
            "device_hours": {name: seconds / 3600 for name, seconds in hours.items()},
            "online_hours": float(online.sum()) / 3600,
            "utilisation": {"mean": float(busy.mean()), "min": float(busy.min()), "max": float(busy.max())},
            "shares": shares if total_s else {**shares, "waiting": 1.0},
        }

    def picture(self) -> Timeline | None:
        """Shares of time by groups of nodes and bins of time, as of :meth:`close`; None where no time has passed."""
        return self._raster.timeline(self._closed_s) if self._raster is not None and self._closed_s > 0 else None


def _disjoint(who: Integers, start_s: Floats, end_s: Floats) -> tuple[Integers, Integers, Floats, Floats]:
    """Intervals as segments of one activity each that do not overlap: node, activity, start and end.

    A sweep over all edges: sorted by node and time, running counts of the intervals that are open say what a node does
    until the next edge. They are zero after a node's last one, so that nodes need not be told apart.
    """
    who, time_s = np.concatenate([who, who]), np.concatenate([start_s, end_s])
    step = np.repeat(np.array([1, -1], np.int32), start_s.size)
    order = np.lexsort((time_s, who >> 2))
    who, time_s, step = who[order], time_s[order], step[order]
    open = [np.cumsum(step * ((who & 3) == kind), dtype=np.int32) > 0 for kind in (OFFLINE, TRAINING, SENDING)]
    busy = np.flatnonzero(open[0] | open[1] | open[2])
    activity = np.where(open[0][busy], OFFLINE, np.where(open[1][busy], TRAINING, SENDING))
    return who[busy] >> 2, activity, time_s[busy], time_s[busy + 1]
