"""Whose turn it is where bulk is held to a rate, and calls in threads that outlive whoever waits for them."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from node.clock import VirtualClock
from node.live import bulk_pace
from node.live.bulk_pace import SLICE_BYTES, Turns
from node.live.workers import in_worker


def on_the_clock(main, monkeypatch):
    """Run a coroutine function on a virtual clock, which is also what the rate is measured by."""

    async def inside():
        monkeypatch.setattr(bulk_pace.time, "monotonic", asyncio.get_running_loop().time)
        return await main()

    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(inside())


async def passes(turns, peer, slices, order):
    for _ in range(slices):
        await turns.take(peer, SLICE_BYTES)
        order.append((peer, asyncio.get_running_loop().time()))


def test_peers_take_turns(monkeypatch):
    async def main():
        turns, order = Turns(8.0 * SLICE_BYTES), []
        await asyncio.gather(*[passes(turns, peer, 4, order) for peer in (1, 2, 3)])
        return order

    order = on_the_clock(main, monkeypatch)
    for start in range(0, 12, 3):
        assert sorted(peer for peer, _ in order[start : start + 3]) == [1, 2, 3]


def test_all_together_are_held_to_the_rate(monkeypatch):
    """A slice a second: none of twelve comes before its second, however many peers there are."""

    async def main():
        turns, order = Turns(8.0 * SLICE_BYTES), []
        await asyncio.gather(*[passes(turns, peer, 4, order) for peer in (1, 2, 3)])
        return [at for _, at in order]

    times = on_the_clock(main, monkeypatch)
    assert times == sorted(times)
    for number, at in enumerate(times, 1):
        assert at == pytest.approx(number, abs=bulk_pace.Pacer.__init__.__defaults__[0] + 1e-6)


def test_a_peer_that_gives_up_takes_no_turn_from_the_others(monkeypatch):
    async def main():
        turns, order = Turns(8.0 * SLICE_BYTES), []
        going = asyncio.ensure_future(passes(turns, 1, 100, order))
        staying = asyncio.ensure_future(passes(turns, 2, 3, order))
        await asyncio.sleep(1.5)
        going.cancel()
        await staying
        return order

    order = on_the_clock(main, monkeypatch)
    assert [peer for peer, _ in order].count(2) == 3
    assert [peer for peer, _ in order].count(1) <= 2


@pytest.fixture
def workers():
    with ThreadPoolExecutor(1) as made:
        yield made


async def test_a_call_gives_its_value_and_its_error(workers):
    assert await in_worker(workers, divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await in_worker(workers, divmod, 7, 0)


async def test_a_cancelled_wait_ends_after_the_call(workers):
    begun, may_end, ended = threading.Event(), threading.Event(), []

    def call():
        begun.set()
        may_end.wait(10)
        ended.append(True)

    waiting = asyncio.ensure_future(in_worker(workers, call))
    await asyncio.to_thread(begun.wait, 10)
    waiting.cancel()
    done, _ = await asyncio.wait([waiting], timeout=0.01)
    assert not done
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended == [True]
