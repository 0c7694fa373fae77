"""Mailboxes whose peers go, that are misused, and the stories that they tell."""

import asyncio

import pytest

from node.errors import Deadlock, ProtocolError, Unreachable
from node.mailbox import Mailbox, describe
from waits import Keyless, Part, Round, begin, on_the_clock, scenario

# Lost peers


def test_a_peer_that_is_needed_and_gone_fails_the_wait_at_once():
    with pytest.raises(Unreachable, match=r"node 9 needs test.mailbox/round/1 round=0 from node 2, which is gone"):
        scenario({"frm": (1, 2)}, (3, 1), lost=(2,))


def test_a_peer_that_is_needed_and_goes_fails_the_wait_when_it_does():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        waiting = begin(mailbox, frm=(1, 2))
        loop.post(4, mailbox.lose, 2)
        with pytest.raises(Unreachable, match="give the protocol a deadline"):
            await waiting
        return loop.time()

    assert on_the_clock(main) == 4


def test_what_a_peer_said_before_it_went_counts():
    assert scenario({"frm": (1, 2)}, (0.5, 2), (3, 1), lost=(2,)) == ([1, 2], 3)
    assert scenario({"frm": (1, 2)}, (2, 2), (4, 1), losing=[(3, 2)]) == ([1, 2], 4)


@pytest.mark.parametrize("wait", [{"timeout_s": 100}, {"quorum": 3}])
def test_a_wait_that_can_do_without_goes_on_and_ends_when_nobody_is_left(wait):
    assert scenario({"frm": (1, 2, 3), **wait}, (2, 1), (5, 3), losing=[(3, 2)]) == ([1, 3], 5)
    assert scenario({"frm": (1, 2, 3), **wait}, (2, 1), lost=(2, 3)) == ([1], 2)
    assert scenario({"frm": (1, 2), **wait}, losing=[(2, 1), (6, 2)]) == ([], 6)
    assert scenario({"frm": (1, 2), **wait}, lost=(1, 2)) == ([], 1)


def test_losing_a_stranger_changes_nothing():
    assert scenario({"frm": (1, 2)}, (2, 1), (5, 2), losing=[(3, 7)]) == ([1, 2], 5)
    assert scenario({"quorum": 2}, (2, 1), (5, 2), losing=[(3, 7)]) == ([1, 2], 5)


def test_what_was_on_its_way_from_a_lost_peer_takes_nobody_elses_place():
    """Node 2 goes, its last message comes all the same: the wait still waits for node 3."""
    assert scenario({"frm": (1, 2, 3), "timeout_s": 100}, (4, 2), (5, 1), (8, 3), losing=[(3, 2)]) == ([1, 2, 3], 8)
    assert scenario({"frm": (1, 2, 3), "timeout_s": 100}, (4, 2), (5, 1), (8, 3), lost=(2,)) == ([1, 2, 3], 8)


def test_a_lost_peers_last_message_counts_for_a_quorum():
    assert scenario({"frm": (1, 2, 3), "quorum": 2}, (4, 2), (5, 1), (8, 3), losing=[(3, 2)]) == ([1, 2], 5)


def test_after_a_failed_wait_its_key_is_closed():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        waiting = begin(mailbox, frm=(1,))
        mailbox.lose(1)
        with pytest.raises(Unreachable):
            await waiting
        mailbox.put(1, Round(round=0))
        mailbox.lose(2)
        return mailbox.late

    assert on_the_clock(main) == 1


# Misuse


def test_a_key_is_collected_once():
    async def main(loop):
        mailbox = Mailbox(3, loop)
        await begin(mailbox, frm=(1,), timeout_s=0)
        with pytest.raises(ProtocolError, match=r"node 3 collects test.mailbox/round/1 round=0 again"):
            begin(mailbox, frm=(1,))
        await begin(mailbox, Round(round=5).slot, frm=(1,), timeout_s=0)
        with pytest.raises(ProtocolError, match="round=4 again; a key is collected once, rising"):
            begin(mailbox, Round(round=4).slot, frm=(1,))

    on_the_clock(main)


def test_two_waits_for_one_slot_at_once_are_an_error():
    async def main(loop):
        mailbox = Mailbox(3, loop)
        waiting = begin(mailbox, Keyless().slot, frm=(1,))
        with pytest.raises(ProtocolError, match="keyless/1 twice at once"):
            begin(mailbox, Keyless().slot, frm=(1,))
        mailbox.put(1, Keyless())
        return list(await waiting)

    assert on_the_clock(main) == [1]


def test_waits_for_different_slots_at_once_are_not():
    async def main(loop):
        mailbox = Mailbox(3, loop)
        rounds, parts = begin(mailbox, frm=(1,)), begin(mailbox, Part(round=0, part=0).slot, frm=(2,))
        mailbox.put(2, Part(round=0, part=0))
        mailbox.put(1, Round(round=0))
        return [list(heard) for heard in await asyncio.gather(rounds, parts)]

    assert on_the_clock(main) == [[1], [2]]


# Stories


def test_a_slot_in_words():
    assert describe(Part(round=3, part=1).slot) == "test.mailbox/part/1 round=3 part=1"
    assert describe(Keyless().slot) == "test.mailbox/keyless/1"


def test_every_open_wait_tells_its_story():
    async def main(loop):
        mailbox = Mailbox(4, loop)
        mailbox.put(1, Keyless())
        await asyncio.sleep(2.5)
        waits = [begin(mailbox, frm=(1, 2, 3)), begin(mailbox, Keyless().slot, quorum=2)]
        mailbox.put(2, Round(round=0))
        loop.tell(mailbox.stories)
        stories = list(mailbox.stories())
        await asyncio.gather(*waits)
        return stories

    with pytest.raises(Deadlock) as error:
        on_the_clock(main)
    _, *stories = str(error.value).split("\n  ")
    assert sorted(stories) == [
        "node 4 waits for test.mailbox/keyless/1 since 2.5 s, has heard 1",
        "node 4 waits for test.mailbox/round/1 round=0 from [1, 3] since 2.5 s, has heard 1",
    ]


def test_messages_without_a_wait_tell_nothing():
    async def main(loop):
        mailbox = Mailbox(4, loop)
        mailbox.put(1, Round(round=0))
        return list(mailbox.stories())

    assert on_the_clock(main) == []


@pytest.mark.parametrize("losing", [[(2, 1), (4, 1)], [(2, 1), (3, 1), (4, 1)]])
def test_a_peer_that_is_lost_twice_counts_once(losing):
    """Or the wait would end without somebody else who is alive."""
    assert scenario({"frm": (1, 2), "timeout_s": 50}, (10, 2), losing=losing) == ([2], 10)
    assert scenario({"frm": (1, 2), "timeout_s": 50}, (10, 2), lost=(1,), losing=losing) == ([2], 10)
