"""The only door of a protocol: time, randomness, peers, messages, compute and recording.

A protocol cannot tell from its context whether time is real. Whatever takes time is awaited; whatever is only recorded
(``mix``, ``evaluate``, ``apply``) returns a :class:`~node.op.Ref` at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import structlog

from node.clock import Clock, Priority, check_wait
from node.config import TopologySection
from node.errors import ProtocolError, Unreachable
from node.mailbox import Mailbox, slot_of
from node.message import Message
from node.mods import Wrapping
from node.op import Key, Op, Ref, Value
from node.protocol import Protocol
from node.requests import Requests
from node.topology import Topology
from node.world import Done, LocalData, World

M = TypeVar("M", bound=Message)

_RNG_COUNTER = 2**32 - 1
"""The counter of a node's own generator; tasks count up from 0 and never reach it."""

_COUNTER, _TRAINS = ".counter", ".trains"
"""What a checkpoint keeps besides the protocol's state, under names that no keyword argument can have."""


_MIXED_AT_ONCE = 32
"""A longer sum is recorded in parts, the same to the last bit: it can then consume models as they are trained."""


class Context:
    """What one node's protocol sees of the world."""

    __slots__ = (
        "_clock",
        "_counter",
        "_has_saved",
        "_lost",
        "_protocol",
        "_requests",
        "_resumed",
        "_rng",
        "_trains",
        "_world",
        "_wrapping",
        "bytes_sent",
        "mailbox",
        "me",
    )

    def __init__(
        self, me: int, world: World, protocol: Protocol, wrapping: Wrapping | None = None, clock: Clock | None = None
    ) -> None:
        self.me = me
        self._clock = clock or world.clock
        self.mailbox = Mailbox(me, self._clock)
        self.bytes_sent = 0
        self._world = world
        self._protocol = protocol
        self._wrapping = wrapping
        self._counter = 0
        self._has_saved = False
        self._resumed = 0
        self._trains = 0
        self._rng: np.random.Generator | None = None
        self._requests: Requests | None = None
        self._lost: tuple[int, ...] = ()

    # Time and randomness

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock.time()

    @property
    def rng(self) -> np.random.Generator:
        """This node's generator: the same sequence in every run of the experiment, a fresh one after a restore."""
        if self._rng is None:
            self._rng = Key(self._world.seed, self.me, _RNG_COUNTER - self._resumed).rng()
        return self._rng

    @property
    def log(self) -> structlog.typing.FilteringBoundLogger:
        """A structured log that names this node."""
        log: structlog.typing.FilteringBoundLogger = structlog.get_logger(node=self.me)
        return log

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        check_wait("sleep", seconds)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._clock.post(seconds, _wake, future, Priority.TIMER)
        await future

    def spawn(self, work: Awaitable[None]) -> None:
        """Run ``work`` beside ``run``, until it is done or the whole run is over; its failure is the node's."""
        self._world.spawn(self, work if asyncio.iscoroutine(work) else _awaiting(work))

    # Peers

    def peers(self, role: str | None = "learner") -> tuple[int, ...]:
        """All other nodes of a role (None: of any) that are not known to be gone, sorted."""
        me, gone = self.me, self._gone()
        return tuple([peer for peer in self._world.peers(role) if peer != me and peer not in gone])

    def alive(self, peers: Iterable[int]) -> tuple[int, ...]:
        """Those of some peers that are not known to be gone, in their order."""
        gone = self._gone()
        return tuple([peer for peer in peers if peer not in gone])

    def _gone(self) -> Collection[int]:
        return {*self._world.gone, *self._lost} if self._lost else self._world.gone

    def sample(self, k: int, role: str | None = "learner") -> tuple[int, ...]:
        """``k`` different other nodes drawn uniformly (all, where there are fewer), sorted."""
        roster, gone = self._world.peers(role), self._gone()
        if 2 * (k + len(gone) + 1) > len(roster):
            peers = self.peers(role)
            return peers if k >= len(peers) else tuple(sorted(self.rng.choice(peers, k, replace=False).tolist()))
        drawn: set[int] = set()
        while len(drawn) < k:  # most may be drawn: to draw again, where one may not, costs less than to list them
            picks = self.rng.integers(len(roster), size=k - len(drawn)).tolist()
            drawn.update(peer for i in picks if (peer := roster[i]) != self.me and peer not in gone)
        return tuple(sorted(drawn))

    def neighbours(self, round: int = 0, within: TopologySection | None = None) -> tuple[int, ...]:
        """Whom this node sends to in a round, sorted; ``within`` another topology than the experiment's."""
        return self._topology(within).neighbours(self.me, round)

    def sources(self, round: int = 0, within: TopologySection | None = None) -> tuple[int, ...]:
        """Who sends to this node in a round, sorted: the neighbours, where the topology is undirected."""
        return self._topology(within).sources(self.me, round)

    def weights(
        self, heard: Collection[int], round: int = 0, within: TopologySection | None = None
    ) -> tuple[float, ...]:
        """Mixing weights: this node's own first, then one for each of ``heard``, in their order; they sum to 1.

        The weight of a source that was not heard goes back to this node's own model.
        """
        topology = self._topology(within)
        own, *rest = topology.weights(self.me, round)
        sources = topology.sources(self.me, round)
        if tuple(heard) == sources:
            return (own, *rest)
        by_peer = dict(zip(sources, rest, strict=True))
        chosen = [by_peer[peer] for peer in heard]
        return (own + sum(by_peer[peer] for peer in sources if peer not in heard), *chosen)

    def _topology(self, within: TopologySection | None) -> Topology:
        return self._world.topology if within is None else self._world.topology_of(within)

    # Messages

    def send(self, to: int | Sequence[int], message: Message) -> Awaitable[None]:
        """Send to one peer or several. Waits only while a peer's queue is full; what goes to a lost peer is lost."""
        peers = to if isinstance(to, Sequence) else (int(to),)
        if self._wrapping is None:
            return self._world.send(self, peers, message)
        return self._send_wrapped(peers, message)

    async def _send_wrapped(self, peers: Iterable[int], message: Message, request: int = 0) -> None:
        assert self._wrapping is not None
        for peer in peers:
            changed = self._wrapping.outgoing(self, peer, message)
            if changed is not None:
                await self._world.send(self, (peer,), changed, request)

    async def request(self, to: int, message: Message, timeout_s: float | None = None) -> Any:
        """Send to a peer and wait for its handler's answer.

        Raises:
            Unreachable: the peer is gone, or goes before it has answered.
            DeadlineExceeded: no answer within ``timeout_s``.
        """
        check_wait("timeout_s", timeout_s)
        if to in self._gone():
            raise Unreachable(f"node {self.me} cannot ask node {to}, which is gone")
        if self._requests is None:
            self._requests = Requests(self.me, self._clock)
        number, future = self._requests.ask(to, message, timeout_s)
        self._world.watch(self, (to,))
        if self._wrapping is None:
            sending = self._world.send(self, (to,), message, number)
        else:
            sending = self._send_wrapped((to,), message, number)
        # Beside the wait for the answer: solving and queueing count towards the deadline too.
        self.spawn(_awaiting(sending))
        try:
            return await future
        finally:
            self._requests.close(number)

    def collect(
        self,
        kind: type[M],
        *,
        frm: Sequence[int] | None = None,
        timeout_s: float | None = None,
        quorum: int | None = None,
        grace_s: float = 0.0,
        **key: Any,
    ) -> Awaitable[dict[int, M]]:
        """Wait for messages of one kind and key; gives them by sender, sorted.

        Over when all of ``frm`` have been heard, ``grace_s`` after a ``quorum`` has, or at ``timeout_s`` with what is
        there. Without quorum and timeout all of ``frm`` are needed.

        Raises:
            Unreachable: one that is needed is gone.
        """
        slot = slot_of(kind, key)
        if timeout_s is not None:
            check_wait("timeout_s", timeout_s)
        if frm is None and quorum is None and timeout_s is None:
            raise ProtocolError(f"collect({kind.__name__}) from anyone never ends: give frm, quorum or timeout_s")
        outcome = self.mailbox.collect(slot, frm, self._gone(), timeout_s=timeout_s, quorum=quorum, grace_s=grace_s)
        if isinstance(outcome, dict):
            return Done(outcome)
        if frm is not None:
            self._world.watch(self, frm)
        return outcome

    # Compute

    def initial_model(self) -> Ref:
        """The model that every node of the experiment starts from."""
        return self._world.initial

    def train(self, model: Ref, steps: int | None = None, proximal: float = 0.0) -> Awaitable[Ref]:
        """Train on this node's data; takes time.

        Args:
            model: where to start.
            steps: training steps; None: as the experiment says.
            proximal: strength of the pull back to ``model`` (FedProx), 0 for none.
        """
        world = self._world
        workload = world.workload
        if not workload.shard_size(self.me):
            raise ProtocolError(f"node {self.me} has no data to train on: its role is not learner")
        if steps is None:
            steps = workload.steps(self.me)
        lr = workload.lr(self._trains)
        self._trains += 1
        task = trained = self.apply(workload.train, model, steps=steps, lr=lr, proximal=proximal)
        if self._wrapping is not None:
            trained = self._wrapping.trained(self, model, task)
        return world.train(self, task, trained, steps)

    def mix(self, models: Sequence[Ref], weights: Sequence[float] | None = None) -> Ref:
        """The weighted sum of models, in the order given; the mean, where no weights are."""
        if not models:
            raise ProtocolError("mix needs at least one model")
        if weights is None:
            weights = (1.0 / len(models),) * len(models)
        elif len(weights) != len(models):
            raise ProtocolError(f"mix got {len(models)} models and {len(weights)} weights")
        mix, weights = self._world.workload.mix, tuple(weights)
        mixed = self.apply(mix, *models[:_MIXED_AT_ONCE], weights=weights[:_MIXED_AT_ONCE])
        for i in range(_MIXED_AT_ONCE, len(models), _MIXED_AT_ONCE):
            part = slice(i, i + _MIXED_AT_ONCE)
            mixed = self.apply(mix, mixed, *models[part], weights=(1.0, *weights[part]))
        return mixed

    def evaluate(self, model: Ref, on: str = "test") -> Ref:
        """Accuracy and loss of a model on the global ``test`` set, or this node's ``local`` test or ``train`` data."""
        self._world.evaluating(self, on)
        return self.apply(self._world.workload.evaluate, model, on=on)

    def apply(self, op: Op[...], *inputs: Ref, **static: Any) -> Ref:
        """Record a pure op on some values; takes no time, and is computed only if somebody needs it."""
        graph = self._world.graph
        self._counter += 1
        return graph.record(graph.call(op, inputs, static), inputs, self.me, self._counter)

    def value(self, ref: Ref) -> Awaitable[Value]:
        """Read a value: solves just what it needs, while virtual time stands still."""
        return self._world.value(ref)

    def record(self, round: int, **fields: Ref | float) -> None:
        """Keep metrics of this node's round: numbers, or Refs of metrics (``accuracy=ctx.evaluate(model)``)."""
        self._world.record(self, round, fields)

    # State

    @property
    def data(self) -> LocalData:
        """What this node may know of its own data."""
        return LocalData(self._world, self.me)

    def checkpoint(self, **state: Ref | float | str) -> Awaitable[None]:
        """Keep named tensors and plain values, so that a restarted node can go on from :meth:`restore`."""
        for name, value in state.items():
            if isinstance(value, Ref) and value.spec.names:
                raise ProtocolError(
                    f"checkpoint({name}=…) takes tensors; read metrics first, with await ctx.value(ref)"
                )
        self._has_saved = True
        return self._world.save(self, {**state, _COUNTER: self._counter, _TRAINS: self._trains})

    def restore(self) -> Mapping[str, Any] | None:
        """What this node kept last in an earlier life, or None; randomness and learning rate go on from there.

        Raises ProtocolError after the first :meth:`checkpoint` of this life.
        """
        if self._has_saved:
            raise ProtocolError(f"node {self.me} restores what it has kept itself: restore() goes before checkpoint()")
        saved = self._world.load(self)
        if saved is None:
            return None
        state = dict(saved)
        self._counter = self._resumed = state.pop(_COUNTER, 0)
        self._trains = state.pop(_TRAINS, 0)
        self._rng = None
        return state

    # The world's side

    def succeed(self, before: Context) -> None:
        """This is the next life of the same node: go on counting where the last one has stopped."""
        self.bytes_sent = before.bytes_sent
        if before._requests is not None:
            self._requests = Requests(self.me, self._clock, before._requests.asked)

    @property
    def counter(self) -> int:
        """Ops that this node has recorded."""
        return self._counter

    @property
    def is_wrapped(self) -> bool:
        """Whether mods or observers see this node's traffic."""
        return self._wrapping is not None

    def deliver(self, sender: int, message: Message, request: int = 0, reply: int = 0) -> None:
        """Take in a message: called by the world at the moment it arrives."""
        if self._wrapping is not None:
            changed = self._wrapping.incoming(self, sender, message)
            if changed is None:
                return
            message = changed
        if reply:
            if self._requests is not None:
                self._requests.answered(sender, message, reply)
            return
        handler = self._protocol.handlers.get(type(message))
        if handler is None:
            self.mailbox.put(sender, message)
            return
        answer = handler(self._protocol, self, sender, message)
        if answer is not None:
            self._answer(sender, answer, request)

    def _answer(self, to: int, answer: Message, request: int) -> None:
        changed = answer if self._wrapping is None else self._wrapping.outgoing(self, to, answer)
        if changed is not None:
            self._world.answer(self, to, changed, request)

    def stories(self) -> Iterator[str]:
        """One line for each message or answer that the node waits for."""
        yield from self.mailbox.stories()
        if self._requests is not None:
            yield from self._requests.stories()

    def lose(self, peer: int) -> None:
        """A peer is gone: called by the world."""
        if peer not in self._lost:
            self._lost = (*self._lost, peer)
        self.give_up(peer)

    def give_up(self, peer: int) -> None:
        """End every wait for a peer that is gone."""
        self.mailbox.lose(peer)
        if self._requests is not None:
            self._requests.lose(peer)

    def regain(self, peer: int) -> None:
        """A peer that was gone is there again: waits that begin from now on may wait for it."""
        self._lost = tuple(other for other in self._lost if other != peer)


async def _awaiting(work: Awaitable[None]) -> None:
    await work


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
