"""Strangers may knock, and do nothing else; members go on as ever."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import zmq

from loopback import SMALL_LIMITS, Party, Rogue, acquaint, note, small
from node.errors import DeadlineExceeded, NotAMember, Unreachable
from node.identity import Identity, Roster
from node.live import frames
from node.live.door import Knock, Visitors, visit

TIMEOUT_S = 10.0


class Host(Party):
    """A node that keeps a door, and answers with what its ``says`` makes of a knock."""

    def __init__(self, node: int = 0, says: Callable[[Knock], bytes | None] | None = None, **options: Any) -> None:
        self.knocks: list[Knock] = []
        self._says = says or (lambda knock: b"you said " + knock.payload)
        super().__init__(node, on_knock=self._knocked, **options)

    def _knocked(self, knock: Knock) -> None:
        self.knocks.append(knock)
        if (answer := self._says(knock)) is not None:
            self.transport.answer(knock, answer)
        self._changed.set()

    async def is_asked(
        self, *payloads: bytes, by: Identity | None = None, key: bytes | None = None, timeout_s: float = TIMEOUT_S
    ) -> list[bytes]:
        """Have somebody ask all of this at the door."""
        identity = by or Identity.generate()
        address, own_key = self.transport.address, key or self.identity.curve_public

        def talk(ask: Callable[[bytes], bytes]) -> list[bytes]:
            return [ask(payload) for payload in payloads]

        return await asyncio.to_thread(visit, identity, address, own_key, talk, timeout_s)


async def test_a_stranger_asks_and_is_answered_before_there_is_a_roster():
    host = Host()
    stranger = Identity.generate()
    try:
        assert await host.is_asked(b"who are you?", b"and now?", by=stranger) == [
            b"you said who are you?",
            b"you said and now?",
        ]
        assert {knock.curve_key for knock in host.knocks} == {stranger.curve_public}
        assert {knock.address for knock in host.knocks} == {"127.0.0.1"}
    finally:
        await host.transport.close()


async def test_at_once_many_are_each_given_their_own_answer():
    host = Host(says=lambda knock: knock.curve_key + knock.payload)
    askers = [Identity.generate() for _ in range(8)]
    try:
        answers = await asyncio.gather(*[host.is_asked(b"%d" % i, by=each) for i, each in enumerate(askers)])
        assert answers == [[each.curve_public + b"%d" % i] for i, each in enumerate(askers)]
    finally:
        await host.transport.close()


async def test_what_else_a_stranger_sends_is_not_read():
    host, member = Host(), Party(1)
    acquaint(host, member)
    rogue = Rogue(host.card, Identity.generate())
    try:
        for _ in range(20):
            rogue.send_note(13)
        rogue.send(frames.announce(1, b"x" * 50))
        rogue.send(frames.KNOCK_KIND + b"hello")
        await host.until(lambda: host.knocks)
        await member.transport.send(0, note(1))
        await host.hears(1)
        assert host.notes == [1]
        assert host.transport.counters().refused == {"stranger": 21}
    finally:
        rogue.close()
        await member.transport.close()
        await host.transport.close()


async def test_a_knock_of_two_parts_or_too_many_bytes_is_none():
    host = Host()
    rogue = Rogue(host.card, Identity.generate())
    try:
        rogue.send(frames.KNOCK_KIND + b"a", b"b")
        rogue.send(frames.KNOCK_KIND + b"largest" + bytes(frames.KNOCK_BYTES - 7))
        await host.until(lambda: host.knocks)
        rogue.send(frames.KNOCK_KIND + bytes(frames.KNOCK_BYTES + 1))
        rogue.event(zmq.EVENT_DISCONNECTED)
        assert [len(knock.payload) for knock in host.knocks] == [frames.KNOCK_BYTES]
        assert host.transport.counters().refused == {"stranger": 1, "too_large": 1}
    finally:
        rogue.close()
        await host.transport.close()


async def test_a_member_knocks_too_and_its_messages_go_on():
    host, member = Host(), Party(1)
    acquaint(host, member)
    try:
        assert await host.is_asked(b"again", by=member.identity) == [b"you said again"]
        await member.transport.send(0, note(5))
        await host.hears(1)
        assert host.notes == [5]
    finally:
        await member.transport.close()
        await host.transport.close()


async def test_one_who_was_let_in_by_the_door_becomes_a_peer_while_its_link_stands():
    host, newcomer = Host(), Party(1)
    host.transport.admit(Roster([host.card]))
    newcomer.transport.admit(Roster([host.card, newcomer.card]))
    try:
        await newcomer.transport.send(0, note(1))
        while not host.transport.counters().refused:
            await host.is_asked(b"has it come?")
        host.transport.admit(Roster([host.card, newcomer.card]))
        await host.is_asked(b"is it admitted?")
        await newcomer.transport.send(0, note(2))
        await host.hears(1)
        assert host.notes == [2]
        assert newcomer.lost == []
    finally:
        await newcomer.transport.close()
        await host.transport.close()


async def test_to_a_revoked_key_there_is_no_door():
    host, member = Host(), Party(1)
    acquaint(host, member)
    try:
        await member.transport.send(0, note(1))
        await host.hears(1)
        host.transport.admit(Roster([host.card]), shut_out=[member.identity.curve_public])
        with pytest.raises(NotAMember, match="lets nobody in"):
            await host.is_asked(b"please", by=member.identity)
        assert host.transport.counters().refused["revoked"] >= 1
        assert await host.is_asked(b"others may") == [b"you said others may"]
    finally:
        await member.transport.close()
        await host.transport.close()


async def test_without_a_door_a_stranger_is_turned_away_at_once():
    party = Party(0)
    acquaint(party)
    try:
        with pytest.raises(NotAMember, match="lets nobody in"):
            await Host.is_asked(party, b"hello?")
        assert party.transport.counters().refused["stranger"] == 1
    finally:
        await party.transport.close()


async def test_a_member_who_knocks_where_there_is_no_door_is_counted():
    host, member = Party(0), Party(1)
    acquaint(host, member)
    rogue = Rogue(host.card, member.identity)
    try:
        rogue.send(frames.KNOCK_KIND + b"hello")
        rogue.send(small(note(3)))
        await host.hears(1)
        assert host.transport.counters().refused == {"stranger": 1}
    finally:
        rogue.close()
        await member.transport.close()
        await host.transport.close()


async def test_who_has_another_key_than_was_said_is_not_talked_to():
    host = Host()
    try:
        with pytest.raises((NotAMember, DeadlineExceeded)):
            await host.is_asked(b"hello", key=Identity.generate().curve_public, timeout_s=0.5)
        assert host.knocks == []
    finally:
        await host.transport.close()


async def test_no_answer_and_no_such_place_are_said():
    host = Host(says=lambda knock: None)
    try:
        with pytest.raises(DeadlineExceeded, match="no answer in time"):
            await host.is_asked(b"hello", timeout_s=0.3)
    finally:
        await host.transport.close()
    with pytest.raises(Unreachable, match="no node can be there"):
        await asyncio.to_thread(
            visit, Identity.generate(), "tcp://no port", bytes(32), lambda ask: ask(b""), timeout_s=0.1
        )


async def test_answers_as_long_as_they_may_be_arrive_whole():
    host = Host(says=lambda knock: bytes(frames.ANSWER_BYTES), limits=SMALL_LIMITS)
    try:
        assert await host.is_asked(b"all of it") == [bytes(frames.ANSWER_BYTES)]
    finally:
        await host.transport.close()


def test_a_few_visitors_come_at_once_and_then_as_many_as_are_borne():
    visitors = Visitors(burst=3, rate_per_s=2)
    assert [visitors.admits("here", 0.0) for _ in range(5)] == [True, True, True, False, False]
    assert visitors.admits("there", 0.0)
    assert not visitors.admits("here", 0.4)
    assert [visitors.admits("here", 1.4), visitors.admits("here", 1.4), visitors.admits("here", 1.4)] == [
        True,
        True,
        False,
    ]
    assert [visitors.admits("here", 1000.0) for _ in range(4)] == [True, True, True, False]


def test_invented_addresses_take_no_more_room():
    visitors = Visitors(burst=1)
    for number in range(10_000):
        assert visitors.admits(f"address {number}", 0.0)
    assert len(visitors._left) <= 4_096
    assert not visitors.admits("address 9999", 0.0)
