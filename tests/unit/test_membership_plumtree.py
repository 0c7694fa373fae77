"""Broadcasts along a tree that mends itself."""

import heapq
import itertools
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from membership_members import of, sent
from node.errors import ProtocolError
from node.membership import Broadcast, Deliver, Graft, IHave, Plumtree, Prune, SetTimer, decode, encode
from node.membership.broadcast import ANNOUNCERS, KEPT, KEPT_BYTES, MISSING, SEEN, Archive, Missing, Payload
from node.membership.plumtree import ASK_ROUND_TRIPS, TREE_ROUND_TRIPS, _id_of

RTT_S = 0.02


def tree(*peers, **options):
    made = Plumtree(RTT_S, **options)
    for peer in peers:
        made.up(peer)
    return made


def test_the_first_broadcast_goes_to_all_neighbours():
    actions = tree(1, 2).broadcast(b"news")
    assert actions[0] == Deliver(b"news", 0)
    assert sent(actions) == [(1, Broadcast(b"news", 1)), (2, Broadcast(b"news", 1))]


def test_what_was_told_is_not_told_again():
    made = tree(1)
    made.broadcast(b"news")
    assert made.broadcast(b"news") == []


def test_a_second_copy_prunes_the_link():
    made = tree(1, 2, 3)
    assert sent(made.receive(1, Broadcast(b"news", 4), 0.0)) == [(2, Broadcast(b"news", 5)), (3, Broadcast(b"news", 5))]
    assert made.receive(2, Broadcast(b"news", 2), 0.0) == [*tree(2).receive(9, Prune(), 0.0), *prune(2)]
    assert made.eager == (1, 3)
    assert sent(made.broadcast(b"more")) == [
        (1, Broadcast(b"more", 1)),
        (3, Broadcast(b"more", 1)),
        (2, ihave(b"more")),
    ]


def prune(peer):
    made = tree(peer)
    made.broadcast(b"x")
    return made.receive(peer, Broadcast(b"x", 1), 0.0)


def ihave(content):
    return IHave(_id_of(content))


def test_what_is_announced_and_does_not_come_is_asked_for_from_one_after_the_other():
    made = tree(1, 2)
    made.receive(1, Prune(), 0.0)
    actions = made.receive(1, ihave(b"news"), 1.0)
    assert of(actions, SetTimer) == [SetTimer(1.0 + TREE_ROUND_TRIPS * RTT_S)]
    assert made.receive(2, ihave(b"news"), 1.1) == []
    now = made.deadline_s
    assert sent(made.tick(now)) == [(1, Graft(_id_of(b"news")))]
    assert made.deadline_s == pytest.approx(now + ASK_ROUND_TRIPS * RTT_S)
    assert sent(made.tick(made.deadline_s)) == [(2, Graft(_id_of(b"news")))]
    assert sent(made.tick(made.deadline_s)) == []
    assert made.deadline_s == math.inf, "nobody is left to ask"
    assert made.eager == (1, 2)


def test_what_comes_is_not_asked_for():
    made = tree(1, 2)
    made.receive(1, ihave(b"news"), 0.0)
    made.receive(2, Broadcast(b"news", 1), 0.1)
    assert made.deadline_s == math.inf
    assert made.tick(5.0) == []
    assert made.receive(1, ihave(b"news"), 6.0) == []


def test_who_asks_gets_it_and_the_link_is_of_the_tree_again():
    made = tree(1)
    made.broadcast(b"news")
    made.receive(1, Prune(), 0.0)
    assert made.eager == ()
    assert sent(made.receive(1, Graft(_id_of(b"news")), 0.1)) == [(1, Broadcast(b"news", 1))]
    assert made.eager == (1,)
    assert sent(made.receive(1, Graft(bytes(16)), 0.1)) == []


def test_what_only_a_lost_neighbour_had_is_not_waited_for():
    made = tree(1, 2)
    made.receive(1, ihave(b"news"), 0.0)
    made.down(1)
    assert made.deadline_s == math.inf
    assert made.eager == (2,)


def test_strangers_and_what_is_not_accepted_get_nowhere():
    made = tree(1, 2, accept=lambda content: content.startswith(b"signed"))
    assert made.receive(9, Broadcast(b"signed", 0), 0.0) == []
    assert made.receive(1, Broadcast(b"forged", 0), 0.0) == []
    assert of(made.receive(1, Broadcast(b"signed", 0), 0.0), Deliver) == [Deliver(b"signed", 0)]


def test_what_is_too_long_is_refused_with_advice():
    with pytest.raises(ProtocolError, match="65537 bytes; allowed: 65536; send a digest"):
        tree(1).broadcast(bytes(2**16 + 1))


@pytest.mark.parametrize("message", [Broadcast(b"x", 255), IHave(bytes(16)), Graft(bytes(16)), Prune()])
def test_messages_survive_the_wire(message):
    assert decode(encode(message)) == message


def test_hops_are_counted_up_to_their_bound():
    ((_, onward),) = sent(tree(1, 2).receive(1, Broadcast(b"x", 255), 0.0))
    assert onward.hop == 255


# Memory


def test_the_archive_is_bounded_by_count_and_by_bytes():
    archive = Archive()
    for number in range(SEEN + 10):
        archive.put(b"%016d" % number, Payload(b"", 0))
    assert b"%016d" % 9 not in archive
    assert b"%016d" % 10 in archive
    assert archive.get(b"%016d" % (SEEN + 10 - KEPT - 1)) is None
    assert archive.get(b"%016d" % (SEEN + 10 - KEPT)) == Payload(b"", 0)
    for number in range(200):
        archive.put(b"b%015d" % number, Payload(bytes(2**16), 0))
    assert sum(len(payload.content) for payload in archive._kept.values()) <= KEPT_BYTES


@given(st.lists(st.tuples(st.integers(0, 3 * MISSING), st.integers(0, 30)), max_size=60))
def test_what_is_missing_is_bounded(announced):
    missing = Missing()
    for number in range(MISSING):
        missing.announce(b"%016d" % number, 1, 1.0)
    for number, peer in announced:
        missing.announce(b"%016d" % number, peer, 2.0)
    assert len(missing._announced) == len(missing._asks_s) <= MISSING
    assert max(map(len, missing._announced.values())) <= ANNOUNCERS
    assert len(missing.due(2.0, 3.0)) == len(missing._announced)


# Together


class Net:
    """Plumtrees on a random regular graph, with the same delay over every link."""

    def __init__(self, nodes, degree, seed):
        self.graph = nx.random_regular_graph(degree, nodes, seed)
        self.trees = {node: tree(*sorted(self.graph[node])) for node in self.graph}
        self.got, self.sent, self.heap, self.number = {}, 0, [], itertools.count()
        self.now, self.rng, self.loss = 0.0, np.random.default_rng(seed), 0.0

    def do(self, node, actions):
        for action in actions:
            if isinstance(action, Deliver):
                self.got.setdefault(action.content, []).append(node)
            elif isinstance(action, SetTimer):
                heapq.heappush(self.heap, (action.at_s, next(self.number), node, None, None))
        for to, message in sent(actions):
            self.sent += isinstance(message, Broadcast)
            if to in self.trees and self.rng.random() >= self.loss:
                heapq.heappush(self.heap, (self.now + RTT_S / 2, next(self.number), to, node, message))

    def broadcast(self, node, content):
        self.sent = 0
        self.do(node, self.trees[node].broadcast(content))
        while self.heap:
            self.now, _, to, sender, message = heapq.heappop(self.heap)
            if to in self.trees:
                made = self.trees[to]
                self.do(to, made.tick(self.now) if message is None else made.receive(sender, message, self.now))
        assert len(self.got[content]) == len(set(self.got[content])), "delivered twice"
        return len(self.got[content])

    def remove(self, node):
        del self.trees[node]
        for peer in sorted(self.graph[node]):
            if peer in self.trees:
                self.trees[peer].down(node)


@pytest.mark.parametrize("seed", range(3))
def test_the_first_broadcast_floods_and_later_ones_cost_one_message_per_node(seed):
    net = Net(60, 5, seed)
    assert net.broadcast(0, b"first") == 60
    assert net.sent > 2 * 60
    assert net.broadcast(0, b"second") == 60
    assert net.sent == 59


@pytest.mark.parametrize("seed", range(3))
def test_a_broken_tree_is_mended_by_the_next_broadcast(seed):
    net = Net(60, 5, seed)
    net.broadcast(0, b"first")
    for node in range(1, 60, 4):
        net.remove(node)
    reached = len(nx.node_connected_component(net.graph.subgraph(net.trees), 0))
    assert net.broadcast(0, b"second") == reached


def test_lost_copies_are_asked_for():
    net = Net(40, 5, 1)
    net.broadcast(0, b"first")
    net.loss = 0.1
    reached = [net.broadcast(0, b"%d" % number) for number in range(10)]
    assert np.mean(reached) > 0.95 * 40
