"""Passes frames on between two peers that nobody can dial: sealed, unread, and as much as a relay can spare.

A relay keeps nothing but what waits for its turn, in memory, within a bound and at a rate for each pair of peers. What
goes beyond the bound is dropped, and its sender told so, who then takes another way: the ends notice every gap.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import zmq

from node.codec import Limits
from node.identity import Roster
from node.live import frames
from node.live.frames import Refused
from node.live.refusals import Refusals
from node.live.wires import Opened, Part, Wire

AGAIN_S = 0.01
"""When to try again where a peer does not take more."""
BURST_S = 0.01
"""How far a flow that was looked at late may catch up."""
IDLE_S = 60.0


LEAST_BYTES = 12 << 20
"""A window of chunks, and small messages beside it."""


class Quota(NamedTuple):
    """What a relay spares, for frames of one peer to one other. The ends never have more than 8 MiB of models under
    way at a time (WINDOW_CHUNKS of :mod:`node.live.frames`)."""

    rate_bps: float = 200e6
    queue_bytes: int = LEAST_BYTES
    """Of one pair and direction."""
    all_queued_bytes: int = 64 << 20
    flows: int = 256
    """Pairs, each direction counted, that have said something within the last minute."""

    @classmethod
    def within(cls, limits: Limits) -> Quota:
        """That of a node which itself has these limits: a small one relays less, but a whole window at the least."""
        return cls(all_queued_bytes=max(limits.queue_bytes, LEAST_BYTES))


class _Flow:
    """From one peer to another."""

    def __init__(self) -> None:
        self.waiting: deque[zmq.Frame] = deque()
        self.queued_bytes = 0
        self.next_s = 0.0
        """When the next frame may leave."""
        self.used_s = 0.0


class Relay:
    """The relaying of one node that can be dialled; all of it belongs to the I/O thread."""

    def __init__(self, wire_to: Callable[[int], Opened | None], refusals: Refusals, quota: Quota | None = None) -> None:
        """``wire_to`` gives the connection that a peer has opened, while there is one."""
        self.passed_frames = self.passed_bytes = 0
        self._roster: Roster | None = None
        self._wire_to = wire_to
        self._refusals = refusals
        self._quota = quota or Quota()
        self._flows: dict[tuple[int, int], _Flow] = {}

    @property
    def queued_bytes(self) -> int:
        """What waits, of all pairs."""
        return sum(flow.queued_bytes for flow in list(self._flows.values()))

    @property
    def due_s(self) -> float | None:
        """When :meth:`pump` is to be called although nothing has come; None: never."""
        return min((flow.next_s for flow in self._flows.values() if flow.waiting), default=None)

    def admit(self, roster: Roster) -> None:
        """Relay for these members, and for nobody else."""
        self._roster = roster
        for pair in [pair for pair in self._flows if not all(map(self._serves, pair))]:
            del self._flows[pair]

    def take(self, peer: int, frame: memoryview, more: Part | None) -> None:
        """A member wants a frame passed on. Refused where that is not what a relay is for."""
        if more is None:
            raise Refused("kind", "a frame of a kind that only relays send")
        to, sealed = frames.read_peer(frame), more.whole()
        if not (self._serves(peer) and self._serves(to)):
            self._tell(peer, to)
            raise Refused("relay", f"a frame for node {to}, which is no member that takes a relay")
        if self._wire_to(to) is None or not self._admit(self._flow(peer, to), sealed):
            self._tell(peer, to)

    def broken(self, peer: int, wire: Wire) -> None:
        """A connection has ended: nothing can be passed on over it, and those who did are told."""
        if not isinstance(wire, Opened):
            return
        for source, to in [pair for pair in self._flows if peer in pair]:
            if to == peer:
                self._tell(source, peer)
            del self._flows[source, to]

    def pump(self, now_s: float) -> None:
        """Pass on what may leave by now, a frame of each flow at a time."""
        due = [pair for pair, flow in self._flows.items() if flow.waiting and flow.next_s <= now_s]
        while due:
            due = [pair for pair in due if self._pass_one(pair, self._flows[pair], now_s)]

    def _serves(self, peer: int) -> bool:
        return self._roster is not None and peer in self._roster and self._roster.card(peer).is_outbound

    def _flow(self, peer: int, to: int) -> _Flow | None:
        now_s, flow = time.monotonic(), self._flows.get((peer, to))
        if flow is None and len(self._flows) >= self._quota.flows:
            idle = [pair for pair, each in self._flows.items() if not each.waiting and now_s - each.used_s > IDLE_S]
            for pair in idle:
                del self._flows[pair]
            if not idle:
                return None
        if flow is None:
            flow = self._flows[peer, to] = _Flow()
        flow.used_s = now_s
        return flow

    def _admit(self, flow: _Flow | None, sealed: zmq.Frame) -> bool:
        size_bytes = len(sealed.buffer)
        if (
            flow is None
            or flow.queued_bytes + size_bytes > self._quota.queue_bytes
            or self.queued_bytes + size_bytes > self._quota.all_queued_bytes
        ):
            self._refusals.counts["relay_quota"] += 1
            return False
        flow.waiting.append(sealed)
        flow.queued_bytes += size_bytes
        return True

    def _pass_one(self, pair: tuple[int, int], flow: _Flow, now_s: float) -> bool:
        """Pass one frame on; whether another may follow at once."""
        source, to = pair
        wire = self._wire_to(to)
        size_bytes = len(flow.waiting[0].buffer)
        try:
            if wire is None:
                raise zmq.Again
            wire.send(frames.relay(source), flow.waiting[0])
        except zmq.Again:
            flow.next_s = now_s + AGAIN_S
            return False
        flow.waiting.popleft()
        flow.queued_bytes -= size_bytes
        flow.next_s = max(flow.next_s, now_s - BURST_S) + size_bytes * 8 / self._quota.rate_bps
        self.passed_frames += 1
        self.passed_bytes += size_bytes
        return bool(flow.waiting) and flow.next_s <= now_s

    def _tell(self, peer: int, to: int) -> None:
        wire = self._wire_to(peer)
        if wire is not None:
            with contextlib.suppress(zmq.Again):
                wire.send(frames.gone(to))
