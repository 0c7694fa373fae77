"""Nodes that start at any time: nobody begins before everybody can be reached, and nothing that is said is lost."""

import asyncio
from contextlib import asynccontextmanager

import pytest

from loopback import WAIT_S, note
from node.codec import decode
from node.identity import Identity, Roster
from node.live.rendezvous import Hello, Rendezvous, Welcome
from node.live.transport import Transport
from node.message import message_type


class Comer:
    """A node with a rendezvous; ``heard`` and ``lost`` are what it passes on."""

    def __init__(self, node, nodes, identity=None, port=0):
        self.node = node
        self.identity = identity or Identity.generate()
        self.heard, self.lost = [], []
        self.rendezvous = Rendezvous(other for other in range(nodes) if other != node)
        self.transport = self.rendezvous.transport = Transport(
            node,
            self.identity,
            on_message=self.rendezvous.receive,
            on_lost=self.rendezvous.lose,
            port=port,
            grace_s=0.2,
        )
        self.transport.start()
        self.card = self.identity.card(node, self.transport.address, "rendezvous")

    async def meet(self, *absent):
        """Greet until exactly these are still absent."""
        async with asyncio.timeout(WAIT_S):
            while self.rendezvous.absent != sorted(absent):
                await self.rendezvous.greet()
                await asyncio.sleep(0.02)

    def begin(self):
        self.rendezvous.hand_over(
            lambda sender, header, buffers: self.heard.append((sender, decode(header, buffers, None).number)),
            self.lost.append,
        )


@asynccontextmanager
async def comers(count, nodes=None):
    party = [Comer(node, nodes or count) for node in range(count)]
    try:
        yield party
    finally:
        await asyncio.gather(*(one.transport.close() for one in party))


def admit(party, *to):
    roster = Roster(one.card for one in party)
    for one in to or party:
        one.transport.admit(roster)


async def until(condition):
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.sleep(0.01)


def test_the_greetings_are_on_the_wire_under_their_names():
    assert (message_type("starling/hello/1"), message_type("starling/welcome/1")) == (Hello, Welcome)


async def test_all_meet():
    async with comers(3) as party:
        assert [one.rendezvous.absent for one in party] == [[1, 2], [0, 2], [0, 1]]
        admit(party)
        await asyncio.gather(*(one.meet() for one in party))


async def test_alone_there_is_nobody_to_wait_for():
    async with comers(1) as (alone,):
        assert alone.rendezvous.absent == []
        await alone.meet()


async def test_one_that_has_not_admitted_us_is_absent_for_longer_than_the_grace():
    async with comers(2) as (early, late):
        admit((early, late), early)
        early.transport.watch([1])
        await until(lambda: 1 in early.transport._gone)
        assert early.rendezvous.absent == [1]
        admit((early, late), late)
        await asyncio.gather(early.meet(), late.meet())
        early.begin()
        late.begin()
        await early.transport.send(1, note(7))
        await until(lambda: late.heard == [(0, 7)])
        assert early.lost == []


async def test_what_comes_before_the_beginning_is_kept_in_order():
    async with comers(2) as (one, other):
        admit((one, other))
        await asyncio.gather(one.meet(), other.meet())
        for number in range(3):
            await one.transport.send(1, note(number))
        await until(lambda: other.transport.counters().messages_received >= 4)
        other.begin()
        await one.transport.send(1, note(3))
        await until(lambda: len(other.heard) == 4)
        assert other.heard == [(0, number) for number in range(4)]


async def test_one_that_goes_before_the_beginning_is_waited_for_again():
    async with comers(2) as party:
        one, other = party
        admit(party)
        await asyncio.gather(one.meet(), other.meet())
        await other.transport.close()
        await until(lambda: one.rendezvous.absent == [1])
        again = party[1] = Comer(1, 2, other.identity)
        admit(party)
        await asyncio.gather(one.meet(), again.meet())
        one.begin()
        assert one.lost == []


async def test_one_that_goes_after_it_is_lost():
    async with comers(2) as (one, other):
        admit((one, other))
        await asyncio.gather(one.meet(), other.meet())
        one.begin()
        await other.transport.close()
        await until(lambda: one.lost == [1])


async def test_one_that_has_begun_still_welcomes():
    async with comers(2) as party:
        one, other = party
        admit(party)
        await one.meet()
        one.begin()
        await other.meet()
        assert one.heard == []


@pytest.mark.parametrize("asks", [0, 1])
async def test_a_welcome_proves_both_directions(asks):
    """One that is heard but cannot answer is absent, and so is one that never heard us."""
    async with comers(2) as party:
        admit(party, party[asks])
        await party[asks].rendezvous.greet()
        assert party[asks].rendezvous.absent == [1 - asks]
        admit(party, party[1 - asks])
        await party[asks].meet()
