"""Membership machines in virtual time: thousands of them, with crashes, slow hosts, drifting clocks and lossy links.

What a machine sees is what it would see live: its own clock, timers that may ring late, messages that may not come. The
network is a function, so that partitions and one-way loss are the caller's to draw.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

from node.clock import Priority, VirtualClock
from node.membership import Action, Input, Lost, Membership, Persist, Received, Send, Start, Tick, encode

Launch: TypeAlias = Callable[[int, int], tuple[Membership, Start]]
"""Gives the machine of a node, from the incarnation that it has kept (0: none), and its first input."""
Path: TypeAlias = Callable[[int, int], float | None]
"""Seconds that a message from one node to another takes; None: it is lost."""


MOST_WAITING = 1000
"""Inputs that wait for a node that is busy; further ones are lost, as at a full socket."""


@dataclass(slots=True)
class Host:
    """What a machine runs on."""

    machine: Membership | None = None
    """None while the node is down."""
    kept: int = 0
    """The incarnation that is on its disk; it outlives crashes."""
    rate: float = 1.0
    """Of its clock: 1.01 is fast by 1%."""
    offset_s: float = 0.0
    held_until_s: float = 0.0
    """Until then it computes nothing; what comes meanwhile waits."""
    cost_s: float = 0.0
    """How long it is busy with every input."""
    backlog: deque[Input] = field(default_factory=deque)
    rings_s: float = field(default=float("inf"))
    """In true time, when the timer that is set will ring."""

    def local_s(self, now: float) -> float:
        """What its clock shows."""
        return self.offset_s + self.rate * now


class Swarm:
    """Nodes by number, each with one machine while it is up."""

    def __init__(
        self, clock: VirtualClock, nodes: int, launch: Launch, path: Path, *, lost_after_s: float | None = None
    ) -> None:
        """Those whose links lead to a node that is down hear of it after ``lost_after_s``; None: links say nothing."""
        self.hosts = [Host() for _ in range(nodes)]
        self.messages = 0
        self.sent_bytes = 0
        self.watch: Callable[[int, Action], object] = lambda node, action: None
        """Called with everything that a machine wants done, before it is done."""
        self._clock = clock
        self._launch = launch
        self._path = path
        self._lost_after_s = lost_after_s

    def up(self, node: int) -> None:
        """Start a node, or start it again with what it has kept; nothing where it runs."""
        host = self.hosts[node]
        if host.machine is None:
            host.machine, start = self._launch(node, host.kept)
            host.rings_s, host.held_until_s = float("inf"), 0.0
            host.backlog.clear()
            self._step(node, start)

    def down(self, node: int) -> None:
        """Crash a node."""
        machine, self.hosts[node].machine = self.hosts[node].machine, None
        for peer in machine.peers() if machine else ():
            self._break(peer, node)

    def _break(self, node: int, peer: int) -> None:
        """Let a node hear that its link to a peer is no more."""
        if self._lost_after_s is not None:
            self._clock.post(self._lost_after_s, lambda lost: self._step(node, lost), Lost(peer))

    def hold(self, node: int, seconds: float) -> None:
        """Let a node compute nothing for a while, as one that is stopped or starved."""
        host = self.hosts[node]
        host.held_until_s = max(host.held_until_s, self._clock.now + seconds)

    def slow(self, node: int, cost_s: float) -> None:
        """From now on a node is busy for a while with every input, as one that is starved of its processor."""
        self.hosts[node].cost_s = cost_s

    def drift(self, node: int, rate: float) -> None:
        """Let a node's clock go on from what it shows at another rate."""
        host = self.hosts[node]
        host.offset_s += (host.rate - rate) * self._clock.now
        host.rate = rate
        host.rings_s = float("inf")
        self._arm(node, host)

    def give(self, node: int, event: Input) -> None:
        """Let something happen to a node that is up; nothing where it is down."""
        self._step(node, event)

    def run(self, seconds: float) -> None:
        """Let time pass."""
        self._clock.post(seconds, lambda clock: clock.stop(), self._clock, Priority.SOLVE)
        self._clock.run_forever()

    def _step(self, node: int, event: Input) -> None:
        host, now = self.hosts[node], self._clock.now
        if host.machine is None:
            return
        if host.held_until_s > now or host.backlog:
            if not host.backlog:
                self._clock.post(max(0.0, host.held_until_s - now), self._resume, (node, host.machine))
            if len(host.backlog) < MOST_WAITING:
                host.backlog.append(event)
            return
        self._run(node, host, event)
        self._arm(node, host)

    def _resume(self, held: tuple[int, Membership]) -> None:
        """Go on with what has come meanwhile; timers that are overdue ring first, the harder order for a machine."""
        node, machine = held
        host, now = self.hosts[node], self._clock.now
        while host.machine is machine and host.backlog and host.held_until_s <= now:
            is_due = machine.deadline_s <= host.local_s(now)
            self._run(node, host, Tick() if is_due else host.backlog.popleft())
        if host.machine is machine and host.backlog:
            self._clock.post(host.held_until_s - now, self._resume, held)
        self._arm(node, host)

    def _run(self, node: int, host: Host, event: Input) -> None:
        assert host.machine is not None
        for action in host.machine.step(event, host.local_s(self._clock.now)):
            self._perform(node, host, action)
        if host.cost_s:
            host.held_until_s = self._clock.now + host.cost_s

    def _perform(self, node: int, host: Host, action: Action) -> None:
        self.watch(node, action)
        if isinstance(action, Send):
            received = Received(node, action.message)
            self.messages += len(action.to)
            self.sent_bytes += len(action.to) * len(encode(action.message))
            for to in action.to:
                if (delay_s := self._path(node, to)) is not None:
                    self._clock.post(delay_s, self._deliver, (to, received))
        elif isinstance(action, Persist):
            host.kept = action.incarnation

    def _deliver(self, delivery: tuple[int, Received]) -> None:
        to, received = delivery
        if self.hosts[to].machine is None:
            self._break(received.sender, to)
        else:
            self._step(to, received)

    def _arm(self, node: int, host: Host) -> None:
        """Have the timer ring when something is due, unless it rings before that anyway."""
        machine, now = host.machine, self._clock.now
        if machine is None or machine.deadline_s == float("inf"):
            return
        rings_s = max(now, (machine.deadline_s - host.offset_s) / host.rate + 1e-9)  # never early by rounding
        if rings_s < host.rings_s:
            host.rings_s = rings_s
            self._clock.post(rings_s - now, self._ring, (node, machine, rings_s), Priority.TIMER)

    def _ring(self, timer: tuple[int, Membership, float]) -> None:
        node, machine, rings_s = timer
        host = self.hosts[node]
        if host.machine is not machine or rings_s != host.rings_s:
            return  # another has taken its place
        host.rings_s = float("inf")
        if machine.deadline_s <= host.local_s(self._clock.now):
            self._step(node, Tick())
        else:
            self._arm(node, host)
