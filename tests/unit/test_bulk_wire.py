"""The connection of a bulk transfer: it blocks a thread, breaks off from the event loop, takes turns where paced."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeAlias

import pytest

from node.errors import Unreachable
from node.live import bulk, bulk_fetch, bulk_send, bulk_serve, bulk_socket
from node.live.bulk_pace import SLICE_BYTES, Place, Turns
from node.live.bulk_socket import HELLO, NUMBER, Wire, introduction
from node.transfer.manifest import CHUNK_BYTES
from node.transfer.sealing import TAG_BYTES

Ends: TypeAlias = tuple[socket.socket, socket.socket]

MOST_BUFFER_BYTES = 64 << 20
WAIT_S = 10.0
NEVER_BPS = 8.0
"""A byte a second: a turn that does not come while a test runs."""


@pytest.fixture
def ends() -> Iterator[Ends]:
    with socket.create_server(("127.0.0.1", 0)) as listener:  # a pair of Unix sockets knows no TCP_NODELAY
        left = socket.create_connection(listener.getsockname())
        right, _ = listener.accept()
    with left, right:
        yield left, right


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as made:
        yield made


def test_what_is_sent_arrives(ends: Ends):
    here, there = map(Wire, ends)
    here.send(NUMBER.pack(7) + b"abc")
    room = bytearray(3)
    assert there.receive_number() == 7
    there.receive(memoryview(room))
    assert room == b"abc"


def test_whether_something_has_arrived_is_told_without_waiting(ends: Ends):
    here, there = map(Wire, ends)
    assert not there.has_arrived()
    here.send(NUMBER.pack(1))
    there.receive(memoryview(bytearray(3)))
    assert there.has_arrived()
    there.receive(memoryview(bytearray(1)))
    assert not there.has_arrived()


def test_an_end_that_closes_has_arrived_and_is_unreachable(ends: Ends):
    here, there = map(Wire, ends)
    here.send(b"ab")
    here.close()
    assert there.has_arrived()
    with pytest.raises(Unreachable, match="has closed"):
        there.receive_number()


def test_a_connection_on_which_nothing_moves_has_broken(ends: Ends, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bulk_socket, "STALL_S", 0.01)
    wire = Wire(ends[0])
    with pytest.raises(TimeoutError):
        wire.receive_number()
    with pytest.raises(TimeoutError):
        wire.send(bytes(64 << 20))


async def test_a_call_that_was_lent_the_connection_gives_its_error(ends: Ends, threads: ThreadPoolExecutor):
    wire, done = Wire(ends[0]), []
    await wire.lend(threads, done.append, 1)
    assert done == [1]
    with pytest.raises(ZeroDivisionError):
        await wire.lend(threads, divmod, 1, 0)


async def test_cancelled_it_breaks_off_and_the_call_ends_first(ends: Ends, threads: ThreadPoolExecutor):
    wire, begun, ended = Wire(ends[0]), threading.Event(), []

    def call() -> None:
        begun.set()
        try:
            wire.receive_number()
        except Unreachable:
            ended.append(True)
            raise

    lent = asyncio.ensure_future(wire.lend(threads, call))
    await asyncio.to_thread(begun.wait, 10)
    lent.cancel()
    with pytest.raises(asyncio.CancelledError):
        await lent
    assert ended == [True]


async def test_cancelled_twice_it_still_waits_for_the_call(ends: Ends, threads: ThreadPoolExecutor):
    wire, begun, may_end, ended = Wire(ends[0]), threading.Event(), threading.Event(), []

    def call() -> None:
        begun.set()
        may_end.wait(10)
        ended.append(True)

    lent = asyncio.ensure_future(wire.lend(threads, call))
    await asyncio.to_thread(begun.wait, 10)
    for _ in range(3):
        lent.cancel()
        done, _ = await asyncio.wait([lent], timeout=0.01)
        assert not done
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await lent
    assert ended == [True]


# What a caller says first


async def test_an_introduction_comes_in_pieces_and_takes_nothing_of_what_follows(
    ends: Ends,
):
    caller, called = ends
    called.setblocking(False)
    hearing = asyncio.ensure_future(introduction(called))
    said = HELLO.pack(b"t" * 16, b"p" * 16)
    for start in range(0, len(said), 5):
        caller.sendall(said[start : start + 5])
        await asyncio.sleep(0)
    caller.sendall(b"more")
    assert await hearing == (b"t" * 16, b"p" * 16)
    assert await asyncio.get_running_loop().sock_recv(called, 100) == b"more"


async def test_a_caller_that_goes_in_between_is_unreachable(ends: Ends):
    caller, called = ends
    called.setblocking(False)
    caller.sendall(b"half")
    caller.close()
    with pytest.raises(Unreachable, match="before it said"):
        await introduction(called)


# Turns


async def test_a_thread_sends_in_turn(ends: Ends, threads: ThreadPoolExecutor):
    turns = Turns(1e12)
    taken: list[tuple[int, int]] = []
    take = turns.take

    async def counted(peer: int, size_bytes: int) -> None:
        taken.append((peer, size_bytes))
        await take(peer, size_bytes)

    turns.take = counted
    here, there = Wire(ends[0], Place(turns, 3)), Wire(ends[1])
    sent, room = bytes(range(256)) * 600, bytearray(256 * 600)
    receiving = asyncio.ensure_future(there.lend(threads, there.receive, memoryview(room)))
    await here.lend(threads, here.send, memoryview(sent))
    await receiving
    assert room == sent
    assert taken == [(3, SLICE_BYTES), (3, SLICE_BYTES), (3, len(sent) - 2 * SLICE_BYTES)]


async def test_who_waits_for_a_turn_is_broken_off_at_once(ends: Ends, threads: ThreadPoolExecutor):
    turns = Turns(NEVER_BPS)
    wire = Wire(ends[0], Place(turns, 3))
    asked = asyncio.Event()
    take = turns.take

    async def told(peer: int, size_bytes: int) -> None:
        asked.set()
        await take(peer, size_bytes)

    turns.take = told
    sending = asyncio.ensure_future(wire.lend(threads, wire.send, bytes(10 * SLICE_BYTES)))
    async with asyncio.timeout(WAIT_S):
        await asked.wait()
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


async def test_a_place_that_was_given_up_takes_no_turn(threads: ThreadPoolExecutor):
    place = Place(Turns(1e12), 3)
    await asyncio.get_running_loop().run_in_executor(threads, place.take_turn, 10)
    place.give_up()
    with pytest.raises(Unreachable, match="broken off"):
        await asyncio.get_running_loop().run_in_executor(threads, place.take_turn, 10)


# Memory


def test_the_buffers_of_a_node_at_its_busiest_are_bounded():
    frame_bytes = NUMBER.size + CHUNK_BYTES + TAG_BYTES
    sending = bulk_serve.MOST_SENDING * bulk_send.AHEAD * (CHUNK_BYTES + frame_bytes)
    fetching = bulk.MOST_FETCHING * bulk_fetch.AT_ONCE * (CHUNK_BYTES + frame_bytes)
    assert sending + fetching < MOST_BUFFER_BYTES
    assert bulk.POOL_BYTES < MOST_BUFFER_BYTES
