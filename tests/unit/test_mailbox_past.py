"""Waits for those who are past what is waited for, or say that they leave it out; and rounds that a node gives up."""

import asyncio

import pytest

from node.mailbox import Mailbox
from waits import Keyless, Part, Round, begin, on_the_clock

LATENESS_S = 100.0


def waited(*arrivals, slot=None, excused=(), frm=(1, 2), **wait):
    """One wait for round 0, begun at time 1, and (time, sender, round) of what comes; (time, peer, round) of excuses.

    Gives the senders heard, and when.
    """

    async def main(loop):
        mailbox = Mailbox(9, loop)
        for time_s, sender, round in arrivals:
            loop.post(time_s, lambda put: mailbox.put(*put), (sender, Round(round=round)))
        for time_s, peer, round in excused:
            loop.post(time_s, lambda excuse: mailbox.excuse(*excuse), (peer, Round(round=round).slot))
        await asyncio.sleep(1)
        outcome = begin(mailbox, slot or Round(round=0).slot, frm=frm, **wait)
        heard = outcome if isinstance(outcome, dict) else await outcome
        return list(heard), loop.time()

    return on_the_clock(main)


# Past it


@pytest.mark.parametrize("lateness", [{"timeout_s": LATENESS_S}, {"quorum": 2}])
def test_one_that_is_two_rounds_further_is_not_waited_for(lateness):
    assert waited((2, 1, 0), (3, 2, 2), **lateness) == ([1], 3)
    assert waited((0.5, 2, 2), (3, 1, 0), **lateness) == ([1], 3)
    assert waited((0.5, 2, 2), (0.6, 1, 7), **lateness) == ([], 1)


def test_one_that_is_a_round_further_may_have_been_overtaken_by_itself():
    assert waited((2, 1, 0), (3, 2, 1), (4, 2, 0), timeout_s=LATENESS_S) == ([1, 2], 4)
    assert waited((2, 1, 0), (3, 2, 1), timeout_s=LATENESS_S) == ([1], 101)


def test_what_it_has_said_in_this_round_counts_all_the_same():
    assert waited((0.5, 2, 0), (0.6, 2, 1), (0.7, 2, 2), (3, 1, 0), timeout_s=LATENESS_S) == ([1, 2], 3)
    assert waited((2, 2, 2), (3, 2, 0), (4, 1, 0), timeout_s=LATENESS_S) == ([1, 2], 4)


def test_where_all_are_needed_all_are_waited_for():
    assert waited((2, 2, 2), (3, 1, 5), (5, 1, 0), (6, 2, 0)) == ([1, 2], 6)


def test_strangers_that_are_further_end_nothing():
    assert waited((2, 7, 2), (3, 8, 5), (4, 1, 0), (5, 2, 0), timeout_s=LATENESS_S) == ([1, 2], 5)
    assert waited((2, 7, 2), (3, 8, 5), frm=None, quorum=1, timeout_s=LATENESS_S) == ([], 101)


def test_one_that_is_further_and_then_lost_counts_once():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        waiting = begin(mailbox, frm=(1, 2), timeout_s=LATENESS_S)
        mailbox.put(2, Round(round=2))
        mailbox.lose(2)
        mailbox.put(2, Round(round=3))
        mailbox.put(1, Round(round=0))
        return list(await waiting)

    assert on_the_clock(main) == [1]


def test_a_wait_that_was_given_up_is_not_ended():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        begin(mailbox, frm=(1,), timeout_s=LATENESS_S).cancel()
        mailbox.put(1, Round(round=2))
        waiting = begin(mailbox, frm=(1, 2), timeout_s=LATENESS_S)
        mailbox.put(2, Round(round=0))
        return list(await waiting)

    assert on_the_clock(main) == [2]


def test_who_is_past_a_round():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        for sender, round in ((1, 4), (2, 5), (3, 6), (3, 9), (4, 3)):
            mailbox.put(sender, Round(round=round))
        mailbox.put(5, Part(round=9, part=0))
        mailbox.put(6, Keyless())
        return [mailbox.passed(slot) for slot in (Round(round=3).slot, Round(round=5).slot, Keyless().slot)]

    assert on_the_clock(main) == [(2, 3), (3,), ()]


# Excused


@pytest.mark.parametrize("wait", [{}, {"timeout_s": LATENESS_S}, {"quorum": 2}])
def test_one_that_says_nothing_before_a_round_is_not_waited_for_even_where_all_are_needed(wait):
    assert waited((2, 1, 0), excused=[(3, 2, 1)], **wait) == ([1], 3)
    assert waited((2, 1, 0), excused=[(0.5, 2, 1)], **wait) == ([1], 2)
    assert waited(excused=[(0.5, 2, 1), (0.6, 1, 8)], **wait) == ([], 1)


def test_in_that_round_it_is_waited_for():
    assert waited((2, 1, 0), (4, 2, 0), excused=[(3, 2, 0)]) == ([1, 2], 4)
    assert waited((2, 1, 4), (3, 2, 4), slot=Round(round=4).slot, excused=[(0.5, 2, 4)]) == ([1, 2], 3)


def test_what_it_has_said_before_counts():
    assert waited((0.5, 2, 0), (3, 1, 0), excused=[(0.6, 2, 1)]) == ([1, 2], 3)
    assert waited((2, 2, 0), (4, 1, 0), excused=[(3, 2, 1)]) == ([1, 2], 4)


def test_others_and_other_kinds_are_not_excused():
    assert waited((4, 1, 0), (5, 2, 0), excused=[(2, 7, 9)]) == ([1, 2], 5)

    async def main(loop):
        mailbox = Mailbox(9, loop)
        mailbox.excuse(1, Part(round=3, part=0).slot)
        waiting = begin(mailbox, frm=(1,))
        mailbox.put(1, Round(round=0))
        return list(await waiting)

    assert on_the_clock(main) == [1]


def test_one_that_was_lost_before_it_was_excused_counts_once():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        waiting = begin(mailbox, frm=(1, 2), timeout_s=LATENESS_S)
        mailbox.lose(2)
        mailbox.excuse(2, Round(round=3).slot)
        mailbox.put(1, Round(round=0))
        return list(await waiting)

    assert on_the_clock(main) == [1]


# Given up


def test_rounds_that_are_given_up_are_dropped_and_what_comes_of_them():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        for round in (2, 3, 5, 8):
            mailbox.put(1, Round(round=round))
        mailbox.put(1, Part(round=2, part=0))
        mailbox.forgo(Round(round=5).slot)
        late = mailbox.late
        for round in (0, 4, 5):
            mailbox.put(2, Round(round=round))
        part = begin(mailbox, Part(round=2, part=0).slot, frm=(1,))
        return late, mailbox.late, list(begin(mailbox, Round(round=8).slot, frm=(1,))), list(part)

    assert on_the_clock(main) == (3, 6, [1], [1])


def test_what_somebody_waits_for_is_not_given_up():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        waiting = begin(mailbox, Round(round=2).slot, frm=(1,))
        mailbox.forgo(Round(round=5).slot)
        mailbox.put(1, Round(round=2))
        return list(await waiting)

    assert on_the_clock(main) == [1]


def test_to_give_up_what_is_over_changes_nothing():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        await begin(mailbox, Round(round=7).slot, frm=(1,), timeout_s=0)
        mailbox.forgo(Round(round=2).slot)
        mailbox.put(1, Round(round=6))
        return mailbox.late

    assert on_the_clock(main) == 1


def test_kinds_without_a_key_go_on():
    async def main(loop):
        mailbox = Mailbox(9, loop)
        mailbox.put(1, Keyless(text="old"))
        mailbox.forgo(Keyless().slot)
        mailbox.put(1, Keyless(text="new"))
        return begin(mailbox, Keyless().slot, frm=(1,))[1].text

    assert on_the_clock(main) == "new"
