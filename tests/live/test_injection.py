"""What faults do to forked nodes: who is killed, stopped, started again, and what the others are told."""

import asyncio
import contextlib
import os
import signal

import psutil
import pytest

from node.live.channel import Alive, Begin, Failed, Shown, Stop
from node.live.children import end_all, fork_all, reap
from node.live.injection import Act
from node.live.supervisor import Supervisor
from test_supervisor import DONE, WAIT_S, child, finish


class Watched:
    """Forks children with spares, does to them what is to be done, and keeps what the supervisor said."""

    def __init__(self, folder, part, nodes, acts, spares=()):
        self.lost = {}
        self.acts = acts
        self.children = fork_all(nodes, lambda node, end: child(part)(node, end), folder / "logs", spares)
        self.pids = [each.pid for each in self.children]

    async def run(self, **options):
        watch = Supervisor(self.children, lambda said: None, self.lost.__setitem__, acts=self.acts, **options)
        try:
            async with asyncio.timeout(WAIT_S):
                await watch.run()
        finally:
            end_all(self.children)
        return watch.failure


@pytest.fixture
def watched(tmp_path, capfd):
    begun = []

    def begin(*args, **options):
        with capfd.disabled():
            begun.append(Watched(tmp_path, *args, **options))
        return begun[-1]

    yield begin
    for each in begun:
        end_all(each.children)
        assert not [pid for pid in each.pids if psutil.pid_exists(pid)], "a child is left, or not reaped"


def second_life_finishes(folder):
    """A node 1 that hangs in its first life and finishes in its second; the others finish when they hear of that."""

    async def part(node, channel):
        lived = folder / f"lived-{node}"
        first = not lived.exists()
        lived.touch()
        channel.say(Shown(b"%d/%d" % (node, os.getpid())))
        cards = (await channel.hear()).cards
        if node == 1 and first:
            await channel.hear()
        elif node != 1:
            again = await channel.hear()
            assert isinstance(again, Begin)
            assert again.elapsed_s > 0
            assert len(again.cards) == len(cards)
            assert again.cards[1] != cards[1], "its new card"
            assert [card for card in again.cards if card != again.cards[1]] == [
                card for card in cards if card != cards[1]
            ]
        channel.say(DONE)
        assert isinstance(await channel.hear(), Stop)

    return part


async def test_a_killed_node_is_started_again_and_all_are_told_its_new_card(watched, tmp_path):
    acts = [Act(0.05, 1, "kill"), Act(0.1, 1, "revive")]
    run = watched(second_life_finishes(tmp_path), 3, acts, spares=[1])
    assert await run.run() is None
    assert run.lost == {}, "it has come back"
    assert [each.status for each in run.children] == [0, -signal.SIGKILL, 0, 0]
    assert [each.has_finished for each in run.children] == [True, False, True, True]
    assert run.children[1].how() == "was killed by a fault at 0.05 s"


async def hang(node, channel, *said):
    """Listen, and say nothing once it has begun but this, and that it lives."""
    channel.say(Shown(b"card %d" % node))
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                if not isinstance(await channel.hear(), Begin):
                    return
                for each in said:
                    channel.say(each)
        channel.say(Alive())


async def test_a_node_that_is_not_started_again_is_lost(watched):
    async def part(node, channel):
        await (hang if node == 1 else finish)(node, channel)

    run = watched(part, 3, [Act(0.05, 1, "kill")])
    assert await run.run() is None
    assert run.lost == {1: "was killed by a fault at 0.05 s"}


async def test_a_spare_that_nobody_needs_ends_with_the_run(watched):
    run = watched(finish, 2, [Act(1e6, 1, "kill"), Act(2e6, 1, "revive")], spares=[1])
    assert await run.run() is None
    assert [each.status for each in run.children[:2]] == [0, 0]
    assert run.children[2].status in (0, -signal.SIGKILL), "it ends by itself, if it is given the time"
    assert run.children[2].waits
    assert run.lost == {}


async def test_a_spare_ends_when_its_supervisor_does(tmp_path, capfd):
    with capfd.disabled():
        children = fork_all(1, lambda node, end: child(finish)(node, end), tmp_path / "logs", spares=[0])
    try:
        for each in children:
            each.end.close()
        assert reap(children[1], wait=True)
    finally:
        end_all(children)
    assert children[1].status == 0


async def test_a_finished_node_is_left_alone(watched):
    async def part(node, channel):
        await (finish if node == 1 else hang)(node, channel)

    acts = [Act(0.2, 1, "kill"), Act(0.25, 1, "revive"), Act(0.3, 0, "kill")]
    run = watched(part, 2, acts, spares=[1])
    assert await run.run() is None
    assert run.lost == {0: "was killed by a fault at 0.3 s"}
    assert run.children[1].has_finished
    assert run.children[2].waits


async def test_a_stopped_node_is_not_taken_for_one_that_hangs(watched):
    async def part(node, channel):
        await hang(node, channel, *([DONE] if node == 0 else []))

    acts = [Act(0.05, 1, "stop"), Act(1.0, 1, "go_on"), Act(1.1, 1, "kill")]
    run = watched(part, 2, acts)
    assert await run.run(silence_s=0.4) is None
    assert run.lost == {1: "was killed by a fault at 1.1 s"}, "and not for its silence"


async def test_the_end_of_a_run_wakes_who_is_stopped(watched):
    async def part(node, channel):
        if node == 1:
            await hang(node, channel)
            return
        channel.say(Shown(b"card 0"))
        assert isinstance(await channel.hear(), Begin)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await channel.hear()
        channel.say(Failed("enough"))
        await channel.hear()

    run = watched(part, 2, [Act(0.0, 1, "stop")])
    assert await run.run() == "node 0: enough"
    assert [each.status for each in run.children] == [0, 0], "both have ended in order"
    assert run.children[1].stopped


async def test_an_act_that_fails_is_not_swallowed(watched):
    run = watched(hang, 2, [Act(0.0, 7, "kill")])
    with pytest.raises(KeyError):
        await run.run()
