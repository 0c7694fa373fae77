"""Members that find each other by multicast: what is suggested, what is not, and how often anybody speaks."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import ConfigError
from node.identity import CARD_BYTES, Card, Identity
from node.live import discovery
from node.live.discovery import Discovery, Group

WAIT_S = 10.0
NETWORK = "aaaa"
HERE = b"starling/here/1\0"
SEEK = b"starling/seek/1\0"


def card(node: int, address: str = "tcp://192.0.2.7:7600", network: str = NETWORK) -> Card:
    return Identity.generate().card(node, address, network)


class Sent:
    """Takes the place of a socket."""

    def __init__(self) -> None:
        self.datagrams: list[bytes] = []

    def sendto(self, data: bytes, addr: Any) -> None:
        assert addr == tuple(Group())
        self.datagrams.append(data)

    def close(self) -> None:
        self.datagrams.append(b"closed")


class Member:
    """A discovery, what it was told of, and what it has said."""

    def __init__(self, own: Card) -> None:
        self.suggested: list[Card] = []
        self.said = Sent()
        self.discovery = Discovery(own, "127.0.0.1", self.suggested.append)
        self.discovery._transport = self.said  # type: ignore[assignment]

    def hear(self, data: bytes) -> None:
        self.discovery.datagram_received(data, ("192.0.2.9", 7602))


@pytest.fixture
async def member() -> AsyncIterator[Member]:
    made = Member(card(1))
    yield made
    made.discovery.close()


async def test_a_card_is_suggested_once_and_again_when_it_changes(member: Member):
    identity = Identity.generate()
    first, second = (identity.card(2, f"tcp://192.0.2.7:{port}", NETWORK) for port in (7600, 7601))
    for each in (first, first, second, second):
        member.hear(HERE + each.to_bytes())
    assert member.suggested == [first, second]


async def test_what_is_false_foreign_own_or_of_no_use_is_not_suggested(member: Member):
    good = card(2)
    forged = Card(**{**{name: getattr(good, name) for name in Card.__match_args__}, "address": "tcp://192.0.2.66:1"})
    own = member.discovery._own
    for each in (forged, own, card(2, network="bbbb"), card(2, address="outbound")):
        member.hear(HERE + each.to_bytes())
    for data in (
        HERE,
        HERE + b"\xff" * 100,
        HERE + bytes(CARD_BYTES + 1),
        b"",
        good.to_bytes(),
        SEEK,
        SEEK + b"\xff",
        SEEK + NETWORK.encode() + b"a",
    ):
        member.hear(data)
    assert member.suggested == []
    assert member.said.datagrams == []


async def test_a_question_is_answered_with_the_card_and_not_for_everybody_who_repeats_it(member: Member):
    for _ in range(100):
        member.hear(SEEK + NETWORK.encode())
    assert member.said.datagrams == [HERE + member.discovery._own.to_bytes()]


async def test_who_cannot_be_dialled_asks_but_does_not_answer():
    asking = Member(card(1, address="outbound"))
    asking.hear(SEEK + NETWORK.encode())
    assert asking.said.datagrams == []
    asking.discovery.seek()
    assert asking.said.datagrams == [SEEK + NETWORK.encode()]
    asking.discovery.close()


async def test_asking_goes_on_until_it_rests(member: Member, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discovery, "SEEK_EVERY_S", 0.0)
    member.discovery.seek()
    async with asyncio.timeout(WAIT_S):
        while len(member.said.datagrams) < 3:
            await asyncio.sleep(0)
    member.discovery.rest()
    before = len(member.said.datagrams)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(member.said.datagrams) == before
    member.discovery.close()
    assert member.said.datagrams[-1] == b"closed"


async def test_of_a_flood_only_so_many_are_remembered(member: Member):
    for node in range(discovery.MOST_SUGGESTIONS + 10):
        member.hear(HERE + card(node + 2).to_bytes())
    assert len(member.discovery._known) == discovery.MOST_SUGGESTIONS
    assert len(member.suggested) == discovery.MOST_SUGGESTIONS + 10


@given(st.binary(max_size=200), st.sampled_from([b"", HERE, SEEK, SEEK + NETWORK.encode()]))
def test_anybody_may_send_anything(data: bytes, prefix: bytes):
    async def hear() -> list[Card]:
        made = Member(card(1))
        made.hear(prefix + data)
        return made.suggested

    assert asyncio.run(hear()) == []


async def test_two_on_one_machine_hear_each_other(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(discovery, "ANSWER_EVERY_S", 0.0)
    own, heard = [card(1), card(2)], [asyncio.Queue[Card](), asyncio.Queue[Card]()]
    members = [Discovery(each, "127.0.0.1", found.put_nowait) for each, found in zip(own, heard, strict=True)]
    try:
        for each in members:
            await each.start()
        members[0].seek()
        async with asyncio.timeout(WAIT_S):
            assert await heard[0].get() == own[1]
            assert await heard[1].get() == own[0]
    finally:
        for each in members:
            each.close()


async def test_an_interface_that_is_not_there_is_said():
    away = Discovery(card(1), "192.0.2.1", lambda found: None)
    with pytest.raises(ConfigError, match=r"multicast: 239.255.76.1:7602 cannot be joined at 192.0.2.1"):
        await away.start()
    away.close()


@pytest.mark.parametrize(
    ("text", "used"), [("127.0.0.1", "127.0.0.1"), ("0.0.0.0", "0.0.0.0"), ("::1", "0.0.0.0"), ("a.host", "0.0.0.0")]
)
async def test_the_interface_is_that_of_the_address_where_it_is_one(text: str, used: str):
    assert Discovery(card(1), text, lambda found: None)._interface == used
    assert socket.inet_aton(used)
