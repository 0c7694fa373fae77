"""The transport's parts that need no socket: frame layouts, reused buffers, the receiver's books, the refusals."""

from __future__ import annotations

import contextlib
import gc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from loopback import SMALL_LIMITS, model, note
from node.errors import BadFrame, FrameTooLarge, TransportError
from node.live import frames
from node.live.buffers import BufferPool
from node.live.frames import Chunk, Refused
from node.live.receive import Receiver
from node.live.refusals import LOG_EVERY_S, Refusals


class TestLayouts:
    @given(st.lists(st.tuples(st.binary(min_size=1, max_size=50), st.binary(max_size=50)), max_size=20))
    def test_packed_messages_come_apart_again(self, messages: list[tuple[bytes, bytes]]):
        frame = bytes([frames.SMALL])
        for header, payload in messages:
            frame += len(header).to_bytes(4, "little") + len(payload).to_bytes(4, "little") + header + payload
        assert [(bytes(h), bytes(p)) for h, p in frames.read_small(memoryview(frame))] == messages

    @given(st.binary(max_size=100))
    def test_random_small_frames_stay_within_themselves(self, data: bytes):
        read, whole = 0, False
        with contextlib.suppress(Refused):
            for header, payload in frames.read_small(memoryview(bytes([frames.SMALL]) + data)):
                read += len(header) + len(payload) + frames.LENGTHS_BYTES
            whole = True
        assert whole == (read == len(data))
        assert read <= len(data)

    @given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1))
    def test_chunk_headers(self, transfer: int, buffer: int, offset: int):
        frame = frames.chunk(transfer, buffer, offset)
        assert frames.read_chunk(memoryview(frame)) == Chunk(transfer, buffer, offset)
        for wrong in (frame[:-1], frame + b"x"):
            with pytest.raises(Refused):
                frames.read_chunk(memoryview(wrong))

    def test_announcements_and_credits(self):
        number, header = frames.read_announce(memoryview(frames.announce(2**63, b"header")))
        assert (number, bytes(header)) == (2**63, b"header")
        assert frames.read_credit(frames.credit(5)) == 5
        for wrong in (b"\x05", frames.credit(1) + b"x"):
            with pytest.raises(BadFrame):
                frames.read_credit(wrong)

    @pytest.mark.parametrize(
        ("encoded", "is_small"),
        [
            (note(1), True),
            (note(1, "x" * 200_000), True),
            (model(1, np.zeros(60_000, np.uint8)), True),
            (model(1, np.zeros(frames.SMALL_BYTES, np.uint8)), False),
        ],
    )
    def test_what_travels_in_one_frame(self, encoded: frames.Encoded, is_small: bool):
        assert frames.is_small(encoded) == is_small
        assert len(encoded.header) <= frames.max_frame_bytes(SMALL_LIMITS)


class TestBufferPool:
    def test_a_buffer_is_used_again_once_its_last_view_has_gone(self):
        pool = BufferPool(10 << 20)
        first = pool.take(1 << 20)
        address = np.frombuffer(first, np.uint8).ctypes.data
        part = first[100:200]
        array = np.frombuffer(part, np.float32)
        del first, part
        gc.collect()
        assert pool.free_bytes == 0  # the array still looks at it
        del array
        assert pool.free_bytes == 1 << 20
        again = pool.take((1 << 20) - 5)
        assert np.frombuffer(again, np.uint8).ctypes.data == address
        assert (again.nbytes, again.readonly, pool.free_bytes) == ((1 << 20) - 5, False, 0)

    def test_views_that_are_alive_never_share_memory(self):
        pool = BufferPool(10 << 20)
        views = [pool.take(100_000) for _ in range(10)]
        for number, view in enumerate(views):
            np.frombuffer(view, np.uint8)[:] = number
        for number, view in enumerate(views):
            assert set(np.frombuffer(view, np.uint8).tolist()) == {number}

    def test_the_smallest_that_fits_is_taken_and_none_that_is_far_too_large(self):
        pool = BufferPool(100 << 20)
        sizes = (30 << 20, 2 << 20, 3 << 20)
        views = [pool.take(size) for size in sizes]
        del views
        assert pool.free_bytes == sum(sizes)
        view = pool.take((2 << 20) + 1)
        assert pool.free_bytes == (30 << 20) + (2 << 20)
        del view
        small = pool.take(1000)
        assert pool.free_bytes == sum(sizes)
        assert small.nbytes == 1000

    def test_no_more_is_kept_than_it_may(self):
        pool = BufferPool(5 << 20)
        views = [pool.take(2 << 20) for _ in range(10)]
        assert pool.free_bytes == 0
        del views
        assert pool.free_bytes == 4 << 20

    def test_nothing_needs_no_memory(self):
        assert BufferPool(0).take(0).nbytes == 0


class TestReceiver:
    def announced(self, size_bytes: int = 3_000_000, number: int = 1) -> tuple[Receiver, np.ndarray]:
        receiver, array = Receiver(SMALL_LIMITS), np.arange(size_bytes, dtype=np.uint8)
        receiver.connection(5, b"a")
        receiver.announce(5, memoryview(frames.announce(number, model(1, array).header)))
        assert list(receiver.give_places(0.0)) == [(5, b"a", number)]
        return receiver, array

    def test_chunks_in_order_make_a_message(self):
        receiver, array = self.announced()
        deliveries = []
        for offset in range(0, len(array), frames.CHUNK_BYTES):
            chunk = Chunk(1, 0, offset)
            slot = receiver.slot(5, chunk)
            slot[:] = memoryview(array)[offset : offset + frames.CHUNK_BYTES]
            deliveries.append(receiver.arrived(5, chunk, slot.nbytes, slot.nbytes))
        assert deliveries[:-1] == [None, None]
        sender, header, (buffer,) = deliveries[-1]
        assert (sender, header.values[0], header.size_bytes) == (5, 1, model(1, array).size_bytes)
        np.testing.assert_array_equal(np.frombuffer(buffer, np.uint8), array)
        with pytest.raises(Refused, match="unknown transfer"):
            receiver.slot(5, Chunk(1, 0, 0))

    @pytest.mark.parametrize("chunk", [Chunk(1, 0, 1), Chunk(1, 1, 0), Chunk(1, 0, 2**63), Chunk(1, 2**31, 0)])
    def test_a_wrong_place_ends_the_transfer(self, chunk: Chunk):
        receiver, _ = self.announced()
        with pytest.raises(Refused, match="comes next"):
            receiver.slot(5, chunk)
        with pytest.raises(Refused, match="unknown transfer"):
            receiver.slot(5, Chunk(1, 0, 0))

    @pytest.mark.parametrize("got_bytes", [0, frames.CHUNK_BYTES - 1, frames.CHUNK_BYTES + 1])
    def test_a_wrong_length_ends_the_transfer(self, got_bytes: int):
        receiver, _ = self.announced()
        slot = receiver.slot(5, Chunk(1, 0, 0))
        with pytest.raises(Refused, match=f"{got_bytes} bytes where {frames.CHUNK_BYTES}"):
            receiver.arrived(5, Chunk(1, 0, 0), slot.nbytes, got_bytes)
        with pytest.raises(Refused, match="unknown transfer"):
            receiver.slot(5, Chunk(1, 0, 0))

    def test_a_new_connection_or_a_loss_ends_what_was_arriving(self):
        wire = object()
        for end in (lambda receiver: receiver.connection(5, wire), lambda receiver: receiver.forget(5)):
            receiver, _ = self.announced()
            end(receiver)
            receiver.connection(5, wire)
            with pytest.raises(Refused, match="unknown transfer"):
                receiver.slot(5, Chunk(1, 0, 0))
        assert receiver.is_on(5, wire)

    def test_one_peer_cannot_touch_the_transfer_of_another(self):
        receiver, _ = self.announced()
        receiver.connection(6, b"c")
        with pytest.raises(Refused, match="unknown transfer"):
            receiver.slot(6, Chunk(1, 0, 0))
        assert receiver.slot(5, Chunk(1, 0, 0)).nbytes == frames.CHUNK_BYTES

    def test_the_sum_of_what_arrives_is_bounded_and_freed(self):
        receiver, array = self.announced(12 << 20, number=1)
        header = model(1, array).header
        with pytest.raises(FrameTooLarge, match="arriving from one peer"):
            receiver.announce(5, memoryview(frames.announce(2, header)))
        receiver.connection(6, b"c")
        receiver.announce(6, memoryview(frames.announce(2, header)))
        receiver.connection(5, b"b")
        receiver.announce(5, memoryview(frames.announce(2, header)))

    @given(st.binary(max_size=60))
    def test_random_frames_are_refused_cleanly(self, data: bytes):
        receiver = Receiver(SMALL_LIMITS)
        receiver.connection(5, b"a")
        for call in (receiver.announce, lambda peer, frame: list(receiver.small(peer, frame))):
            with pytest.raises(TransportError):
                call(5, memoryview(b"\x01x" + data))


class TestRefusals:
    def test_counts_by_reason_and_cuts_once(self):
        refusals = Refusals(0, allowed=3)
        with capture_logs():
            cuts = [refusals.by_peer(reason, 7, 0.0, "") for reason in ("kind", "parts", "kind", "kind")]
            assert cuts == [False, False, True, False]
            assert refusals.by_peer("kind", 8, 0.0, "") is False
            refusals.by_address("stranger", "10.0.0.1", 0.0, "")
        assert refusals.counts == {"kind": 4, "parts": 1, "stranger": 1}

    def test_one_line_a_second_for_each_sender(self):
        refusals = Refusals(0, allowed=1000)
        with capture_logs() as logs:
            for step in range(30):
                for peer in (1, 2):
                    refusals.by_peer("kind", peer, step * LOG_EVERY_S / 10, "detail")
        assert [(line["peer"], line["unsaid"]) for line in logs] == [(1, 0), (2, 0), (1, 9), (2, 9), (1, 9), (2, 9)]
