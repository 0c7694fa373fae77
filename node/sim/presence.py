"""Which simulated nodes are there, and what becomes of their timers while they are not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any
from typing import Protocol as Interface

from node.clock import Priority, VirtualClock
from node.sim.churn import Change, Churn

_FRUITLESS = 100
"""Changes for each node without progress of any, after which a run counts as deadlocked."""


class NodeClock:
    """One node's timers: late where it was paused meanwhile, gone where it has crashed or left."""

    __slots__ = ("_clock", "_held", "_is_dead", "_paused_s", "_since_s")

    def __init__(self, clock: VirtualClock) -> None:
        self._clock = clock
        self._held: list[tuple[Callable[[Any], object], Any]] = []
        self._is_dead = False
        self._paused_s = 0.0
        self._since_s: float | None = None

    def time(self) -> float:
        """Virtual seconds since the run began."""
        return self._clock.now

    def post(self, delay_s: float, fn: Callable[[Any], object], arg: Any, priority: int = Priority.DELIVERY) -> None:
        """Call ``fn(arg)`` after a delay, or as soon after it as the node can."""
        self._clock.post(delay_s, self._fire, (fn, arg), priority)

    def create_future(self) -> asyncio.Future[Any]:
        """A future of the clock's loop."""
        return self._clock.create_future()

    def work(self, seconds: float, fn: Callable[[Any], object], arg: Any) -> None:
        """Call ``fn(arg)`` after so many seconds of the node's own work: a pause only puts it off."""
        self._clock.post(seconds, self._worked, (fn, arg, self._pauses_s()), Priority.TIMER)

    def _fire(self, entry: tuple[Callable[[Any], object], Any]) -> None:
        if self._is_dead:
            return
        if self._since_s is None:
            entry[0](entry[1])
        else:
            self._held.append(entry)

    def _worked(self, entry: tuple[Callable[[Any], object], Any, float]) -> None:
        fn, arg, before_s = entry
        if self._is_dead:
            return
        missed_s = self._pauses_s() - before_s
        if self._since_s is not None:
            self._held.append((self._go_on, (fn, arg, missed_s)))
        elif missed_s > 0:
            self.work(missed_s, fn, arg)
        else:
            fn(arg)

    def _go_on(self, entry: tuple[Callable[[Any], object], Any, float]) -> None:
        fn, arg, missed_s = entry
        self.work(missed_s, fn, arg)

    def _pauses_s(self) -> float:
        return self._paused_s + (0.0 if self._since_s is None else self._clock.now - self._since_s)

    @property
    def is_paused(self) -> bool:
        """Whether events have to be held."""
        return self._since_s is not None

    @property
    def paused_since_s(self) -> float | None:
        """When the pause that lasts began."""
        return self._since_s

    def hold(self, fn: Callable[[Any], object], arg: Any) -> None:
        """Let something happen as soon as the pause is over."""
        self._held.append((fn, arg))

    def pause(self) -> None:
        """Nothing happens to the node from now on."""
        self._since_s = self._clock.now

    def go_on(self) -> None:
        """The pause is over: what fell into it happens now, in its order."""
        self._paused_s, self._since_s = self._pauses_s(), None
        held, self._held = self._held, []
        for fn, arg in held:
            fn(arg)

    def die(self) -> None:
        """Forget all timers."""
        self._is_dead = True
        self._held.clear()


class Stage(Interface):
    """The world in which nodes come and go."""

    def enter(self, node: int) -> None:
        """A node runs its protocol, from what it has saved."""
        ...

    def leave(self, node: int, what: str) -> None:
        """A node is gone, with all that it was doing."""
        ...

    def returned(self, node: int, since_s: float) -> None:
        """A node that was away or paused since then is about to enter again, or to go on."""
        ...

    def tell(self, node: int) -> None:
        """The others learn that a node is gone."""
        ...

    def abandon(self, node: int, how: str) -> None:
        """A node is gone, and never comes back."""
        ...

    def progress(self) -> int:
        """How far the nodes are: rounds that were recorded for the first time, and nodes that have ended."""
        ...


class Presence:
    """Who is there, and since when; makes a world's nodes go and come.

    Args:
        detect_s: how long after a crash the others are told.
    """

    def __init__(self, churn: Churn, nodes: int, clock: VirtualClock, stage: Stage, detect_s: float) -> None:
        self._churn = churn
        self._clock = clock
        self._stage = stage
        self._detect_s = detect_s
        self._online = [churn.absent.get(node, "pause") == "pause" for node in range(nodes)]
        self._since_s = [0.0] * nodes
        self._lives = [0] * nodes
        self._ended = [False] * nodes
        self._fruitless = 0
        self._progress = 0
        self.gone: dict[int, None] = {node: None for node, what in sorted(churn.absent.items()) if what == "leave"}
        """Nodes that the others know to be gone."""
        self.clocks = [NodeClock(clock) for _ in range(nodes)]

    def begin(self) -> None:
        """Let everybody who is there at the beginning enter, and schedule everybody's first change."""
        for node, is_online in enumerate(self._online):
            if is_online:
                self._stage.enter(node)
            elif node not in self.gone:
                self._clock.post(self._detect_s, self._detect, (node, 0.0), Priority.FAULT)
            if self._churn.absent.get(node) == "pause":
                self.clocks[node].pause()
            if node in self._churn.changes:
                self._schedule(node)

    def _schedule(self, node: int) -> None:
        change = next(self._churn.changes[node], None)
        if change is not None:
            delay_s = max(0.0, change.time_s - self._clock.now)
            self._clock.post(delay_s, self._change, (node, change), Priority.FAULT)
        elif self.clocks[node].is_paused or not self._online[node]:
            self._stage.abandon(node, f"away since {self._clock.now:g} s")

    def _change(self, arg: tuple[int, Change]) -> None:
        node, change = arg
        if self._ended[node]:
            return
        self._watch_for_deadlock()
        if change.what == "return":
            self._return(node)
        elif change.what == "pause":
            self.clocks[node].pause()
        else:
            self._go(node, change.what)
        self._schedule(node)

    def _watch_for_deadlock(self) -> None:
        progress = self._stage.progress()
        self._fruitless = self._fruitless + 1 if progress == self._progress else 0
        self._progress = progress
        if self._fruitless > _FRUITLESS * len(self._online):
            self._clock.deadlock("nodes come and go, but none has come further for a long time")

    def _return(self, node: int) -> None:
        if self._online[node]:
            self._go_on(node)
            return
        self._stage.returned(node, self._since_s[node])
        self._online[node] = True
        self._since_s[node] = self._clock.now
        self.clocks[node] = NodeClock(self._clock)
        self.gone.pop(node, None)
        self._stage.enter(node)

    def _go(self, node: int, what: str) -> None:
        self._online[node] = False
        self._since_s[node] = self._clock.now
        self._lives[node] += what == "crash"
        self.clocks[node].die()
        self._stage.leave(node, what)
        if not self._ended[node]:
            self._clock.post(self._detect_s, self._detect, (node, self._clock.now), Priority.FAULT)

    def _detect(self, arg: tuple[int, float]) -> None:
        node, since_s = arg
        if self.forget(node, since_s):
            self._stage.tell(node)

    def forget(self, node: int, since_s: float) -> bool:
        """Others know that a node is away since then; False where it has come back meanwhile."""
        if self._online[node] or self._since_s[node] != since_s:
            return False
        self.gone[node] = None
        return True

    def ended(self, node: int) -> None:
        """A node's protocol has ended: it stays, and answers."""
        self._ended[node] = True
        self._go_on(node)

    def _go_on(self, node: int) -> None:
        """A node's pause, where there is one, is over."""
        since_s = self.clocks[node].paused_since_s
        if since_s is not None:
            self._stage.returned(node, since_s)
            self.clocks[node].go_on()

    def stamp(self, sender: int) -> tuple[int, float]:
        """What a message carries to be judged by on arrival: its sender's life, and when it was sent."""
        return self._lives[sender], self._clock.now

    def arrives(self, stamp: tuple[int, float], sender: int, to: int) -> bool:
        """Whether a message finds its receiver, the one that it was sent to, and comes from a sender that has not
        crashed since."""
        life, sent_s = stamp
        return life == self._lives[sender] and self._online[to] and self._since_s[to] <= sent_s

    def is_online(self, node: int) -> bool:
        """Whether a node is there; a paused one is."""
        return self._online[node]

    def offline(self) -> Iterator[tuple[int, float]]:
        """Nodes that are away or paused now, and since when."""
        for node, is_online in enumerate(self._online):
            since_s = self.clocks[node].paused_since_s if is_online else self._since_s[node]
            if since_s is not None:
                yield node, since_s
