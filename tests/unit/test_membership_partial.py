"""Members that know only a few others: views, walks, shuffles, repair, and bounds against eclipse."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership_members import Keyed, alive, left, of, sent, tell
from node.clock import VirtualClock
from node.errors import ConfigError
from node.membership import (
    Changed,
    Describe,
    Disconnect,
    HyParView,
    Introduce,
    Leave,
    Lost,
    Persist,
    Ping,
    Send,
    Sizes,
    Start,
    State,
    Tick,
)
from node.membership.overlay import ForwardJoin, Join, Neighbour, NeighbourAnswer, Shuffle, ShuffleAnswer
from node.membership.passive import Entry, PassiveView
from node.sim.swarm import Swarm

SIZES = Sizes()


def view(me=0, neighbours=(), seeds=(), sizes=SIZES, **options):
    """A started node with some neighbours."""
    made = HyParView(me, 0, b"r", sizes, np.random.default_rng(me), Keyed(me), **options)
    made.step(Start(seeds), 0.0)
    for peer in neighbours:
        tell(made, peer, Neighbour(alive(peer), True), 0.0)
    return made


def passive(made):
    return [sighting.peer for sighting in made.known() if sighting.state is State.PASSIVE]


# Joining


def test_a_newcomer_asks_a_seed_with_a_word_that_it_has_kept():
    made = HyParView(7, 3, b"r", SIZES, np.random.default_rng(0), Keyed(7))
    actions = made.step(Start((1,)), 0.0)
    assert actions[0] == Persist(4)
    assert sent(actions) == [(1, Join(alive(7, 4)))]


def test_a_seed_takes_a_newcomer_and_tells_all_its_neighbours():
    made = view(0, (1, 2, 3))
    actions = tell(made, 9, Join(alive(9)), 1.0)
    assert 9 in made.peers()
    assert Changed(9, State.ALIVE) in actions
    assert (9, NeighbourAnswer(alive(0), True)) in sent(actions)
    assert sent(actions, ForwardJoin) == [(peer, ForwardJoin(alive(9), 6)) for peer in (1, 2, 3)]


def test_a_full_view_drops_somebody_for_a_newcomer_and_says_so():
    made = view(0, (1, 2, 3, 4, 5))
    actions = tell(made, 9, Join(alive(9)), 1.0)
    ((dropped, _),) = sent(actions, Disconnect)
    assert len(made.peers()) == 5
    assert passive(made) == [dropped]
    assert Changed(dropped, State.PASSIVE) in actions


def test_the_end_of_a_walk_makes_a_neighbour_and_its_middle_a_memory():
    made = view(0, (1, 2))
    assert sent(tell(made, 1, ForwardJoin(alive(9), 5), 1.0)) == [(2, ForwardJoin(alive(9), 4))]
    assert passive(made) == []
    assert (2, ForwardJoin(alive(9), 2)) in sent(tell(made, 1, ForwardJoin(alive(9), 3), 1.0))
    assert passive(made) == [9] or 9 in made.peers()
    actions = tell(made, 1, ForwardJoin(alive(8), 0), 1.0)
    assert (8, Neighbour(alive(0), True)) in sent(actions)
    assert of(actions, Introduce)[0] == Introduce(alive(8))
    assert 8 in made.peers()


def test_a_walk_ends_where_there_is_nobody_to_go_on_to():
    made = view(0, (1,))
    assert (9, Neighbour(alive(0), True)) in sent(tell(made, 1, ForwardJoin(alive(9), 6), 1.0))


def test_walks_are_taken_from_neighbours_only_and_others_are_told():
    made = view(0, (1, 2))
    for message in (ForwardJoin(alive(9), 0), Shuffle(alive(9), 0, ())):
        assert sent(tell(made, 5, message, 1.0)) == [(5, Disconnect())]
    assert made.peers() == (1, 2)


# Neighbours


def test_urgent_requests_are_always_accepted_and_others_while_there_is_room():
    made = view(0, (1, 2, 3, 4))
    assert sent(tell(made, 5, Neighbour(alive(5), False), 1.0)) == [(5, NeighbourAnswer(alive(0), True))]
    assert sent(tell(made, 6, Neighbour(alive(6), False), 1.0)) == [(6, NeighbourAnswer(alive(0), False))]
    tell(made, 7, Neighbour(alive(7), True), 1.0)
    assert 7 in made.peers()
    assert len(made.peers()) == 5


def test_a_lost_neighbour_is_replaced_from_memory_one_request_at_a_time():
    made = view(0, (1, 2))
    tell(made, 1, ShuffleAnswer((alive(10), alive(11), alive(12))), 1.0)
    ((first, request),) = [(made._asked[0], Neighbour)]
    assert request is Neighbour
    actions = tell(made, first, NeighbourAnswer(alive(first), False), 1.1)
    ((second, message),) = sent(actions, Neighbour)
    assert second != first
    assert not message.is_urgent
    assert first in passive(made), "who refuses is not forgotten"
    tell(made, second, NeighbourAnswer(alive(second), True), 1.2)
    assert second in made.peers()


def test_a_request_without_an_answer_costs_a_place_in_memory():
    made = view(0, (1,))
    tell(made, 1, ShuffleAnswer((alive(10), alive(11))), 1.0)
    asked = made._asked[0]
    made.step(Tick(), 1.0 + SIZES.answer_timeout_s)
    assert asked not in passive(made)
    assert made._asked[0] != asked


def test_who_has_no_neighbours_asks_urgently():
    made = view(0, (1,))
    tell(made, 1, ShuffleAnswer((alive(10),)), 1.0)
    actions = made.step(Lost(1), 1.1)
    assert Changed(1, None) in actions
    made.step(Lost(10), 1.2)
    assert made._asked is None
    made._passive.put(Entry(alive(12), 12, 1.2))
    ((_, message),) = sent(made.step(Lost(1), 1.3), Neighbour)
    assert message.is_urgent


def test_an_answer_that_comes_too_late_for_a_full_view_is_undone():
    made = view(0, (1, 2, 3, 4, 5))
    assert sent(tell(made, 9, NeighbourAnswer(alive(9), True), 1.0)) == [(9, Disconnect())]


def test_a_disconnected_neighbour_is_remembered_and_one_that_leaves_is_not():
    made = view(0, (1, 2))
    assert Changed(1, State.PASSIVE) in tell(made, 1, Disconnect(), 1.0)
    assert passive(made) == [1]
    assert Changed(2, State.LEFT) in tell(made, 2, Disconnect(left(2)), 1.0)
    assert passive(made) == [1]


def test_a_leave_tells_all_neighbours_and_ends_it():
    made = view(0, (1, 2))
    actions = made.step(Leave(), 1.0)
    assert [to for to, message in sent(actions) if message.farewell.state is State.LEFT] == [1, 2]
    assert made.deadline_s == math.inf
    assert tell(made, 5, Join(alive(5)), 2.0) == []


# Shuffles


def test_a_shuffle_carries_some_of_both_views_and_is_answered_with_as_many():
    made = view(0, (1, 2, 3, 4, 5))
    for peer in range(10, 30):
        made._passive.put(Entry(alive(peer), peer, 0.0))
    made.deadline_s = made._shuffle_s
    ((_, shuffle),) = sent(made.step(Tick(), made._shuffle_s), Shuffle)
    assert len([word for word in shuffle.words if word.peer <= 5]) == 3
    assert len([word for word in shuffle.words if word.peer >= 10]) == 4
    ((to, answer),) = sent(tell(made, 1, Shuffle(alive(50), 0, shuffle.words), 20.0), ShuffleAnswer)
    assert to == 50
    assert len(answer.words) == 8
    assert 50 in passive(made)


def test_a_shuffle_walks_on_but_neither_back_nor_to_its_origin():
    made = view(0, (1, 2, 3))
    for _ in range(20):
        ((to, onward),) = sent(tell(made, 1, Shuffle(alive(2), 4, ()), 1.0))
        assert (to, onward.hops) == (3, 3)


def test_what_was_sent_is_evicted_first():
    made = PassiveView(4, 4, lambda word: "", np.random.default_rng(0))
    for peer in range(4):
        made.put(Entry(alive(peer), peer, 0.0))
    for new, gone in ((10, 2), (11, 3)):
        made.put(Entry(alive(new), new, 0.0), expendable=(gone,))
        assert gone not in made.entries
    assert len(made.entries) == 4


def test_forged_words_are_not_remembered():
    made = view(0, (1,))
    forged = alive(9)._replace(signature=bytes(32))
    tell(made, 1, ShuffleAnswer((forged, left(8), alive(0))), 1.0)
    tell(made, 9, Join(forged), 1.0)
    tell(made, 9, Join(alive(8)), 1.0)
    assert [sighting.peer for sighting in made.known()] == [1]


# Bounds


def test_one_introducer_fills_no_view():
    made = view(0, (1, 2))
    for first in range(100, 1000, 30):
        tell(made, 1, ShuffleAnswer(tuple(alive(peer) for peer in range(first, first + 30))), 1.0)
    assert len(passive(made)) == SIZES.most_alike == 7
    tell(made, 2, ShuffleAnswer((alive(2000),)), 1.0)
    assert 2000 in passive(made)


def test_one_group_fills_no_view():
    made = view(0, (1,), group=lambda word: "net" if word.peer < 500 else "")
    for peer in range(10, 100):
        made._passive.put(Entry(alive(peer), peer, 1.0))
    assert len(passive(made)) == 7
    made._passive.put(Entry(alive(900), 900, 1.0))
    assert 900 in passive(made)


def test_old_memories_fade_and_new_words_refresh_them():
    made = PassiveView(4, 4, lambda word: "", np.random.default_rng(0))
    made.put(Entry(alive(1), 9, 0.0))
    made.put(Entry(alive(2), 9, 0.0))
    made.put(Entry(alive(1, 2), 8, 50.0))
    made.forget_before(40.0)
    assert made.entries == {1: Entry(alive(1, 2), 9, 50.0)}


WORDS = st.builds(alive, st.integers(0, 20), st.integers(1, 3))
ANY = st.one_of(
    st.builds(Join, WORDS),
    st.builds(ForwardJoin, WORDS, st.integers(0, 16)),
    st.builds(Neighbour, WORDS, st.booleans()),
    st.builds(NeighbourAnswer, WORDS, st.booleans()),
    st.builds(Disconnect, st.none() | WORDS),
    st.builds(Shuffle, WORDS, st.integers(0, 16), st.lists(WORDS, max_size=8).map(tuple)),
    st.builds(ShuffleAnswer, st.lists(WORDS, max_size=8).map(tuple)),
    st.just(Ping(1)),
)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(1, 20), ANY | st.sampled_from([Tick(), Lost(3), Describe(b"x")])), max_size=60))
def test_whatever_happens_views_stay_within_their_sizes(events):
    made = view(0, (1, 2, 3), sizes=Sizes(active=3, passive=6))
    now = 0.0
    for peer, event in events:
        if isinstance(event, Tick):
            now = made.deadline_s
        actions = made.step(event, now) if isinstance(event, Tick | Lost | Describe) else tell(made, peer, event, now)
        assert len(made.peers()) <= 3
        assert len(passive(made)) <= 6
        assert not set(made.peers()) & set(passive(made))
        assert 0 not in [sighting.peer for sighting in made.known()]
        assert 0 not in [to for to, _ in sent(actions)]
        assert now < made.deadline_s < math.inf


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({"active": 0}, "active: 0"),
        ({"passive_walk": 6}, "passive_walk: 6 of 6"),
        ({"active_walk": 17}, "passive_walk: 3 of 17"),
        ({"shuffled_passive": 29}, "shuffled_passive"),
        ({"shuffle_interval_s": math.inf}, "shuffle_interval_s: inf"),
    ],
)
def test_sizes_that_cannot_be_are_named(fields, line):
    with pytest.raises(ConfigError, match=f"^{line}"):
        Sizes(**fields)


# Together


def test_a_hundred_nodes_stay_connected_though_half_of_them_are_lost():
    """HyParView, section 5: the overlay survives heavy failures."""
    clock, down = VirtualClock(), set()

    def launch(node, kept):
        return HyParView(node, kept, b"r", SIZES, np.random.default_rng(node)), Start((0, 1) if node else ())

    def watch(node, action):
        for to in action.to if isinstance(action, Send) else ():
            if to in down:
                clock.post(0.05, lambda lost: swarm.give(*lost), (node, Lost(to)))

    swarm = Swarm(clock, 100, launch, lambda sender, to: 0.005)
    swarm.watch = watch
    for node in range(100):
        clock.post(0.01 * node, swarm.up, node)
    swarm.run(15.0)
    assert_overlay(swarm, range(100))
    down |= set(range(0, 100, 2))
    for node in sorted(down):
        swarm.down(node)
    for node in range(1, 100, 2):
        for peer in swarm.hosts[node].machine.peers():
            if peer in down:
                swarm.give(node, Lost(peer))
    swarm.run(30.0)
    assert_overlay(swarm, range(1, 100, 2))
    clock.close()


def assert_overlay(swarm, nodes):
    """Links are symmetric, no view is too large, and everybody reaches everybody."""
    peers = {node: swarm.hosts[node].machine.peers() for node in nodes}
    graph = nx.Graph([(node, peer) for node in nodes for peer in peers[node]])
    assert all(node in peers[peer] for node in nodes for peer in peers[node])
    assert max(len(each) for each in peers.values()) <= 5
    assert sorted(graph) == list(nodes)
    assert nx.is_connected(graph)
