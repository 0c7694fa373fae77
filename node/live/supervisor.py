"""Emulate many nodes on one machine: watch over their processes, and end every one of them whatever happens."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator

from node.live.channel import Begin, Channel, Failed, Finished, Measured, Shown, Spent, Stop, framed
from node.live.children import BEGIN, Child, reap
from node.live.injection import Act, Injection

_STOP_S = 5.0
"""Longest wait for a node to end in order before it is killed."""


class Supervisor:
    """Watches over forked nodes, from their cards to their end.

    Args:
        on_measured: takes the rows of a node's metrics.
        on_lost: told of a node that died, and how; the others go on where their protocol can.
        silence_s: how long a node may say nothing, not even that it is alive, before it is killed.
        device: the node that a participant is on: with it, all the others there are gone.
        acts: what faults do to nodes, by time.
    """

    def __init__(
        self,
        children: list[Child],
        on_measured: Callable[[Measured], None],
        on_lost: Callable[[int, str], None],
        silence_s: float = 30.0,
        device: Callable[[int], int] = lambda number: number,
        acts: Iterable[Act] = (),
    ) -> None:
        self._children = children
        self._lives: dict[int, list[Child]] = {}
        for child in children:
            self._lives.setdefault(child.node, []).append(child)
        self._injection = Injection(acts, self._lives, self._revive)
        self._listeners: list[asyncio.Task[None]] = []
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
        beside = [asyncio.create_task(self._guard())]
        try:
            for child in self._children:
                if not child.waits:
                    await self._attend(child)
            await self._first_of(self._shown, self._over)
            if not self._over.is_set():
                self.started_s = time.monotonic()
                self._introduce()
                beside.append(asyncio.create_task(self._injection.run(self.started_s)))
                beside[-1].add_done_callback(self._listened)
                await self._over.wait()
        finally:
            for task in beside:
                task.cancel()
            await self._stop()
            await asyncio.gather(*beside, return_exceptions=True)
        for task in beside:
            if not task.cancelled() and (error := task.exception()) is not None:
                raise error

    async def _attend(self, child: Child) -> None:
        child.channel = await Channel.over(child.end)
        self._listeners.append(asyncio.create_task(self._listen(child)))
        self._listeners[-1].add_done_callback(self._listened)

    async def _revive(self, child: Child) -> None:
        child.waits = False
        child.heard_s = time.monotonic()
        child.end.send(BEGIN)
        await self._attend(child)

    def _introduce(self) -> None:
        """Tell all nodes who the others are: the newest card of each."""
        newest = {child.node: child.card for child in self._children if child.card is not None}
        begin = framed(Begin([card for _, card in sorted(newest.items())], time.monotonic() - self.started_s))
        for channel in self._channels():
            channel.put(begin)

    async def _guard(self) -> None:
        """Kill the nodes that do not answer: a stopped process would keep the run for ever."""
        while True:
            await asyncio.sleep(min(1.0, self._silence_s / 4))
            for child in self._children:
                is_due = child.status is None and not (child.waits or child.stopped)
                if is_due and time.monotonic() - child.heard_s > self._silence_s:
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
                if self.started_s:
                    self._introduce()
                elif all(other.card is not None or other.waits for other in self._children):
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
        while not reap(child, wait=False) and time.monotonic() < deadline_s:
            await asyncio.sleep(0.01)
        if child.status is None:
            os.kill(child.pid, signal.SIGKILL)
            reap(child, wait=True)
        if not self._stopping:
            self._switch_off(child.node)
            if not any(life.waits for life in self._lives[child.node]):
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
        if all(_is_over(lives) for lives in self._lives.values()):
            if not any(child.has_finished for child in self._children):
                self.failure = self.failure or "every node has died"
            self._over.set()

    async def _stop(self) -> None:
        self._stopping = True
        listeners = self._listeners
        for child in self._children:
            if child.stopped and child.status is None:
                os.kill(child.pid, signal.SIGCONT)
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


def _is_over(lives: Iterable[Child]) -> bool:
    """Whether a node's protocol has ended, or its last process has."""
    return any(life.has_finished for life in lives) or all(life.status is not None for life in lives)
