"""The simulated world: all nodes of an experiment in one process, on one virtual clock, over one compute graph."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from node import codec
from node.clock import Priority, VirtualClock
from node.config import DevicesSection, NetworkSection, TopologySection
from node.context import Context
from node.errors import ProtocolError, SimulationError, StarlingError
from node.graph import Graph
from node.mailbox import Mailbox
from node.message import Message
from node.mods import Wrapping
from node.op import Key, Ref, Task, Value
from node.protocol import Protocol
from node.record import Recorder
from node.sim.devices import per_node
from node.sim.network import Network
from node.solver import Executor, Solver
from node.tape import EventKind, Tape
from node.topology import Topology, build
from node.world import Done, Workload, cannot_go_on

_SENT: Done[None] = Done(None)
_TRAINED, _DELIVERED, _ENDED = int(EventKind.TRAINED), int(EventKind.DELIVERED), int(EventKind.ENDED)


@contextmanager
def lean_garbage_collection(nodes: int) -> Iterator[None]:
    """Collect about once a round while a run makes millions of short-lived objects, few of them in cycles."""
    before = gc.get_threshold()
    if nodes >= 1_000:
        gc.collect()  # what an earlier run of this size may have left; with few nodes that takes longer than the run
    gc.freeze()
    gc.set_threshold(max(100_000, 25 * nodes), 50, 50)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


class SimWorld:
    """Runs the nodes of one experiment in virtual time; a :class:`~node.world.World`.

    Make it inside the event loop. After :meth:`run`, ``finals`` holds each node's final model by node.

    Args:
        nodes: how many.
        seed: the experiment's.
        window_tasks: recorded tasks after which what is wanted so far is solved.
        on_window: called whenever that has happened.
    """

    def __init__(
        self,
        nodes: int,
        seed: int,
        workload: Workload,
        topology: Topology,
        executor: Executor,
        recorder: Recorder,
        tape: Tape,
        *,
        devices: DevicesSection,
        network: NetworkSection,
        roles: Mapping[int, str],
        window_tasks: int,
        on_window: Callable[[], None] = lambda: None,
    ) -> None:
        clock = asyncio.get_running_loop()
        if not isinstance(clock, VirtualClock):
            raise SimulationError("a simulated world needs a VirtualClock as its event loop")
        clock.tell(self.stories)
        self.clock = clock
        self.graph = Graph(seed)
        self.solver = Solver(self.graph, executor)
        self.workload = workload
        self.topology = topology
        self.seed = seed
        self.initial = self.graph.constant(workload.init.solve(Task((), {}, Key(seed, 0, 0))), workload.model_spec)
        self.finals: dict[int, Ref] = {}
        self.messages = 0
        self.bytes_sent = 0
        self.forced_solves = 0
        self.recorder = recorder
        self._note, self._take = tape.note, tape.take
        self._flush_tape = tape.flush_when_full
        self._network = Network(network, nodes, seed)
        self._seconds_per_sample = per_node(devices.seconds_per_sample, nodes, seed, "seconds_per_sample")
        self._window_tasks = window_tasks
        self._on_window = on_window
        self._window_end = window_tasks
        self._by_role = _by_role(nodes, roles)
        self._topologies: dict[TopologySection, Topology] = {}
        self._contexts: list[Context] = []
        self._mailboxes: list[Mailbox] = []
        self._handled: Mapping[type[Message], object] = {}
        self._wrapped = False
        self._spawned: set[asyncio.Task[None]] = set()
        self._saved: dict[int, Mapping[str, Any]] = {}
        self._over: asyncio.Future[None] = clock.create_future()
        self._running = 0

    async def run(self, protocol: Callable[[], Protocol], wrapping: Callable[[int], Wrapping | None]) -> None:
        """Run one protocol instance on every node until all have ended, then solve what was recorded."""
        nodes = len(self._by_role[None])
        protocols = [self._enter(node, protocol, wrapping) for node in range(nodes)]
        self._mailboxes = [ctx.mailbox for ctx in self._contexts]
        self._wrapped = any(ctx.is_wrapped for ctx in self._contexts)
        self._handled = protocols[0].handlers
        self._running = nodes
        tasks: list[asyncio.Task[Ref | None]] = []
        with lean_garbage_collection(nodes):
            try:
                for node, ctx in enumerate(self._contexts):
                    task = self.clock.create_task(protocols[node].run(ctx), name=f"node-{node}")
                    task.add_done_callback(self._ended)
                    tasks.append(task)
                gc.freeze()  # what lasts for the whole run need not be looked at by every collection
                await self._over
            finally:
                for task in [*tasks, *self._spawned]:
                    task.cancel()
            self.recorder.keep_last()
            self.solve([*self.recorder.wanted(), *self.finals.values()])

    def _enter(self, node: int, make: Callable[[], Protocol], wrapping: Callable[[int], Wrapping | None]) -> Protocol:
        try:
            protocol = make()
            self._contexts.append(Context(node, self, protocol, wrapping(node)))
        except StarlingError:
            raise
        except Exception as error:
            raise _failure(node, error) from error
        return protocol

    def solve(self, wanted: Sequence[Ref]) -> None:
        """Solve some values, and fill in what was recorded."""
        self.solver.solve([*wanted, *self.recorder.wanted()])
        self.recorder.settle(self.graph.values)

    def _ended(self, task: asyncio.Task[Ref | None]) -> None:
        if task.cancelled():
            return
        node = int(task.get_name().removeprefix("node-"))
        error = task.exception()
        if error is not None:
            self._fail(node, error)
            return
        self._note(self.clock.now, _ENDED, node)
        final = task.result()
        if final is not None:
            self.finals[node] = final
        self._running -= 1
        if not self._running and not self._over.done():
            self._over.set_result(None)

    def _fail(self, node: int, error: BaseException) -> None:
        if not self._over.done():
            self._over.set_exception(error if isinstance(error, StarlingError) else _failure(node, error))

    def stories(self) -> Iterator[str]:
        """What every waiting node waits for."""
        for ctx in self._contexts:
            yield from ctx.stories()

    # What a context sees

    def peers(self, role: str | None) -> tuple[int, ...]:
        """All nodes of a role, sorted."""
        return self._by_role.get(role, ())

    def topology_of(self, section: TopologySection) -> Topology:
        """Another topology over the same nodes; built once."""
        if section not in self._topologies:
            self._topologies[section] = build(section, len(self._by_role[None]), self.seed)
        return self._topologies[section]

    def train(self, ctx: Context, model: Ref, steps: int) -> Awaitable[Ref]:
        """Let the device's time for so many steps pass."""
        if self.graph.recorded >= self._window_end:
            self._close_window()
        node = ctx.me
        seconds = self.workload.samples(node, steps) * self._seconds_per_sample[node]
        future: asyncio.Future[Ref] = self.clock.create_future()
        self.clock.post(seconds, self._trained, (future, model, node), Priority.TIMER)
        return future

    def _trained(self, arg: tuple[asyncio.Future[Ref], Ref, int]) -> None:
        future, model, node = arg
        self._note(self.clock.now, _TRAINED, node)
        if not future.done():
            future.set_result(model)

    def _close_window(self) -> None:
        self._window_end = self.graph.recorded + self._window_tasks
        self.solve(())
        self._on_window()

    def send(self, ctx: Context, to: Sequence[int], message: Message, request: int = 0) -> Awaitable[None]:
        """Put a message on its way to each peer."""
        self._transmit(ctx, to, message, request, 0)
        return _SENT

    def answer(self, ctx: Context, to: int, message: Message, reply: int) -> None:
        """Put an answer on its way."""
        self._transmit(ctx, (to,), message, 0, reply)

    def _transmit(self, ctx: Context, to: Sequence[int], message: Message, request: int, reply: int) -> None:
        if to and not (min(to) >= 0 and max(to) < len(self._contexts)):
            raise ProtocolError(f"node {ctx.me} sends to {list(to)}; nodes are numbered 0 to {len(self._contexts) - 1}")
        self._flush_tape()
        size = codec.size_bytes(message, request, reply)
        me = ctx.me
        post = self.clock.post
        delays_s = self._network.delays_s(me, to, size)
        if reply or self._wrapped or type(message) in self._handled:
            for peer, delay_s in zip(to, delays_s, strict=True):
                post(delay_s, self._deliver, (peer, me, message, size, request, reply))
        else:
            for peer, delay_s in zip(to, delays_s, strict=True):
                post(delay_s, self._deposit, (peer, me, message, size))
        sent = size * len(to)
        ctx.bytes_sent += sent
        self.bytes_sent += sent
        self.messages += len(to)

    def _deposit(self, arg: tuple[int, int, Message, int]) -> None:
        """Deliver to the mailbox at once, where there is no mod, observer, handler or request: most messages."""
        to, sender, message, size = arg
        self._take((self.clock.now, _DELIVERED, to, sender, size))
        self._mailboxes[to].put(sender, message)

    def _deliver(self, arg: tuple[int, int, Message, int, int, int]) -> None:
        to, sender, message, size, request, reply = arg
        self._note(self.clock.now, _DELIVERED, to, sender, size)
        try:
            self._contexts[to].deliver(sender, message, request, reply)
        except Exception as error:
            self._fail(to, error)

    def value(self, ref: Ref) -> Awaitable[Value]:
        """Solve just what a value needs, while time stands still."""
        if not self.graph.is_solved(ref.id):
            self.forced_solves += 1
        return Done(self.solver.value(ref))

    def record(self, ctx: Context, round: int, fields: Mapping[str, Ref | float]) -> None:
        """Keep some metrics of a node's round, and what it has sent so far."""
        self.recorder.add(self.clock.now, ctx.me, round, {**fields, "bytes_sent": ctx.bytes_sent})

    def watch(self, peers: Sequence[int]) -> None:
        """Nothing to do: a simulated loss is told to all."""

    def spawn(self, ctx: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run work beside a node's ``run``."""
        task = self.clock.create_task(work, name=f"node-{ctx.me}")
        self._spawned.add(task)
        task.add_done_callback(self._spawn_ended)

    def _spawn_ended(self, task: asyncio.Task[None]) -> None:
        self._spawned.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(int(task.get_name().removeprefix("node-")), error)

    def save(self, ctx: Context, state: Mapping[str, Any]) -> Awaitable[None]:
        """Keep a node's state."""
        self._saved[ctx.me] = dict(state)
        return _SENT

    def load(self, ctx: Context) -> Mapping[str, Any] | None:
        """What the node saved last."""
        return self._saved.get(ctx.me)


def _by_role(nodes: int, roles: Mapping[int, str]) -> dict[str | None, tuple[int, ...]]:
    by_role: dict[str | None, list[int]] = {None: list(range(nodes))}
    for node in range(nodes):
        by_role.setdefault(roles.get(node, "learner"), []).append(node)
    return {role: tuple(members) for role, members in by_role.items()}


def _failure(node: int, error: BaseException) -> ProtocolError:
    failure = ProtocolError(f"node {node}: {cannot_go_on(error)}")
    failure.__cause__ = error
    return failure
