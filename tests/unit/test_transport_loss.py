"""Peers that leave, die, never come, or lose their connection: noticed once, in time, and forgiven when they return."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import numpy as np
import pytest

from loopback import Party, acquaint, model, note
from node.codec import Limits
from node.errors import Unreachable
from node.identity import Identity, Roster
from node.live.shaping import Impairment, Shaper

RNG = np.random.Generator(np.random.Philox(key=[7, 8]))


@pytest.fixture
async def party() -> AsyncIterator[Callable[..., Party]]:
    made: list[Party] = []

    def make(node: int, **options: Any) -> Party:
        made.append(Party(node, **options))
        return made[-1]

    yield make
    for each in made:
        await each.transport.close(0.0)


class Proxy:
    """Passes bytes on between a client and an address; cuts the first connection after so many of them."""

    def __init__(self, address: str, cut_after_bytes: int) -> None:
        self._target = address.removeprefix("tcp://").split(":")
        self._left = cut_after_bytes
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return f"tcp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        self._server.close()
        await asyncio.gather(*self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        there_reader, there_writer = await asyncio.open_connection(*self._target)
        for source, sink in ((reader, there_writer), (there_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass(source, sink, (writer, there_writer), source is reader)))

    async def _pass(self, source: Any, sink: Any, both: Any, counted: bool) -> None:
        try:
            while data := await source.read(1 << 16):
                if counted and self.connections == 1:
                    self._left -= len(data)
                    if self._left < 0:
                        break
                sink.write(data)
                await sink.drain()
        except ConnectionError:
            pass
        finally:
            for writer in both:
                writer.close()


class TestLoss:
    async def test_a_good_bye_is_believed_at_once_and_told_once(self, party: Callable[..., Party]):
        a, b, c = party(0, grace_s=60.0), party(1), party(2, grace_s=60.0)
        acquaint(a, b, c)
        await a.transport.send(1, note(1))  # a has a link to b, c hears from b, and so does a
        for peer in (0, 2):
            await b.transport.send(peer, note(2))
        for each in (a, b, c):
            await each.hears(1)
        await b.transport.close()
        for each in (a, c):
            await each.until(lambda each=each: each.lost)
            assert each.lost == [1]
            with pytest.raises(Unreachable, match="node 1 has gone"):
                await each.transport.send(1, note(3))
        await a.transport.send(2, note(4))
        await c.hears(2)
        assert (a.lost, c.lost) == ([1], [1])

    async def test_the_last_words_come_before_the_good_bye(self, party: Callable[..., Party]):
        a, b = party(0, grace_s=60.0), party(1)
        acquaint(a, b)
        heard_when_lost: list[int] = []
        a.transport._on_lost = lambda peer: (heard_when_lost.append(len(a.heard)), a._lose(peer))
        for number in range(300):
            await b.transport.send(0, note(number, "x" * 100))
        await b.transport.close(5.0)
        await a.until(lambda: a.lost)
        assert heard_when_lost == [300]

    async def test_one_who_is_sent_to_and_never_sends_hears_the_good_bye(self, party: Callable[..., Party]):
        a, b = party(0, grace_s=60.0), party(1, grace_s=60.0)
        acquaint(a, b)
        await a.transport.send(1, note(1))
        await b.hears(1)
        await b.transport.close()
        await a.until(lambda: a.lost)
        assert a.lost == [1]

    async def test_it_may_come_back_under_a_new_address(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        await a.transport.send(1, note(1))
        await b.hears(1)
        await b.transport.close()
        await a.until(lambda: a.lost)
        again = party(1, identity=b.identity)
        acquaint(a, again)
        await again.transport.send(0, note(2))
        await a.hears(1)
        await a.transport.send(1, note(3))
        await again.hears(1)
        assert (again.notes, a.notes, a.lost, a.back) == ([3], [2], [1], [1])

    @pytest.mark.parametrize("sends", [True, False])
    async def test_a_killed_process_is_missed(self, party: Callable[..., Party], sends: bool):
        a = party(0)
        script = (
            "import asyncio, sys; sys.path.insert(0, sys.argv[1]); from loopback import *\n"
            "async def main():\n"
            "    b = Party(1); print(b.card.to_text(), flush=True)\n"
            "    b.transport.admit(Roster([b.card, Card.from_text(input())]))\n"
            "    await b.transport.send(0, note(1)) if sys.argv[2] == 'True' else None\n"
            "    await b.hears(10)\n"
            "asyncio.run(main())"
        )
        command = [sys.executable, "-c", script, os.path.dirname(__file__), str(sends)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdin is not None and process.stdout is not None  # noqa: PT018
            card = type(a.card).from_text(process.stdout.readline().strip())
            a.transport.admit(Roster([a.card, card]))
            process.stdin.write(a.card.to_text() + "\n")
            process.stdin.flush()
            if sends:
                await a.hears(1)
            else:
                a.transport.watch([1])
                await a.transport.send(1, note(1))
            process.send_signal(signal.SIGKILL)
        await a.until(lambda: a.lost)
        assert a.lost == [1]

    async def test_one_who_never_came_is_missed(self, party: Callable[..., Party]):
        a = party(0)
        nobody = Identity.generate().card(1, "tcp://127.0.0.1:1", "loopback")
        impossible = Identity.generate().card(2, "tcp://127.0.0.1:99999", "loopback")
        a.transport.admit(Roster([a.card, nobody, impossible]))
        a.transport.watch([1, 2])
        await a.until(lambda: len(a.lost) == 2)
        assert sorted(a.lost) == [1, 2]

    async def test_what_never_leaves_is_counted_by_what_kept_it(self, party: Callable[..., Party]):
        a, b = party(0, limits=Limits(queue_bytes=1 << 20)), party(1)
        acquaint(a, b)
        await a.transport.send(1, note(1))
        await b.hears(1)
        assert a.transport.counters().dropped == {}
        big = note(2, "x" * 200_000)
        assert a.transport.post(1, big)
        while a.transport.post(1, big):
            pass
        assert not a.transport.post(7, note(3)), "it is not in the roster"
        assert a.transport.counters().dropped == {"full": 1, "gone": 1}
        await b.transport.close()
        await a.until(lambda: a.lost)
        with pytest.raises(Unreachable):
            await a.transport.send(1, note(4))
        assert a.transport.counters().dropped["gone"] >= 2

    async def test_what_an_injected_fault_loses_is_counted_too(self, party: Callable[..., Party]):
        a, b = party(0), party(1)
        acquaint(a, b)
        a.transport.shape(Shaper([Impairment(0.0, 1e9, loss=1.0, peers=frozenset({1}))], 0, 0, time.monotonic()))
        await a.transport.send(1, note(1))
        a.transport.shape(Shaper([], 0, 0, time.monotonic()))
        await a.transport.send(1, note(2))
        await b.hears(1)
        assert b.notes == [2]
        assert a.transport.counters().dropped == {"fault": 1}

    async def test_a_broken_connection_is_made_again_and_the_model_starts_anew(self, party: Callable[..., Party]):
        a, b = party(0, grace_s=30.0), party(1)
        proxy = Proxy(b.transport.address, cut_after_bytes=15_000_000)
        address = await proxy.start()
        roster = Roster([a.card, b.identity.card(1, address, "loopback")])
        for each in (a, b):
            each.transport.admit(roster)
        array = RNG.integers(0, 256, 30_000_000, dtype=np.uint8)
        await a.transport.send(1, model(5, array))
        await b.hears(1)
        np.testing.assert_array_equal(np.frombuffer(b.buffers[0][0], np.uint8), array)
        assert proxy.connections == 2
        assert (a.lost, b.lost, len(b.heard)) == ([], [], 1)
        assert a.transport.counters()[-2:] == (1, 1), "one link has broken, and was made again"
        await a.transport.close()
        await proxy.close()
