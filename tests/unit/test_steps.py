"""Holding a node's training steps, and leaving where nothing is lost."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.live.steps import Steps


class Node:
    """Trains for ever, and keeps a checkpoint after every ``per_round`` steps, or never."""

    def __init__(self, per_round=1, keeps=True):
        self.steps = Steps()
        self.left = 0
        self.begun = self.kept = 0
        self.at_work = asyncio.Event()
        self._per_round, self._keeps = per_round, keeps
        self._running = asyncio.create_task(self._run())

    async def _run(self):
        while True:
            async with self.steps.next():
                self.begun += 1
                await self.at_work.wait()
            await asyncio.sleep(0)
            if self._keeps and self.begun % self._per_round == 0:
                self.kept = self.begun
                self.steps.kept()

    def leave(self):
        self.left += 1

    async def end(self):
        self._running.cancel()
        await asyncio.gather(self._running, return_exceptions=True)


async def turn(times=20):
    for _ in range(times):
        await asyncio.sleep(0)


async def until(condition):
    while not condition():
        await asyncio.sleep(0)


@pytest.fixture
async def make():
    nodes = []

    def one(**options):
        nodes.append(Node(**options))
        return nodes[-1]

    yield one
    for node in nodes:
        await node.end()


async def test_a_step_at_work_goes_on_and_no_other_begins(make):
    node = make()
    await turn()
    node.steps.hold()
    assert node.steps.is_held
    node.at_work.set()
    await turn()
    assert (node.begun, node.kept) == (1, 1)
    node.steps.release()
    await until(lambda: node.begun > 3)
    assert not node.steps.is_held


async def test_holding_before_the_first_step_and_twice(make):
    node = make()
    node.steps.hold()
    node.steps.hold()
    node.at_work.set()
    await turn()
    assert node.begun == 0
    node.steps.release()
    await until(lambda: node.begun)


async def test_draining_leaves_at_the_next_checkpoint_and_begins_nothing_more(make):
    node = make(per_round=3)
    node.at_work.set()
    await until(lambda: node.begun >= 4)
    node.steps.drain(node.leave)
    await until(lambda: node.left)
    assert node.begun == node.kept
    begun = node.begun
    await turn()
    assert (node.begun, node.left) == (begun, 1)
    assert node.steps.is_draining


async def test_draining_a_held_node_at_the_end_of_a_round_leaves_at_once(make):
    node = make()
    node.at_work.set()
    await until(lambda: node.kept)
    node.steps.hold()
    await turn()
    begun = node.begun
    node.steps.drain(node.leave)
    assert node.left == 1
    await turn()
    assert node.begun == begun


async def test_draining_a_held_node_within_a_round_finishes_the_round(make):
    node = make(per_round=2)
    node.at_work.set()
    await until(lambda: node.kept and node.begun % 2)
    node.steps.hold()
    await turn()
    begun = node.begun
    assert begun % 2
    node.steps.drain(node.leave)
    assert not node.left
    await until(lambda: node.left)
    assert node.begun == node.kept == begun + 1


async def test_one_that_keeps_nothing_leaves_before_the_next_step(make):
    node = make(keeps=False)
    await turn()
    node.steps.drain(node.leave)
    await turn()
    assert (node.begun, node.left) == (1, 0)
    node.at_work.set()
    await until(lambda: node.left)
    assert node.begun == 1


async def test_one_that_never_trains_leaves_at_its_checkpoint():
    steps, left = Steps(), []
    steps.drain(lambda: left.append(1))
    assert not left
    steps.kept()
    assert left == [1]


async def test_how_long_steps_take_is_told_without_the_time_they_are_held():
    took = []
    steps = Steps(took.append)
    steps.hold()
    waiting = asyncio.create_task(steps.next().__aenter__())
    await turn()
    assert not took
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    steps.release()
    async with steps.next():
        assert not took
    assert len(took) == 1
    assert took[0] >= 0


async def test_a_step_that_fails_is_not_timed():
    took = []
    steps = Steps(took.append)
    with pytest.raises(ValueError, match="no more"):
        async with steps.next():
            raise ValueError("no more")
    assert not took


@given(st.integers(1, 4), st.integers(0, 40), st.booleans(), st.booleans())
def test_whenever_it_drains_no_finished_round_is_lost(per_round, after, keeps, is_held):
    async def main():
        node = Node(per_round, keeps)
        node.at_work.set()
        await turn(after)
        if is_held:
            node.steps.hold()
            await turn(after)
        node.steps.drain(node.leave)
        await until(lambda: node.left)
        begun = node.begun
        await turn()
        assert node.begun == begun
        if node.kept:
            assert node.kept == begun
        await node.end()

    asyncio.run(main())
