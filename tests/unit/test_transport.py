"""The transport between nodes that keep the rules: delivery, order, overtaking, back-pressure, loss, a clean end."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest
import zmq

from loopback import SMALL_LIMITS, WAIT_S, Party, acquaint, model, note, parts
from node.codec import Limits
from node.errors import ConfigError, FrameTooLarge, NotAMember, TransportError, Unreachable
from node.identity import Identity, Roster
from node.live.transport import Transport

RNG = np.random.Generator(np.random.Philox(key=[7, 7]))


@pytest.fixture
async def party() -> AsyncIterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(node: int, **options: Any) -> Party:
        made.append(Party(node, **options))
        return made[-1]

    yield make
    for each in made:
        await each.transport.close(0.0)


class TestDelivery:
    async def test_both_ways_in_order(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        for number in range(1000):
            await a.transport.send(1, note(number))
            await b.transport.send(0, note(-number))
        await a.hears(1000)
        await b.hears(1000)
        assert b.notes == list(range(1000))
        assert a.notes == [-number for number in range(1000)]
        assert {sender for sender, _ in a.heard} == {1}
        assert {sender for sender, _ in b.heard} == {0}

    async def test_a_model_arrives_bit_for_bit(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        array = RNG.integers(0, 256, 10_000_001, dtype=np.uint8)
        for number in range(3):
            await a.transport.send(1, model(number, array))
        await b.hears(3)
        assert [message.number for _, message in b.heard] == [0, 1, 2]
        for buffers in b.buffers:
            np.testing.assert_array_equal(np.frombuffer(buffers[0], np.uint8), array)

    async def test_payloads_of_any_size_are_whole_aligned_and_writable(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        sizes = [0, 1, 3, 1 << 20, 0, (1 << 20) + 1, 77, 0]
        arrays = [RNG.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        await a.transport.send(1, parts(*arrays))
        await a.transport.send(1, parts(*arrays[:3]))
        await b.hears(2)
        for buffers in sorted(b.buffers, key=len):
            for array, buffer in zip(arrays, buffers, strict=False):
                got = np.frombuffer(buffer, np.uint8)
                np.testing.assert_array_equal(got, array)
                assert not buffer.readonly
                assert not got.size or got.ctypes.data % 8 == 0
        assert sorted(map(len, b.buffers)) == [3, 8]

    async def test_large_headers_and_no_payload_at_all(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        await a.transport.send(1, note(1, "x" * 500_000))
        await a.transport.send(1, parts())
        await b.hears(2)
        assert len(b.heard[0][1].text) == 500_000
        assert b.heard[1][1].parts == ()

    async def test_a_small_message_overtakes_a_model(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        await a.transport.send(1, note(0))
        await b.hears(1)
        await a.transport.send(1, model(1, np.zeros(40_000_000, np.uint8)))
        await a.transport.send(1, note(2))
        await b.hears(3)
        assert [message.number for _, message in b.heard] == [0, 2, 1]

    async def test_counts_what_passes(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        messages = [note(1), model(2, np.zeros(3_000_000, np.uint8)), note(3)]
        for message in messages:
            await a.transport.send(1, message)
        await b.hears(3)
        await a.transport.close(WAIT_S)  # flushed: now all is counted on this side too
        size = sum(message.size_bytes for message in messages)
        assert (a.transport.counters().messages_sent, a.transport.counters().bytes_sent) == (3, size)
        counted = b.transport.counters()
        assert (counted.messages_received, counted.bytes_received, counted.refused) == (3, size, {})

    async def test_keeps_what_it_was_asked_to_keep_until_the_bytes_have_left(self, party: Callable[..., Party]):
        class Pin:
            pass

        a, b = party(0, grace_s=60.0), party(1)
        roster = Roster([a.card, b.card])
        a.transport.admit(roster)
        pin, let_go, loop = Pin(), asyncio.Event(), asyncio.get_running_loop()
        watcher = weakref.ref(pin, lambda _: loop.call_soon_threadsafe(let_go.set))
        await a.transport.send(1, model(0, np.zeros(5_000_000, np.uint8)), keep=pin)
        del pin
        await a.transport.send(0, note(1))
        await a.hears(1)
        assert watcher() is not None  # b has no roster yet, so it lets nobody in
        b.transport.admit(roster)
        async with asyncio.timeout(WAIT_S):
            await let_go.wait()
        await b.hears(1)

    async def test_a_failing_callback_costs_only_its_own_message(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        failures: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(str(context["exception"])))
        hear = b.transport._on_message

        def picky(sender: int, header: Any, buffers: Any) -> None:
            if header.values[0] % 10 == 0:
                raise ValueError(f"refuses {header.values[0]}")
            hear(sender, header, buffers)

        b.transport._on_message = picky
        for number in range(25):
            await a.transport.send(1, note(number))
        await b.hears(22)
        assert b.notes == [number for number in range(25) if number % 10]
        assert failures == ["refuses 0", "refuses 10", "refuses 20"]


class TestBackPressure:
    async def test_a_peer_that_does_not_read_stops_its_own_senders_only(self, party: Callable[..., Party]):
        a, b = party(0, limits=SMALL_LIMITS), party(1)
        deaf = Identity.generate()
        with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
            router.curve_server, router.curve_secretkey, router.linger = True, deaf.curve_secret, 0
            port = router.bind_to_random_port("tcp://127.0.0.1")
            roster = Roster([a.card, b.card, deaf.card(2, f"tcp://127.0.0.1:{port}", "loopback")])
            for each in (a, b):
                each.transport.admit(roster)
            array = np.zeros(12 << 20, np.uint8)
            await a.transport.send(2, model(0, array))
            waiting = [asyncio.create_task(a.transport.send(2, model(n, array))) for n in (1, 2)]
            for number in range(100):
                await a.transport.send(1, note(number))
            await b.hears(100)
            await a.transport.send(1, model(3, array))
            await b.hears(101)
            assert not any(task.done() for task in waiting)
            assert a.transport._io.links.account(2).queued_bytes < SMALL_LIMITS.queue_bytes + (13 << 20)
        await a.until(lambda: a.lost)
        for task in waiting:
            with pytest.raises(Unreachable, match="node 2 has gone"):
                await task

    async def test_a_loop_that_is_stuck_bounds_what_both_sides_hold(self, party: Callable[..., Party]):
        a = party(0, limits=Limits(queue_bytes=1 << 20))
        identity, ready, resume, done = Identity.generate(), threading.Event(), threading.Event(), threading.Event()
        shared: dict[str, Any] = {}

        async def stuck() -> None:
            b = Party(1, identity=identity, limits=Limits(backlog_bytes=1 << 20))
            shared["b"] = b
            ready.set()
            assert await asyncio.to_thread(shared["go"].wait, WAIT_S)
            b.transport.admit(shared["roster"])
            assert resume.wait(WAIT_S)  # the whole loop stands still
            await b.hears(1000)
            await b.transport.close()
            done.set()

        shared["go"] = threading.Event()
        thread = threading.Thread(target=lambda: asyncio.run(stuck()))
        thread.start()
        assert ready.wait(WAIT_S)
        shared["roster"] = Roster([a.card, shared["b"].card])
        a.transport.admit(shared["roster"])
        shared["go"].set()

        async def flood() -> None:
            for number in range(1000):
                await a.transport.send(1, note(number, "x" * 60_000))

        flooding = asyncio.create_task(flood())
        await asyncio.wait({flooding}, timeout=0.5)
        received = shared["b"].transport._io.links.traffic.bytes_received
        assert not flooding.done()
        assert 1 << 20 <= received < 20 << 20  # of 60 MB
        resume.set()
        await flooding
        assert await asyncio.to_thread(done.wait, WAIT_S)
        thread.join()
        assert shared["b"].notes == list(range(1000))


class TestLife:
    async def test_close_leaves_nothing_behind_and_may_be_repeated(self):
        def open_files() -> set[str]:
            return {os.readlink(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd") if _exists(name)}

        threads, files = set(threading.enumerate()), open_files()
        a, b = Party(0), Party(1)
        acquaint(a, b)
        await a.transport.send(1, model(1, np.zeros(3_000_000, np.uint8)))
        await b.transport.send(0, note(1))
        await a.hears(1)
        await b.hears(1)
        assert set(threading.enumerate()) > threads
        for each in (a, b, a, b):
            await each.transport.close()
        assert set(threading.enumerate()) == threads
        assert open_files() <= files

    async def test_close_sends_what_is_queued(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        for number in range(100):
            await a.transport.send(1, note(number))
        await a.transport.send(1, model(100, np.zeros(8_000_000, np.uint8)))
        await a.transport.close(WAIT_S)
        await b.hears(101)
        await b.until(lambda: b.lost)
        assert b.lost == [0]

    async def test_close_waits_no_longer_than_its_linger(self, party: Callable[..., Party]):
        a = party(0, grace_s=60.0)
        nobody = Identity.generate().card(1, "tcp://127.0.0.1:1", "loopback")
        a.transport.admit(Roster([a.card, nobody]))
        await a.transport.send(1, note(1))
        async with asyncio.timeout(3.0):
            await a.transport.close(0.1)

    async def test_nothing_is_sent_before_or_after(self, party: Callable[..., Party]):
        unborn = Party(5, start=False)
        with pytest.raises(TransportError, match=r"call start\(\) first"):
            await unborn.transport.send(1, note(1))
        await unborn.transport.close()
        a = party(0)
        acquaint(a)
        await a.transport.close()
        with pytest.raises(TransportError, match="closing"):
            await a.transport.send(0, note(1))

    async def test_a_sender_that_waits_is_released_by_close(self, party: Callable[..., Party]):
        a = party(0, grace_s=60.0, limits=Limits(queue_bytes=10))
        a.transport.admit(Roster([a.card, Identity.generate().card(1, "tcp://127.0.0.1:1", "loopback")]))
        await a.transport.send(1, note(1))
        waiting = asyncio.create_task(a.transport.send(1, note(2)))
        await asyncio.wait({waiting}, timeout=0.01)
        await a.transport.close(0.0)
        with pytest.raises(TransportError, match="closing"):
            await waiting

    async def test_what_no_peer_would_take_is_refused_here(self, party: Callable[..., Party]):
        a = party(0, limits=Limits(message_bytes=1000, header_bytes=100))
        with pytest.raises(NotAMember, match="node 0 is not in the roster"):
            await a.transport.send(0, note(1))
        acquaint(a)
        with pytest.raises(FrameTooLarge, match="allowed are 1000"):
            await a.transport.send(0, model(1, np.zeros(1000, np.uint8)))
        with pytest.raises(FrameTooLarge, match=r"header 100\)"):
            await a.transport.send(0, note(1, "x" * 100))
        with pytest.raises(NotAMember):
            await a.transport.send(9, note(1))
        await a.transport.send(0, note(7))
        await a.hears(1)
        assert a.heard[0][0] == 0

    async def test_a_taken_port_is_one_clear_line(self, party: Callable[..., Party]):
        port = int(party(0).transport.address.rsplit(":", 1)[1])
        for listen, wrong in (("127.0.0.1", port), ("no such host", 0)):
            with pytest.raises(ConfigError, match=rf"^listen: {listen}:{wrong} cannot be bound: .*allowed are"):
                Party(1, listen=listen, port=wrong)
        assert not [thread for thread in threading.enumerate() if thread.name == "starling-io-1"]

    def test_importing_opens_nothing(self):
        check = (
            "import sys, threading, zmq, node.live.transport\n"
            "assert threading.active_count() == 1 and zmq.Context._instance is None and 'torch' not in sys.modules\n"
            "from zmq.utils.garbage import gc\n"
            "assert gc.thread is None and gc._context is None"
        )
        subprocess.run([sys.executable, "-c", check], check=True)

    def test_a_loop_that_ends_without_closing_takes_the_thread_with_it(self):
        async def careless() -> Transport:
            a, b = Party(0), Party(1)
            acquaint(a, b)
            await a.transport.send(1, note(1))
            await b.transport.close()
            return a.transport

        transport = asyncio.run(careless())
        transport._io._thread.join(WAIT_S)
        assert not transport._io._thread.is_alive()


def _exists(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")
