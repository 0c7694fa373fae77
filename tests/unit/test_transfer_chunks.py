"""Which chunks are missing, which may leave, and whose chunk is wrong: both ends of a transfer, without sockets."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.errors import BadFrame, Corrupt
from node.transfer.chunks import ChunkSet, Receiving, Sending
from node.transfer.manifest import LEAST_CHUNK_BYTES, Manifest

SMALL = LEAST_CHUNK_BYTES


def some(total):
    return st.sets(st.integers(0, total - 1)) if total else st.just(set())


# Sets of chunks


@given(st.integers(0, 70).flatmap(lambda total: st.tuples(st.just(total), some(total))))
def test_a_set_comes_back_from_its_bits(total_and_members):
    total, members = total_and_members
    chunks = ChunkSet(total, members)
    assert list(chunks) == sorted(members)
    assert len(chunks) == len(members)
    data = chunks.to_bytes()
    assert len(data) == -(-total // 8)
    assert list(ChunkSet.from_bytes(data, total)) == sorted(members)
    assert list(ChunkSet.from_bytes(memoryview(data), total)) == sorted(members)


def test_bits_are_lowest_first():
    assert ChunkSet(10, [0, 9]).to_bytes() == b"\x01\x02"


def test_adding_and_removing_twice_counts_once():
    chunks = ChunkSet(4, [1, 1, 3])
    assert len(chunks) == 2
    chunks.remove(1)
    chunks.remove(1)
    assert list(chunks) == [3]
    assert len(chunks) == 1
    assert 3 in chunks
    assert 1 not in chunks


@pytest.mark.parametrize("index", [-1, 4, 1000])
def test_what_is_beyond_the_object_is_in_no_set(index):
    assert index not in ChunkSet(4, range(4))


@pytest.mark.parametrize(("data", "chunks"), [(b"", 1), (b"\0\0", 8), (b"\x10", 4), (b"\xff", 7), (b"\1", 0)])
def test_bits_that_name_other_chunks_are_refused(data, chunks):
    with pytest.raises(BadFrame, match=f"some of {chunks} chunks"):
        ChunkSet.from_bytes(data, chunks)


# The sending end


def test_a_window_is_sent_and_no_more():
    sending = Sending(ChunkSet(10, range(10)), window=3)
    assert [sending.next() for _ in range(5)] == [0, 1, 2, None, None]
    sending.acknowledge(2)
    assert [sending.next() for _ in range(3)] == [3, 4, None]


def test_only_what_is_wanted_is_sent_and_each_once():
    sending = Sending(ChunkSet(10, [7, 2, 5]))
    assert [sending.next() for _ in range(4)] == [2, 5, 7, None]
    assert not sending.is_over
    sending.acknowledge(3)
    assert sending.is_over
    assert sending.next() is None


def test_nothing_wanted_is_over_at_once():
    sending = Sending(ChunkSet(10))
    assert sending.is_over
    assert not sending.is_open


@pytest.mark.parametrize("total", [3, 0])
def test_an_acknowledgement_beyond_what_was_sent_or_before_what_was_known_is_refused(total):
    sending = Sending(ChunkSet(4, range(4)))
    sending.next()
    sending.next()
    sending.acknowledge(1)
    with pytest.raises(BadFrame, match=f"{total} chunks acknowledged, of 2 sent and 1 known"):
        sending.acknowledge(total)
    assert sending.acknowledged == 1


@given(st.integers(1, 60), st.integers(1, 8), st.integers(0, 2**32))
def test_whatever_the_pace_everything_leaves_once_in_order_within_the_window(total, window, seed):
    rng = np.random.default_rng(seed)
    wanted = ChunkSet(total, np.flatnonzero(rng.random(total) < 0.7).tolist())
    sending, left = Sending(wanted, window), []
    while not sending.is_over:
        if (index := sending.next()) is not None:
            left.append(index)
        assert sending.sent - sending.acknowledged <= window
        if sending.sent > sending.acknowledged and (not sending.is_open or rng.random() < 0.5):
            sending.acknowledge(int(rng.integers(sending.acknowledged + 1, sending.sent + 1)))
    assert left == list(wanted)


# The receiving end


def parts(size):
    data = np.random.default_rng(3).bytes(size)
    chunks = [data[i : i + SMALL] for i in range(0, size, SMALL)]
    return chunks, Manifest.of(chunks, SMALL)


def test_what_has_arrived_is_no_longer_missing():
    chunks, manifest = parts(3 * SMALL + 9)
    receiving = Receiving(manifest, present=[1])
    assert list(receiving.missing) == [0, 2, 3]
    assert receiving.present_bytes == SMALL
    for index in (3, 0, 2):
        assert receiving.expect(index) == len(chunks[index])
        receiving.check(index, chunks[index], 5)
        receiving.arrived(index)
    assert not receiving.missing
    assert receiving.present_bytes == manifest.size_bytes
    assert receiving.received == 3


def test_a_chunk_that_comes_twice_counts_once():
    _, manifest = parts(2 * SMALL)
    receiving = Receiving(manifest)
    receiving.arrived(0)
    receiving.arrived(0)
    assert receiving.present_bytes == SMALL
    assert list(receiving.missing) == [1]


@pytest.mark.parametrize("index", [0, 2, 99])
def test_a_chunk_that_is_not_missing_is_refused_before_it_is_read(index):
    _, manifest = parts(2 * SMALL)
    with pytest.raises(BadFrame, match=f"chunk {index} of object .* is not missing"):
        Receiving(manifest, present=[0]).expect(index)


def test_a_wrong_chunk_names_its_sender_and_stays_missing():
    chunks, manifest = parts(3 * SMALL)
    receiving = Receiving(manifest)
    for wrong in (chunks[0], chunks[1][:-1], bytes(SMALL)):
        with pytest.raises(Corrupt, match="node 7 sent a wrong chunk 1 of object"):
            receiving.check(1, wrong, 7)
    assert list(receiving.missing) == [0, 1, 2]
