"""The virtual clock: what ends a run, and what is refused; and the real clock."""

import asyncio
import signal
import threading
from math import inf, nan

import pytest

from node import clock as clock_module
from node.clock import Priority, VirtualClock, WallClock
from node.errors import Deadlock, Livelock, SimulationError


def run(main):
    with asyncio.Runner(loop_factory=VirtualClock) as runner:
        return runner.run(main)


# What ends a run


def test_a_deadlock_tells_the_stories_of_those_who_wait():
    async def main():
        loop = asyncio.get_running_loop()
        loop.tell(lambda: (f"node {node} waits" for node in range(25)))
        await asyncio.sleep(4)
        await loop.create_future()

    with pytest.raises(Deadlock) as error:
        run(main())
    first, *stories = str(error.value).split("\n")
    assert first == "at 4 s every task waits and nothing is scheduled:"
    assert stories[0] == "  node 0 waits"
    assert stories[-2:] == ["  node 19 waits", "  … and 5 more"]


def test_a_deadlock_without_stories():
    async def main():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(Deadlock, match=r"nothing is scheduled$"):
        run(main())


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(clock_module, "_MOST_TURNS", 500)


@pytest.mark.usefixtures("impatient")
def test_tasks_that_trade_sleeps_of_zero_are_a_livelock():
    async def trade():
        while True:
            await asyncio.sleep(0)

    async def main():
        await asyncio.sleep(2)
        trader = asyncio.create_task(trade(), name="node-7")
        await trader

    with pytest.raises(Livelock, match=r"at 2 s .* node-7\)"):
        run(main())


@pytest.mark.usefixtures("impatient")
def test_events_that_cause_one_another_without_delay_are_a_livelock():
    async def main():
        loop = asyncio.get_running_loop()

        def again(_):
            loop.post(0, again, None)

        again(None)
        await asyncio.sleep(1)

    with pytest.raises(Livelock, match="again"):
        run(main())


@pytest.mark.usefixtures("impatient")
def test_a_task_that_sleeps_for_no_time_through_events_is_a_livelock():
    """Each turn is an instant of its own at the same time: nothing else would ever end it."""

    async def main():
        loop = asyncio.get_running_loop()
        while True:
            future = loop.create_future()
            loop.post(0, future.set_result, None, Priority.TIMER)
            await future

    with pytest.raises(Livelock, match="without time passing"):
        run(main())


@pytest.mark.usefixtures("impatient")
def test_time_that_passes_is_no_livelock():
    async def main():
        for _ in range(2000):
            await asyncio.sleep(0)
            await asyncio.sleep(1e-6)
        return asyncio.get_running_loop().time()

    assert run(main()) == pytest.approx(0.002)


@pytest.mark.parametrize("schedule", ["post", "call_soon", "call_later"])
def test_an_exception_of_a_callback_ends_the_run(schedule):
    def fail(*_):
        raise ValueError("in a callback")

    async def main():
        loop = asyncio.get_running_loop()
        {
            "post": lambda: loop.post(1, fail, None),
            "call_soon": lambda: loop.call_soon(fail),
            "call_later": lambda: loop.call_later(1, fail),
        }[schedule]()
        await asyncio.sleep(5)

    with pytest.raises(ValueError, match="in a callback"):
        run(main())


def test_keyboard_interrupt_in_a_task_ends_the_run_and_cleans_up():
    cleaned = []

    async def interrupt():
        await asyncio.sleep(1)
        raise KeyboardInterrupt

    async def main():
        task = asyncio.create_task(interrupt())
        try:
            await asyncio.sleep(1000)
        finally:
            cleaned.append(task.done())

    with pytest.raises(KeyboardInterrupt):
        run(main())
    assert cleaned == [True]


def test_a_real_interrupt_cancels_the_run_even_when_it_is_busy():
    async def main():
        loop = asyncio.get_running_loop()

        def tick(number):
            if number == 1000:
                signal.raise_signal(signal.SIGINT)
            loop.post(1, tick, number + 1)

        tick(0)
        await loop.create_future()

    with pytest.raises(KeyboardInterrupt):
        run(main())


# What it refuses


@pytest.mark.parametrize("delay_s", [-1, -1e-9, nan, inf])
def test_a_delay_must_be_at_least_zero_and_finite(delay_s):
    async def main():
        asyncio.get_running_loop().post(delay_s, print, None)

    with pytest.raises(SimulationError, match="a delay is at least 0"):
        run(main())


@pytest.mark.parametrize("seconds", [nan, inf])
def test_a_timer_must_be_finite(seconds):
    with pytest.raises(SimulationError, match="cannot set a timer"):
        run(asyncio.sleep(seconds))


REFUSED = {
    "thread": lambda: asyncio.to_thread(print),
    "executor": lambda: asyncio.get_running_loop().run_in_executor(None, print),
    "connection": lambda: asyncio.open_connection("localhost", 1),
    "server": lambda: asyncio.start_server(print, "localhost", 0),
    "lookup": lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1),
    "shell": lambda: asyncio.create_subprocess_shell("true"),
    "process": lambda: asyncio.create_subprocess_exec("true"),
    "signal": lambda: asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, print),
    "reader": lambda: asyncio.get_running_loop().add_reader(0, print),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_world_outside_is_refused_with_advice(name):
    async def main():
        await REFUSED[name]()

    with pytest.raises(SimulationError, match=r"virtual time cannot wait for a .*--clock real"):
        run(main())


def test_a_callback_from_another_thread_is_refused():
    errors = []

    async def main():
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(lambda: None)

        def intrude():
            try:
                loop.call_soon_threadsafe(print)
            except SimulationError as error:
                errors.append(str(error))

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()

    run(main())
    assert len(errors) == 1
    assert "another thread" in errors[0]


# Real time


async def test_the_wall_clock_counts_from_when_it_was_made():
    loop = asyncio.get_running_loop()
    wall = WallClock(loop)
    fired = loop.create_future()
    wall.post(0.001, fired.set_result, "done")
    assert wall.time() < 60
    assert await fired == "done"
    assert 0.001 <= wall.time() < 60
