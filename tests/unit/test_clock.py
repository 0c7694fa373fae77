"""The virtual clock: order, jumps, cancelling, and asyncio on it."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.clock import Priority, VirtualClock
from node.errors import SimulationError


def run(main):
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)


def order_of(*posts, end_s=100.0):
    """Run posts of (delay, name, priority) and give the names in the order in which they fired."""
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        for delay_s, name, priority in posts:
            loop.post(delay_s, seen.append, name, priority)
        await asyncio.sleep(end_s)

    run(main())
    return seen


# Order


def test_time_starts_at_zero_and_jumps_exactly():
    async def main():
        loop = asyncio.get_running_loop()
        times = [loop.time()]
        for seconds in (0.1, 1e9, 0.25):
            await asyncio.sleep(seconds)
            times.append(loop.time())
        return times

    assert run(main()) == [0.0, 0.1, 0.1 + 1e9, 0.1 + 1e9 + 0.25]


def test_equal_times_keep_their_order():
    posts = [(1.0, number, Priority.DELIVERY) for number in range(1000)]
    assert order_of(*posts) == list(range(1000))


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.5, 1.0, 2.0]), st.integers(0, 4)), max_size=40))
def test_events_run_by_time_then_priority_then_sequence(drawn):
    levels = [Priority.FAULT, Priority.LINK, Priority.TRANSFER, Priority.DELIVERY, Priority.TIMER]
    posts = [(delay_s, number, levels[level]) for number, (delay_s, level) in enumerate(drawn)]
    wanted = sorted(range(len(drawn)), key=lambda number: (*drawn[number], number))
    assert order_of(*posts) == wanted


def test_a_timer_rings_after_the_deliveries_of_its_instant_and_before_tasks():
    seen = []

    async def sleeper():
        await asyncio.sleep(1)
        seen.append("task")

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(1, seen.append, "timer")
        task = asyncio.create_task(sleeper())
        await asyncio.sleep(0)
        loop.post(1, seen.append, "delivery")
        loop.post(1, seen.append, "late timer", Priority.TIMER)
        await task

    run(main())
    assert seen == ["delivery", "late timer", "timer", "task"]


def test_an_event_caused_in_an_instant_joins_it_by_its_priority():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()

        def first(_):
            seen.append("first")
            loop.post(0, seen.append, "fault", Priority.FAULT)

        loop.post(1, first, None, Priority.LINK)
        loop.post(1, seen.append, "delivery")
        await asyncio.sleep(2)

    run(main())
    assert seen == ["first", "fault", "delivery"]


def test_tasks_run_once_all_events_of_their_instant_have():
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        future = loop.create_future()
        loop.post(1, future.set_result, None)
        loop.post(1, seen.append, "later event")
        await future
        return seen

    assert run(main()) == ["later event"]


def test_many_events_at_one_instant_are_one_instant():
    count = 200_000
    times = set()

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(count):
            loop.post(5.0, lambda _: times.add(loop.time()), None)
        await asyncio.sleep(5.0)
        return loop.fired

    assert run(main()) == count + 1
    assert times == {5.0}


def test_a_timer_in_the_past_rings_now():
    async def main():
        loop = asyncio.get_running_loop()
        await asyncio.sleep(3)
        future = loop.create_future()
        loop.call_at(1.0, future.set_result, None)
        await future
        return loop.time()

    assert run(main()) == 3.0


# Cancelling


def test_a_cancelled_timer_and_a_cancelled_callback_never_run():
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_later(1, seen.append, "timer").cancel()
        loop.call_soon(seen.append, "soon").cancel()
        kept = loop.call_later(1, seen.append, "kept")
        await asyncio.sleep(2)
        kept.cancel()

    run(main())
    assert seen == ["kept"]


def test_cancelling_in_the_instant_in_which_it_rings():
    """The event has fired already, its callback has not run yet: cancelling still wins."""
    seen = []

    async def main():
        loop = asyncio.get_running_loop()
        timers = []
        loop.call_later(1, lambda: timers[0].cancel())
        timers.append(loop.call_later(1, seen.append, "cancelled"))
        await asyncio.sleep(2)

    run(main())
    assert seen == []


def test_cancelled_timers_are_swept_out_once_they_are_most_of_the_heap():
    async def main():
        loop = asyncio.get_running_loop()
        seen = []
        kept = [loop.call_later(number + 1, seen.append, number) for number in range(10)]
        for _ in range(1000):
            loop.call_later(10_000, seen.append, "never").cancel()
        waiting = len(loop._heap)
        await asyncio.sleep(20)
        return waiting, seen, len(kept), loop.time()

    waiting, seen, kept, time_s = run(main())
    assert waiting < 250
    assert seen == list(range(kept))
    assert time_s == 20


def test_a_timer_that_has_rung_does_not_count_as_dead():
    """asyncio.sleep cancels its timer after it has rung: that must not make the clock sweep its heap."""

    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(300):
            await asyncio.sleep(1)
        return loop._dead_timers

    assert run(main()) == 0


# asyncio on it


def test_timeouts():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(2.5):
                await loop.create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 2.5)
        async with asyncio.timeout(10):
            await asyncio.sleep(1)
        return loop.time()

    assert run(main()) == 6.0


def test_timeouts_of_zero():
    async def main():
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await loop.create_future()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.create_future(), 0)
        fired = loop.create_future()
        loop.post(0, fired.set_result, "now")
        return await fired, loop.time()

    assert run(main()) == ("now", 0.0)


def test_groups_gather_queues_locks_and_conditions():
    async def producer(queue):
        for number in range(5):
            await asyncio.sleep(1)
            await queue.put(number)

    async def consumer(queue):
        return [await queue.get() for _ in range(5)]

    async def main():
        queue = asyncio.Queue(1)
        async with asyncio.TaskGroup() as group:
            group.create_task(producer(queue))
            taken = group.create_task(consumer(queue))
        lock, held = asyncio.Lock(), []

        async def hold(name):
            async with lock:
                await asyncio.sleep(1)
                held.append(name)

        await asyncio.gather(hold("a"), hold("b"))
        done, _ = await asyncio.wait([asyncio.create_task(asyncio.sleep(3, "slow"))], timeout=5)
        return taken.result(), held, done.pop().result(), asyncio.get_running_loop().time()

    assert run(main()) == ([0, 1, 2, 3, 4], ["a", "b"], "slow", 10.0)


def test_a_group_cancels_the_others_when_one_fails():
    async def fail():
        await asyncio.sleep(1)
        raise ValueError("broken")

    async def main():
        async with asyncio.TaskGroup() as group:
            group.create_task(fail())
            group.create_task(asyncio.sleep(1000))

    with pytest.raises(ExceptionGroup) as error:
        run(main())
    assert [str(inner) for inner in error.value.exceptions] == ["broken"]


def test_context_variables_and_asynchronous_generators():
    from contextvars import ContextVar

    who = ContextVar("who", default="nobody")
    closed = []

    async def ticks():
        try:
            while True:
                await asyncio.sleep(1)
                yield who.get()
        finally:
            closed.append(True)

    async def main():
        who.set("me")
        return await anext(ticks())

    assert run(main()) == "me"
    assert closed == [True]


def test_runs_one_after_another_on_one_runner_go_on_in_time():
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        runner.run(asyncio.sleep(2))
        runner.run(asyncio.sleep(3))
        assert runner.get_loop().time() == 5
    with pytest.raises(RuntimeError):
        runner.get_loop()


def test_a_closed_or_running_clock_does_not_run():
    loop = VirtualClock()

    async def again():
        with pytest.raises(RuntimeError, match="runs already"):
            loop.run_forever()

    loop.run_until_complete(again())
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        loop.run_forever()


def test_many_events_posted_in_one_go_are_as_if_posted_one_by_one():
    def order(post):
        seen = []

        async def main():
            clock = asyncio.get_running_loop()
            clock.post(1.0, seen.append, "before")
            post(clock, [(2.0, "late"), (1.0, "first"), (1.0, "second"), (0.0, "now")], seen.append)
            clock.post(1.0, seen.append, "after")
            await asyncio.sleep(3)

        with asyncio.Runner(loop_factory=VirtualClock) as runner:
            runner.run(main())
        return seen

    def one_by_one(clock, timed, fn):
        for delay_s, arg in timed:
            clock.post(delay_s, fn, arg)

    together = order(VirtualClock.post_each)
    assert together == order(one_by_one) == ["now", "before", "first", "second", "after", "late"]


@pytest.mark.parametrize("delay_s", [-1.0, float("inf"), float("nan")])
def test_no_event_of_many_has_an_impossible_delay(delay_s):
    with asyncio.Runner(loop_factory=VirtualClock) as runner, pytest.raises(SimulationError, match="cannot schedule"):
        runner.get_loop().post_each([(1.0, None), (delay_s, None)], print)
