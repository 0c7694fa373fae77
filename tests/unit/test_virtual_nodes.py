"""Shatter's virtual nodes: everybody finds the same ones, and both ends of a chunk's way agree on it."""

from collections import Counter

import pytest

from node.errors import ConfigError
from node.privacy.chunks import partition
from node.privacy.virtual import DrawnNodes

NODES, CHUNKS, DEGREE = 10, 3, 4


def drawn(beacon="b", nodes=NODES, chunks=CHUNKS, degree=DEGREE):
    return DrawnNodes(nodes, chunks, degree, 100, beacon)


@pytest.mark.parametrize("round", [0, 1, 7])
def test_both_ends_agree_on_what_travels(round):
    virtual = drawn()
    sent = {(node, hop.to): 0 for node in range(NODES) for hop in virtual.outgoing(node, round)}
    for node in range(NODES):
        for hop in virtual.outgoing(node, round):
            assert hop.to != node
            assert hop.lane == sent[node, hop.to]  # counted from 0, without a gap
            sent[node, hop.to] += 1
    for node in range(NODES):
        incoming = virtual.incoming(node, round)
        assert list(incoming) == sorted(incoming)
        assert incoming == {sender: count for (sender, to), count in sorted(sent.items()) if to == node}


def test_each_chunk_goes_to_as_many_as_the_degree_says():
    """Edges between virtual nodes of one node are no message."""
    virtual = drawn(nodes=40)
    counts = Counter(
        (node, round, hop.chunk) for node in range(40) for round in range(3) for hop in virtual.outgoing(node, round)
    )
    assert len(counts) == 40 * 3 * CHUNKS
    assert max(counts.values()) == DEGREE
    assert sum(counts.values()) > 0.9 * DEGREE * len(counts)


def test_ways_are_drawn_anew_by_round_and_beacon_alone():
    ways = {
        (beacon, round): tuple(tuple(drawn(beacon).outgoing(node, round)) for node in range(NODES))
        for beacon in "ab"
        for round in range(3)
    }
    assert len(set(ways.values())) == len(ways)
    assert ways["a", 1] == tuple(tuple(drawn("a").outgoing(node, 1)) for node in range(NODES))


def test_chunks_are_those_of_the_partition():
    virtual = drawn()
    for round in range(4):
        sizes = [virtual.chunk_size(chunk, round) for chunk in range(CHUNKS)]
        assert sizes == [len(part) for part in partition((60, 40), CHUNKS, "b", round)]
        assert sum(sizes) == 100


def test_a_graph_that_cannot_be_is_refused():
    with pytest.raises(ConfigError):
        drawn(nodes=3, chunks=3, degree=3)
    with pytest.raises(ConfigError):
        drawn(nodes=2, chunks=2, degree=4)
