"""What streaming is made of: layouts, bytes that are checked, sources, patience, and what overlapping is worth."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from layered import CHUNK_BYTES, content, digests_of, sha
from node.errors import BadFrame, Corrupt
from node.streaming.assembly import Assembly, LayerDigests
from node.streaming.layout import MOST_CHUNKS, Chunk, Layout
from node.streaming.patience import Patience
from node.streaming.recurrence import blocking_s, largest_gain, streamed_s
from node.streaming.source import Link, Source

# Layers and chunks


def test_chunks_are_numbered_in_the_order_of_layers():
    layout = Layout([20, 0, 8, 1], 8)
    assert (layout.layers, layout.chunks) == (4, 5)
    assert [list(layout.of_layer(layer)) for layer in range(4)] == [[0, 1, 2], [], [3], [4]]
    assert [layout.chunk(number) for number in range(5)] == [
        Chunk(0, 0, 8),
        Chunk(0, 8, 8),
        Chunk(0, 16, 4),
        Chunk(2, 0, 8),
        Chunk(3, 0, 1),
    ]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 20))
@settings(max_examples=60)
def test_chunks_are_the_whole_of_every_layer(sizes, chunk_bytes):
    layout = Layout(sizes, chunk_bytes)
    for number in range(layout.chunks):
        chunk = layout.chunk(number)
        assert layout.number(chunk.layer, chunk.offset) == number
        assert 0 < chunk.size_bytes <= chunk_bytes
    for layer, size_bytes in enumerate(sizes):
        assert sum(layout.chunk(number).size_bytes for number in layout.of_layer(layer)) == size_bytes


def test_a_layout_may_have_as_many_chunks_as_are_allowed():
    assert Layout([8 * MOST_CHUNKS], 8).chunks == MOST_CHUNKS


@pytest.mark.parametrize("where", [(0, 4), (0, 24), (0, -8), (1, 0), (2, 8), (4, 0), (-1, 0)])
def test_where_no_chunk_begins_is_refused(where):
    with pytest.raises(BadFrame, match=f"no chunk begins at offset {where[1]} of layer {where[0]}"):
        Layout([20, 0, 8, 1], 8).number(*where)


@pytest.mark.parametrize(("sizes", "chunk_bytes"), [([8, -1], 8), ([8], 0), ([8 * MOST_CHUNKS, 1], 8)])
def test_a_layout_that_makes_no_sense_is_refused(sizes, chunk_bytes):
    with pytest.raises(Corrupt):
        Layout(sizes, chunk_bytes)


# Bytes


def test_bytes_are_checked_by_length_and_digest_and_put_in_their_place():
    layers = content([20, 0, 9])
    assembly = Assembly(Layout([20, 0, 9], CHUNK_BYTES), digests_of(layers))
    assert assembly.matches(2, layers[0][16:])
    assert not assembly.matches(2, layers[0][16:] + b"\0")
    assert not assembly.matches(0, layers[0][8:16])
    for number in (2, 0, 1):
        at = number * CHUNK_BYTES
        assembly.write(number, layers[0][at : at + CHUNK_BYTES])
    assert bytes(assembly.layer(0)) == layers[0]
    assert bytes(assembly.layer(1)) == b""
    with pytest.raises(TypeError):
        assembly.layer(0)[0] = 1


def test_a_layer_whose_digest_is_not_that_of_its_chunks_is_corrupt():
    layers = content([16])
    chunks = digests_of(layers)[0].chunks
    assembly = Assembly(Layout([16], CHUNK_BYTES), [LayerDigests(sha(b"other"), chunks)])
    for number in (0, 1):
        assembly.write(number, layers[0][number * 8 : number * 8 + 8])
    with pytest.raises(Corrupt, match="layer 0 has another digest"):
        assembly.layer(0)


def test_as_many_digests_as_chunks():
    with pytest.raises(Corrupt, match=r"layers of \[2\] chunks with digests of \[1\]"):
        Assembly(Layout([16], CHUNK_BYTES), [LayerDigests("", ("",))])


# Sources and patience


def test_chunks_of_one_instant_are_measured_together():
    source = Source(Link(0, 100.0, 1.0))
    for chunk in range(4):
        source.ask(chunk, 0.0)
    for chunk in range(3):
        source.settle(chunk, 10, 2.0)
    before = source.rate_bytes_per_s
    source.settle(3, 10, 3.0)
    # Twenty bytes came with the first, and ten with this one, in the second after it.
    assert source.rate_bytes_per_s == pytest.approx(before + 0.25 * (30 - before))


def test_chunks_that_are_read_together_do_not_make_a_source_look_fast():
    source = Source(Link(0, 1000.0, 0.1))
    for chunk in range(100):
        source.ask(chunk, 0.0)
    for chunk in range(100):
        # Ten at a time, a microsecond apart, every 0.1 s: 1000 bytes per second.
        source.settle(chunk, 10, 0.2 + chunk // 10 * 0.1 + chunk % 10 * 1e-6)
        assert source.rate_bytes_per_s < 1100
    assert source.rate_bytes_per_s == pytest.approx(1000, rel=0.1)


def test_a_round_trip_takes_no_longer_than_an_answer():
    source = Source(Link(0, 1000.0, rtt_s=5.0))
    source.ask(0, 0.0)
    source.settle(0, 10, 0.5)
    assert source.rtt_s == 0.5


@pytest.mark.parametrize("bandwidth", [0.0, -5.0])
def test_a_source_without_bandwidth_is_slow_and_no_error(bandwidth):
    source = Source(Link(0, bandwidth, 1.0))
    assert source.credit(CHUNK_BYTES) == 2
    assert source.wait[0] == 1.0


def test_a_chunk_that_was_asked_for_twice_tells_nothing_about_times():
    source = Source(Link(0, 100.0, 0.0))
    source.ask(1, 0.0)
    source.ask(1, 5.0)
    assert source.settle(1, 10, 6.0) is None
    source.ask(1, 7.0)
    assert source.settle(1, 10, 9.0) == 2.0


def test_a_chunk_that_is_owed_no_more_may_be_asked_for_as_if_for_the_first_time():
    source = Source(Link(0, 100.0, 0.0))
    for chunk in (1, 2):
        source.ask(chunk, 0.0)
        source.ask(chunk, 5.0)
    source.drop(1)
    assert source.drop_all() == [2]
    for chunk in (1, 2):
        source.ask(chunk, 7.0)
    assert [source.settle(chunk, 10, 9.0) for chunk in (1, 2)] == [2.0, 2.0]


def test_patience_ends_at_the_95th_percentile_and_doubles():
    patience = Patience()
    for _ in range(7):
        patience.add(1.0)
    assert patience.wait_s(3.0, 0, elsewhere=True) == 12.0
    patience.add(1.0)
    assert patience.wait_s(3.0, 0, elsewhere=True) == 1.05
    for number in range(64):
        patience.add(float(number))
    assert patience.wait_s(3.0, 0, elsewhere=True) == pytest.approx(1.05 * 60)
    assert patience.wait_s(3.0, 2, elsewhere=True) == pytest.approx(4 * 1.05 * 60)
    assert patience.wait_s(3.0, 0, elsewhere=False) == 12.0


def test_patience_is_never_nothing():
    patience = Patience()
    for _ in range(10):
        patience.add(0.0)
    assert patience.wait_s(0.0, 0, elsewhere=True) == 1e-3
    assert math.isfinite(patience.wait_s(0.0, 10**6, elsewhere=True))


# What streaming is worth


times = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 64)), max_size=12)


def test_the_recurrence_by_hand():
    # Layers arrive at 2, 3, 7; done at 2 + 1, 3 + 5, 8 + 1.
    assert streamed_s([2, 1, 4], [1, 5, 1]) == 9
    assert blocking_s([2, 1, 4], [1, 5, 1]) == 14
    assert streamed_s([], []) == blocking_s([], []) == 0


@given(times)
def test_streaming_never_takes_longer_than_blocking_nor_less_than_either_part(layers):
    transfers, computes = [x for x, _ in layers], [c for _, c in layers]
    streamed = streamed_s(transfers, computes)
    assert max(sum(transfers), sum(computes)) <= streamed <= blocking_s(transfers, computes)


@pytest.mark.parametrize("layers", [1, 2, 7, 32])
def test_the_gain_of_equal_layers_peaks_where_both_times_are_equal(layers):
    def gain(transfer_s):
        return blocking_s([transfer_s] * layers, [1.0] * layers) / streamed_s([transfer_s] * layers, [1.0] * layers)

    assert gain(1.0) == largest_gain(layers) == 2 * layers / (layers + 1) < 2
    assert all(gain(other) <= gain(1.0) for other in (0.1, 0.5, 0.9, 1.1, 2.0, 10.0))


def test_each_layer_needs_both_times():
    with pytest.raises(ValueError):
        streamed_s([1.0, 2.0], [1.0])
