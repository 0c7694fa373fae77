"""Large objects between the stores of two nodes: content-addressed, sealed, and resumed at what is missing.

Beside the links that carry messages, on TCP connections of their own, so that no message waits behind an object; plain
ZeroMQ with sealed chunks moved three fifths as much. Who may have what, and the key of each attempt, are settled by
messages over the encrypted links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakValueDictionary

import structlog

from node.codec import Header, decode
from node.errors import (
    BadFrame,
    BadSignature,
    ConfigError,
    Corrupt,
    DeadlineExceeded,
    Missing,
    NotAMember,
    TransportError,
    Unreachable,
)
from node.identity import Card
from node.live.buffers import BufferPool
from node.live.bulk_ciphers import ciphers
from node.live.bulk_fetch import Download, Progress
from node.live.bulk_messages import Denial, Fetch, Grant, belonging, encoded
from node.live.bulk_serve import MOST_SENDING, Server
from node.live.bulk_socket import Wire
from node.live.transport import Transport
from node.live.workers import in_worker
from node.message import Message
from node.op import Ref, Spec
from node.store.objects import Store
from node.transfer.manifest import Manifest, ObjectId
from node.transfer.sealing import Seal

ANSWER_S = 10.0
"""How long a peer may take to say whether it sends an object."""
MOST_FETCHING = 4
"""Objects that are fetched at a time, from different peers; others wait."""
FRUITLESS_ATTEMPTS = 8
"""In a row: after so many that brought no chunk the peer is given up."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
"""Between attempts; each pause is twice the one before it."""
LEAST_RATE_BPS = 100_000
POOL_BYTES = 32 << 20

_WORKERS = 2


class Bulk:
    """One node's bulk transfers, both ways. All methods are called on the event loop's thread.

    Whoever owns the transport hands on the messages of :data:`KINDS` to :meth:`receive`, and calls :meth:`lose`.
    """

    KINDS: tuple[type[Message], ...] = (Fetch, Grant, Denial)

    def __init__(
        self,
        node: int,
        transport: Transport,
        store: Store,
        *,
        may_fetch: Callable[[int, ObjectId], bool],
        listen: str = "127.0.0.1",
        port: int = 0,
        advertised_port: int = 0,
        rate_bps: float | None = None,
    ) -> None:
        """``may_fetch`` says whether a peer may have an object.

        Peers dial the host of the node's card, at ``advertised_port`` where that is not the port bound here. What all
        peers are sent together is held to ``rate_bps``; ConfigError below LEAST_RATE_BPS.
        """
        if rate_bps is not None and rate_bps < LEAST_RATE_BPS:
            raise ConfigError(
                f"rate_bps: {rate_bps} is too slow for chunks; allowed: {LEAST_RATE_BPS} and more, or none"
            )
        self.store = store
        self._node = node
        self._transport = transport
        self._bind = (listen, port)
        self._advertised_port = advertised_port
        self._workers = ThreadPoolExecutor(_WORKERS, thread_name_prefix="bulk")
        self._threads = ThreadPoolExecutor(MOST_SENDING + MOST_FETCHING, thread_name_prefix="bulk-transfer")
        self._pool = BufferPool(POOL_BYTES)
        self._server = Server(node, self._network, store, may_fetch, self._workers, self._threads, self._pool, rate_bps)
        self._asked = 0
        self._answers: dict[int, tuple[int, asyncio.Future[Grant | Denial]]] = {}
        self._locks: WeakValueDictionary[int | ObjectId, asyncio.Lock] = WeakValueDictionary()
        self._fetching = asyncio.Semaphore(MOST_FETCHING)
        self._answering: dict[int, asyncio.Task[None]] = {}
        self._wires: list[Wire] = []
        self._is_closed = False
        self.chunks_received = 0
        """Chunks that have come and been kept, in all transfers and attempts."""
        self.bytes_received = 0
        """Bytes of these."""

    @property
    def chunks_sent(self) -> int:
        """Chunks that have left, in all transfers and attempts."""
        return self._server.chunks_sent

    @property
    def chunks_resent(self) -> int:
        """Those of them that left in transfers that had been broken off before."""
        return self._server.chunks_resent

    @property
    def bytes_sent(self) -> int:
        """Bytes that have left, with what sealing adds."""
        return self._server.bytes_sent

    @property
    def port(self) -> int:
        """Where peers are told to dial."""
        return self._advertised_port or self._server.port

    def start(self) -> None:
        """Begin to serve. ConfigError where the address cannot be had."""
        self._server.start(*self._bind)

    async def close(self) -> None:
        """Break off what is going on; what was fetched stays for another time."""
        for task in self._answering.values():
            task.cancel()
        await asyncio.gather(*self._answering.values(), return_exceptions=True)
        await self._server.close()
        self._is_closed = True
        for wire in self._wires:
            wire.break_off()
        self._threads.shutdown()
        self._workers.shutdown()

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """Take in one of :data:`KINDS` from a peer."""
        try:
            message = decode(header, buffers, _no_ref)
        except BadFrame as error:
            self._transport.refuse(sender, str(error))
            return
        if isinstance(message, Fetch):
            if (before := self._answering.get(sender)) is not None:
                before.cancel()  # a peer has one question at a time
            self._answering[sender] = asyncio.get_running_loop().create_task(self._answer(sender, message))
        elif isinstance(message, Grant | Denial):
            asked, answer = self._answers.get(message.number, (None, None))
            if answer is not None and asked == sender and not answer.done():
                answer.set_result(message)

    def lose(self, peer: int) -> None:
        """A peer has gone: nothing is sent to it any more, and nobody waits for its answer."""
        self._server.lose(peer)
        for asked, answer in self._answers.values():
            if asked == peer and not answer.done():
                answer.set_exception(Unreachable(f"node {peer} has gone before it answered"))

    async def fetch(
        self,
        object: ObjectId,
        peer: int,
        *,
        most_bytes: int | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> Manifest:
        """Have an object in the store: fetch of it what is missing. A broken connection is dialled again.

        Cancelled or failed, what has arrived stays, for another call, from this peer or another.

        Raises:
            Missing: the peer does not have it.
            NotAMember: the peer is not in the roster, or does not give us this object.
            Corrupt: the peer's copy is wrong; the message names the peer.
            Unreachable: it has gone, or attempt after attempt brought nothing; or :meth:`close` was called.
            BadFrame: it does not keep to the rules, or the object has more than ``most_bytes``.
            DeadlineExceeded: it is not whole within ``deadline_s``.
            StoreError: the disk refuses.
        """
        try:
            async with (
                asyncio.timeout(deadline_s),
                self._locks.setdefault(peer, asyncio.Lock()),
                self._locks.setdefault(object, asyncio.Lock()),
                self._fetching,
            ):
                if object in self.store:  # it came from another peer while this one was busy
                    return await in_worker(self._workers, self.store.manifest, object)
                return await self._fetch(object, peer, most_bytes, progress)
        except TimeoutError:
            raise DeadlineExceeded(
                f"object {object[:16]} from node {peer} is not whole after {deadline_s} s; what came is kept"
            ) from None

    def _network(self) -> str:
        return self._transport.roster.network

    async def _answer(self, peer: int, asked: Fetch) -> None:
        answer = await self._server.answer(peer, asked, self.port)
        try:
            await self._transport.send(peer, encoded(answer))
        except TransportError as error:
            structlog.get_logger().debug("bulk transfer not granted", peer=peer, reason=str(error))

    async def _fetch(self, object: ObjectId, peer: int, most_bytes: int | None, progress: Progress | None) -> Manifest:
        card = self._transport.roster.card(peer)
        if card.is_outbound:
            raise Unreachable(f"object {object[:16]}: node {peer} cannot be dialled; fetch it from another that has it")
        grant = await self._granted(object, card, b"")
        manifest = _promised(grant, object, peer)
        if most_bytes is not None and manifest.size_bytes > most_bytes:
            raise BadFrame(f"object {object[:16]} of node {peer} has {manifest.size_bytes} bytes, not {most_bytes}")
        partial = await in_worker(self._workers, self.store.begin, manifest)
        with partial:
            download = Download(peer, partial, self._workers, self._pool, progress)
            missing = download.receiving.missing
            if len(missing) < manifest.chunks:
                grant = await self._granted(object, card, missing.to_bytes())
            attempts = _Attempts(card, object)
            while missing:
                received, present_bytes = download.receiving.received, download.receiving.present_bytes
                try:
                    await self._attempt(download, card, grant)
                except (OSError, Unreachable, BadSignature) as error:
                    await attempts.broken(download.receiving.received > received, error)
                    grant = await self._granted(object, card, missing.to_bytes())
                finally:
                    self.chunks_received += download.receiving.received - received
                    self.bytes_received += download.receiving.present_bytes - present_bytes
            await in_worker(self._workers, partial.finish)
        return manifest

    async def _attempt(self, download: Download, card: Card, grant: Grant) -> None:
        manifest = download.receiving.manifest
        belongs = belonging(self._network(), card.node, self._node, grant.transfer, manifest.id, manifest.chunks)
        seal = Seal(grant.key, grant.cipher, belongs)
        wire = await Wire.dial(_host(card), grant.port)
        self._wires.append(wire)
        try:
            await wire.lend(self._threads, download.attempt, wire, grant.transfer, seal)
        finally:
            self._wires.remove(wire)
            wire.close()

    async def _granted(self, object: ObjectId, card: Card, missing: bytes) -> Grant:
        pause_s = FIRST_PAUSE_S
        while True:
            answer = await self._ask(object, card.node, missing)
            if isinstance(answer, Grant):
                return answer
            if answer.reason == "missing":
                raise Missing(f"node {card.node} does not have object {object[:16]}; ask another")
            if answer.reason != "busy":
                raise NotAMember(f"node {card.node} does not give us object {object[:16]} ({answer.reason[:40]})")
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _ask(self, object: ObjectId, peer: int, missing: bytes) -> Grant | Denial:
        if self._is_closed:
            raise Unreachable(f"object {object[:16]} from node {peer}: this node has closed its transfers")
        self._asked += 1
        number = self._asked
        answer: asyncio.Future[Grant | Denial] = asyncio.get_running_loop().create_future()
        self._answers[number] = peer, answer
        try:
            question = Fetch(number=number, object=object, missing=missing, ciphers=ciphers())
            await self._transport.send(peer, encoded(question))
            async with asyncio.timeout(ANSWER_S):
                return await answer
        except TimeoutError:
            raise Unreachable(f"node {peer} has not answered for {ANSWER_S} s whether it sends an object") from None
        finally:
            del self._answers[number]


class _Attempts:
    """How often a transfer has broken, and when it is no use to go on."""

    def __init__(self, card: Card, object: ObjectId) -> None:
        self._what = f"object {object[:16]} from node {card.node}"
        self._fruitless = 0
        self._pause_s = FIRST_PAUSE_S

    async def broken(self, has_brought: bool, error: Exception) -> None:
        """Wait before the next attempt. Unreachable after too many that brought nothing."""
        if has_brought:
            self._fruitless, self._pause_s = 0, FIRST_PAUSE_S
        self._fruitless += 1
        why = str(error) or type(error).__name__
        if self._fruitless >= FRUITLESS_ATTEMPTS:
            raise Unreachable(f"{self._what}: {FRUITLESS_ATTEMPTS} attempts brought no chunk, the last: {why}")
        structlog.get_logger().info("bulk transfer resumes", what=self._what, reason=why)
        await asyncio.sleep(self._pause_s)
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)


def _host(card: Card) -> str:
    return card.address.removeprefix("tcp://").rpartition(":")[0].strip("[]")


def _promised(grant: Grant, object: ObjectId, peer: int) -> Manifest:
    try:
        return Manifest.from_bytes(grant.manifest, object)
    except (Corrupt, BadFrame) as error:
        raise Corrupt(f"node {peer} sent a wrong manifest: {error}; fetch from another node") from None


def _no_ref(buffer: memoryview, spec: Spec) -> Ref:
    raise BadFrame(f"a word about a bulk transfer carries {spec.dtype}{list(spec.shape)}")
