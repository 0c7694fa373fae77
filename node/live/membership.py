"""Who is there, in a real network: drives a membership machine over a transport and on the event loop's clock."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import structlog

from node import codec
from node.codec import Header
from node.errors import BadFrame, TransportError
from node.live.transport import Transport
from node.membership import wire
from node.membership.statement import State, Statement
from node.membership.vocabulary import (
    Ack,
    Action,
    Changed,
    Describe,
    Input,
    Lag,
    Leave,
    Membership,
    Persist,
    Ping,
    Received,
    Send,
    SetTimer,
    Start,
    Tick,
    Usurped,
    Warn,
)
from node.membership.vocabulary import Message as Remark
from node.message import Message
from node.op import Ref

_TICK_S = 0.05
"""How often the loop's own lateness is looked at."""
_MOST_PINGS = 64


class Said(Message, name="starling/membership/1"):
    """What one member says to another about members; the machine's own encoding."""

    body: bytes


class Listeners(NamedTuple):
    """Whom the machine's actions concern."""

    persist: Callable[[int], None]
    """Has an incarnation on the disk when it returns."""
    changed: Callable[[int, State | None], None]
    """A peer is in another state, or has a new record; None: it is forgotten."""
    usurped: Callable[[], None]
    """Another process has this node's keys."""
    probed: Callable[[float], None] = lambda seconds: None
    """Somebody has answered a probe after so many s."""


class LiveMembership:
    """One node's membership machine, alive. All of it belongs to the event loop."""

    def __init__(self, machine: Membership, transport: Transport, listeners: Listeners) -> None:
        self.machine = machine
        self._transport = transport
        self._listeners = listeners
        self._pings: dict[tuple[int, int], float] = {}
        """When the last few peers were asked, by peer and sequence number."""
        self._timer: asyncio.TimerHandle | None = None
        self._ticking: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._rng = np.random.default_rng(int.from_bytes(os.urandom(16)))
        self._log = structlog.get_logger().bind(node=machine.me)

    def start(self, seeds: Sequence[int], remembered: Sequence[Statement] = ()) -> None:
        """Begin, knowing these peers' numbers, and what they said of themselves last."""
        self._step(Start(tuple(seeds), tuple(remembered)))
        self._watch_lag(self._loop.time() + _TICK_S)

    def receive(self, sender: int, header: Header, buffers: list[memoryview]) -> None:
        """Take in a :class:`Said`; one that is none of the machine's costs its sender."""
        try:
            said = codec.decode(header, buffers, _no_value)
            assert isinstance(said, Said)
            message = wire.decode(said.body)
        except TransportError as error:
            self._transport.refuse(sender, str(error))
            return
        self.hear(sender, message)

    def hear(self, sender: int, message: Remark) -> None:
        """Take in what a member has said by whatever way; that it has said so is the caller's to know."""
        if isinstance(message, Ack) and (asked_s := self._pings.pop((sender, message.seq), None)) is not None:
            self._listeners.probed(self._loop.time() - asked_s)
        self._step(Received(sender, message))

    def pass_on(self, message: Remark, most: int) -> None:
        """Say something to members that are there, at random, ``most`` of them at most, before gossip would."""
        peers = self.machine.peers()
        chosen = self._rng.permutation(len(peers))[:most]
        self._do(Send(tuple(peers[int(position)] for position in chosen), message))

    def describe(self, record: bytes) -> None:
        """This node's record is another from now."""
        self._step(Describe(record))

    def leave(self) -> None:
        """Say that this node goes on purpose, and do nothing more."""
        self._step(Leave())
        self.close()

    def close(self) -> None:
        """Do nothing more."""
        for handle in (self._timer, self._ticking):
            if handle is not None:
                handle.cancel()
        self._timer = self._ticking = None

    def _watch_lag(self, due_s: float) -> None:
        self._ticking = self._loop.call_at(due_s, self._ticked, due_s)

    def _ticked(self, due_s: float) -> None:
        now_s = self._loop.time()
        if now_s - due_s > _TICK_S:
            self._step(Lag(now_s - due_s))
        self._watch_lag(now_s + _TICK_S)

    def _due(self, at_s: float) -> None:
        # uvloop counts milliseconds, and half the time is early: to the machine that would be nothing to do, for ever.
        self._step(Tick(), at_s)

    def _step(self, event: Input, least_s: float = -math.inf) -> None:
        for action in self.machine.step(event, max(self._loop.time(), least_s)):
            self._do(action)

    def _do(self, action: Action) -> None:
        match action:
            case Send(to=to, message=message):
                if isinstance(message, Ping):
                    self._pings.update({(peer, message.seq): self._loop.time() for peer in to})
                    while len(self._pings) > _MOST_PINGS:
                        del self._pings[next(iter(self._pings))]
                encoded = codec.encode(Said(body=wire.encode(message)), _no_buffer)
                for peer in to:
                    self._transport.post(peer, encoded)
            case SetTimer(at_s=at_s):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = self._loop.call_at(at_s, self._due, at_s)
            case Persist(incarnation=incarnation):
                self._listeners.persist(incarnation)
            case Changed(peer=peer, state=state):
                self._listeners.changed(peer, state)
            case Usurped(incarnation=incarnation):
                self._log.error("another process has this node's keys", incarnation=incarnation)
                self._listeners.usurped()
            case Warn(line=line):
                self._log.warning("membership", detail=line)


def _no_buffer(ref: Ref) -> memoryview:
    raise AssertionError(f"what members say of members carries no {ref}")


def _no_value(buffer: memoryview, spec: object) -> Ref:
    raise BadFrame("what members say of members carries no values")
