"""Whole models that are too large to be messages: they pass from store to store, and the message is delivered there.

So a node that comes back and takes over a large model holds up nobody's messages, gets it at the rate that its owner
allows to bulk transfers, and goes on at the missing chunk where a connection breaks.
"""

from __future__ import annotations

import asyncio
import io
import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import structlog

from node.codec import Encoded, Header, Limits, decode, decode_header
from node.errors import BadFrame, StarlingError, StoreError, TransportError
from node.identity import OUTBOUND
from node.live.bulk import Bulk
from node.live.bulk_messages import encoded as encoded_word
from node.live.transport import Transport
from node.message import Message
from node.op import Ref, Spec
from node.store.objects import Store
from node.transfer.manifest import ObjectId

LARGE_BYTES = Limits().all_arriving_bytes
"""A larger message comes alone (:class:`node.codec.Limits`): the models of all other peers would wait behind it."""
KEPT_S = 3600.0
"""How long an object waits for its receiver to have it, through all interruptions."""


class Parcel(Message, name="starling/parcel/1"):
    """A message whose payload is an object in its sender's store."""

    header: bytes
    object: str


class Parcels:
    """One node's parcels, both ways, and the bulk transfers that carry them. All of it belongs to the event loop.

    Whoever owns the transport hands on the messages of :data:`KINDS` to :meth:`receive`, and calls :meth:`lose`.
    """

    KINDS: tuple[type[Message], ...] = (*Bulk.KINDS, Parcel)

    def __init__(
        self,
        node: int,
        transport: Transport,
        folder: Path,
        deliver: Callable[[int, Header, list[memoryview]], None],
        *,
        limits: Limits | None = None,
        listen: str = "127.0.0.1",
        port: int = 0,
        advertised_port: int = 0,
        rate_bps: float | None = None,
    ) -> None:
        """What is in the ``folder`` from an earlier life is removed. ``deliver`` gets the messages, with their payload.

        The rest is as for :class:`~node.live.bulk.Bulk`. StoreError where the folder cannot be made.
        """
        shutil.rmtree(folder, ignore_errors=True)
        self.bulk = Bulk(
            node,
            transport,
            Store(folder),
            may_fetch=lambda peer, wanted: self._given.get(peer) == wanted,
            listen=listen,
            port=port,
            advertised_port=advertised_port,
            rate_bps=rate_bps,
        )
        self._transport = transport
        self._deliver = deliver
        self._limits = limits or Limits()
        self._given: dict[int, ObjectId] = {}
        """The object that each peer may fetch: the last that it was told of."""
        self._uses: Counter[ObjectId] = Counter()
        self._storing = asyncio.Lock()
        self._fetching: dict[int, asyncio.Task[None]] = {}
        self._dropping: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to serve. ConfigError where the address cannot be had."""
        self.bulk.start()

    async def close(self) -> None:
        """Break off what is going on."""
        tasks = [*self._fetching.values(), *self._dropping]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.bulk.close()

    def lose(self, peer: int) -> None:
        """A peer has gone. What it was to have stays, for when it is back."""
        self.bulk.lose(peer)

    def counters(self) -> dict[str, int]:
        """What has passed between stores so far."""
        bulk = self.bulk
        return {
            "chunks_resent": bulk.chunks_resent,
            "bulk_sent_bytes": bulk.bytes_sent,
            "bulk_received_bytes": bulk.bytes_received,
        }

    async def send(self, to: int, encoded: Encoded, *, keep: object = None) -> None:
        """Send a message: as it is where it is small, where the disk has no room, or where nobody could fetch it.

        Raises as the transport's.
        """
        payload_bytes = sum(buffer.nbytes for buffer in encoded.buffers)
        if payload_bytes > LARGE_BYTES and self._transport.address != OUTBOUND:
            try:
                object = await self._stored(to, encoded.buffers)
            except StoreError as error:
                structlog.get_logger().warning("parcel not stored, so it goes as a message", reason=str(error))
            else:
                await self._transport.send(to, encoded_word(Parcel(header=encoded.header, object=object)))
                return
        await self._transport.send(to, encoded, keep=keep)

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """Take in one of :data:`KINDS` from a peer."""
        if header.type is not Parcel:
            self.bulk.receive(sender, header, buffers)
            return
        try:
            parcel = decode(header, buffers, _no_ref)
            assert isinstance(parcel, Parcel)
            inner = decode_header(parcel.header, self._limits)
            if not inner.type.whole:
                raise BadFrame(f"a parcel with a {inner.type.wire_name}, which is a message")
        except TransportError as error:
            self._transport.refuse(sender, str(error))
            return
        if (before := self._fetching.get(sender)) is not None:
            before.cancel()  # only the newest counts
        task = asyncio.get_running_loop().create_task(self._fetch(sender, inner, parcel.object))
        self._fetching[sender] = task
        task.add_done_callback(lambda _: self._fetching.get(sender) is task and self._fetching.pop(sender))

    async def _stored(self, to: int, buffers: Sequence[memoryview]) -> ObjectId:
        async with self._storing:
            source = cast("BinaryIO", io.BufferedReader(_Buffers(buffers)))
            object = (await asyncio.to_thread(self.bulk.store.add, source)).id
            self._uses[object] += 1
        before, self._given[to] = self._given.get(to), object
        if before is not None:
            await self._drop(before)
        asyncio.get_running_loop().call_later(KEPT_S, self._forget, to, object)
        return object

    def _forget(self, peer: int, object: ObjectId) -> None:
        if self._given.get(peer) == object:
            del self._given[peer]
            task = asyncio.get_running_loop().create_task(self._drop(object))
            self._dropping.add(task)
            task.add_done_callback(self._dropping.discard)

    async def _drop(self, object: ObjectId) -> None:
        """One use less of an object, the last of which it does not outlive."""
        async with self._storing:
            self._uses[object] -= 1
            if not self._uses[object]:
                del self._uses[object]
                await asyncio.to_thread(self.bulk.store.remove, object)

    async def _fetch(self, sender: int, header: Header, object: ObjectId) -> None:
        size_bytes = sum(spec.size_bytes for spec in header.specs)
        self._uses[object] += 1
        try:
            manifest = await self.bulk.fetch(object, sender, most_bytes=size_bytes)
            if manifest.size_bytes != size_bytes:
                raise BadFrame(f"an object of {manifest.size_bytes} bytes for a message of {size_bytes}")
            payload = await asyncio.to_thread(self._read, object)
        except StarlingError as error:
            structlog.get_logger().warning("parcel not fetched", peer=sender, reason=str(error))
            return
        finally:
            await self._drop(object)
        self._deliver(sender, header, _split(payload, header.specs))

    def _read(self, object: ObjectId) -> bytearray:
        with self.bulk.store.open(object) as stored:
            payload = bytearray(stored.manifest.size_bytes)
            for index in range(stored.manifest.chunks):
                stored.read(index, memoryview(payload)[stored.manifest.offset(index) :])
        return payload


class _Buffers(io.RawIOBase):
    """Some buffers, one after another, as a file."""

    def __init__(self, buffers: Sequence[memoryview]) -> None:
        self._left = [buffer for buffer in buffers if buffer.nbytes]

    def readable(self) -> bool:
        return True

    def readinto(self, into: memoryview) -> int:  # type: ignore[override]
        if not self._left:
            return 0
        part = self._left[0][: len(into)]
        into[: part.nbytes] = part
        self._left[0] = self._left[0][part.nbytes :]
        if not self._left[0].nbytes:
            self._left.pop(0)
        return part.nbytes


def _split(payload: bytearray, specs: Sequence[Spec]) -> list[memoryview]:
    buffers, at = [], 0
    for spec in specs:
        buffers.append(memoryview(payload)[at : at + spec.size_bytes])
        at += spec.size_bytes
    return buffers


def _no_ref(buffer: memoryview, spec: Spec) -> Ref:
    raise BadFrame(f"a parcel's label carries {spec.dtype}{list(spec.shape)}")
