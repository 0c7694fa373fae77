"""The one thread that owns every ZeroMQ socket of a node.

It sleeps in a poll, reads up to a batch of messages per wake-up and hands them to the event loop in one call; the loop
posts work to it, and wakes it only when it sleeps. It runs no code of a protocol, and nothing that a peer sends can
end it.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Collection

import numpy as np
import structlog
import zmq

from node.codec import Limits
from node.errors import ConfigError
from node.identity import OUTBOUND, Identity, Roster
from node.live.admission import Admission
from node.live.detours import Detours
from node.live.door import Knock, Visitors
from node.live.entrance import Entrance
from node.live.inbound import Inbound
from node.live.links import Links, Notices
from node.live.pacing import Pace, earliest
from node.live.passing import Passing
from node.live.poll import Poll
from node.live.receive import Delivery
from node.live.refusals import Refusals
from node.live.relay import Quota, Relay
from node.live.sockets import Sockets

CHECK_MS = 50
"""How often time is looked at while something depends on it; otherwise the thread sleeps until it is woken."""

END_LINGER_MS = 100
"""How long the last good-byes may take when peers have not answered them in time."""

MESSAGE_BYTES = 1024
"""What a message that waits for the event loop is taken to cost besides its own bytes."""


class IoThread:
    """Opens the sockets, turns until it is told to close, and leaves nothing behind.

    The sockets are made, and the port is bound, by whoever makes the object; from ``start`` on they are the thread's.
    """

    def __init__(
        self,
        node: int,
        identity: Identity,
        limits: Limits,
        *,
        bind: tuple[str, int] | None,
        encrypted: bool,
        grace_s: float,
        notices: Notices,
        deliver: Callable[[deque[Delivery], int], None],
        ended: Callable[[], None],
        pace: Pace | None = None,
        on_knock: Callable[[Knock], None] | None = None,
    ) -> None:
        """ConfigError where the address cannot be had. ``deliver`` and the other callables are called in the thread.

        Without ``on_knock`` there is no door; without ``bind`` nobody can dial this node.
        """
        self.consumed_bytes = 0
        """What the event loop has taken of the deliveries; the loop writes."""
        self._delivered_bytes = 0
        self.paused = False
        """Whether nothing is read until the event loop has caught up."""
        self._limits = limits
        self._deliver = deliver
        self._ended = ended
        self._paced = pace is not None
        self._closes_s: float | None = None
        self._checked_s = 0.0
        self._said_bye = False
        self._log = structlog.get_logger().bind(node=node)
        self._sockets = Sockets(node, identity, limits, encrypted)
        try:
            router = self._sockets.router(bind)
        except ConfigError:
            self._sockets.close(0)
            raise
        self.address = router.get_string(zmq.LAST_ENDPOINT).rstrip("\0") if bind else OUTBOUND
        self.poll = Poll()
        self.refusals = Refusals(node, limits.refusals)
        self.links = Links(
            node, self._sockets, self.poll, self.refusals, limits.queue_bytes, grace_s, notices, pace, outbound=not bind
        )
        self.inbound = Inbound(limits, self.links, self.refusals, pace)
        visitors = Visitors() if on_knock is not None else None
        self.entrance = Entrance(router, self.inbound, self.links, self.refusals, on_knock, visitors)
        self.relay: Relay | None = Relay(self.entrance.wire, self.refusals, Quota.within(limits)) if bind else None
        """What passes frames on; None where this node itself needs one that does."""
        self._passing = self._join(node, identity)
        self._admission = Admission(self._sockets.context, self.inbound.banned, self._on_refused, visitors)
        if visitors is not None:
            self.poll.add(self._admission.zap_socket, self._admission.answer)
        self.poll.add(router, self._on_router)
        self.poll.add(self.entrance.monitor, self.entrance.on_monitor)
        self._thread = threading.Thread(target=self._run, name=f"starling-io-{node}", daemon=True)

    def _join(self, node: int, identity: Identity) -> Passing:
        """Make the sides of wires known to each other: over some of them, frames go both ways."""
        self.links.receiving = self.inbound
        if self.relay is not None:
            self.links.wire_to = self.entrance.wire
            self.inbound.passing = self.relay
            return self.relay
        rng = np.random.default_rng(int.from_bytes(os.urandom(16)))
        detours = Detours(node, identity, self.links, self.inbound, self.refusals, rng)
        self.links.wire_to = detours.wire
        self.inbound.passing = detours
        return detours

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()

    def admit(self, roster: Roster, shut_out: Collection[bytes] = ()) -> None:
        """Talk to these nodes, and to nobody else; not even at the door to those whose keys are shut out."""
        if self._admission.roster is None and self.entrance.visitors is None:
            self.poll.add(self._admission.zap_socket, self._admission.answer)
        self._admission.roster = roster
        self._admission.shut_out = shut_out
        self.entrance.admit(roster)
        self._passing.admit(roster)
        self.links.admit(roster)

    def resume(self) -> None:
        """Read on, if the event loop has caught up."""
        if self.paused and self.backlog_bytes <= self._limits.backlog_bytes:
            self.paused = False
            self._reading(True)

    def close(self, linger_s: float) -> None:
        """Send what is queued, for at most ``linger_s``, say good-bye and end the thread."""
        self._closes_s = time.monotonic() + linger_s

    @property
    def backlog_bytes(self) -> int:
        """What has been read and is not consumed yet; from any thread."""
        return self._delivered_bytes - self.consumed_bytes + self.inbound.held_bytes

    def _reading(self, wanted: bool) -> None:
        self.poll.reading(self.entrance.router, wanted)
        if self.relay is None:
            self.links.reading(wanted)

    def _on_router(self) -> None:
        self._hand_over(self.entrance.read)

    def _hand_over(self, next_batch: Callable[[], list[Delivery]]) -> None:
        before_bytes = self.links.traffic.bytes_received
        batch = next_batch()
        if batch:
            cost = self.links.traffic.bytes_received - before_bytes + len(batch) * MESSAGE_BYTES
            self._delivered_bytes += cost
            self._deliver(deque(batch), cost)
        if batch or self._paced:
            self._pause_if_behind()
        self.inbound.let_go()

    def _pause_if_behind(self) -> None:
        if self.backlog_bytes > self._limits.backlog_bytes:
            self.paused = True
            self._reading(False)
            self.resume()  # the loop may have caught up before it could see the pause

    def _on_refused(self, reason: str, address: str, detail: str) -> None:
        self.refusals.by_address(reason, address, time.monotonic(), detail)

    def _run(self) -> None:
        try:
            while not self._finished():
                self._turn()
        except Exception:
            self._log.critical("the transport has failed and stops", exc_info=True)
        finally:
            self._end()

    def _turn(self) -> None:
        probing = self.entrance.disconnected_s is not None
        hurried = self._closes_s is not None or self.links.waiting or probing
        self.poll.turn(self._sleep_ms(CHECK_MS if hurried else None))
        now_s = time.monotonic()
        if hurried and now_s - self._checked_s >= CHECK_MS / 1000:
            self._checked_s = now_s
            self.links.check(now_s)
            if probing:
                self.entrance.probe(now_s)
        if self.inbound.apart or self.inbound.is_left:
            self._hand_over(self.inbound.take_apart)
        if self._paced:
            self._hand_over(lambda: self.inbound.pass_on(now_s))
            self.resume()
        self.inbound.give_places(now_s, reading=not self.paused)
        self._passing.pump(now_s)
        self.links.pump()

    def _sleep_ms(self, most_ms: int | None) -> int | None:
        """How long to sleep at most, so that nothing that is held back passes late."""
        due_s = earliest(self.links.due_s, self.inbound.due_s, self._passing.due_s)
        if due_s is None:
            return most_ms
        due_ms = max(math.ceil((due_s - time.monotonic()) * 1000), 0)
        return due_ms if most_ms is None else min(due_ms, most_ms)

    def _finished(self) -> bool:
        if self._closes_s is None:
            return False
        if not self._said_bye and self.links.idle:
            self.links.say_bye(relayed=True)  # first, because these answer through the others
            if not self.links.parting:
                self._say_bye()
        # A connection that ends may take unread messages with it, so the peers' answers are waited for.
        parted = self._said_bye and not (self.links.parting or self.entrance.parting)
        return parted or time.monotonic() >= self._closes_s

    def _say_bye(self) -> None:
        self._said_bye = True
        self.links.say_bye(relayed=False)
        self.entrance.say_bye()

    def _end(self) -> None:
        if not self._said_bye:
            self._say_bye()
        self._sockets.close(END_LINGER_MS)
        self.poll.close()
        self._ended()
