"""Uplinks and downlinks that transfers share max-min fairly."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from node.clock import Priority, VirtualClock
from node.config import NetworkSection
from node.sim.network.access import AccessNetwork, Deliver, Parcel
from node.sim.network.links import FairLinks
from node.sim.network.rules import Rule

_NEVER = float("inf")


@dataclass(slots=True)
class _Transfer:
    deliver: Deliver
    parcel: Parcel
    start_s: float
    latency_s: float


class FairNetwork(AccessNetwork):
    """Each transfer is a fluid flow over its sender's uplink and its receiver's downlink; see :class:`FairLinks`.

    Messages of one sender to one receiver follow one another, as over a live link. A transfer arrives its latency after
    its end; a cut, or a partition that begins, ends it at once. All changes of one instant are solved for together.
    """

    def __init__(self, section: NetworkSection, nodes: int, seed: int, clock: VirtualClock, **told: Any) -> None:
        super().__init__(section, nodes, seed, clock, **told)
        self._nodes = nodes
        self._links = FairLinks([bps / 8 for bps in (*self._up_bps, *self._down_bps)])
        """Bytes per second: uplinks by node, then downlinks."""
        self._transfers: dict[int, _Transfer] = {}
        self._queues: dict[tuple[int, int], deque[_Transfer]] = {}
        """What waits behind each transfer, by sender and receiver."""
        self._will_settle = False
        self._wakes_s = _NEVER

    def _transfer(self, deliver: Deliver, parcel: Parcel) -> None:
        peer, sender, _, size_bytes = parcel
        latency_s = self._latency_s(sender, peer, size_bytes)
        transfer = _Transfer(deliver, parcel, self._clock.now, latency_s)
        queue = self._queues.get((sender, peer))
        if queue is None:
            self._queues[sender, peer] = deque()
            self._start(transfer)
        else:
            queue.append(transfer)

    def _start(self, transfer: _Transfer) -> None:
        peer, sender, _, size_bytes = transfer.parcel
        flow = self._links.start((sender, self._nodes + peer), self._wire_bytes(sender, peer, size_bytes))
        self._transfers[flow] = transfer
        transfer.start_s = self._clock.now
        self._settle_soon()

    def _start_next(self, ended: _Transfer) -> None:
        peer, sender, _, _ = ended.parcel
        queue = self._queues[sender, peer]
        if queue:
            self._start(queue.popleft())
        else:
            del self._queues[sender, peer]

    def _settle_soon(self) -> None:
        """Settle after the other events of this instant, such as handlers that answer what is delivered now."""
        if not self._will_settle:
            self._will_settle = True
            self._post(0.0, self._settle, None, Priority.TIMER)

    def _settle(self, _: None) -> None:
        self._will_settle = False
        self._links.settle(self._clock.now)
        self._wake_at_end()

    def _wake_at_end(self) -> None:
        """Wake up when the next transfer ends; if that has become too early, nothing is found, and asked for anew."""
        end_s = self._links.next_end_s()
        if end_s < self._wakes_s:
            self._wakes_s = end_s
            self._post(max(end_s - self._clock.now, 0.0), self._finish, end_s, Priority.TRANSFER)

    def _finish(self, wake_s: float) -> None:
        if wake_s == self._wakes_s:
            self._wakes_s = _NEVER
        ended = self._links.take_ended(self._clock.now)
        for flow in ended:
            transfer = self._close(flow)
            self._post(self._in_order_s(transfer.parcel, transfer.latency_s), transfer.deliver, transfer.parcel)
            self._start_next(transfer)
        if ended:
            self._settle_soon()
        else:
            self._wake_at_end()

    def _close(self, flow: int) -> _Transfer:
        transfer = self._transfers.pop(flow)
        if self._sent is not None:
            self._sent(transfer.parcel[1], transfer.start_s, self._clock.now)
        return transfer

    def _drop(self, flow: int) -> None:
        self._links.end(flow)
        peer, sender, _, size_bytes = self._close(flow).parcel
        self._lost(peer, sender, size_bytes)
        for waiting in self._queues.pop((sender, peer)):
            self._lost(peer, sender, waiting.parcel[3])
        self._settle_soon()

    def cut(self, node: int) -> None:
        """A node goes: what it is sending and receiving ends, and others have its share from now on."""
        super().cut(node)
        for flow in [*self._links.flows(node), *self._links.flows(self._nodes + node)]:
            self._drop(flow)

    def stories(self) -> Iterator[str]:
        """A line for each message that cannot go on, for who has to explain a deadlock."""
        yield from super().stories()
        for flow, link in self._links.stalled().items():
            peer, sender, _, size_bytes = self._transfers[flow].parcel
            stopped = (
                f"the uplink of node {link}" if link < self._nodes else f"the downlink of node {link - self._nodes}"
            )
            yield f"a transfer from node {sender} to node {peer} ({size_bytes} bytes) stalls: {stopped} carries nothing"

    def _set_up(self, node: int, bps: float) -> None:
        super()._set_up(node, bps)
        self._set_capacity(node, bps)

    def _set_down(self, node: int, bps: float) -> None:
        super()._set_down(node, bps)
        self._set_capacity(self._nodes + node, bps)

    def _set_capacity(self, link: int, bps: float) -> None:
        self._links.set_capacity(link, bps / 8)
        self._settle_soon()

    def _rule_changed(self, rule: Rule, begins: bool) -> None:
        super()._rule_changed(rule, begins)
        if rule.kind == "partition" and begins:
            for flow, transfer in list(self._transfers.items()):
                peer, sender, _, _ = transfer.parcel
                if rule.crosses(sender, peer):
                    self._drop(flow)
