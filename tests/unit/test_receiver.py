"""The receiver of a layered object: over links that are slow, lose, repeat and reorder, and from sources that lie."""

import heapq
import math
from itertools import accumulate, count, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layered import CHUNK_BYTES, content, digests_of
from node.streaming.assembly import Assembly
from node.streaming.layout import Layout
from node.streaming.receiver import Ban, Cancel, Charge, Done, Get, LayerReady, Receiver, Starved
from node.streaming.recurrence import blocking_s, streamed_s
from node.streaming.source import MOST_CREDIT, Link


class Way:
    """A source and the link to it: one chunk at a time, then half a round trip; it may be made to misbehave."""

    def __init__(self, node, chunk_s=1.0, rtt_s=0.0, lies=(), loses=(), repeats=(), jitter_s=None):
        self.node, self.chunk_s, self.rtt_s = node, chunk_s, rtt_s
        self.lies, self.loses, self.repeats = lies, loses, repeats
        self.jitter_s = jitter_s or (lambda: 0.0)
        self.free_s = 0.0
        self.answered = 0
        self.cancelled = set()

    def link(self):
        return Link(self.node, CHUNK_BYTES / self.chunk_s, self.rtt_s)


class Transfer:
    """A small discrete-event world around one receiver, which keeps the bytes and the times."""

    def __init__(self, layers, ways, now_s=0.0):
        self.layers, self.ways = layers, {way.node: way for way in ways}
        self.layout = Layout([len(data) for data in layers], CHUNK_BYTES)
        self.receiver = Receiver(self.layout)
        self.assembly = Assembly(self.layout, digests_of(layers))
        self.queue, self.order = [], count()
        self.now_s = now_s
        self.actions, self.ready_s, self.gets = [], {}, 0
        self.do(self.receiver.begin([way.link() for way in ways], now_s))

    def at(self, time_s, what, *arguments):
        heapq.heappush(self.queue, (time_s, next(self.order), what, arguments))

    def do(self, actions):
        self.actions += actions
        for action in actions:
            if isinstance(action, Get):
                self.gets += 1
                self.at(self.now_s + self.ways[action.node].rtt_s / 2, self.serve, action)
            elif isinstance(action, Cancel):
                self.ways[action.node].cancelled.add(action.chunk)
            elif isinstance(action, LayerReady):
                self.ready_s[action.layer] = self.now_s

    def serve(self, get):
        way = self.ways[get.node]
        number, way.answered = way.answered, way.answered + 1
        way.free_s = max(way.free_s, self.now_s) + way.chunk_s
        if number in way.loses:
            return
        layer, offset, size_bytes = self.layout.chunk(get.chunk)
        data = self.layers[layer][offset : offset + size_bytes]
        if number in way.lies:
            data = bytes([data[0] ^ 1]) + data[1:]
        for _ in range(2 if number in way.repeats else 1):
            self.at(way.free_s + way.rtt_s / 2 + way.jitter_s(), self.come, get, data)

    def come(self, get, data):
        is_right = self.assembly.matches(get.chunk, data)
        if is_right:
            self.assembly.write(get.chunk, data)
        self.do(self.receiver.arrived(get.node, get.chunk, is_right, self.now_s))

    def run(self, most_events=20_000):
        for _ in range(most_events):
            tick_s = self.receiver.next_tick_s
            next_s = self.queue[0][0] if self.queue else math.inf
            if min(tick_s, next_s) == math.inf:
                return self
            if tick_s < next_s:
                self.now_s = max(self.now_s, tick_s)
                self.do(self.receiver.tick(self.now_s))
            else:
                self.now_s, _, what, arguments = heapq.heappop(self.queue)
                what(*arguments)
        raise AssertionError(f"no end after {most_events} events")

    def all_is_right(self):
        return [bytes(self.assembly.layer(layer)) for layer in range(len(self.layers))] == self.layers


def kinds(actions, kind):
    return [action for action in actions if isinstance(action, kind)]


# One source


def test_as_many_chunks_are_asked_for_as_the_way_holds():
    for rtt_s, credit in [(0.0, 1), (0.5, 2), (1.0, 2), (3.0, 4), (3.5, 5), (1e12, MOST_CREDIT)]:
        receiver = Receiver(Layout([800], CHUNK_BYTES))
        actions = receiver.begin([Link(0, CHUNK_BYTES, rtt_s)], 0.0)
        assert actions == [Get(0, chunk) for chunk in range(credit)]


def test_layers_are_ready_one_after_the_other_and_then_it_is_done():
    receiver = Receiver(Layout([16, 0, 8], CHUNK_BYTES))
    assert receiver.begin([Link(0, CHUNK_BYTES, 0.0)], 0.0) == [LayerReady(1), Get(0, 0)]
    assert receiver.arrived(0, 0, True, 1.0) == [Get(0, 1)]
    assert receiver.arrived(0, 1, True, 2.0) == [LayerReady(0), Get(0, 2)]
    assert not receiver.is_done
    assert receiver.arrived(0, 2, True, 3.0) == [LayerReady(2), Done()]
    assert receiver.is_done
    assert receiver.next_tick_s == math.inf


def test_what_is_here_already_is_not_asked_for():
    layout = Layout([16, 16], CHUNK_BYTES)
    assert Receiver(layout, present=[0, 1, 2]).begin([Link(0, 1.0, 0.0)], 0.0) == [LayerReady(0), Get(0, 3)]
    everything = [LayerReady(0), LayerReady(1), Done()]
    assert Receiver(layout, present=range(4)).begin([], 0.0) == everything


def test_an_object_without_layers_is_done():
    assert Receiver(Layout([], CHUNK_BYTES)).begin([], 0.0) == [Done()]


def test_chunks_that_come_out_of_order_complete_their_layers():
    receiver = Receiver(Layout([16, 8], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 2.0)], 0.0)
    assert receiver.arrived(0, 2, True, 3.0) == [LayerReady(1)]
    assert receiver.arrived(0, 1, True, 3.0) == []
    assert receiver.arrived(0, 0, True, 3.0) == [LayerReady(0), Done()]


def test_a_chunk_that_comes_twice_is_ignored():
    receiver = Receiver(Layout([80], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 0.0)], 0.0)
    receiver.arrived(0, 0, True, 1.0)
    assert receiver.arrived(0, 0, True, 1.5) == []


@pytest.mark.parametrize("chunk", [5, 10, -1, 2**40])
def test_what_was_never_asked_for_is_charged_to_who_sent_it(chunk):
    receiver = Receiver(Layout([80], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 0.0)], 0.0)
    assert receiver.arrived(0, chunk, True, 1.0) == [Charge(0)]
    assert receiver.arrived(7, 0, True, 1.0) == [Charge(7)]


def test_a_chunk_that_is_lost_is_asked_for_again_even_of_the_only_source():
    receiver = Receiver(Layout([8], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 1.0)], 0.0)
    waits = []
    for _ in range(4):
        due_s = receiver.next_tick_s
        assert receiver.tick(due_s - 1e-9) == []
        assert receiver.tick(due_s) == [Get(0, 0)]
        waits.append(due_s)
    # It should take two seconds; who is only slow would be slowed further by questions.
    assert [after - before for before, after in pairwise([0.0, *waits])] == [8.0, 16.0, 32.0, 64.0]
    assert receiver.arrived(0, 0, True, 130.0) == [LayerReady(0), Done()]


def test_without_a_source_it_says_so_once_and_goes_on_with_the_next():
    receiver = Receiver(Layout([80], CHUNK_BYTES))
    assert receiver.begin([], 0.0) == [Starved()]
    assert receiver.joined(Link(3, CHUNK_BYTES, 0.0), 1.0) == [Get(3, 0)]
    assert receiver.lost(3, 2.0) == [Starved()]
    assert receiver.lost(3, 2.0) == receiver.lost(9, 2.0) == []
    assert receiver.joined(Link(3, CHUNK_BYTES, 0.0), 3.0) == [Get(3, 0)]


def test_what_comes_late_from_a_source_that_was_lost_still_counts():
    receiver = Receiver(Layout([8], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 0.0)], 0.0)
    receiver.lost(0, 1.0)
    assert receiver.arrived(0, 0, True, 2.0) == [LayerReady(0), Done()]


# Several sources


def test_chunks_are_spread_by_speed():
    transfer = Transfer(content([8 * 400]), [Way(0, 1.0, 2.0), Way(1, 3.0, 2.0)]).run()
    assert transfer.all_is_right()
    counts = [sum(get.node == node for get in kinds(transfer.actions, Get)) for node in (0, 1)]
    assert counts[0] / counts[1] == pytest.approx(3, rel=0.15)
    # Two together take three quarters of the time of the fast one alone.
    assert transfer.ready_s[0] == pytest.approx(300, rel=0.05)


def test_the_first_missing_chunks_come_first():
    layers = content([80] * 6)
    transfer = Transfer(layers, [Way(0, 1.0, 4.0), Way(1, 1.0, 4.0)]).run()
    assert list(transfer.ready_s) == list(range(6))


def test_what_a_lost_source_owes_is_asked_of_others():
    receiver = Receiver(Layout([80], CHUNK_BYTES))
    actions = receiver.begin([Link(0, CHUNK_BYTES, 3.0), Link(1, CHUNK_BYTES / 10, 0.0)], 0.0)
    owed = [get.chunk for get in actions if get.node == 0]
    actions = receiver.lost(0, 1.0) + receiver.joined(Link(2, CHUNK_BYTES, 20.0), 1.0)
    asked = [get.chunk for get in actions if get.node == 2]
    assert asked[: len(owed)] == owed


def test_a_liar_is_banned_and_its_chunk_fetched_elsewhere():
    layers = content([200, 100])
    transfer = Transfer(layers, [Way(0, 1.0, 2.0, lies={3}), Way(1, 1.0, 2.0)]).run()
    assert kinds(transfer.actions, Ban) == [Ban(0)]
    assert transfer.all_is_right()
    banned_at = transfer.actions.index(Ban(0))
    assert all(get.node == 1 for get in kinds(transfer.actions[banned_at:], Get))


def test_of_all_liars_nothing_is_taken_and_nobody_is_left():
    receiver = Receiver(Layout([80], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 1.0)], 0.0)
    assert receiver.arrived(0, 0, False, 1.0) == [Ban(0), Starved()]
    assert receiver.arrived(0, 1, True, 1.0) == []
    assert receiver.joined(Link(0, CHUNK_BYTES, 1.0), 2.0) == []
    assert receiver.joined(Link(1, CHUNK_BYTES, 0.0), 2.0) == [Get(1, 0)]


def test_a_chunk_that_takes_longer_than_most_is_asked_for_elsewhere_and_the_loser_is_cancelled():
    receiver = Receiver(Layout([8 * 40], CHUNK_BYTES))
    receiver.begin([Link(0, CHUNK_BYTES, 0.0), Link(1, CHUNK_BYTES / 1.01, 0.0)], 0.0)
    now_s, asked = 0.0, {0: 0, 1: 1}
    for _ in range(10):
        now_s += 1.0
        for node in (0, 1):
            (get,) = kinds(receiver.arrived(node, asked[node], True, now_s), Get)
            asked[node] = get.chunk
    # From now on node 0 is silent.
    slow = asked[0]
    receiver.arrived(1, asked[1], True, now_s + 1.0)
    assert receiver.next_tick_s == pytest.approx(now_s + 1.05)
    assert Get(1, slow) in receiver.tick(now_s + 1.06)
    assert Cancel(0, slow) in receiver.arrived(1, slow, True, now_s + 2.0)
    assert Charge(0) not in receiver.arrived(0, slow, True, now_s + 9.0)


def test_hedging_makes_up_for_a_source_that_stalls():
    layers = content([8 * 60])

    def stalls(number):
        return lambda: 500.0 if next(number) > 10 else 0.0

    transfer = Transfer(layers, [Way(0, 1.0, 1.0, jitter_s=stalls(count())), Way(1, 1.0, 1.0)]).run()
    assert transfer.all_is_right()
    assert transfer.ready_s[0] < 120


def test_equal_and_steady_sources_are_never_asked_twice():
    transfer = Transfer(content([8 * 100]), [Way(0, 1.0, 2.0), Way(1, 1.0, 2.0)]).run()
    assert transfer.gets == 100
    assert kinds(transfer.actions, Cancel) == []


@given(st.integers(0, 2**32))
@settings(max_examples=40, deadline=None)
def test_lost_reordered_and_repeated_chunks_leave_the_result_equal_to_the_last_bit(seed):
    rng = np.random.default_rng(seed)
    layers = content(rng.integers(0, 120, rng.integers(1, 6)).tolist(), seed)
    ways = [
        Way(
            node,
            chunk_s=float(rng.uniform(0.5, 3)),
            rtt_s=float(rng.uniform(0, 5)),
            loses={int(number) for number in rng.integers(0, 30, 6)},
            repeats={int(number) for number in rng.integers(0, 30, 6)},
            lies={int(number) for number in rng.integers(0, 60, 2)} if node else (),
            jitter_s=lambda: float(rng.exponential(2)),
        )
        for node in range(int(rng.integers(1, 5)))
    ]
    transfer = Transfer(layers, ways).run()
    assert transfer.all_is_right()
    assert [kind for kind in transfer.actions if isinstance(kind, Done)] == [Done()]
    assert sorted(action.layer for action in kinds(transfer.actions, LayerReady)) == list(range(len(layers)))
    assert 0 not in [ban.node for ban in kinds(transfer.actions, Ban)]
    assert kinds(transfer.actions, Charge) == []


def test_two_transfers_under_the_same_conditions_are_the_same():
    def story():
        ways = [Way(0, 1.0, 2.0, loses={4, 9}), Way(1, 1.5, 1.0, lies={20}), Way(2, 2.0, 0.0)]
        return Transfer(content([300, 200]), ways).run().actions

    assert story() == story()


# What it learns of sources


def test_the_rate_of_a_source_is_measured():
    transfer = Transfer(content([8 * 100]), [Way(0, 2.0, 6.0)])
    source = transfer.receiver._sources[0]
    source.rate_bytes_per_s = 1000.0
    transfer.run()
    assert source.rate_bytes_per_s == pytest.approx(CHUNK_BYTES / 2.0, rel=0.02)


def test_a_source_that_promised_too_little_gets_the_credit_it_deserves():
    way = Way(0, 1.0, 8.0)
    way.link = lambda: Link(0, CHUNK_BYTES / 50, 8.0)
    transfer = Transfer(content([8 * 300]), [way]).run()
    assert transfer.receiver._sources[0].credit(CHUNK_BYTES) in (9, 10)
    assert transfer.ready_s[0] < 400


# What streaming is worth


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 64)), min_size=1, max_size=8), st.integers(0, 8))
@settings(max_examples=60, deadline=None)
def test_over_a_constant_link_layers_are_computed_exactly_when_the_recurrence_says(layers, rtt_s):
    """Times are whole numbers of seconds, so that sums are exact; the first layer takes a round trip more."""
    chunk_counts, computes = [chunks for chunks, _ in layers], [compute for _, compute in layers]
    transfer = Transfer(content([CHUNK_BYTES * chunks for chunks in chunk_counts]), [Way(0, 1.0, float(rtt_s))]).run()
    assert transfer.all_is_right()
    transfers = list(chunk_counts)
    first = next((layer for layer, chunks in enumerate(transfers) if chunks), None)
    if first is not None:
        transfers[first] += rtt_s
    arrivals = list(accumulate(transfers))
    done_s = 0.0
    for layer, compute_s in enumerate(computes):
        assert transfer.ready_s[layer] == (arrivals[layer] if chunk_counts[layer] else 0)
        done_s = max(done_s, transfer.ready_s[layer]) + compute_s
    assert done_s == streamed_s(transfers, computes)
    assert done_s <= blocking_s(transfers, computes)
