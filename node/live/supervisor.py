"""Emulate many nodes on one machine: fork them from one warmed-up parent, and end every one of them whatever happens.

The parent that forks has no event loop, no ZeroMQ context and no thread; each child makes its own. A child ends when
its channel to the supervisor does, so that none outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from node.errors import ConfigError
from node.live.channel import Begin, Channel, Failed, Finished, Measured, Shown, Spent, Stop, Work

_ENDING = {signal.SIGINT, signal.SIGTERM}
_STOP_S = 5.0
"""Longest wait for a node to end in order before it is killed."""

ChildMain: TypeAlias = Callable[[int, socket.socket], int]
"""What a forked node runs: its number and its end of the channel, to an exit status."""


@dataclass
class Child:
    """One forked node."""

    node: int
    pid: int
    end: socket.socket
    log: Path
    channel: Channel | None = None
    card: bytes | None = None
    finished: Finished | None = None
    work: Work = field(default_factory=Work)
    """What it had done when it last said so."""
    spent: dict[str, Any] | None = None
    """What it has spent of its privacy, where it keeps account of that."""
    heard_s: float = field(default_factory=time.monotonic)
    verdict: str | None = None
    """Why it was ended by us."""
    status: int | None = None
    """How it ended, as ``os.waitstatus_to_exitcode`` says it."""

    def how(self) -> str:
        """The end of a child that should not have ended, in words."""
        if self.verdict is not None:
            return self.verdict
        if self.status is not None and self.status < 0:
            return f"was killed by {signal.Signals(-self.status).name}"
        last = _last_line(self.log)
        return f"exited with status {self.status}{': ' + last if last else ''}"


def fork_all(nodes: int, main: ChildMain, logs: Path) -> list[Child]:
    """Fork one child per node, each with its output going to a file of its own in ``logs``.

    Raises:
        ConfigError: this machine does not take so many processes.
    """
    try:
        logs.mkdir(parents=True, exist_ok=True)
        for node in range(nodes):  # all before any child: the last one to end takes the folder with it
            (logs / f"node-{node}.log").touch()
    except OSError as error:
        raise ConfigError(f"--out: {logs} cannot be made: {error.strerror}") from error
    gc.collect()
    gc.freeze()
    children: list[Child] = []
    before = signal.pthread_sigmask(
        signal.SIG_BLOCK, _ENDING
    )  # an interrupt waits until parent and child know who they are
    try:
        for node in range(nodes):
            log = logs / f"node-{node}.log"
            sys.stdout.flush()
            sys.stderr.flush()
            pid, ours, theirs = _fork(node)
            if pid == 0:
                ours.close()
                for sibling in children:
                    sibling.end.close()
                _become(node, main, theirs, log)
            theirs.close()
            children.append(Child(node, pid, ours, log))
    except BaseException:
        end_all(children)
        for node in range(len(children), nodes):
            _tidy_up(logs / f"node-{node}.log")
        raise
    finally:
        gc.unfreeze()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return children


def _fork(node: int) -> tuple[int, socket.socket, socket.socket]:
    """The child's pid (in the child: 0) and the two ends of its channel."""
    ends: tuple[socket.socket, ...] = ()
    try:
        ends = ours, theirs = socket.socketpair()
        return os.fork(), ours, theirs
    except OSError as error:
        for end in ends:
            end.close()
        raise ConfigError(
            f"nodes: this machine starts no more than {node} processes ({error.strerror}); "
            "take fewer nodes, raise its limits (ulimit -n, ulimit -u), or simulate with --clock virtual"
        ) from error


def _become(node: int, main: ChildMain, end: socket.socket, log: Path) -> NoReturn:
    """In the child: leave the parent's signals and output behind, run, and never return."""
    status = 1
    try:
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # whatever has taken their place draws on the terminal
        parent = os.getppid()
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: the supervisor decides
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (output, 1), (output, 2)):
            os.dup2(source, target)
        if os.getppid() == parent:
            status = main(node, end)
    except BaseException as error:
        sys.stderr.write(f"{type(error).__name__}: {error}\n")
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        _tidy_up(log)
        os._exit(status)


def _tidy_up(log: Path) -> None:
    """Leave no log that nobody wrote to, and no folder without a log."""
    with contextlib.suppress(OSError):
        if not log.stat().st_size:
            log.unlink()
        log.parent.rmdir()


def end_all(children: Iterable[Child]) -> None:
    """Kill and reap whatever still runs, and remove the logs that nobody wrote to."""
    children = list(children)
    for child in children:
        child.end.close()
        if child.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGKILL)
    for child in children:
        _reap(child, wait=True)
        _tidy_up(child.log)


def _reap(child: Child, wait: bool) -> bool:
    if child.status is None:
        try:
            pid, status = os.waitpid(child.pid, 0 if wait else os.WNOHANG)
        except ChildProcessError:
            child.status = 0
            return True
        if pid == child.pid:
            child.status = os.waitstatus_to_exitcode(status)
    return child.status is not None


class Supervisor:
    """Watches over forked nodes, from their cards to their end.

    Args:
        on_measured: takes the rows of a node's metrics.
        on_lost: told of a node that died, and how; the others go on where their protocol can.
        silence_s: how long a node may say nothing, not even that it is alive, before it is killed.
        device: the node that a participant is on: with it, all the others there are gone.
    """

    def __init__(
        self,
        children: list[Child],
        on_measured: Callable[[Measured], None],
        on_lost: Callable[[int, str], None],
        silence_s: float = 30.0,
        device: Callable[[int], int] = lambda number: number,
    ) -> None:
        self._children = children
        self._on_measured = on_measured
        self._on_lost = on_lost
        self._silence_s = silence_s
        self._device = device
        self._shown = asyncio.Event()
        self._over = asyncio.Event()
        self._stopping = False
        self.failure: str | None = None
        """Why the run cannot go on, by the first node that said so."""
        self.started_s = 0.0

    async def run(self) -> None:
        """Bring the nodes together and wait until every one that lives has finished, or one cannot go on."""
        listeners = []
        guard = asyncio.create_task(self._guard())
        try:
            for child in self._children:
                child.channel = await Channel.over(child.end)
                listeners.append(asyncio.create_task(self._listen(child)))
                listeners[-1].add_done_callback(self._listened)
            await self._first_of(self._shown, self._over)
            if not self._over.is_set():
                cards = [child.card for child in self._children if child.card is not None]
                self.started_s = time.monotonic()
                for channel in self._channels():
                    channel.say(Begin(cards))
                await self._over.wait()
        finally:
            guard.cancel()
            await self._stop(listeners)

    async def _guard(self) -> None:
        """Kill the nodes that do not answer: a stopped process would keep the run for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._silence_s / 4))
            for child in self._children:
                if child.status is None and time.monotonic() - child.heard_s > self._silence_s:
                    child.verdict = f"did not answer for {self._silence_s:g} s and was killed"
                    os.kill(child.pid, signal.SIGKILL)

    def _channels(self) -> Iterator[Channel]:
        for child in self._children:
            if child.channel is not None:
                yield child.channel

    async def _first_of(self, *events: asyncio.Event) -> None:
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _listen(self, child: Child) -> None:
        assert child.channel is not None
        while (said := await child.channel.hear()) is not None:
            child.heard_s = time.monotonic()
            if isinstance(said, Shown):
                child.card = said.card
                if all(other.card is not None for other in self._children):
                    self._shown.set()
            elif isinstance(said, Measured):
                child.work = said.work
                self._on_measured(said)
            elif isinstance(said, Spent):
                child.spent = said.state
            elif isinstance(said, Finished):
                child.finished = said
                self._look()
            elif isinstance(said, Failed) and not self._stopping:
                self.failure = self.failure or f"node {child.node}: {said.error}"
                self._over.set()
        await self._gone(child)

    def _listened(self, listener: asyncio.Task[None]) -> None:
        if not listener.cancelled() and listener.exception() is not None:
            self._over.set()

    async def _gone(self, child: Child) -> None:
        """A child has closed its end: it ends, or has ended."""
        deadline_s = time.monotonic() + _STOP_S
        while not _reap(child, wait=False) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        if child.status is None:
            os.kill(child.pid, signal.SIGKILL)
            _reap(child, wait=True)
        if not self._stopping:
            self._switch_off(child.node)
            self._on_lost(child.node, child.how())
            if child.card is None:
                self.failure = self.failure or f"node {child.node} {child.how()} before it was ready"
                self._over.set()
        self._look()

    def _switch_off(self, node: int) -> None:
        """A node's device is gone: with it, every other participant there."""
        for child in self._children:
            if child.node != node and self._device(child.node) == node and child.status is None:
                child.verdict = f"was on the device of node {node}, which is gone"
                os.kill(child.pid, signal.SIGKILL)

    def _look(self) -> None:
        if all(child.finished is not None or child.status is not None for child in self._children):
            if not any(child.finished for child in self._children):
                self.failure = self.failure or "every node has died"
            self._over.set()

    async def _stop(self, listeners: list[asyncio.Task[None]]) -> None:
        self._stopping = True
        for channel in self._channels():
            channel.say(Stop())
        if listeners:
            await asyncio.wait(listeners, timeout=_STOP_S)
        for listener in listeners:
            listener.cancel()
        outcomes = await asyncio.gather(*listeners, return_exceptions=True)
        for channel in self._channels():
            await channel.close()
        for outcome in outcomes:
            if isinstance(outcome, Exception):
                raise outcome


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][:300] if lines else ""
