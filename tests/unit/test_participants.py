"""Who takes part beyond the nodes: numbers, owners, devices, and what belongs to whom."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.participants import VIRTUAL, Participants


def drawn(nodes=5, sybils=(2, 2, 4), each=3, seed=0):
    return Participants.drawn(nodes, sybils, each, np.random.default_rng(seed))


def test_nodes_alone_are_what_they_are_by_default():
    alone = Participants(4)
    assert (alone.peers, alone.total, alone.are_nodes_alone) == (4, 4, True)
    assert [alone.device(node) for node in range(4)] == [0, 1, 2, 3]
    assert [alone.owner(node) for node in range(4)] == [None] * 4
    assert [alone.virtual_of(node) for node in range(4)] == [()] * 4
    assert alone.by_role({1: "server"}) == {None: (0, 1, 2, 3), "learner": (0, 2, 3), "server": (1,)}


def test_none_drawn_is_nodes_alone():
    assert drawn(sybils=(), each=0) == Participants(5)


@given(
    nodes=st.integers(1, 12),
    sybils=st.lists(st.integers(0, 11), max_size=4),
    each=st.integers(0, 5),
    seed=st.integers(0, 9),
)
def test_everybody_belongs_to_a_device(nodes, sybils, each, seed):
    sybils = tuple(owner % nodes for owner in sybils)
    all_of_them = drawn(nodes, sybils, each, seed)
    assert all_of_them.peers == nodes + len(sybils)
    assert all_of_them.total == all_of_them.peers * (1 + each)
    owned = [all_of_them.virtual_of(peer) for peer in range(all_of_them.peers)]
    assert sorted(number for of_one in owned for number in of_one) == list(range(all_of_them.peers, all_of_them.total))
    for peer, virtual in enumerate(owned):
        assert len(virtual) == each
        assert {all_of_them.owner(number) for number in virtual} <= {peer}
        assert {all_of_them.device(number) for number in virtual} <= {all_of_them.device(peer)}
    assert tuple(all_of_them.device(nodes + place) for place in range(len(sybils))) == sybils


def test_numbers_of_virtual_nodes_are_dealt_out_by_chance_alone():
    """Neither their owners nor what each of an owner's carries can be told from the numbers."""
    draws = [drawn(4, (), 2, seed) for seed in range(400)]
    first = [participants.owner(4) for participants in draws]
    assert min(np.bincount(first)) > 60
    rising = sum(virtual[0] < virtual[1] for draw in draws for virtual in map(draw.virtual_of, range(4)))
    assert 0.4 < rising / 1600 < 0.6
    assert drawn(seed=3) == drawn(seed=3) != drawn(seed=4)


def test_only_a_virtual_node_and_its_owner_talk_on_their_device():
    some = drawn()
    mine, siblings = some.virtual_of(2), some.virtual_of(5)
    assert some.device(5) == some.device(2) == 2
    assert some.is_own(2, mine[0])
    assert some.is_own(mine[0], 2)
    assert some.is_own(siblings[0], 5)
    for one, other in ((2, siblings[0]), (mine[0], mine[1]), (2, 5), (2, 3), (mine[0], 3)):
        assert not some.is_own(one, other)


def test_virtual_nodes_are_no_peers():
    roles = drawn(2, (1,), 2).by_role({0: "server"})
    assert roles == {None: (0, 1, 2), "server": (0,), "learner": (1, 2), VIRTUAL: (3, 4, 5, 6, 7, 8)}


def test_a_number_that_nobody_has_has_no_device():
    with pytest.raises(IndexError):
        drawn().device(drawn().total)
