"""The simulated world: all nodes of an experiment in one process, on one virtual clock, over one compute graph."""

from __future__ import annotations

import asyncio
import gc
import itertools
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from typing import Any

from node.clock import VirtualClock
from node.config import TopologySection
from node.context import Context
from node.errors import Deadlock, ProtocolError, SimulationError, StarlingError
from node.inference import Inference
from node.message import Message
from node.mods import Wrapping
from node.op import Key, Ref, Task, Value
from node.participants import Participants
from node.private import Mechanisms
from node.protocol import Protocol
from node.record import Recorder
from node.sim import network
from node.sim.forcing import Forcing
from node.sim.garbage import lean_garbage_collection
from node.sim.garbling import Garbling
from node.sim.labour import Labour
from node.sim.mail import Mail
from node.sim.presence import Presence
from node.sim.surroundings import Surroundings
from node.sim.wiring import Wiring
from node.solver import Solver
from node.tape import EventKind, Tape
from node.topology import Topology, build
from node.usage import Usage
from node.world import Done, Ledger, Lineage, Workload, cannot_go_on

_DONE: Done[None] = Done(None)
_ENDED = int(EventKind.ENDED)


class SimWorld:
    """Runs the nodes of one experiment in virtual time; a :class:`~node.world.World`.

    Make it inside the event loop. After :meth:`run`, ``finals`` holds each node's final model by node, and ``lost``
    what became of the nodes that have none.

    Args:
        nodes: how many.
        seed: the experiment's.
        solver: solves the world's graph, which is its own.
        usage: told what each node spends its time on; None: a new one.
        participants: the nodes, and identities on their devices; None: nodes alone.
        window_tasks: recorded tasks after which what is wanted so far is solved.
        on_window: called whenever that has happened.
        stopwatch: real seconds, to tell what solving costs.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        workload: Workload,
        topology: Topology,
        solver: Solver,
        recorder: Recorder,
        tape: Tape,
        surroundings: Surroundings,
        *,
        usage: Usage | None = None,
        roles: Mapping[int, str],
        participants: Participants | None = None,
        window_tasks: int,
        on_window: Callable[[], None] = lambda: None,
        stopwatch: Callable[[], float] = lambda: 0.0,
    ) -> None:
        clock = asyncio.get_running_loop()
        if not isinstance(clock, VirtualClock):
            raise SimulationError("a simulated world needs a VirtualClock as its event loop")
        clock.tell(self.stories)
        self.clock = clock
        self.solver = solver
        self.graph = solver.graph
        self.workload = workload
        self.topology = topology
        self.seed = seed
        self.initial = self.graph.constant(workload.init.solve(Task((), {}, Key(seed, 0, 0))), workload.model_spec)
        self.finals: dict[int, Ref] = {}
        self.lost: dict[int, str] = {}
        self.shapes = frozenset({workload.model_spec})
        """What a model, or a part of one, may look like in a message that a mod has changed."""
        self.ledger: Ledger | None = None
        self.lineage: Lineage | None = None
        self.mechanisms: Mechanisms | None = None
        self.inference: Inference | None = None
        self.forcing = Forcing(clock, solver, stopwatch)
        self.solving_s = 0.0
        self.recorder = recorder
        self.usage = usage or Usage(nodes)
        self._tape = tape
        self._window_tasks = self._window_end = window_tasks
        self._on_window = on_window
        self._stopwatch = stopwatch
        self.participants = participants or Participants(nodes)
        self._by_role = self.participants.by_role(roles)
        self._topologies: dict[TopologySection, Topology] = {}
        self._parts: tuple[Callable[[], Protocol], Callable[[int], Wrapping | None]]
        self._contexts: list[Context] = []
        self._tasks: list[asyncio.Task[Ref | None] | None] = [None] * self.participants.total
        self._spawned: defaultdict[int, dict[asyncio.Task[None], None]] = defaultdict(dict)
        self._watchers: dict[int, dict[int, None]] = {}
        self._furthest: dict[int, int] = {}
        self._progress = 0
        self._has_ended = False
        self._saved: dict[int, Mapping[str, Any]] = {}
        self._over: asyncio.Future[None] = clock.create_future()
        self._running = self.participants.total
        self._surround(surroundings)

    def _surround(self, surroundings: Surroundings) -> None:
        """Set up what runs the nodes, links them, and makes them go and come."""
        self._surroundings = surroundings
        clock, nodes, devices = self.clock, self.participants.nodes, surroundings.devices
        self.gone: Collection[int] = ()
        self._presence: Presence | None = None
        if surroundings.churn is not None:
            churn = surroundings.churn.of_devices(self.participants)
            self._presence = Presence(churn, self.participants.total, clock, self, surroundings.detect_s)
            self.gone = self._presence.gone
        self.network: network.Network = network.build(
            surroundings.network,
            nodes,
            self.seed,
            clock,
            up_bps=devices.up_bps,
            down_bps=devices.down_bps,
            sent=self.usage.sent,
            lost=lambda to, sender, size: self.mail.lose((to, sender, size)),
        )
        self.labour = Labour(
            clock, self.graph, self.workload, surroundings, self._presence, self._tape, self.usage, self.participants
        )
        if not self.participants.are_nodes_alone:
            self.network = Wiring(self.network, clock, self.participants)
        self.mail = Mail(clock, self.network, self._tape, self._contexts, self._fail, self._presence, self.participants)
        if surroundings.garbage:
            self.mail.garbling = Garbling(surroundings.garbage, self.seed, self.participants.device)

    async def run(self, protocol: Callable[[], Protocol], wrapping: Callable[[int], Wrapping | None]) -> None:
        """Run one protocol instance on every node until all have ended, then solve what was recorded."""
        self._parts = (protocol, wrapping)
        nodes = len(self._tasks)
        protocols: list[Protocol] = []
        for node in range(nodes):
            ctx, made = self._context(node)
            self._contexts.append(ctx)
            protocols.append(made)
        self.mail.open(protocols[0].handlers, self.shapes, self.lineage is not None)
        with lean_garbage_collection(nodes):
            try:
                if self._presence is None:
                    for ctx in self._contexts:
                        self._begin(ctx)
                else:
                    self._presence.begin()
                protocols.clear()
                gc.freeze()  # what lasts for the whole run need not be looked at by every collection
                await self._over
            finally:
                for task in [*self._tasks, *itertools.chain(*self._spawned.values())]:
                    if task is not None:
                        task.cancel()
            self._close()

    def _context(self, node: int) -> tuple[Context, Protocol]:
        make, wrapping = self._parts
        true = self.clock if self._presence is None else self._presence.clocks[node]
        clock = self._surroundings.clock(self.participants.device(node), true)
        try:
            protocol = make()
            return Context(node, self, protocol, wrapping(node), clock), protocol
        except StarlingError:
            raise
        except Exception as error:
            raise _failure(node, error) from error

    def _begin(self, ctx: Context) -> None:
        task = self.clock.create_task(ctx.run(), name=f"node-{ctx.me}")
        task.add_done_callback(self._ended)
        self._tasks[ctx.me] = task

    def _close(self) -> None:
        """The run is over: account for the rest, and solve what is still wanted."""
        if self._presence is not None:
            for node, since_s in self._presence.offline():
                self.returned(node, since_s)
        self.labour.close()
        self.recorder.keep_last()
        self.solve([*self.recorder.wanted(), *self.finals.values()])
        self.solver.keep()

    def solve(self, wanted: Sequence[Ref]) -> None:
        """Solve some values, and fill in what was recorded."""
        began_s = self._stopwatch()
        self.solver.solve([*wanted, *self.recorder.wanted()])
        self.recorder.settle(self.graph.values)
        self.solving_s += self._stopwatch() - began_s

    def _ended(self, task: asyncio.Task[Ref | None]) -> None:
        if task.cancelled():
            return
        node = int(task.get_name().removeprefix("node-"))
        error = task.exception()
        if error is not None:
            self._fail(node, error)
            return
        self._tape.note(self.clock.now, _ENDED, node)
        final = task.result()
        if final is not None:
            self.finals[node] = final
        if self._presence is not None:
            self._presence.ended(node)
            self._progress += 1
            self._has_ended = True
        self._one_less()

    def _one_less(self) -> None:
        self._running -= 1
        if not self._running and not self._over.done():
            self._over.set_result(None)

    def _fail(self, node: int, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error if isinstance(error, StarlingError) else _failure(node, error))

    def stories(self) -> Iterator[str]:
        """What every waiting node waits for, and what every stalled transfer."""
        for ctx in self._contexts:
            if self._presence is None or self._presence.is_online(ctx.me):
                yield from ctx.stories()
        yield from self.network.stories()

    # Nodes that go and come

    def enter(self, node: int) -> None:
        """A node runs its protocol, from what it has saved."""
        before = self._contexts[node]
        self.mail.refusals.forget(node)
        ctx, _ = self._context(node)
        ctx.succeed(before)
        self._contexts[node] = ctx
        self._begin(ctx)

    def leave(self, node: int, what: str) -> None:
        """A node is gone: what it was computing, sending and receiving is lost."""
        for task in (self._tasks[node], *self._spawned.get(node, ())):
            if task is not None:
                task.cancel()
        self.network.cut(node)
        self.labour.cut(node)
        if what == "leave":
            watchers = tuple(self._watchers.get(node, {}))
            self.network.carry(node, watchers, 0, self._hear_goodbye, self.clock.now)
            if not watchers:
                self._hear_goodbye((node, node, self.clock.now, 0))

    def _hear_goodbye(self, arg: tuple[int, int, float, int]) -> None:
        hearer, node, since_s, _ = arg
        assert self._presence is not None
        if self._presence.forget(node, since_s):
            self._contexts[hearer].give_up(node)
            self.tell(node)  # also those who have begun to wait since

    def returned(self, node: int, since_s: float) -> None:
        """A node that was away since then is back."""
        self.labour.put_off(node, since_s)
        if node < self.participants.nodes:
            self.usage.offline(node, since_s, self.clock.now)

    def tell(self, node: int) -> None:
        """Those who wait for a node learn that it is gone."""
        for watcher in self._watchers.pop(node, {}):
            self._contexts[watcher].give_up(node)

    def abandon(self, node: int, how: str) -> None:
        """A node is gone for good."""
        self.lost[node] = how
        if self._running == 1 and not self._has_ended and not self._over.done():
            self._over.set_exception(
                Deadlock(f"at {self.clock.now:g} s every node is away for good, and none has ended")
            )
        self._one_less()

    def progress(self) -> int:
        """How far the nodes are: rounds that were recorded for the first time, and nodes that have ended."""
        return self._progress

    def _is_stale(self, ctx: Context) -> bool:
        """Whether a context is of a node that has gone since: what its last breath asks for does not happen."""
        if self._presence is None:
            return False
        return self._contexts[ctx.me] is not ctx or not self._presence.is_online(ctx.me)

    # What a context sees

    def peers(self, role: str | None) -> tuple[int, ...]:
        """All peers of a role, or all virtual nodes, sorted."""
        return self._by_role.get(role, ())

    def topology_of(self, section: TopologySection) -> Topology:
        """Another topology over the same nodes; built once."""
        if section not in self._topologies:
            self._topologies[section] = build(section, self.participants.peers, self.seed)
        return self._topologies[section]

    def train(self, ctx: Context, task: Ref, model: Ref, steps: int, samples: float | None = None) -> Awaitable[Ref]:
        """Let the device's time for so many steps pass."""
        if self.graph.recorded >= self._window_end:
            self._close_window()
        return self.labour.begin(ctx, task, model, steps, samples)

    def evaluating(self, ctx: Context, on: str) -> None:
        """An evaluation was asked for."""
        self.labour.evaluate(ctx, on)

    def _close_window(self) -> None:
        self._window_end = self.graph.recorded + self._window_tasks
        self.solve(())
        self.solver.close_window()
        self._on_window()

    def send(self, ctx: Context, to: Sequence[int], message: Message, request: int = 0) -> Awaitable[None]:
        """Put a message on its way to each peer."""
        if self._presence is None or not self._is_stale(ctx):
            self.mail.send(ctx, to, message, request, 0)
        return _DONE

    def answer(self, ctx: Context, to: int, message: Message, reply: int) -> None:
        """Put an answer on its way."""
        self.mail.send(ctx, (to,), message, 0, reply)

    def value(self, ref: Ref) -> Awaitable[Value]:
        """Solve just what a value needs, while time stands still."""
        return self.forcing.value(ref)

    def solved(self, refs: Sequence[Ref]) -> Awaitable[None]:
        """Solve what several values need, in one go."""
        return self.forcing.solved(refs)

    def record(self, ctx: Context, round: int, fields: Mapping[str, Ref | float]) -> None:
        """Keep some metrics of a node's round."""
        if self._presence is not None:
            if self._is_stale(ctx):
                return
            self._progress += round > self._furthest.get(ctx.me, -1)
            self._furthest[ctx.me] = max(round, self._furthest.get(ctx.me, -1))
        self.recorder.add(self.clock.now, ctx.me, round, fields)

    def watch(self, ctx: Context, peers: Sequence[int]) -> None:
        """Tell a node when one of these goes."""
        if self._presence is not None:
            for peer in peers:
                self._watchers.setdefault(peer, {})[ctx.me] = None

    def spawn(self, ctx: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run work beside a node's ``run``."""
        task = self.clock.create_task(work, name=f"node-{ctx.me}")
        self._spawned[self._group(ctx.me)][task] = None
        task.add_done_callback(self._spawn_ended)

    def _group(self, node: int) -> int:
        """Where a node's spawned tasks are: by themselves only where the node may go, and they with it."""
        return 0 if self._presence is None else node

    def _spawn_ended(self, task: asyncio.Task[None]) -> None:
        node = int(task.get_name().removeprefix("node-"))
        group = self._group(node)
        del self._spawned[group][task]
        if not self._spawned[group]:
            del self._spawned[group]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(node, error)

    def save(self, ctx: Context, state: Mapping[str, Any]) -> Awaitable[None]:
        """Keep a node's state, unless its disk is full; where nobody ever goes, nobody will ask for it."""
        is_full = self._surroundings.is_disk_full(self.participants.device(ctx.me), self.clock.now)
        if self._presence is not None and not self._is_stale(ctx) and not is_full:
            self._saved[ctx.me] = dict(state)
        return _DONE

    def load(self, ctx: Context) -> Mapping[str, Any] | None:
        """What the node saved last."""
        return self._saved.get(ctx.me)


def _failure(node: int, error: BaseException) -> ProtocolError:
    failure = ProtocolError(f"node {node}: {cannot_go_on(error)}")
    failure.__cause__ = error
    return failure
