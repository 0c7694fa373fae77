"""What a shaper makes of messages, by itself and in a transport."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loopback import Party, acquaint, model, note
from node.codec import Limits, decode_header
from node.errors import BadFrame
from node.live.shaping import Impairment, Leaving, Shaper

ALWAYS = (0.0, math.inf)


def shaper(*impairments, seed=0, node=0, began_s=0.0):
    return Shaper(impairments, seed, node, began_s)


def leaving(number, peer=1):
    return Leaving(peer, note(number), None)


def passed(shaper, count, now_s=0.0, peer=1):
    """The numbers of those of ``count`` messages that are not lost."""
    return [number for number in range(count) if shaper.add(leaving(number, peer), now_s)]


def taken(shaper, now_s):
    """All that may leave by now."""
    return list(iter(lambda: shaper.take(now_s), None))


def test_without_impairment_all_passes_at_once():
    idle = shaper()
    assert idle.idle
    assert idle.due_s is None
    message = leaving(1)
    assert idle.add(message, 5.0)
    assert not idle.idle
    assert idle.due_s == 5.0
    assert taken(idle, 5.0) == [message]
    assert idle.idle


@given(seed=st.integers(0, 2**32), loss=st.sampled_from([0.1, 0.5, 0.9]))
def test_about_the_share_of_messages_is_lost(seed, loss):
    kept = len(passed(shaper(Impairment(*ALWAYS, loss=loss), seed=seed), 400))
    assert abs(kept / 400 - (1 - loss)) < 6 * math.sqrt(loss * (1 - loss) / 400)


@given(seed=st.integers(0, 2**32))
def test_draws_follow_from_seed_node_and_peer_alone(seed):
    lossy = Impairment(*ALWAYS, loss=0.5)
    alone = passed(shaper(lossy, seed=seed), 64)
    among = shaper(lossy, seed=seed)
    mixed = []
    for number in range(64):
        among.add(leaving(0, peer=2), 0.0)
        mixed += [number] if among.add(leaving(number), 0.0) else []
    assert mixed == alone, "what goes to others does not matter"
    assert passed(shaper(lossy, seed=seed), 64, peer=2) != alone
    assert passed(shaper(lossy, seed=seed, node=3), 64) != alone
    assert passed(shaper(lossy, seed=seed + 1), 64) != alone


def test_it_lasts_from_its_beginning_to_before_its_end_in_seconds_of_the_run():
    cut = shaper(Impairment(2.0, 3.0, loss=1.0), began_s=100.0)
    times_s = [101.9, 102.0, 102.9, 103.0]
    assert [cut.add(leaving(0), time_s) for time_s in times_s] == [True, False, False, True]


def test_it_is_about_its_peers_alone():
    cut = shaper(Impairment(*ALWAYS, loss=1.0, peers=frozenset({2})))
    assert cut.add(leaving(0, peer=1), 0.0)
    assert not cut.add(leaving(0, peer=2), 0.0)


def test_delays_add_up():
    slow = shaper(Impairment(*ALWAYS, delay_s=0.5), Impairment(*ALWAYS, delay_s=0.25))
    slow.add(leaving(0), 1.0)
    assert slow.due_s == 1.75
    assert slow.take(1.74) is None
    assert slow.take(1.75).peer == 1


@given(seed=st.integers(0, 2**32), times_s=st.lists(st.floats(0, 2), min_size=2, max_size=30))
def test_messages_to_one_peer_keep_their_order_and_come_no_earlier_than_the_delay(seed, times_s):
    late = shaper(Impairment(0.5, 1.0, delay_s=0.3, jitter_s=0.2), seed=seed)
    added = sorted(times_s)
    for number, time_s in enumerate(added):
        assert late.add(Leaving(number % 2, note(number), number), time_s)
    left = []
    while late.due_s is not None:
        due_s = late.due_s
        message = late.take(due_s)
        assert due_s >= added[message.keep] + (0.3 if 0.5 <= added[message.keep] < 1.0 else 0.0)
        left.append(message)
    for peer in (0, 1):
        numbers = [message.keep for message in left if message.peer == peer]
        assert numbers == sorted(numbers)
    assert len(left) == len(added)


def test_jitter_has_its_mean():
    late = shaper(Impairment(*ALWAYS, jitter_s=0.5))
    delays_s = []
    for number in range(2_000):
        late.add(Leaving(number, note(0), None), 0.0)  # each to another peer, so that none waits for one before it
        delays_s.append(late.due_s)
        late.take(math.inf)
    assert np.mean(delays_s) == pytest.approx(0.5, rel=0.1)


@given(seed=st.integers(0, 2**32))
def test_garbage_is_no_message_and_as_long_as_a_header(seed):
    spoiling = shaper(Impairment(*ALWAYS, garbage=1.0), seed=seed)
    original = model(7, np.ones(3))
    spoiling.add(Leaving(1, original, None), 0.0)
    spoilt = spoiling.take(0.0)
    assert spoilt.encoded.size_bytes + spoilt.unsent_bytes == original.size_bytes
    assert len(spoilt.encoded.header) == len(original.header)
    assert not spoilt.encoded.buffers
    with pytest.raises(BadFrame):
        decode_header(spoilt.encoded.header, Limits())


# In a transport


@pytest.fixture
async def pair():
    made = [Party(0), Party(1)]
    acquaint(*made)
    yield made
    for party in made:
        await party.transport.close()


async def test_a_partition_loses_what_is_sent_into_it_and_nothing_after(pair):
    sender, receiver = pair
    sender.transport.shape(shaper(Impairment(*ALWAYS, loss=1.0)))
    for number in range(5):
        await sender.transport.send(1, note(number))
    sender.transport.shape(shaper())
    await sender.transport.send(1, note(5))
    await receiver.hears(1)
    assert receiver.notes == [5]


async def test_what_is_lost_leaves_its_room_to_others():
    """Or a sender would wait for ever for bytes that never leave."""
    limits = Limits(queue_bytes=1 << 20)
    sender, receiver = Party(0, limits=limits), Party(1, limits=limits)
    acquaint(sender, receiver)
    sender.transport.shape(shaper(Impairment(*ALWAYS, loss=0.7), seed=4))
    for number in range(40):
        await sender.transport.send(1, model(number, np.ones(1 << 17, np.float32)))
    sender.transport.shape(shaper())
    await sender.transport.send(1, note(99))
    await receiver.until(lambda: receiver.notes == [99])
    assert 0 < len(receiver.heard) - 1 < 40
    for party in (sender, receiver):
        await party.transport.close()


async def test_delayed_messages_come_in_order_and_before_the_link_closes(pair):
    sender, receiver = pair
    sender.transport.shape(shaper(Impairment(*ALWAYS, delay_s=0.05, jitter_s=0.02)))
    for number in range(20):
        await sender.transport.send(1, note(number))
    await sender.transport.close()
    await receiver.until(lambda: receiver.lost)
    assert receiver.notes == list(range(20))


async def test_garbage_costs_its_sender_and_harms_no_other_message(pair):
    sender, receiver = pair
    sender.transport.shape(shaper(Impairment(*ALWAYS, garbage=1.0)))
    for number in range(4):
        await sender.transport.send(1, model(number, np.ones(1 << 15, np.float32)))
    sender.transport.shape(shaper())
    await sender.transport.send(1, model(4, np.ones(1 << 15, np.float32)))
    await receiver.hears(1)
    assert [message.number for _, message in receiver.heard] == [4]
    assert 1 <= receiver.transport.counters().refused["malformed"] <= 4, "some may have shared a frame"


async def test_what_was_held_back_leaves_with_the_next_shaper(pair):
    sender, receiver = pair
    sender.transport.shape(shaper(Impairment(*ALWAYS, delay_s=1e6)))
    for number in range(3):
        await sender.transport.send(1, note(number))
    sender.transport.shape(shaper())
    await receiver.hears(3)
    assert receiver.notes == [0, 1, 2]
