"""The only door of a protocol: time, randomness, peers, messages, compute and recording.

A protocol cannot tell from its context whether time is real. Whatever takes time is awaited; whatever is only recorded
(``mix``, ``evaluate``, ``apply``) returns a :class:`~node.op.Ref` at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any, TypeAlias, TypeVar

import numpy as np
import structlog

from node.clock import Clock, Priority, check_wait
from node.compute import Compute
from node.config import TopologySection
from node.errors import ProtocolError, Unreachable
from node.mailbox import Mailbox, slot_of
from node.message import Message
from node.mods import Wrapping
from node.op import Key, Ref
from node.participants import drawn
from node.private import Privacy
from node.protocol import Protocol
from node.requests import Requests
from node.topology import Topology
from node.world import Done, LocalData, World

M = TypeVar("M", bound=Message)
T = TypeVar("T")

Future: TypeAlias = asyncio.Future
"""What :meth:`Context.future` gives: ``set_result(value)`` ends every ``await`` of it."""

_RNG_COUNTER = 2**32 - 1
"""The counter of a node's own generator; tasks count up from 0 and never reach it."""

_COUNTER, _TRAINS = ".counter", ".trains"
"""What a checkpoint keeps besides the protocol's state, under names that no keyword argument can have."""


class Context(Compute):
    """What one node's protocol sees of the world: time, peers, messages and state, besides what it computes."""

    __slots__ = (
        "_clock",
        "_has_saved",
        "_lost",
        "_privacy",
        "_requests",
        "_resumed",
        "_rng",
        "bytes_sent",
        "mailbox",
    )

    def __init__(
        self, me: int, world: World, protocol: Protocol, wrapping: Wrapping | None = None, clock: Clock | None = None
    ) -> None:
        super().__init__(me, world, protocol, wrapping)
        self._clock = clock or world.clock
        self.mailbox = Mailbox(me, self._clock)
        self.bytes_sent = 0
        self._has_saved = False
        self._resumed = 0
        self._rng: np.random.Generator | None = None
        self._requests: Requests | None = None
        self._lost: tuple[int, ...] = ()
        self._privacy: Privacy | None = None

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

    @property
    def seed(self) -> int:
        """The experiment's, which all nodes share: for what they have to draw alike."""
        return self._world.seed

    def future(self) -> Future[Any]:
        """Something to wait for that a handler, or work beside ``run``, will set."""
        return self._clock.create_future()

    async def sleep(self, seconds: float) -> None:
        """Let time pass."""
        check_wait("sleep", seconds)
        future: asyncio.Future[None] = self._clock.create_future()
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

    @property
    def nodes(self) -> tuple[int, ...]:
        """The numbers of all nodes of the experiment, this one's too, whether they are there or not; sorted."""
        return self._world.peers(None)

    def alive(self, peers: Iterable[int]) -> tuple[int, ...]:
        """Those of some peers that are not known to be gone, in their order."""
        gone = self._gone()
        return tuple([peer for peer in peers if peer not in gone])

    def _gone(self) -> Collection[int]:
        return {*self._world.gone, *self._lost} if self._lost else self._world.gone

    def sample(self, k: int, role: str | None = "learner") -> tuple[int, ...]:
        """``k`` different other nodes drawn uniformly (all, where there are fewer), sorted."""
        return drawn(k, self._world.peers(role), self.me, self._gone(), self.rng)

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
        return self._topology(within).weights_of(heard, self.me, round)

    def _topology(self, within: TopologySection | None) -> Topology:
        return self._world.topology if within is None else self._world.topology_of(within)

    # Messages

    def send(self, to: int | Sequence[int], message: Message) -> Awaitable[None]:
        """Send to one peer or several. Waits only while a peer's queue is full; what goes to a lost peer is lost."""
        peers = to if isinstance(to, (tuple, Sequence)) else (int(to),)
        return self._send(peers, message)

    def _send(self, peers: Sequence[int], message: Message, request: int = 0) -> Awaitable[None]:
        """Send at once, wrapped or not: observers must not change when anything happens."""
        if self._wrapping is None:
            return self._world.send(self, peers, message, request)
        told = [(peer, self._wrapping.outgoing(self, peer, message)) for peer in peers]
        sendings = []
        for _, alike in groupby(told, key=lambda each: id(each[1])):
            to, (changed, *_) = zip(*alike, strict=True)
            if changed is not None:
                sendings.append(self._world.send(self, to, changed, request))
        return sendings[0] if len(sendings) == 1 else _all(sendings)

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
        # Beside the wait for the answer: solving and queueing count towards the deadline too.
        self.spawn(_awaiting(self._send((to,), message, number)))
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
        there. Without quorum and timeout all of ``frm`` are needed; with either, none that is gone or has ``passed``.

        Raises:
            Unreachable: one that is needed is gone.
        """
        return self._collect(kind, None, key, frm=frm, timeout_s=timeout_s, quorum=quorum, grace_s=grace_s)

    def collect_each(
        self,
        kind: type[M],
        each: Callable[[int, M], T],
        *,
        frm: Sequence[int],
        timeout_s: float | None = None,
        quorum: int | None = None,
        **key: Any,
    ) -> Awaitable[dict[int, T]]:
        """As :meth:`collect`, but keeps only what ``each(sender, message)`` gives when a message that counts comes.

        So models can be added up as they come, and let go.
        """
        return self._collect(kind, each, key, frm=frm, timeout_s=timeout_s, quorum=quorum, grace_s=0.0)

    def _collect(
        self, kind: type[Message], each: Callable[[int, Any], Any] | None, key: dict[str, Any], **wait: Any
    ) -> Awaitable[dict[int, Any]]:
        frm, timeout_s = wait["frm"], wait["timeout_s"]
        if timeout_s is not None:
            check_wait("timeout_s", timeout_s)
        if frm is None and wait["quorum"] is None and timeout_s is None:
            raise ProtocolError(f"collect({kind.__name__}) from anyone never ends: give frm, quorum or timeout_s")
        outcome = self.mailbox.collect(slot_of(kind, key), lost=self._gone(), each=each, **wait)
        if isinstance(outcome, dict):
            return Done(outcome)
        if frm is not None:
            self._world.watch(self, frm)
        return outcome

    def passed(self, kind: type[Message], **key: Any) -> tuple[int, ...]:
        """Who has sent messages of a kind that are two rounds later, sorted: one of this is hardly still to come."""
        return self.mailbox.passed(slot_of(kind, key))

    def excuse(self, peer: int, kind: type[Message], **key: Any) -> None:
        """Wait for no message of a kind and peer with an earlier key than this, even where all are needed."""
        self.mailbox.excuse(peer, slot_of(kind, key))

    def forgo(self, kind: type[Message], **key: Any) -> None:
        """Collect no message of a kind up to this key, and keep none."""
        self.mailbox.forgo(slot_of(kind, key))

    # State

    @property
    def privacy(self) -> Privacy:
        """Noise, shares, masks, chunks and keys: what hides this node's models from others."""
        if self._privacy is None:
            mechanisms = self._world.mechanisms
            if mechanisms is None:
                raise ProtocolError("this world has no mechanisms of privacy; give run_protocol(..., mechanisms=) some")
            self._privacy = Privacy(self, mechanisms, self._world.topology, self._world.participants)
        return self._privacy

    @property
    def data(self) -> LocalData:
        """What this node may know of its own data."""
        return LocalData(self._world, self.me)

    def checkpoint(self, **state: Ref | float | str) -> Awaitable[None]:
        """Keep named tensors and plain values, so that a restarted node can go on from :meth:`restore`."""
        for name, value in state.items():
            if isinstance(value, Ref) and value.spec.names:
                raise ProtocolError(f"checkpoint({name}=…) takes tensors; read metrics first: await ctx.value(ref)")
        self._has_saved = True
        kept = {} if self._wrapping is None else self._wrapping.state()
        return self._world.save(self, {**state, **kept, _COUNTER: self._counter, _TRAINS: self._trains})

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
        if self._wrapping is not None:
            self._wrapping.restored(self, self._trains, state)
        return state

    # The world's side

    def run(self) -> Coroutine[Any, Any, Ref | None]:
        """Take part until the protocol has ended; gives its final model."""
        return self._protocol.run(self) if self._wrapping is None else self._run_wrapped(self._wrapping)

    async def _run_wrapped(self, wrapping: Wrapping) -> Ref | None:
        final = await self._protocol.run(self)
        wrapping.ended(self)
        return final

    def succeed(self, before: Context) -> None:
        """This is the next life of the same node: go on counting where it has stopped, so that no noise returns."""
        self.bytes_sent, self._counter = before.bytes_sent, before._counter
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

    @property
    def has_mods(self) -> bool:
        """Whether something may change what this node sends."""
        return self._wrapping is not None and bool(self._wrapping.mods)

    def deliver(self, sender: int, message: Message, request: int = 0, reply: int = 0) -> None:
        """Take in a message: called by the world at the moment it arrives."""
        if self._world.lineage is not None:
            self._world.lineage.received(self.me, sender, message)
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


async def _all(works: Iterable[Awaitable[None]]) -> None:
    for work in works:
        await work


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
