"""Places: what arrives from all peers together stays within a bound, everybody has a turn, and small messages pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopback import SMALL_LIMITS, Party, Rogue, acquaint, model, note
from node.codec import Limits
from node.identity import Identity, Roster
from node.live import frames, places
from node.live.frames import Chunk, Refused
from node.live.places import PATIENCE_S, Places
from node.live.receive import Receiver
from node.live.transport import Transport

MB = 1_000_000


class TestPlaces:
    def test_at_once_while_there_is_room_then_in_the_order_of_asking(self):
        places = Places(10)
        for peer, size in enumerate((4, 4, 4, 1, 9)):
            places.ask((peer, 1), size)
        assert places.give(0.0) == [(0, 1), (1, 1)]
        places.leave((1, 1))
        assert places.give(0.0) == [(2, 1), (3, 1)]  # a small one that asked later does not go first
        places.leave((0, 1))
        places.leave((2, 1))
        assert places.give(0.0) == [(4, 1)]
        assert places.due_s is None

    def test_one_larger_than_all_room_comes_alone(self):
        places = Places(10)
        places.ask((0, 1), 1)
        places.ask((1, 1), 50)
        places.ask((2, 1), 1)
        assert places.give(0.0) == [(0, 1)]
        places.leave((0, 1))
        assert places.give(0.0) == [(1, 1)]
        places.leave((1, 1))
        assert places.give(0.0) == [(2, 1)]

    def test_who_is_slow_keeps_others_waiting_for_a_while_only(self):
        places = Places(10)
        places.ask((0, 1), 10)
        assert places.give(100.0) == [(0, 1)]
        assert places.due_s is None
        places.ask((1, 1), 10)
        assert places.due_s == 100.0 + PATIENCE_S
        assert places.give(100.0 + 0.9 * PATIENCE_S) == []
        assert places.give(100.0 + PATIENCE_S) == [(1, 1)]
        places.ask((2, 1), 10)
        places.leave((0, 1))  # it comes after all, and makes no room twice
        assert places.give(100.0 + PATIENCE_S) == []
        places.leave((1, 1))
        assert places.give(100.0 + PATIENCE_S) == [(2, 1)]

    def test_time_in_which_nothing_is_read_does_not_count(self):
        places = Places(10)
        places.ask((0, 1), 10)
        places.ask((1, 1), 10)
        places.give(0.0)
        places.renew(100.0)
        assert places.due_s == 100.0 + PATIENCE_S
        assert places.give(100.0 + 0.9 * PATIENCE_S) == []
        assert places.give(100.0 + PATIENCE_S) == [(1, 1)]

    def test_who_gives_up_waiting_is_not_given_anything(self):
        places = Places(10)
        for peer in range(3):
            places.ask((peer, 1), 10)
        places.give(0.0)
        places.leave((1, 1))
        places.leave((7, 7))  # never asked
        places.leave((0, 1))
        assert places.due_s is None  # now, not at some time
        assert places.give(0.0) == [(2, 1)]

    @given(
        st.lists(st.tuples(st.integers(0, 4), st.integers(1, 30)), min_size=1, max_size=60), st.randoms(), st.booleans()
    )
    def test_the_bound_holds_and_everybody_has_a_turn(self, wanted: list[tuple[int, int]], random: Any, stall: bool):
        places, now_s, given, there = Places(20), 0.0, list[tuple[int, int]](), dict[tuple[int, int], int]()
        sizes = {(peer, number): size for number, (peer, size) in enumerate(wanted)}
        for transfer, size in sizes.items():
            places.ask(transfer, size)
        while len(given) < len(sizes):
            for transfer in places.give(now_s):
                given.append(transfer)
                there[transfer] = sizes[transfer]
            if stall:
                now_s += PATIENCE_S  # nobody ever sends anything
                continue
            assert sum(there.values()) <= 20 or len(there) == 1
            leaving = random.choice(list(there))
            there.pop(leaving)
            places.leave(leaving)
        assert given == list(sizes)


class TestReceiver:
    def receiver(self) -> Receiver:
        receiver = Receiver(Limits(all_arriving_bytes=4 * MB))
        for peer in range(3):
            receiver.connection(peer, b"c%d" % peer)
            receiver.announce(peer, memoryview(frames.announce(1, model(peer, np.zeros(3 * MB, np.uint8)).header)))
        return receiver

    def test_only_what_may_come_takes_memory(self):
        receiver, taken = self.receiver(), list[int]()
        take = receiver._pool.take
        receiver._pool.take = lambda size: taken.append(size) or take(size)  # type: ignore[func-returns-value, method-assign]
        assert list(receiver.give_places(0.0)) == [(0, b"c0", 1)]
        assert list(receiver.give_places(0.0)) == []
        assert len(taken) == 1

    def test_a_chunk_before_its_place_is_refused_and_ends_the_transfer(self):
        receiver = self.receiver()
        list(receiver.give_places(0.0))
        with pytest.raises(Refused, match="no place yet"):
            receiver.slot(1, Chunk(1, 0, 0))
        with pytest.raises(Refused, match="unknown transfer"):
            receiver.slot(1, Chunk(1, 0, 0))
        receiver.slot(0, Chunk(1, 0, 0))

    @pytest.mark.parametrize(
        "end", [lambda receiver: receiver.connection(0, b"new"), lambda receiver: receiver.forget(0)]
    )
    def test_a_sender_that_goes_leaves_its_place_to_the_next(self, end: Callable[[Receiver], None]):
        receiver = self.receiver()
        list(receiver.give_places(0.0))
        end(receiver)
        assert list(receiver.give_places(0.0)) == [(1, b"c1", 1)]

    def test_a_wrong_chunk_leaves_its_place_to_the_next(self):
        receiver = self.receiver()
        list(receiver.give_places(0.0))
        with pytest.raises(Refused, match="comes next"):
            receiver.slot(0, Chunk(1, 0, 7))
        assert list(receiver.give_places(0.0)) == [(1, b"c1", 1)]


@pytest.fixture
async def party() -> AsyncIterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(node: int, **options: Any) -> Party:
        made.append(Party(node, **options))
        return made[-1]

    yield make
    for each in made:
        await each.transport.close(0.0)


class Most:
    """The most bytes that a transport has had room for at a time, of messages that were arriving."""

    def __init__(self, transport: Transport) -> None:
        self.bytes = 0
        assert transport._io is not None
        self._receiver = transport._io.inbound._receiver
        self._take = self._receiver._pool.take
        self._receiver._pool.take = self.take  # type: ignore[method-assign]

    def take(self, size_bytes: int) -> memoryview:
        arriving = [each for inbox in self._receiver._inboxes.values() for each in inbox.transfers.values()]
        self.bytes = max(self.bytes, size_bytes + sum(each.header.size_bytes for each in arriving if each.buffers))
        return self._take(size_bytes)


@pytest.mark.parametrize("backlog_bytes", [64 * MB, 1], ids=["", "while reading stops again and again"])
async def test_many_models_at_once_arrive_whole_within_the_bound_and_none_is_forgotten(
    party: Callable[..., Party], backlog_bytes: int
):
    receiver = party(0, limits=Limits(all_arriving_bytes=5 * MB, backlog_bytes=backlog_bytes), grace_s=60.0)
    senders = [party(node, grace_s=60.0) for node in range(1, 9)]
    most = Most(receiver.transport)
    acquaint(receiver, *senders)
    arrays = {party.node: np.full(2 * MB, party.node, np.uint8) for party in senders}
    for _ in range(3):
        await asyncio.gather(*[sender.transport.send(0, model(sender.node, arrays[sender.node])) for sender in senders])
    await receiver.hears(24)
    for (sender, message), (buffer,) in zip(receiver.heard, receiver.buffers, strict=True):
        assert sender == message.number
        np.testing.assert_array_equal(np.frombuffer(buffer, np.uint8), arrays[sender])
    assert sorted(sender for sender, _ in receiver.heard) == sorted([*arrays] * 3)
    assert 2 * MB < most.bytes <= 5 * MB


async def test_models_of_one_peer_keep_their_order(party: Callable[..., Party]):
    a, b = party(0), party(1, limits=Limits(all_arriving_bytes=1))
    acquaint(a, b)
    for number in range(6):
        await a.transport.send(1, model(number, np.zeros(3 * MB, np.uint8)))
    await b.hears(6)
    assert [message.number for _, message in b.heard] == list(range(6))


class TestSilence:
    @pytest.fixture
    async def rogue(self, party: Callable[..., Party]) -> AsyncIterator[tuple[Party, Party, Rogue]]:
        """A node, its friend, and a member that has announced as much as there is room for, and sends nothing."""
        victim = party(0, limits=replace(SMALL_LIMITS, all_arriving_bytes=4 * MB), grace_s=60.0)
        friend, identity = party(1, grace_s=60.0), Identity.generate()
        roster = Roster([victim.card, friend.card, identity.card(2, "tcp://127.0.0.1:1", "loopback")])
        for each in (victim, friend):
            each.transport.admit(roster)
        rogue = Rogue(victim.card, identity)
        for number in range(2):
            rogue.send(frames.announce(number, model(9, np.zeros(4 * MB, np.uint8)).header))
        rogue.send_note(1)
        yield victim, friend, rogue
        rogue.close()

    async def test_small_messages_pass_whoever_waits(self, rogue: tuple[Party, Party, Rogue]):
        victim, friend, _ = rogue
        await victim.hears(1)
        await friend.transport.send(0, model(7, np.zeros(MB, np.uint8)))
        for number in range(100):
            await friend.transport.send(0, note(number))
        await victim.until(lambda: len(victim.notes) == 101)
        assert victim.notes == [1, *range(100)]

    async def test_it_keeps_others_waiting_for_a_while_only(
        self, rogue: tuple[Party, Party, Rogue], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(places, "PATIENCE_S", 0.01)
        victim, friend, _ = rogue
        await victim.hears(1)
        await friend.transport.send(0, model(7, np.ones(3 * MB, np.uint8)))
        await victim.hears(2)
        assert victim.heard[-1][1].number == 7
        assert victim.transport.counters().refused == {}

    async def test_its_end_makes_room(self, rogue: tuple[Party, Party, Rogue], monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(places, "PATIENCE_S", 1000.0)
        victim, friend, silent = rogue
        await victim.hears(1)
        await friend.transport.send(0, model(7, np.ones(3 * MB, np.uint8)))
        silent.send(bytes([frames.BYE]))
        await victim.hears(2)
        assert victim.heard[-1][1].number == 7
