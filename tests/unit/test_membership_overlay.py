"""Partial views and broadcasts as one machine: alone, and a network of them in virtual time."""

import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from membership_members import Keyed, alive, of, sent, tell
from node.clock import VirtualClock
from node.errors import ProtocolError
from node.membership import (
    Broadcast,
    Changed,
    Deliver,
    Disconnect,
    Graft,
    IHave,
    Leave,
    Lost,
    Membership,
    Partial,
    Persist,
    Prune,
    SetTimer,
    Sizes,
    Start,
    State,
    Tell,
    Tick,
)
from node.membership.overlay import CONTENT_BYTES, Neighbour
from node.membership.plumtree import _id_of
from node.sim.swarm import Swarm


def partial(me=0, neighbours=(), seeds=(), **options):
    """A started node with some neighbours."""
    made: Membership = Partial(me, 0, b"r", Sizes(), np.random.default_rng(me), Keyed(me), **options)
    made.step(Start(seeds), 0.0)
    for peer in neighbours:
        tell(made, peer, Neighbour(alive(peer), True), 0.0)
    return made


# Alone


def test_it_begins_with_an_incarnation_that_is_kept_and_a_timer():
    made = Partial(0, 6, b"r", Sizes(), np.random.default_rng(0), Keyed(0))
    assert made.deadline_s == math.inf
    actions = made.step(Start((3,)), 0.0)
    assert actions[0] == Persist(7)
    assert made.incarnation == 7
    assert of(actions, SetTimer) == [SetTimer(made.deadline_s)]


def test_what_is_to_be_told_goes_to_all_neighbours_and_is_delivered_here_too():
    made = partial(0, (1, 2, 3))
    actions = made.step(Tell(b"news"), 1.0)
    assert of(actions, Deliver) == [Deliver(b"news", 0)]
    assert sent(actions) == [(peer, Broadcast(b"news", 1)) for peer in (1, 2, 3)]
    assert made.step(Tell(b"news"), 2.0) == [], "it has been told"


def test_what_comes_goes_on_to_the_other_neighbours():
    made = partial(0, (1, 2, 3))
    actions = tell(made, 2, Broadcast(b"news", 4), 1.0)
    assert of(actions, Deliver) == [Deliver(b"news", 4)]
    assert [to for to, _ in sent(actions)] == [1, 3]


def test_who_is_no_neighbour_is_not_listened_to():
    made = partial(0, (1, 2))
    assert tell(made, 7, Broadcast(b"news", 1), 1.0) == []


def test_what_is_not_accepted_goes_nowhere():
    made = partial(0, (1, 2), accept=lambda content: content.startswith(b"signed"))
    assert tell(made, 1, Broadcast(b"news", 1), 1.0) == []
    assert of(tell(made, 1, Broadcast(b"signed news", 1), 1.0), Deliver)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        (lambda made: made.step(Lost(2), 1.0), [1, 3]),
        (lambda made: tell(made, 2, Disconnect(), 1.0), [1, 3]),
        (lambda made: tell(made, 4, Neighbour(alive(4), True), 1.0), [1, 2, 3, 4]),
    ],
    ids=["lost", "disconnected", "new"],
)
def test_broadcasts_go_where_the_neighbours_are(how, told):
    made = partial(0, (1, 2, 3))
    how(made)
    assert [to for to, _ in sent(made.step(Tell(b"news"), 2.0), Broadcast)] == told == list(made.peers())


def test_a_pruned_link_gets_announcements_only_and_a_graft_brings_it_back():
    made = partial(0, (1, 2))
    tell(made, 1, Prune(), 1.0)
    assert sent(made.step(Tell(b"first"), 2.0)) == [(2, Broadcast(b"first", 1)), (1, IHave(_id_of(b"first")))]
    assert sent(tell(made, 1, Graft(_id_of(b"first")), 3.0)) == [(1, Broadcast(b"first", 1))]
    assert [to for to, _ in sent(made.step(Tell(b"second"), 4.0), Broadcast)] == [2, 1]


def test_the_sooner_of_both_timers_is_the_one_that_is_set():
    made = partial(0, (1, 2))
    shuffle_s = made.deadline_s
    actions = tell(made, 1, IHave(_id_of(b"news")), 1.0)
    assert of(actions, SetTimer) == [SetTimer(2.0)]
    assert made.deadline_s == 2.0 < shuffle_s
    actions = made.step(Tick(), 2.0)
    assert sent(actions) == [(1, Graft(_id_of(b"news")))]
    tell(made, 1, Broadcast(b"news", 1), 2.1)
    assert made.deadline_s == shuffle_s


def test_who_leaves_has_nothing_due():
    made = partial(0, (1, 2))
    assert [to for to, _ in sent(made.step(Leave(), 1.0), Disconnect)] == [1, 2]
    assert made.deadline_s == math.inf
    assert made.peers() == ()


def test_what_is_too_long_is_refused():
    with pytest.raises(ProtocolError, match="65537 bytes"):
        partial(0, (1,)).step(Tell(bytes(CONTENT_BYTES + 1)), 1.0)


def test_neighbours_are_alive_and_others_are_hearsay():
    made = partial(0, range(1, 8))
    states = [seen.state for seen in made.known()]
    assert states.count(State.ALIVE) == 5 == len(made.peers())
    assert states.count(State.PASSIVE) == 2


EVENTS = st.one_of(
    st.tuples(st.just("message"), st.integers(1, 9), st.builds(Broadcast, st.binary(max_size=2), st.integers(0, 255))),
    st.tuples(st.just("message"), st.integers(1, 9), st.builds(IHave, st.binary(min_size=16, max_size=16))),
    st.tuples(st.just("message"), st.integers(1, 9), st.builds(Graft, st.binary(min_size=16, max_size=16))),
    st.tuples(st.just("message"), st.integers(1, 9), st.just(Prune())),
    st.tuples(st.just("message"), st.integers(1, 9), st.just(Disconnect())),
    st.tuples(st.just("neighbour"), st.integers(1, 9)),
    st.tuples(st.just("lost"), st.integers(1, 9)),
    st.tuples(st.just("due")),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(EVENTS, max_size=60))
def test_whatever_happens_the_tree_is_among_the_neighbours(events):
    made, now = partial(0, (1, 2, 3)), 0.0
    for event in events:
        now += 0.05
        match event:
            case ("message", sender, message):
                actions = tell(made, sender, message, now)
            case ("neighbour", peer):
                actions = tell(made, peer, Neighbour(alive(peer), True), now)
            case ("lost", peer):
                actions = made.step(Lost(peer), now)
            case _:
                now = max(now, made.deadline_s)
                actions = made.step(Tick(), now)
        assert len(of(actions, SetTimer)) <= 1
        assert made.deadline_s > now or event != ("due",)
        assert {*made._tree.eager, *made._tree._lazy} == set(made.peers())


# Together


@pytest.fixture
def clock():
    made = VirtualClock()
    yield made
    made.close()


class Net:
    """Nodes that join through two seeds, and what each has been told."""

    def __init__(self, clock, nodes, seed=0):
        self.seed, self.heard = seed, {}
        self.swarm = Swarm(clock, nodes, self.launch, lambda sender, to: 0.01, lost_after_s=0.5)
        self.swarm.watch = self.see
        for node in range(nodes):
            clock.post(0.02 * node, self.swarm.up, node)
        self.swarm.run(0.02 * nodes + 20)

    def launch(self, node, kept):
        return Partial(node, kept, b"r", Sizes(), np.random.default_rng([self.seed, node])), Start((0, 1))

    def see(self, node, action):
        if isinstance(action, Deliver):
            assert node not in self.heard.setdefault(action.content, []), "delivered twice"
            self.heard[action.content].append(node)

    def up(self):
        return [node for node, host in enumerate(self.swarm.hosts) if host.machine is not None]

    def reached(self, node, content):
        self.swarm.give(node, Tell(content))
        self.swarm.run(5.0)
        return sorted(self.heard[content])

    def graph(self):
        peers = {node: self.swarm.hosts[node].machine.peers() for node in self.up()}
        return nx.Graph([(node, peer) for node in peers for peer in peers[node]])


@pytest.mark.parametrize("seed", range(2))
def test_everybody_hears_what_anybody_tells_also_when_half_of_all_have_crashed(clock, seed):
    """HyParView, section 5: broadcasts survive heavy failures, once the views have healed."""
    net = Net(clock, 60, seed)
    assert net.reached(7, b"first") == list(range(60))
    for node in np.random.default_rng(seed).permutation(60)[:30].tolist():
        net.swarm.down(node)
    net.swarm.run(30.0)
    assert sorted(net.graph()) == net.up(), "none that is down is a neighbour"
    assert nx.is_connected(net.graph())
    for number, node in enumerate(net.up()[:5]):
        assert net.reached(node, b"after %d" % number) == net.up()


def test_the_tree_brings_each_node_one_copy(clock):
    net = Net(clock, 60)
    for number in range(3):
        net.reached(number, b"before %d" % number)
    copies = []
    see = net.swarm.watch
    net.swarm.watch = lambda node, action: (see(node, action), copies.extend(sent([action], Broadcast)))
    net.reached(50, b"now")
    assert len(copies) <= 1.1 * 59


def test_one_that_returns_is_told_again(clock):
    net = Net(clock, 40)
    net.swarm.down(20)
    net.swarm.run(20.0)
    assert net.reached(0, b"meanwhile") == [node for node in range(40) if node != 20]
    net.swarm.up(20)
    net.swarm.run(20.0)
    assert net.swarm.hosts[20].machine.incarnation == 2
    assert net.reached(0, b"afterwards") == list(range(40))


def test_links_to_who_is_down_are_broken_after_a_while_and_only_where_there_were_any(clock):
    heard = []
    net = Net(clock, 30)
    neighbours = net.swarm.hosts[5].machine.peers()
    net.swarm.watch = lambda node, action: heard.append((node, clock.now, action))
    crashed_s = clock.now
    net.swarm.down(5)
    net.swarm.run(0.6)
    lost = [(node, at_s) for node, at_s, action in heard if action == Changed(5, None)]
    assert sorted(node for node, _ in lost) == list(neighbours)
    assert all(at_s == pytest.approx(crashed_s + 0.5) for _, at_s in lost)
