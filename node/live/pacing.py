"""When what may pass, where links are held to a rate and a latency: state machines without sockets, clocks or threads.

A node's uplink and downlink each serve their flows (one per peer) fairly, a piece at a time. Each piece has an absolute
deadline, so that whoever looks late at one does not delay those after it.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import Generic, NamedTuple, TypeVar

BURST_S = 0.01
"""How far an uplink that was looked at late may catch up."""

Item = TypeVar("Item")


class Pace(NamedTuple):
    """What a node's links are held to."""

    up_bps: float
    """Bits per second that leave it, over all its links."""
    down_bps: float
    """Bits per second that reach it."""
    latency_s: float
    """Added to every message, at its receiver."""


class Pacer(Generic[Item]):
    """Lets pieces of several flows pass at a rate, each flow with an equal share of it while it has pieces waiting.

    Self-clocked fair queueing (Golestani, IEEE INFOCOM 1994) on a link that never sends ahead of its rate: a flow that
    had nothing to send saves nothing up.
    """

    def __init__(self, rate_bps: float, burst_s: float = BURST_S) -> None:
        """``burst_s``: what a service that is looked at later than this has lost is lost for good."""
        self._seconds_per_byte = 8.0 / rate_bps
        self._burst_s = burst_s
        self._waiting: list[tuple[float, int, float, int, Item]] = []
        self._serving: tuple[float, int, Item] | None = None
        self._free_s = 0.0
        self._tag = self._newest_tag = 0.0
        self._tags: dict[int, float] = {}
        self._added = 0
        self.queued_bytes = 0
        """Of pieces that have not passed yet."""

    @property
    def due_s(self) -> float | None:
        """When to look again; None: not before something is added."""
        if self._serving is not None:
            return self._serving[0]
        return self._free_s if self._waiting else None

    def takes_s(self, size_bytes: int) -> float:
        """How long so many bytes take to pass."""
        return size_bytes * self._seconds_per_byte

    def add(self, flow: int, size_bytes: int, item: Item, since_s: float) -> None:
        """A piece of a flow waits, behind the flow's earlier ones.

        ``since_s``: when it could have begun to pass, had nothing else been there; for a piece that has been arriving
        for a while that is when it began to arrive, so that two links in a row do not each take their time.
        """
        tag = max(self._tag, self._tags.get(flow, 0.0)) + size_bytes
        self._tags[flow] = tag
        self._newest_tag = max(self._newest_tag, tag)
        self._push(tag, size_bytes, item, since_s)

    def add_first(self, size_bytes: int, item: Item, since_s: float) -> None:
        """A small piece is to pass before all that waits now, but behind those that were added so before it."""
        self._push(-1.0, size_bytes, item, since_s)

    def add_last(self, item: Item, since_s: float) -> None:
        """Something without bytes is to pass behind all that waits now, of whichever flow."""
        self._push(self._newest_tag, 0, item, since_s)

    def take(self, now_s: float) -> tuple[float, Item] | None:
        """The next piece that has passed by now, and its deadline; call it until there is none."""
        if self._serving is None and not self._serve(now_s):
            return None
        assert self._serving is not None
        deadline_s, size_bytes, item = self._serving
        if deadline_s > now_s:
            return None
        self._serving = None
        self.queued_bytes -= size_bytes
        return deadline_s, item

    def _push(self, tag: float, size_bytes: int, item: Item, since_s: float) -> None:
        self._added += 1
        self.queued_bytes += size_bytes
        heapq.heappush(self._waiting, (tag, self._added, since_s, size_bytes, item))

    def _serve(self, now_s: float) -> bool:
        if not self._waiting:
            self._tag = self._newest_tag = 0.0
            self._tags.clear()
            return False
        tag, _, since_s, size_bytes, item = heapq.heappop(self._waiting)
        self._tag = max(self._tag, tag)
        self._free_s = max(self._free_s, since_s, now_s - self._burst_s) + self.takes_s(size_bytes)
        self._serving = self._free_s, size_bytes, item
        return True


class Delay(Generic[Item]):
    """Holds everything back for one and the same time; things are added in the order of their times."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._held: deque[tuple[float, Item]] = deque()

    @property
    def due_s(self) -> float | None:
        """When to look again; None: not before something is added."""
        return self._held[0][0] if self._held else None

    def add(self, at_s: float, item: Item) -> None:
        """Something begins its way at ``at_s``."""
        self._held.append((at_s + self._delay_s, item))

    def take(self, now_s: float) -> Item | None:
        """The next thing that has arrived by now; call it until there is none."""
        return self._held.popleft()[1] if self._held and self._held[0][0] <= now_s else None


def earliest(*times_s: float | None) -> float | None:
    """The first of some points in time that may not be known."""
    return min((time_s for time_s in times_s if time_s is not None), default=None)
