"""The live world: one node in this process, on the wall clock, over its own compute graph and a transport."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from node import codec
from node.clock import WallClock
from node.codec import Encoded, Header
from node.config import TopologySection
from node.context import Context
from node.drifting import Drift, DriftingClock
from node.errors import BadFrame, NotAMember, TransportError, Unreachable
from node.graph import Graph
from node.inference import Inference
from node.live.beginning import Beginning
from node.live.checkpoints import Checkpoints
from node.live.parcels import Parcels
from node.live.steps import Steps
from node.live.transport import Transport
from node.live.waits import TimedMailbox
from node.message import Message
from node.mods import Wrapping
from node.op import Key, Ref, Spec, Task, Value
from node.participants import Participants
from node.private import Mechanisms
from node.protocol import Protocol
from node.record import Recorder
from node.solver import Executor, Plan, explain
from node.tape import EventKind, Tape
from node.topology import Topology, build
from node.world import Done, Ledger, Lineage, Workload

_MOST_ANSWERS = 64
"""Answers to one peer that may wait to be solved and sent."""


class Tensors(NamedTuple):
    """How values become bytes and back, so that this package need not know the tensor library."""

    to_buffer: Callable[[Value], memoryview]
    from_buffer: Callable[[memoryview, Spec], Value]


class LiveWorld:
    """Runs one node among its peers; a :class:`~node.world.World`.

    Make it inside the event loop. The transport's ``on_message``, ``on_lost`` and ``on_back`` must be :meth:`receive`,
    :meth:`lose` and :meth:`regain`. Ops run in one worker thread, so that the loop goes on answering; the graph belongs
    to the loop.
    """

    drifts: Sequence[Drift] = ()
    """How the clock runs that the protocol sees."""
    took: Callable[[str, float], None] = staticmethod(lambda what, seconds: None)
    """Told how long a ``round``, ``mix``, ``wait`` or ``checkpoint`` has taken, in s."""
    partial_waits = 0
    """How often the protocol has gone on without some that it waited for."""
    _newest_round = (-1, 0.0)

    def __init__(
        self,
        me: int,
        nodes: int,
        seed: int,
        workload: Workload,
        topology: Topology,
        executor: Executor,
        recorder: Recorder,
        tape: Tape,
        *,
        tensors: Tensors,
        roles: Mapping[int, str],
        participants: Participants | None = None,
        checkpoints: Checkpoints,
        on_settled: Callable[[], None] = lambda: None,
    ) -> None:
        self.me = me
        self.clock = WallClock(asyncio.get_running_loop())
        self.graph = Graph(seed)
        self.workload = workload
        self.topology = topology
        self.seed = seed
        self.initial = self.graph.constant(workload.init.solve(Task((), {}, Key(seed, 0, 0))), workload.model_spec)
        self.gone: Collection[int] = ()
        self.ledger: Ledger | None = None
        self.lineage: Lineage | None = None
        self.mechanisms: Mechanisms | None = None
        self.inference: Inference | None = None
        self.shapes = frozenset({workload.model_spec})
        """What a model, or a part of one, in a message may look like."""
        self.recorder = recorder
        self.tape = tape
        self.batches = self.forced_solves = self.messages = self.bytes_sent = 0
        self.traffic: Counter[str] = Counter()
        """Bytes sent, by the wire name of messages."""
        self.refused_messages = 0
        self._dropped: Counter[tuple[str, str]] = Counter()
        self.steps = Steps()
        self.transport: Transport | None = None
        self.parcels: Parcels | None = None
        """How whole models go that are large; None: as messages, too."""
        self.elapsed_s = 0.0
        """For how long the run has been going on when this node begins."""
        self.participants = participants or Participants(nodes)
        self._by_role = self.participants.by_role(roles)
        self._executor = executor
        self._tensors = tensors
        self._checkpoints = checkpoints
        self._on_settled = on_settled
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="solve")
        self._solving = asyncio.Lock()
        self._answering: Counter[int] = Counter()
        self._topologies: dict[TopologySection, Topology] = {}
        self._beginning = Beginning()
        self._tasks: set[asyncio.Task[None]] = set()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails when a handler, a mod or spawned work does, also after ``run`` has ended."""

    async def run(self, protocol: Protocol, wrapping: Wrapping | None) -> Value | None:
        """Take part until the protocol has ended; gives the final model's value. Handlers go on answering after it."""
        self.clock.start(self.elapsed_s)
        clock = DriftingClock(self.clock, self.drifts) if self.drifts else None
        ctx = Context(self.me, self, protocol, wrapping, clock)
        ctx.mailbox = TimedMailbox(self.me, clock or self.clock, self._waited)
        self._newest_round = (-1, time.monotonic())
        running = asyncio.ensure_future(ctx.run())
        try:
            await asyncio.sleep(0)  # the protocol's first step: its state is set up before a handler can see it
            self._beginning.begin(ctx)
            self.failure.add_done_callback(lambda _: running.cancel())
            try:
                final = await running
            except asyncio.CancelledError:
                if self.failure.done():
                    self.failure.result()
                raise
        finally:
            running.cancel()
        self.tape.note(self.clock.time(), EventKind.ENDED, self.me)
        self.recorder.keep_last()
        await self._settle()
        return None if final is None else await self._solved(final)

    @property
    def dropped(self) -> Mapping[tuple[str, str], int]:
        """Messages that were given up, by queue and reason."""
        ctx = self._beginning.context
        late = 0 if ctx is None else ctx.mailbox.late
        return {("mailbox", "late"): late, ("early", "full"): self._beginning.refused, **self._dropped}

    def _waited(self, seconds: float, is_partial: bool) -> None:
        self.partial_waits += is_partial
        self.took("wait", seconds)

    async def close(self, wait: bool = True) -> None:
        """End the work beside ``run``, and the worker thread.

        An op cannot be interrupted: without ``wait`` the thread ends after this, or with the process.
        """
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._worker.shutdown(wait=wait, cancel_futures=True)
        if self.lineage is not None:
            self.lineage.close()
        if self.failure.done():
            self.failure.exception()

    # What comes from the transport

    def receive(self, sender: int, header: Header, buffers: Sequence[memoryview]) -> None:
        """Take in a message from the wire. A model of the wrong shape is refused: it could only do harm."""
        try:
            if not header.type.any_shape:
                self._check_shapes(header)
            message = codec.decode(header, buffers, self._received)
        except TransportError as error:
            self.refused_messages += 1
            if self.transport is not None:
                self.transport.refuse(sender, str(error))
            return
        self.tape.note(self.clock.time(), EventKind.DELIVERED, self.me, sender, header.size_bytes)
        self._beginning.when_begun(lambda ctx: self._deliver(ctx, sender, message, header.request, header.reply))

    def _deliver(self, ctx: Context, sender: int, message: Message, request: int, reply: int) -> None:
        try:
            ctx.deliver(sender, message, request, reply)
        except Exception as error:  # of a handler or a mod: it is the node's
            self._fail(error)

    def _check_shapes(self, header: Header) -> None:
        for spec in header.specs:
            if spec not in self.shapes:
                raise BadFrame(
                    f"{header.type.wire_name} carries {spec.dtype}{list(spec.shape)}, but a model here is "
                    f"{self.workload.model_spec.dtype}{list(self.workload.model_spec.shape)}"
                )

    def _received(self, buffer: memoryview, spec: Spec) -> Ref:
        ref = self.graph.constant(self._tensors.from_buffer(buffer, spec), spec)
        if self.lineage is not None:
            self.lineage.came(self.me, ref, buffer)
        return ref

    def lose(self, peer: int) -> None:
        """A peer has gone."""
        self.tape.note(self.clock.time(), EventKind.LOST, self.me, peer)
        self._beginning.when_begun(lambda ctx: ctx.lose(peer))

    def regain(self, peer: int) -> None:
        """A peer that had gone is there again."""
        self._beginning.when_begun(lambda ctx: ctx.regain(peer))

    # Solving

    async def _solve(self, wanted: Sequence[Ref]) -> None:
        async with self._solving:
            plan = Plan(self.graph, wanted)
            loop = asyncio.get_running_loop()
            try:
                while batch := plan.next_batch():
                    began_s = time.monotonic()
                    try:
                        values = await loop.run_in_executor(self._worker, self._executor.solve, batch.op, batch.tasks)
                    except Exception as error:
                        raise explain(batch, self.graph, error) from error
                    if batch.op is self.workload.mix:
                        self.took("mix", time.monotonic() - began_s)
                    self.batches += 1
                    plan.commit(batch, values)
            finally:
                plan.abandon()
            self.graph.retire()

    async def _solved(self, ref: Ref) -> Value:
        if not self.graph.is_solved(ref.id):
            await self._solve([ref])
        return self.graph.values[ref.id]

    async def _settle(self) -> None:
        await self._solve(self.recorder.wanted())
        self.recorder.settle(self.graph.values)
        self._on_settled()

    # What a context sees

    def peers(self, role: str | None) -> tuple[int, ...]:
        """All peers of a role, or all virtual nodes, sorted."""
        return self._by_role.get(role, ())

    def topology_of(self, section: TopologySection) -> Topology:
        """Another topology over the same nodes; built once."""
        if section not in self._topologies:
            self._topologies[section] = build(section, self.participants.peers, self.seed)
        return self._topologies[section]

    async def train(self, ctx: Context, task: Ref, model: Ref, steps: int, samples: float | None = None) -> Ref:
        """Train in the worker thread, unless steps are held."""
        async with self.steps.next():
            await self._solve([model])
        self.tape.note(self.clock.time(), EventKind.TRAINED, self.me)
        return model

    def evaluating(self, ctx: Context, on: str) -> None:
        """Nothing to do: real time passes by itself."""

    def send(self, ctx: Context, to: Sequence[int], message: Message, request: int = 0) -> Awaitable[None]:
        """Solve what the message refers to, and queue it for each peer; goes on whether or not it is awaited."""
        return self._begin(self._transmit(ctx, to, message, request, 0))

    def answer(self, ctx: Context, to: int, message: Message, reply: int) -> None:
        """Send an answer beside whatever goes on; a peer that asks for more than it takes gets no more answers."""
        if self._answering[to] >= _MOST_ANSWERS:
            self.refused_messages += 1
            self._dropped["answers", "full"] += 1
            ctx.log.warning("request not answered", peer=to, message=message.wire_name, unsent=self._answering[to])
            return
        self._answering[to] += 1
        task = self._begin(self._transmit(ctx, (to,), message, 0, reply))
        task.add_done_callback(lambda _: self._answering.subtract((to,)))

    async def _transmit(self, ctx: Context, to: Sequence[int], message: Message, request: int, reply: int) -> None:
        refs = codec.refs(message)
        if any(not self.graph.is_solved(ref.id) for ref in refs):
            await self._solve(refs)
        encoded = codec.encode(message, self._buffer_of, request, reply)
        # All at once: a peer whose queue is full must not keep the message from the others.
        await asyncio.gather(*[self._send_to(ctx, peer, message, encoded, request, reply) for peer in to])

    async def _send_to(
        self, ctx: Context, peer: int, message: Message, encoded: Encoded, request: int, reply: int
    ) -> None:
        if not self.participants.is_own(self.me, peer):
            self.messages += 1
            ctx.bytes_sent += encoded.size_bytes
            self.bytes_sent += encoded.size_bytes
            self.traffic[message.wire_name] += encoded.size_bytes
        if peer == self.me:
            asyncio.get_running_loop().call_soon(self._deliver, ctx, self.me, message, request, reply)
            return
        assert self.transport is not None
        try:
            way = self.parcels if message.whole and self.parcels is not None else self.transport
            await way.send(peer, encoded, keep=message)
        except (Unreachable, NotAMember) as error:
            ctx.log.debug("message lost", peer=peer, message=message.wire_name, reason=str(error))

    def _buffer_of(self, ref: Ref) -> memoryview:
        buffer = self._tensors.to_buffer(self.graph.values[ref.id])
        if self.lineage is not None:
            self.lineage.left(self.me, ref, buffer)
        return buffer

    async def value(self, ref: Ref) -> Value:
        """Solve a value in the worker thread."""
        if not self.graph.is_solved(ref.id):
            self.forced_solves += 1
        return await self._solved(ref)

    async def solved(self, refs: Sequence[Ref]) -> None:
        """Solve several values in the worker thread."""
        missing = [ref for ref in refs if not self.graph.is_solved(ref.id)]
        self.forced_solves += len(missing)
        await self._solve(missing)

    def record(self, ctx: Context, round: int, fields: Mapping[str, Ref | float]) -> None:
        """Keep some metrics, and solve them soon."""
        self.recorder.add(self.clock.time(), ctx.me, round, fields)
        newest, since_s = self._newest_round
        if round > newest:
            self._newest_round = (round, time.monotonic())
            self.took("round", time.monotonic() - since_s)
        self.spawn(ctx, self._settle())

    def watch(self, ctx: Context, peers: Sequence[int]) -> None:
        """Notice when one of these peers goes."""
        assert self.transport is not None
        self.transport.watch([peer for peer in peers if peer != self.me])

    def spawn(self, ctx: Context, work: Coroutine[Any, Any, None]) -> None:
        """Run work beside ``run``; its failure is the node's."""
        self._begin(work)

    def _begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._spawn_ended)
        return task

    def _spawn_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not self.failure.done():
            self.failure.set_exception(error)

    def save(self, ctx: Context, state: Mapping[str, Any]) -> Awaitable[None]:
        """Solve and keep a node's state."""
        return self._save(state) if self._checkpoints.is_kept else Done(None)

    async def _save(self, state: Mapping[str, Any]) -> None:
        refs = {name: value for name, value in state.items() if isinstance(value, Ref)}
        await self._settle()  # who is killed and goes on after this round must have told what it measured in it
        await self._solve(list(refs.values()))
        tensors = {name: (ref.spec, bytes(self._buffer_of(ref))) for name, ref in refs.items()}
        plain = {name: value for name, value in state.items() if name not in refs}
        loop = asyncio.get_running_loop()
        began_s = time.monotonic()
        if await loop.run_in_executor(self._worker, self._checkpoints.save, plain, tensors):
            self.took("checkpoint", time.monotonic() - began_s)
            self.steps.kept()

    def load(self, ctx: Context) -> Mapping[str, Any] | None:
        """What was saved last; tensors come back as Refs."""
        saved = self._checkpoints.load()
        if saved is None:
            return None
        plain, tensors = saved
        ctx.log.info("restored", round=plain.get("round"))
        return {**plain, **{name: self._received(memoryview(data), spec) for name, (spec, data) in tensors.items()}}
