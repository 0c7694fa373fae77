"""Messages between this node and its peers, for code that runs on the event loop.

One ROUTER socket that peers reach us at and one DEALER per peer that we send to, encrypted and authenticated by CURVE
(ZeroMQ RFC 25/26) and owned by one I/O thread. With a peer that cannot be dialled, the connection that it has opened
serves both ways; between two such peers a third passes sealed frames on. Messages to one peer keep their order, except
that small ones (below 64 KiB) overtake large ones. A message is delivered at most once: one that had been handed over
when a link broke may be lost with it, one that was still arriving in chunks starts again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable
from typing import NamedTuple

from node.codec import Encoded, Header, Limits
from node.errors import FrameTooLarge, NotAMember, TransportError, Unreachable
from node.identity import Identity, Roster
from node.live.door import Knock
from node.live.io_thread import IoThread
from node.live.links import Notices
from node.live.names import Names
from node.live.pacing import Pace
from node.live.receive import Delivery
from node.live.shaping import Shaper
from node.live.tally import Tally
from node.live.wires import Path


class Counters(NamedTuple):
    """What has passed so far. Bytes are headers and payloads, as the simulated network counts them."""

    messages_sent: int
    bytes_sent: int
    messages_received: int
    bytes_received: int
    refused: dict[str, int]
    """Frames and handshakes that were refused, by reason."""
    dropped: dict[str, int]
    """Messages that were to be sent and never left, by reason: ``full`` queue, peer ``gone``, injected ``fault``."""
    disconnects: int
    """How often a link that this node has made has broken,"""
    reconnects: int
    """and how often it was made again."""


class Relayed(NamedTuple):
    """Sealed frames that were passed on between peers that nobody can dial."""

    frames: int = 0
    size_bytes: int = 0
    queued_bytes: int = 0


class Transport:
    """Sends and receives messages for one node. All methods are called on the event loop's thread."""

    address: str
    """Where peers reach this node, ``tcp://host:port`` or ``outbound``; known once started."""

    def __init__(
        self,
        node: int,
        identity: Identity,
        *,
        on_message: Callable[[int, Header, list[memoryview]], None],
        on_lost: Callable[[int], None],
        on_back: Callable[[int], None] = lambda peer: None,
        listen: str | None = "127.0.0.1",
        port: int = 0,
        limits: Limits | None = None,
        grace_s: float = 3.0,
        encrypted: bool = True,
        pace: Pace | None = None,
        on_knock: Callable[[Knock], None] | None = None,
    ) -> None:
        """``on_message`` gets sender, header and payloads; ``on_lost`` a peer whose link is gone for ``grace_s``,
        ``on_back`` one that was lost and is there again.

        Without encryption anybody can be anybody: that is for benchmarks alone. Port 0 is any free one. With a ``pace``
        this node's links are held to it; messages are cut finer then, so all that talk to each other have one, or none.
        With ``on_knock`` there is a door: it gets what strangers ask there, and may :meth:`answer`. A node that listens
        nowhere (None) opens links to all that do, and is reached over these, or through one of them that relays.
        """
        self._node = node
        self._identity = identity
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_back = on_back
        self._bind = None if listen is None else (listen, port)
        self._limits = limits or Limits()
        self._grace_s = grace_s
        self._encrypted = encrypted
        self._pace = pace
        self._on_knock = on_knock
        self._roster: Roster | None = None
        self._names = Names(node)
        self._gone: set[int] = set()
        self._dropped: Counter[str] = Counter()
        self._waiting: dict[int, deque[asyncio.Future[None]]] = {}
        self.tally = Tally()
        """What has been taken for sending, and what has been received."""
        self._io: IoThread | None = None
        self._closing = False
        self._ended = asyncio.Event()

    def start(self) -> None:
        """Bind and begin to listen; ConfigError where the address cannot be had. Nobody is let in before ``admit``."""
        self._loop = asyncio.get_running_loop()
        self._io = IoThread(
            self._node,
            self._identity,
            self._limits,
            bind=self._bind,
            encrypted=self._encrypted,
            grace_s=self._grace_s,
            notices=Notices(
                lambda peer: self._tell(self._peer_gone, peer),
                lambda peer: self._tell(self._peer_back, peer),
                lambda peer: self._tell(self._release, peer),
            ),
            deliver=lambda batch, cost: self._tell(self._receive, batch, cost),
            ended=lambda: self._tell(self._io_ended),
            pace=self._pace,
            on_knock=None if (minded := self._on_knock) is None else lambda knock: self._tell(minded, knock),
        )
        self._enqueue = self._io.links.send
        self.address = self._io.address
        self._io.start()

    @property
    def identity(self) -> Identity:
        """This node's keys."""
        return self._identity

    @property
    def roster(self) -> Roster:
        """Those that were admitted. NotAMember before anybody was."""
        if self._roster is None:
            raise NotAMember("nobody has been admitted yet; admit a roster first")
        return self._roster

    def admit(self, roster: Roster, shut_out: Collection[bytes] = ()) -> None:
        """Talk to the nodes of this roster, and to nobody else; a later call replaces it.

        The holders of the CURVE keys that are shut out do not even reach the door.
        """
        io = self._running()
        self._roster = roster
        self._names.look(roster)
        io.poll.post(io.admit, roster, frozenset(shut_out))

    def answer(self, knock: Knock, payload: bytes) -> None:
        """Answer one who has knocked; at most ANSWER_BYTES of :mod:`node.live.frames`."""
        io = self._running()
        io.poll.post(io.entrance.answer, knock.connection, payload)

    def shape(self, shaper: Shaper) -> None:
        """Let this befall what is sent from now on: losses, delays and garbage, for tests of what they do."""
        io = self._running()
        io.poll.post(io.links.shape, shaper)

    def watch(self, peers: Iterable[int]) -> None:
        """Keep links to these peers even if nothing is sent to them, so that ``on_lost`` is called when they go."""
        io = self._running()
        for peer in peers:
            io.poll.post(io.links.watch, peer)

    async def send(self, to: int, encoded: Encoded, *, keep: object = None) -> None:
        """Queue a message for a peer; waits while what is queued for that peer is beyond ``limits.queue_bytes``.

        The buffers must not change, and ``keep`` is held, until the bytes have been copied or have left. NotAMember for
        a node that is not in the roster, Unreachable for one that has gone, FrameTooLarge for a message that no peer
        would accept.
        """
        io = self._running()
        if self._roster is None or to not in self._roster:
            raise NotAMember(f"node {to} is not in the roster; admit a roster that has its card")
        if encoded.size_bytes > self._limits.message_bytes or len(encoded.header) > self._limits.header_bytes:
            raise FrameTooLarge(
                f"a message of {encoded.size_bytes} bytes (header {len(encoded.header)}) to node {to}; allowed are "
                f"{self._limits.message_bytes} (header {self._limits.header_bytes})"
            )
        account = io.links.account(to)
        while account.queued_bytes > self._limits.queue_bytes and to not in self._gone and not self._closing:
            account.wanted = True
            if account.queued_bytes > self._limits.queue_bytes:  # it may have left before the I/O thread could see us
                await self._room(to)
        if self._closing:
            raise TransportError(
                f"a message to node {to}: this node's transport is closing; send nothing after close()"
            )
        if to in self._gone:
            self._dropped["gone"] += 1
            raise Unreachable(f"node {to} has gone; its link did not come back")
        account.accepted_bytes += encoded.size_bytes
        self.tally.note("sent", encoded.kind, to, encoded.size_bytes)
        io.poll.post(self._enqueue, to, encoded, keep)

    def post(self, to: int, encoded: Encoded) -> bool:
        """Queue a message for a peer without ever waiting; whether it was, or the peer cannot be sent to now."""
        io = self._running()
        account = io.links.account(to)
        full = account.queued_bytes > self._limits.queue_bytes
        if self._closing or full or to in self._gone or self._roster is None or to not in self._roster:
            self._dropped["full" if full else "gone"] += 1
            return False
        account.accepted_bytes += encoded.size_bytes
        self.tally.note("sent", encoded.kind, to, encoded.size_bytes)
        io.poll.post(self._enqueue, to, encoded, None)
        return True

    def refuse(self, peer: int, detail: str) -> None:
        """Hold a message against its sender whose content was wrong, as if its frame had been."""
        io = self._running()
        io.poll.post(io.inbound.refuse_content, peer, detail)

    def counters(self) -> Counters:
        """What has passed so far."""
        io = self._running()
        traffic = io.links.traffic
        return Counters(
            traffic.messages_sent,
            traffic.bytes_sent,
            traffic.messages_received,
            traffic.bytes_received,
            dict(sorted(io.refusals.counts.items())),
            dict(sorted((self._dropped + traffic.dropped).items())),
            traffic.disconnects,
            traffic.reconnects,
        )

    def queued_bytes(self) -> dict[str, int]:
        """Bytes that wait for peers to take them, and those that wait for this node to."""
        io = self._running()
        return {"send": io.links.queued_bytes, "receive": io.backlog_bytes}

    def paths(self) -> dict[int, Path]:
        """How peers are reached now, of those to whom there is a link, sorted."""
        return self._running().links.paths()

    def relayed(self) -> Relayed:
        """What this node has passed on for others so far, and what of it waits."""
        relay = self._running().relay
        return Relayed() if relay is None else Relayed(relay.passed_frames, relay.passed_bytes, relay.queued_bytes)

    async def close(self, linger_s: float = 0.5) -> None:
        """Send what is queued, for at most ``linger_s``, say good-bye to the peers, and leave nothing behind."""
        if self._io is None:
            return
        self._closing = True
        self._names.close()
        self._release_all()
        self._io.poll.post(self._io.close, linger_s)
        await self._ended.wait()
        self._io.join()

    def _running(self) -> IoThread:
        if self._io is None:
            raise TransportError("the transport has not been started; call start() first")
        return self._io

    async def _room(self, peer: int) -> None:
        future = self._loop.create_future()
        waiting = self._waiting.setdefault(peer, deque())
        waiting.append(future)
        try:
            await future
        finally:
            with contextlib.suppress(ValueError):
                waiting.remove(future)

    def _release(self, peer: int) -> None:
        if self._io is not None:
            self._io.links.account(peer).wanted = False
        for future in self._waiting.pop(peer, ()):
            if not future.done():
                future.set_result(None)

    def _release_all(self) -> None:
        for peer in list(self._waiting):
            self._release(peer)

    def _receive(self, batch: deque[Delivery], cost: int) -> None:
        while batch:
            sender, header, buffers = batch.popleft()
            self.tally.note("received", header.type.wire_name, sender, header.size_bytes)
            try:
                self._on_message(sender, header, buffers)
            except Exception as error:
                # One bad message must not cost the others, nor let those that come after them go first.
                self._loop.call_exception_handler({"message": "a message was not taken in", "exception": error})
        io = self._running()
        io.consumed_bytes += cost
        if io.paused:
            io.poll.post(io.resume)

    def _peer_gone(self, peer: int) -> None:
        self._gone.add(peer)
        self._release(peer)
        if not self._closing:
            self._on_lost(peer)

    def _peer_back(self, peer: int) -> None:
        if peer in self._gone:
            self._gone.discard(peer)
            self._on_back(peer)

    def _io_ended(self) -> None:
        self._closing = True
        self._release_all()
        self._ended.set()

    def _tell(self, function: Callable[..., None], *args: object) -> None:
        # In the I/O thread. Where the loop has been closed without us there is nobody left to serve.
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            self._running().close(0.0)
