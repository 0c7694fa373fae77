"""The links to all peers that we send to, and who of them is there."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import zmq

from node.codec import Encoded
from node.errors import Unreachable
from node.identity import Roster
from node.live import frames
from node.live.frames import Refused
from node.live.link import Account, Link, Traffic
from node.live.pacing import Pace, Pacer, earliest
from node.live.poll import Poll
from node.live.refusals import Refusals
from node.live.shaping import Leaving, Shaper
from node.live.sockets import Sockets
from node.live.wires import Dialled, Opened, Path, Receiving, Wire

RETRY_S = 0.01
"""When to try again where ZeroMQ does not say that there is room."""
REDIAL_S = 2.0
"""When a node that nobody can dial looks again for a peer that has said good-bye; it takes less to stop."""


class Notices(NamedTuple):
    """What the I/O thread tells the event loop about a peer."""

    gone: Callable[[int], None]
    """It said good-bye, was cut off, or did not come back in time."""
    back: Callable[[int], None]
    """One that was gone is there again."""
    room: Callable[[int], None]
    """Its queue is within its bound again."""


class Links:
    """One link per peer that is sent to or watched; all but :meth:`account` belongs to the I/O thread."""

    receiving: Receiving
    wire_to: Callable[[int], Wire | None]
    """The wire to a peer that cannot be dialled, where there is one."""

    def __init__(
        self,
        node: int,
        sockets: Sockets,
        poll: Poll,
        refusals: Refusals,
        queue_bytes: int,
        grace_s: float,
        notices: Notices,
        pace: Pace | None = None,
        outbound: bool = False,
    ) -> None:
        """``outbound``: nobody can dial this node, so it opens a link to everybody itself."""
        self.traffic = Traffic()
        self._node = node
        self._outbound = outbound
        self._sockets = sockets
        self._poll = poll
        self._refusals = refusals
        self._queue_bytes = queue_bytes
        self._grace_s = grace_s
        self._notices = notices
        self._roster: Roster | None = None
        self._links: dict[int, Link] = {}
        self._accounts: dict[int, Account] = {}
        self._gone: set[int] = set()
        self._closing = False
        self._told_bye: set[int] = set()
        self.parting: set[int] = set()
        """Who has been told that we stop, and has not answered yet."""
        self._ready: dict[int, Link] = {}
        self._stuck: dict[int, Link] = {}
        """Those whose wires do not say when there is room."""
        self._redial_s: dict[int, float] = {}
        self._uplink: Pacer[Callable[[], None]] | None = pace and Pacer(pace.up_bps)
        self._shaper: Shaper | None = None

    @property
    def idle(self) -> bool:
        """Whether nothing waits to be sent to anybody."""
        held = (self._uplink and self._uplink.queued_bytes) or (self._shaper and not self._shaper.idle)
        return all(link.idle for link in self._links.values()) and not held

    @property
    def due_s(self) -> float | None:
        """When what is held back wants :meth:`pump` to be called; None: not before something else happens."""
        held_s = [held.due_s for held in (self._uplink, self._shaper) if held is not None]
        stuck_s = time.monotonic() + RETRY_S if self._stuck else None
        return earliest(*held_s, stuck_s, *self._redial_s.values())

    @property
    def waiting(self) -> bool:
        """Whether some link is down whose peer may still come back in time."""
        return any(not link.connected and peer not in self._gone for peer, link in self._links.items())

    def account(self, peer: int) -> Account:
        """The bytes on their way to a peer; from any thread."""
        return self._accounts.get(peer) or self._accounts.setdefault(peer, Account())

    @property
    def queued_bytes(self) -> int:
        """The bytes on their way to all peers together; from any thread."""
        return sum(account.queued_bytes for account in list(self._accounts.values()))

    def has(self, peer: int) -> bool:
        """Whether there is a link to the peer."""
        return peer in self._links

    def paths(self) -> dict[int, Path]:
        """How peers are reached, of those that are; from any thread."""
        paths = {}
        for peer, link in tuple(self._links.items()):
            if (wire := link.wire) is not None and link.connected:
                paths[peer] = wire.path
        return dict(sorted(paths.items()))

    def dialled(self) -> dict[int, Wire]:
        """The wires that are up to peers which this node has dialled."""
        return {
            peer: link.wire
            for peer, link in self._links.items()
            if link.connected and isinstance(link.wire, Dialled) and peer not in self._gone
        }

    def admit(self, roster: Roster) -> None:
        """Close the links to those who are not in the roster, or there with another address or key: these are new."""
        before, self._roster = self._roster, roster
        for peer in sorted({*self._links, *self._gone}):
            if peer not in roster:
                self.lose(peer)
            elif before is None or peer not in before or roster.card(peer) != before.card(peer):
                linked = peer in self._links
                self._close(peer)
                self.heard(peer)
                if linked:
                    self.watch(peer)
        if self._outbound:
            for card in roster:
                if not card.is_outbound and card.node != self._node:
                    self.watch(card.node)

    def send(self, peer: int, encoded: Encoded, keep: object) -> None:
        """Queue a message for a peer; :meth:`pump` sends it. To one that has gone it is dropped."""
        if self._shaper is None:
            self._pass(peer, encoded, keep)
        elif not self._shaper.add(Leaving(peer, encoded, keep), time.monotonic()):
            self.traffic.dropped["fault"] += 1
            self._forgo(peer, encoded.size_bytes)

    def shape(self, shaper: Shaper) -> None:
        """From now on this befalls what is sent; what another has held back until now leaves."""
        before, self._shaper = self._shaper, shaper
        while before is not None and (leaving := before.take(math.inf)) is not None:
            self._let_go(leaving)

    def _let_go(self, leaving: Leaving) -> None:
        self._forgo(leaving.peer, leaving.unsent_bytes)
        self._pass(leaving.peer, leaving.encoded, leaving.keep)

    def _forgo(self, peer: int, size_bytes: int) -> None:
        account = self.account(peer)
        account.left_bytes += size_bytes
        if account.wanted and account.queued_bytes <= self._queue_bytes:
            self._notices.room(peer)

    def _pass(self, peer: int, encoded: Encoded, keep: object) -> None:
        if self._uplink is not None and frames.is_small(encoded, frames.PACED.small_bytes):
            self._uplink.add_first(encoded.size_bytes, lambda: self._enqueue(peer, encoded, keep), time.monotonic())
        else:
            self._enqueue(peer, encoded, keep)

    def _enqueue(self, peer: int, encoded: Encoded, keep: object) -> None:
        link = None if peer in self._gone else self._links.get(peer) or self._open(peer)
        if link is None:
            self.traffic.dropped["gone"] += 1
            self.account(peer).left_bytes += encoded.size_bytes
        else:
            link.add((encoded, keep))
            self._ready[peer] = link

    def watch(self, peer: int) -> None:
        """Have a link to the peer, so that its going is noticed."""
        if peer not in self._gone and not self._closing:
            self._open(peer)

    def heard(self, peer: int) -> None:
        """A peer has spoken; one that had gone is back."""
        if peer in self._gone:
            self._gone.discard(peer)
            self._notices.back(peer)

    def lose(self, peer: int) -> None:
        """A peer has gone for good, as far as it can be known: close its link, and say so once."""
        self._close(peer)
        if peer not in self._gone:
            self._gone.add(peer)
            self._notices.gone(peer)

    def redial(self, peer: int) -> None:
        """Look again for a peer that has said good-bye, in a while, if it cannot do that itself."""
        if self._outbound and self._roster is not None and peer in self._roster:
            self._redial_s[peer] = time.monotonic() + REDIAL_S

    def pump(self) -> None:
        """Send what can be sent, and tell who waited for it."""
        self._ready.update(self._stuck)
        self._stuck = {}
        for peer in [peer for peer, due_s in self._redial_s.items() if due_s <= time.monotonic()]:
            del self._redial_s[peer]
            if not self._closing:
                self._open(peer)
        while self._shaper is not None and (leaving := self._shaper.take(time.monotonic())) is not None:
            self._let_go(leaving)
        if self._uplink is None:
            self._pump_ready()
            return
        now_s = time.monotonic()
        self._pump_ready(now_s)
        while (passed := self._uplink.take(now_s)) is not None:
            at_s, leave = passed
            leave()
            self._pump_ready(at_s)  # not now_s: a wake-up that was late must not delay the pieces that follow

    def _pump_ready(self, since_s: float = 0.0) -> None:
        ready, self._ready = self._ready, {}
        for peer, link in ready.items():
            blocked = link.blocked
            link.pump()
            if isinstance(link.wire, Dialled):
                if link.blocked != blocked:
                    self._poll.writing(link.wire.socket, link.blocked)
            elif link.blocked:
                self._stuck[peer] = link
            if link.account.wanted and link.account.queued_bytes <= self._queue_bytes:
                self._notices.room(peer)
            if self._uplink is not None:
                self._ask(self._uplink, peer, link, since_s)

    def _ask(self, uplink: Pacer[Callable[[], None]], peer: int, link: Link, since_s: float) -> None:
        if not link.awaiting_grant and (size_bytes := link.next_bytes):
            link.awaiting_grant = True
            uplink.add(peer, size_bytes, lambda: self._grant(peer, link), since_s)

    def _grant(self, peer: int, link: Link) -> None:
        link.awaiting_grant = False
        link.granted = 1
        if self._links.get(peer) is link:  # it may have been closed in the meantime
            self._ready[peer] = link

    def check(self, now_s: float) -> None:
        """Give up the peers whose links have been down for longer than the grace. Their links keep trying."""
        for peer, link in list(self._links.items()):
            if not link.connected and peer not in self._gone and now_s - link.down_since_s >= self._grace_s:
                link.drop()
                self._gone.add(peer)
                self._notices.gone(peer)

    def say_bye(self, relayed: bool) -> None:
        """Tell every peer that is reached through a relay, or every other, that we stop, behind all that it was sent.

        It answers in kind, or hangs up. Nobody is told twice.
        """
        self._closing = True
        for peer, link in self._links.items():
            if link.wire is not None and (link.wire.path.kind == "relay") is relayed and peer not in self._told_bye:
                self._told_bye.add(peer)
                with contextlib.suppress(zmq.ZMQError):
                    link.wire.send(frames.BYE_FRAME)
                    self.parting.add(peer)

    # What peers say of the wires

    def reached(self, peer: int, wire: Wire) -> None:
        """There is a wire to a peer; it counts where the peer cannot be dialled."""
        link = self._links.get(peer)
        if link is not None and link.card.is_outbound:
            link.up(wire, time.monotonic())
            self._ready[peer] = link

    def broken(self, peer: int, wire: Wire) -> None:
        """A wire is no more; this node may have dialled it, and then dials it again."""
        self.parting.discard(peer)
        link = self._links.get(peer)
        if link is not None and link.wire is wire:
            link.down(time.monotonic())
            if not isinstance(wire, Dialled):
                link.wire = None

    def probed(self, peer: int, wire: Wire) -> None:
        """A peer is there, or asks whether this node is."""
        if not isinstance(wire, Dialled):
            self.heard(peer)

    def steered(self, peer: int, wire: Wire, frame: memoryview) -> None:
        """The receiver of our messages gives a place or credits. Refused where it is none."""
        if isinstance(wire, Opened) and (self._roster is None or not self._roster.card(peer).is_outbound):
            raise Refused("kind", "a frame of a kind that only receivers send")
        link = self._links.get(peer)
        if link is None or link.wire is not wire:
            return
        if frame[0] == frames.PLACE:
            link.placed(frames.read_place(frame))
        else:
            link.credited(frames.read_credit(frame))
        self._ready[peer] = link

    def check_sender(self, wire: Wire) -> None:
        """Refused where nobody sends messages over a wire."""
        if isinstance(wire, Dialled) and not self._outbound:
            raise Refused("kind", "a frame of a kind that only senders send")

    def answers_bye(self, wire: Wire) -> bool:
        """Whether a good-bye that has come over a wire is to be answered; else it is an answer, or hanging up is."""
        return isinstance(wire, Opened) or not (isinstance(wire, Dialled) or self._closing)

    def _open(self, peer: int) -> Link | None:
        link = self._links.get(peer)
        if link is None and self._roster is not None and peer in self._roster:
            card, now_s = self._roster.card(peer), time.monotonic()
            try:
                dialled = None if card.is_outbound else Dialled(self._sockets, card)
            except Unreachable as error:
                self._refusals.by_address("address", card.address, now_s, str(error))
                self.lose(peer)
                return None
            link = Link(card, dialled, self.account(peer), self.traffic, now_s, self._uplink is not None)
            self._links[peer] = link
            if dialled is not None:
                self._poll.add(dialled.socket, lambda: self._on_socket(peer, link, dialled))
                self._poll.add(dialled.monitor, lambda: self._on_monitor(peer, link, dialled))
            elif (wire := self.wire_to(peer)) is not None:
                link.up(wire, now_s)
        return link

    def _close(self, peer: int) -> None:
        self._redial_s.pop(peer, None)
        link = self._links.pop(peer, None)
        if link is not None:
            self.parting.discard(peer)
            self._ready.pop(peer, None)
            self._stuck.pop(peer, None)
            link.drop()
            if isinstance(link.wire, Dialled):
                self._poll.remove(link.wire.socket)
                self._poll.remove(link.wire.monitor)
                link.wire.close(0)
                self.receiving.ended(peer, link.wire)

    def reading(self, wanted: bool) -> None:
        """Whether what peers send over wires that we have dialled is read at all."""
        for link in self._links.values():
            if isinstance(link.wire, Dialled):
                self._poll.reading(link.wire.socket, wanted)

    def _on_socket(self, peer: int, link: Link, wire: Dialled) -> None:
        self._ready[peer] = link
        for frame, more in wire.arrived():
            self.receiving.frame(peer, wire, frame, more)
            if self._links.get(peer) is not link:
                return

    def _on_monitor(self, peer: int, link: Link, wire: Dialled) -> None:
        event = wire.event()
        kind = event["event"]
        if kind == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            link.up(wire, time.monotonic())
            self.heard(peer)
            self._ready[peer] = link
            if self._outbound:
                with contextlib.suppress(zmq.Again):
                    wire.send(frames.PROBE_FRAME)
        elif kind == zmq.EVENT_DISCONNECTED:
            self.receiving.ended(peer, wire)
        else:
            detail = f"{zmq.Event(kind).name} {event['value']}: node {peer} has another key there, or does not admit us"
            self._refusals.by_address("handshake", link.card.address, time.monotonic(), detail)
