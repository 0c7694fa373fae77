"""Messages that pass from store to store: whole, small ones as they are, nothing for others, and nothing left over."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from node.codec import Encoded, Header, Limits, decode, encode
from node.errors import Unreachable
from node.identity import Identity, Roster
from node.live import parcels as parcels_module
from node.live.bulk_messages import encoded as encoded_word
from node.live.parcels import Parcel, Parcels
from node.live.transport import Transport
from node.message import Message
from node.op import Ref, Spec
from node.transfer.manifest import CHUNK_BYTES

WAIT_S = 20.0
LARGE_BYTES = 1_000
NOWHERE: deque[int] = deque(maxlen=0)
RNG = np.random.Generator(np.random.Philox(key=[5, 7]))


class Whole(Message, name="test.parcels/whole/1", whole=True):
    number: int
    first: Ref
    second: Ref


class Usual(Message, name="test.parcels/usual/1"):
    first: Ref


class Party:
    """A node with a transport and parcels."""

    def __init__(self, node: int, folder: Path, **options: Any) -> None:
        self.node = node
        self.identity = Identity.generate()
        self.heard: list[tuple[int, int, list[bytes]]] = []
        self.messages: list[type[Message]] = []
        self.transport = Transport(
            node, self.identity, on_message=self._hear, on_lost=self._lose, grace_s=0.3, listen="127.0.0.1"
        )
        self.folder = folder
        self.parcels = Parcels(node, self.transport, folder, self._deliver, **options)
        self.parcels.start()
        self.transport.start()

    async def send(self, to: int, *payloads: bytes, number: int = 1) -> None:
        await self.parcels.send(to, whole(*payloads, number=number))

    def objects(self) -> list[str]:
        """What is in the store, whole or in part."""
        return sorted(path.name for kind in ("objects", "partial") for path in (self.folder / kind).iterdir())

    async def end(self) -> None:
        await self.parcels.close()
        await self.transport.close(0.0)

    def _hear(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        self.messages.append(header.type)
        take = self.parcels.receive if header.type in Parcels.KINDS else self._deliver
        take(sender, header, buffers)

    def _deliver(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        message = decode(header, buffers, lambda buffer, spec: Ref(0, spec, NOWHERE))
        self.heard.append((sender, getattr(message, "number", 0), [bytes(buffer) for buffer in buffers]))

    def _lose(self, peer: int) -> None:
        self.parcels.lose(peer)


def whole(*payloads: bytes, number: int = 1, kind: type[Message] = Whole) -> Encoded:
    buffers = {i: memoryview(payload) for i, payload in enumerate(payloads)}
    refs = [Ref(i, Spec((len(payload),), "uint8"), NOWHERE) for i, payload in enumerate(payloads)]
    fields = dict(zip(("first", "second"), refs, strict=False))
    if kind is Whole:
        fields["number"] = number
    return encode(kind(**fields), lambda ref: buffers[ref.id])


Make = Callable[..., Party]


@pytest.fixture
async def party(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(parcels_module, "LARGE_BYTES", LARGE_BYTES)
    made: list[Party] = []

    def make(**options: Any) -> Party:
        made.append(Party(len(made), tmp_path / str(len(made)), **options))
        return made[-1]

    try:
        async with asyncio.timeout(WAIT_S):
            yield make
    finally:
        for each in made:
            await each.end()


def acquaint(*parties: Party) -> None:
    roster = Roster([each.identity.card(each.node, each.transport.address, "parcels") for each in parties])
    for each in parties:
        each.transport.admit(roster)


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("size_bytes", [LARGE_BYTES + 1, CHUNK_BYTES, 3 * CHUNK_BYTES + 5])
async def test_a_large_message_arrives_bit_for_bit_and_nothing_stays_with_its_receiver(party: Make, size_bytes: int):
    a, b = party(), party()
    acquaint(a, b)
    payloads = RNG.bytes(size_bytes - 7), RNG.bytes(7)
    await a.send(1, *payloads)
    await until(lambda: b.heard)
    assert b.heard == [(0, 1, list(payloads))]
    assert Whole not in b.messages
    assert a.parcels.counters()["bulk_sent_bytes"] > size_bytes
    assert b.parcels.counters()["bulk_received_bytes"] == size_bytes
    await until(lambda: not b.objects())


async def test_a_small_one_goes_as_it_is(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    await a.send(1, b"x" * (LARGE_BYTES - 1), b"y")
    await until(lambda: b.heard)
    assert b.messages == [Whole]
    assert not a.objects()


async def test_many_at_once_to_and_from_all(party: Make):
    parties = [party() for _ in range(3)]
    acquaint(*parties)
    payloads = {each.node: (RNG.bytes(5_000), RNG.bytes(5_000)) for each in parties}
    pairs = [(a, b) for a in parties for b in parties if a is not b]
    await asyncio.gather(*[a.send(b.node, *payloads[a.node]) for a, b in pairs])
    await until(lambda: all(len(each.heard) == 2 for each in parties))
    for each in parties:
        assert {sender: got for sender, _, got in each.heard} == {
            other: list(payload) for other, payload in payloads.items() if other != each.node
        }


async def test_the_same_model_of_two_peers_is_delivered_twice(party: Make):
    """It is one object, which must not go with the first of its two uses."""
    a, b, c = [party() for _ in range(3)]
    acquaint(a, b, c)
    payloads = RNG.bytes(2 * CHUNK_BYTES), b""
    await asyncio.gather(a.send(2, *payloads), b.send(2, *payloads), c.send(0, *payloads))
    await until(lambda: len(c.heard) == 2 and a.heard)
    assert sorted(sender for sender, *_ in c.heard) == [0, 1]
    assert {tuple(got) for _, _, got in c.heard} == {payloads}
    await until(lambda: len(c.objects()) == 2)  # what it has given itself: the object and its manifest


async def test_what_is_new_for_a_peer_takes_the_place_of_what_was_before(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    for number in range(3):
        await a.send(1, RNG.bytes(5_000), b"", number=number)
        await until(lambda number=number: b.heard and b.heard[-1][1] == number)
        assert len(a.objects()) == 2


async def test_nothing_is_kept_for_ever(party: Make, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(parcels_module, "KEPT_S", 0.0)
    a, b = party(), party()
    acquaint(a, b)
    await a.send(1, RNG.bytes(5_000), b"")
    await until(lambda: not a.objects())


async def test_what_an_earlier_life_has_left_is_removed(tmp_path: Path, party: Make):
    (tmp_path / "0" / "partial").mkdir(parents=True)
    (tmp_path / "0" / "partial" / "old").write_bytes(b"old")
    assert not party().objects()


async def test_nobody_else_may_fetch_it(party: Make):
    a, b, c = [party() for _ in range(3)]
    acquaint(a, b, c)
    await a.send(1, RNG.bytes(5_000), b"")
    await until(lambda: b.heard)
    label = Parcel(header=whole(bytes(4_993), bytes(7)).header, object=a.parcels._given[1])
    for other in (a, b):  # a has given it to b alone, and b has it no longer
        c.messages.clear()
        await other.transport.send(2, encoded_word(label))
        await until(lambda: Parcel in c.messages and not c.parcels._fetching)
    assert not c.heard


@pytest.mark.parametrize("size_bytes", [1_999, 2_001, 3 * CHUNK_BYTES])
async def test_an_object_of_another_size_than_its_label_says_is_not_taken(party: Make, size_bytes: int):
    a, b = party(), party()
    acquaint(a, b)
    await a.parcels._stored(1, [memoryview(RNG.bytes(size_bytes))])
    label = Parcel(header=whole(bytes(2_000), b"").header, object=a.parcels._given[1])
    await a.transport.send(1, encoded_word(label))
    await until(lambda: Parcel in b.messages and not b.parcels._fetching)
    assert not b.heard
    assert b.parcels.counters()["bulk_received_bytes"] == (size_bytes if size_bytes < 2_000 else 0)
    assert not b.objects()


@pytest.mark.parametrize(
    "header",
    [b"", b"nonsense", whole(b"usual", kind=Usual).header, encoded_word(Parcel(header=b"", object="")).header],
    ids=["empty", "nonsense", "usual", "parcel"],
)
async def test_a_label_of_anything_else_than_a_whole_message_costs_its_sender(party: Make, header: bytes):
    a, b = party(), party()
    acquaint(a, b)
    await a.transport.send(1, encoded_word(Parcel(header=header, object="0" * 64)))
    await until(lambda: b.transport.counters().refused.get("content"))
    assert not b.parcels._fetching


async def test_a_message_beyond_the_limits_is_refused_before_it_is_fetched(party: Make):
    a, b = party(), party(limits=Limits(message_bytes=4_000))
    acquaint(a, b)
    await a.send(1, RNG.bytes(5_000), b"")
    await until(lambda: b.transport.counters().refused.get("content"))
    assert not b.objects()


async def test_only_the_newest_of_a_peer_is_fetched(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    for number in range(5):
        await a.send(1, RNG.bytes(5_000), b"", number=number)
    await until(lambda: b.heard and b.heard[-1][1] == 4)
    assert len(a.objects()) == 2
    await until(lambda: not b.objects())


async def test_on_a_full_disk_it_goes_as_a_message(party: Make, monkeypatch: pytest.MonkeyPatch):
    a, b = party(), party()
    acquaint(a, b)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    payloads = RNG.bytes(5_000), RNG.bytes(10)
    await a.send(1, *payloads)
    await until(lambda: b.heard)
    assert b.heard == [(0, 1, list(payloads))]
    assert b.messages == [Whole]


async def test_one_that_has_gone_is_sent_nothing(party: Make):
    a, b = party(), party()
    acquaint(a, b)
    a.transport.watch([1])
    await b.transport.close(0.0)
    await until(lambda: 1 in a.transport._gone)
    with pytest.raises(Unreachable):
        await a.send(1, RNG.bytes(5_000), b"")
