"""Where messages wait: everybody, quorum, grace, deadline, lost peers, late messages, and misuse."""

import gc
import weakref

from hypothesis import given
from hypothesis import strategies as st

from node import mailbox as mailbox_module
from node.mailbox import Mailbox
from waits import Keyless, Part, Round, begin, on_the_clock, scenario

# Everybody


def test_all_who_are_awaited_end_the_wait_sorted_by_peer():
    assert scenario({"frm": (1, 2, 3)}, (4, 3), (2, 1), (3, 2)) == ([1, 2, 3], 4)


def test_what_came_before_the_wait_counts():
    assert scenario({"frm": (1, 2)}, (0.5, 2), (3, 1)) == ([1, 2], 3)
    assert scenario({"frm": (1, 2)}, (0.5, 2), (0.7, 1)) == ([1, 2], 1)


def test_nobody_to_wait_for_is_no_wait():
    assert scenario({"frm": ()}) == ([], 1)


def test_others_are_neither_awaited_nor_given():
    assert scenario({"frm": (1, 2)}, (2, 7), (3, 1), (4, 8), (5, 2)) == ([1, 2], 5)


def test_the_order_and_repetition_of_those_awaited_do_not_matter():
    assert scenario({"frm": [3, 1, 3, 2, 1]}, (2, 3), (3, 2), (4, 1)) == ([1, 2, 3], 4)


def test_a_newer_message_takes_the_older_ones_place():
    async def main(loop):
        mailbox = Mailbox(0, loop)
        for text in ("old", "new"):
            mailbox.put(1, Keyless(text=text))
        waiting = begin(mailbox, Keyless().slot, frm=(1, 2))
        mailbox.put(1, Keyless(text="newest"))
        mailbox.put(2, Keyless())
        return (await waiting)[1].text

    assert on_the_clock(main) == "newest"


def test_a_slot_without_key_can_be_collected_again_and_again():
    async def main(loop):
        mailbox = Mailbox(0, loop)
        heard = []
        for text in "abc":
            mailbox.put(1, Keyless(text=text))
            heard.append(begin(mailbox, Keyless().slot, frm=(1,))[1].text)
        return heard, mailbox.late

    assert on_the_clock(main) == (["a", "b", "c"], 0)


# Quorum, grace, deadline


def test_a_quorum_of_anyone():
    assert scenario({"quorum": 2}, (2, 5), (3, 4), (4, 6)) == ([4, 5], 3)
    assert scenario({"quorum": 2}, (0.1, 5), (0.2, 4)) == ([4, 5], 1)


def test_a_quorum_of_some():
    assert scenario({"frm": (1, 2, 3), "quorum": 2}, (2, 8), (3, 3), (4, 9), (5, 1), (6, 2)) == ([1, 3], 5)


def test_grace_lets_more_in():
    assert scenario({"quorum": 2, "grace_s": 3}, (2, 5), (3, 4), (5, 6), (7, 7)) == ([4, 5, 6], 6)


def test_grace_counts_from_the_quorum_and_not_from_the_last_message():
    assert scenario({"quorum": 1, "grace_s": 2}, (2, 1), (3, 2), (3.5, 3), (9, 4)) == ([1, 2, 3], 4)


def test_grace_counts_from_the_wait_where_the_quorum_was_there_before():
    assert scenario({"quorum": 1, "grace_s": 2}, (0.5, 1), (2, 2), (4, 3)) == ([1, 2], 3)


def test_grace_ends_early_when_all_are_there():
    assert scenario({"frm": (1, 2, 3), "quorum": 2, "grace_s": 100}, (2, 1), (3, 2), (5, 3)) == ([1, 2, 3], 5)


def test_a_deadline_gives_what_is_there():
    assert scenario({"frm": (1, 2, 3), "timeout_s": 4}, (2, 3), (9, 1)) == ([3], 5)
    assert scenario({"frm": (1,), "timeout_s": 4}) == ([], 5)
    assert scenario({"timeout_s": 4}, (2, 3), (3, 2), (9, 1)) == ([2, 3], 5)


def test_a_deadline_is_not_waited_for_when_all_are_there():
    assert scenario({"frm": (1,), "timeout_s": 1000}, (2, 1)) == ([1], 2)


def test_a_message_at_the_instant_of_the_deadline_is_in_time():
    assert scenario({"frm": (1, 2), "timeout_s": 4}, (5, 1)) == ([1], 5)


def test_a_deadline_of_zero_takes_what_has_come():
    assert scenario({"frm": (1, 2), "timeout_s": 0}, (1, 2), (2, 1)) == ([2], 1)


def test_the_deadline_cuts_the_grace():
    assert scenario({"quorum": 1, "grace_s": 100, "timeout_s": 5}, (2, 1), (8, 2)) == ([1], 6)


def test_a_wait_that_is_over_leaves_later_ones_of_the_same_slot_alone():
    """The first wait's deadline passes while a second wait on the same keyless slot is open."""

    async def main(loop):
        mailbox = Mailbox(0, loop)
        mailbox.put(1, Keyless(text="a"))
        begin(mailbox, Keyless().slot, frm=(1,), timeout_s=5)
        loop.post(1, lambda _: mailbox.put(1, Keyless(text="a")), None)
        await begin(mailbox, Keyless().slot, frm=(1,), timeout_s=5)
        loop.post(30, lambda _: mailbox.put(1, Keyless(text="b")), None)
        heard = await begin(mailbox, Keyless().slot, frm=(1,))
        return heard[1].text, loop.time()

    assert on_the_clock(main) == ("b", 31)


def test_a_deadline_that_is_far_keeps_no_message_alive():
    """Or a protocol with a deadline of an hour would keep an hour of models."""

    async def main(loop):
        mailbox = Mailbox(0, loop)
        message = Round(round=0)
        gone = weakref.ref(message)
        waiting = begin(mailbox, frm=(1,), timeout_s=3600)
        mailbox.put(1, message)
        del message
        await waiting
        del waiting
        gc.collect()
        return gone(), loop.time()

    assert on_the_clock(main) == (None, 0)


@given(
    st.lists(st.tuples(st.integers(2, 30), st.integers(0, 5)), unique_by=lambda arrival: arrival[0]),
    st.sets(st.integers(0, 5), min_size=1),
    st.none() | st.integers(1, 6),
    st.integers(0, 40),
)
def test_any_wait_ends_when_the_rules_say(arrivals, frm, quorum, timeout_s):
    """Against the definition: replay the arrivals, and stop at the first of all, quorum and deadline."""
    heard, over = set(), 1 + timeout_s
    for time_s, sender in sorted(arrivals):
        if time_s > 1 + timeout_s:
            break
        heard |= {sender} & frm
        if heard == frm or (quorum is not None and len(heard) >= quorum):
            over = time_s
            break
    wait = {"frm": tuple(frm), "quorum": quorum, "timeout_s": timeout_s}
    assert scenario(wait, *arrivals) == (sorted(heard), over)


# Late


def test_what_was_collected_already_is_late():
    async def main(loop):
        mailbox = Mailbox(0, loop)
        waiting = begin(mailbox, Round(round=3).slot, frm=(1, 2), timeout_s=1)
        await waiting
        for round in (3, 2, 0, 4):
            mailbox.put(1, Round(round=round))
        return mailbox.late, list(begin(mailbox, Round(round=4).slot, frm=(1,)))

    assert on_the_clock(main) == (3, [1])


def test_keys_of_several_fields_rise_in_order():
    async def main(loop):
        mailbox = Mailbox(0, loop)
        await begin(mailbox, Part(round=1, part=2).slot, frm=(1,), timeout_s=0)
        for round, part in ((0, 9), (1, 1), (1, 2), (1, 3), (2, 0)):
            mailbox.put(1, Part(round=round, part=part))
        return mailbox.late

    assert on_the_clock(main) == 3


def test_early_messages_wait_for_their_round():
    async def main(loop):
        mailbox = Mailbox(0, loop)
        for round in (5, 1, 3, 0):
            mailbox.put(7, Round(round=round))
        return [list(begin(mailbox, Round(round=round).slot, frm=(7,))) for round in (0, 1, 3, 5)], mailbox.late

    assert on_the_clock(main) == ([[7], [7], [7], [7]], 0)


def test_messages_that_nobody_ever_collects_are_bounded(monkeypatch):
    monkeypatch.setattr(mailbox_module, "_MOST_UNCLAIMED", 10)

    async def main(loop):
        mailbox = Mailbox(0, loop)
        waiting = begin(mailbox, Round(round=0).slot, frm=(1,))
        for round in range(1, 101):
            mailbox.put(1, Round(round=round))
        mailbox.put(2, Round(round=200))  # one sender's flood is not another's
        boxes = len(mailbox._boxes)
        mailbox.put(1, Round(round=0))
        first = list(await waiting)
        kept = [list(begin(mailbox, Round(round=round).slot, frm=(1,))) for round in range(1, 11)]
        return mailbox.late, boxes, kept, first

    late, boxes, kept, first = on_the_clock(main)
    assert late == 90
    assert boxes == 12
    assert kept == [[1]] * 10
    assert first == [1]
