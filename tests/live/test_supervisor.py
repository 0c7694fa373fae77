"""The supervisor with small children: how they end, what it says of them, and that none is left."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import sys

import psutil
import pytest

from node.errors import ConfigError
from node.live import supervisor
from node.live.channel import Alive, Begin, Channel, Failed, Finished, Measured, Shown, Stop, Work
from node.live.children import end_all, fork_all
from node.live.supervisor import Supervisor

WAIT_S = 20.0
DONE = Finished(
    model=b"m",
    time_s=1.5,
    events=0,
    tape=b"",
    tasks=0,
    batches=0,
    forced_solves=0,
    messages=0,
    bytes_sent=0,
    private_bytes=0,
)


def child(part):
    """A child main that runs ``part(node, channel)``, a coroutine, in a loop of its own."""

    async def run(node, end):
        channel = await Channel.over(end)
        try:
            return await part(node, channel) or 0
        finally:
            await channel.close()

    return lambda node, end: asyncio.run(run(node, end))


async def finish(node, channel):
    """What a node does whose run goes well."""
    channel.say(Shown(b"card %d" % node))
    begin = await channel.hear()
    assert isinstance(begin, Begin)
    assert begin.cards == [b"card %d" % other for other in range(len(begin.cards))]
    channel.say(Measured([(0.5, node, 0, "accuracy", 0.25)]))
    channel.say(DONE)
    assert isinstance(await channel.hear(), Stop)


async def show(node, channel):
    channel.say(Shown(b"card %d" % node))
    await channel.hear()


class Watched:
    """Forks children, supervises them to the end, and keeps what the supervisor said."""

    def __init__(self, folder, parts):
        self.rows = []
        self.lost = {}
        self.children = fork_all(len(parts), lambda node, end: child(parts[node])(node, end), folder / "logs")
        self.pids = [child.pid for child in self.children]

    async def run(self, **options):
        self.watch = Supervisor(
            self.children, lambda said: self.rows.extend(said.rows), self.lost.__setitem__, **options
        )
        try:
            async with asyncio.timeout(WAIT_S):
                await self.watch.run()
        finally:
            end_all(self.children)
        return self.watch.failure


@pytest.fixture
def watched(tmp_path, capfd):
    begun = []

    def begin(*parts):
        with capfd.disabled():  # so that a child's output is what it is elsewhere
            begun.append(Watched(tmp_path, parts))
        return begun[-1]

    yield begin
    for each in begun:
        end_all(each.children)
        assert not [pid for pid in each.pids if psutil.pid_exists(pid)], "a child is left, or not reaped"


async def test_a_run_that_goes_well(watched, tmp_path):
    run = watched(finish, finish, finish)
    assert await run.run() is None
    assert [child.status for child in run.children] == [0, 0, 0]
    assert [child.finished for child in run.children] == [DONE] * 3
    assert sorted(run.rows) == [(0.5, node, 0, "accuracy", 0.25) for node in range(3)]
    assert run.lost == {}
    assert run.watch.started_s > 0
    assert not (tmp_path / "logs").exists(), "nobody wrote to a log"


async def test_a_killed_child_is_told_and_the_others_go_on(watched):
    async def die(node, channel):
        await show(node, channel)
        os.kill(os.getpid(), signal.SIGKILL)

    run = watched(finish, die, finish)
    assert await run.run() is None
    assert run.lost == {1: "was killed by SIGKILL"}
    assert [child.finished is not None for child in run.children] == [True, False, True]


async def test_a_child_that_raises_is_told_with_its_last_words(watched, tmp_path):
    async def fail(node, channel):
        await show(node, channel)
        raise ValueError("out of luck")

    run = watched(finish, fail)
    assert await run.run() is None
    assert run.lost == {1: "exited with status 1: ValueError: out of luck"}
    assert [log.name for log in (tmp_path / "logs").iterdir()] == ["node-1.log"], "the log with words in it stays"


async def test_what_children_print_goes_to_their_logs(watched, tmp_path, capfd):
    async def speak(node, channel):
        sys.stdout.write(f"node {node} speaks\n")
        os.write(2, b"and warns\n")
        await finish(node, channel)

    await watched(speak, speak).run()
    assert sorted(log.name for log in (tmp_path / "logs").iterdir()) == ["node-0.log", "node-1.log"]
    assert sorted((tmp_path / "logs" / "node-1.log").read_text().splitlines()) == ["and warns", "node 1 speaks"]
    assert capfd.readouterr() == ("", "")


async def test_a_failure_names_the_node_and_ends_everybody(watched):
    async def fail(node, channel):
        await show(node, channel)
        channel.say(Failed("KeyError: 'x' (mine.py, line 3)"))

    async def wait(node, channel):
        await show(node, channel)
        assert isinstance(await channel.hear(), Stop)

    run = watched(wait, fail, wait)
    assert await run.run() == "node 1: KeyError: 'x' (mine.py, line 3)"
    assert run.lost == {}
    assert [run.children[node].status for node in (0, 2)] == [0, 0], "the others were told to stop, not killed"


async def test_a_failure_after_the_end_of_its_node_still_fails_the_run(watched):
    async def late(node, channel):
        await show(node, channel)
        channel.say(DONE)
        channel.say(Failed("too late"))
        await channel.hear()

    async def wait(node, channel):
        await show(node, channel)
        await channel.hear()

    assert await watched(late, wait).run() == "node 0: too late"


async def test_a_child_that_ends_before_it_is_ready_fails_the_run(watched):
    async def leave(node, channel):
        return 4

    run = watched(show, leave, show)
    assert await run.run() == "node 1 exited with status 4 before it was ready"
    assert run.lost == {1: "exited with status 4"}


async def test_a_run_whose_children_all_die_has_failed(watched):
    async def leave(node, channel):
        await show(node, channel)
        return 4

    run = watched(leave, leave)
    assert await run.run() == "every node has died"
    assert run.lost == {0: "exited with status 4", 1: "exited with status 4"}


async def test_a_child_that_hangs_is_killed(watched, monkeypatch):
    monkeypatch.setattr(supervisor, "_STOP_S", 0.2)

    async def hang(node, channel):
        await show(node, channel)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        channel.say(Failed("stuck"))
        await channel.flush()
        while True:
            signal.pause()  # blocks the loop for good

    run = watched(hang, finish)
    assert await run.run() == "node 0: stuck"
    assert run.children[0].status == -signal.SIGKILL


@pytest.mark.parametrize("data", [struct.pack("<I", 1 << 31), struct.pack("<I", 4) + b"\xc1\xc1\xc1\xc1"])
async def test_what_is_no_message_ends_the_channel_not_the_run(watched, data, monkeypatch):
    monkeypatch.setattr(supervisor, "_STOP_S", 0.2)

    async def babble(node, channel):
        await show(node, channel)
        channel._writer.write(data)
        await channel.flush()
        await channel.hear()

    run = watched(babble, finish)
    assert await run.run() is None
    assert list(run.lost) == [0]


async def test_cancelling_ends_the_children(watched):
    async def wait(node, channel):
        await show(node, channel)
        await channel.hear()

    run = watched(wait, wait)
    task = asyncio.create_task(run.run())
    async with asyncio.timeout(WAIT_S):
        while not (hasattr(run, "watch") and run.watch.started_s):
            await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [child.status for child in run.children] == [0, 0]


def test_a_child_ends_with_its_channel(watched):
    """What happens when the supervisor is killed: no end of a sibling's channel is held by another child."""
    run = watched(show, show, show)
    for each in run.children:
        each.end.close()
    for each in run.children:
        assert os.waitpid(each.pid, 0)[1] == 0
        each.status = 0


def test_ctrl_c_is_the_supervisors_to_handle(watched):
    async def ask(node, channel):
        os.kill(os.getpid(), signal.SIGINT)
        channel.say(Shown(b"alive"))

    run = watched(ask)
    assert b"alive" in run.children[0].end.recv(64)


async def test_a_mistake_of_the_caller_ends_the_run_and_is_not_swallowed(watched):
    run = watched(finish, finish)
    run.rows = None
    with pytest.raises(AttributeError, match="extend"):
        await run.run()


def test_a_fork_that_fails_leaves_no_child(tmp_path, monkeypatch):
    forks = []

    def fork(original=os.fork):
        if len(forks) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        pid = original()
        if pid:
            forks.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", fork)
    with pytest.raises(ConfigError, match=r"^nodes: this machine starts no more than 2 processes .*--clock virtual$"):
        fork_all(3, child(show), tmp_path / "logs")
    assert len(forks) == 2
    assert not [pid for pid in forks if psutil.pid_exists(pid)]
    assert not (tmp_path / "logs").exists()


async def test_a_child_that_does_not_answer_is_killed_and_told(watched):
    async def silent(node, channel):
        channel.say(Shown(b"silent"))
        await channel.hear()
        os.kill(os.getpid(), signal.SIGSTOP)

    async def lively(node, channel):
        channel.say(Shown(b"lively"))
        await channel.hear()
        channel.say(DONE)
        stop = asyncio.create_task(channel.hear())
        while not stop.done():
            channel.say(Alive())
            await asyncio.wait([stop], timeout=0.1)

    run = watched(lively, silent)
    assert await run.run(silence_s=1.0) is None
    assert run.lost == {1: "did not answer for 1 s and was killed"}


async def test_what_a_child_has_done_is_known_even_if_it_dies(watched):
    async def work(node, channel):
        channel.say(Shown(b"working"))
        await channel.hear()
        channel.say(Measured([], Work(tasks=3, messages=2, bytes_sent=100)))
        await channel.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    run = watched(finish, work)
    await run.run()
    assert run.children[1].work == Work(tasks=3, messages=2, bytes_sent=100)
