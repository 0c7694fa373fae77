"""Messages between the contexts of a simulated world: counted, carried by the network, delivered or lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from node import codec
from node.clock import VirtualClock
from node.context import Context
from node.errors import ProtocolError
from node.mailbox import Mailbox
from node.message import Message
from node.op import Spec
from node.participants import Participants
from node.sim.garbling import Garbling
from node.sim.network import Network
from node.sim.presence import Presence
from node.sim.refusals import Refusals
from node.tape import EventKind, Tape

_DELIVERED, _LOST = int(EventKind.DELIVERED), int(EventKind.LOST)


class Mail:
    """Carries messages from context to context.

    Args:
        contexts: by node; replaced in place when a node comes back.
        fail: told of a node whose handler or mod has raised.
        participants: what a virtual node and its owner tell each other does not count.
    """

    def __init__(
        self,
        clock: VirtualClock,
        network: Network,
        tape: Tape,
        contexts: Sequence[Context],
        fail: Callable[[int, Exception], None],
        presence: Presence | None,
        participants: Participants,
    ) -> None:
        self.messages = 0
        self.bytes_sent = 0
        self.traffic: dict[str, int] = {}
        """Bytes sent, by the wire name of messages."""
        self.lost = 0
        """Messages that reached nobody."""
        self._clock = clock
        self._carry = network.carry
        self._note, self._take = tape.note, tape.take
        self._flush_tape = tape.flush_when_full
        self._contexts = contexts
        self._mailboxes: list[Mailbox] = []
        self._fail = fail
        self._presence = presence
        self._is_own = None if participants.are_nodes_alone else participants.is_own
        self._handled: Mapping[type[Message], object] = {}
        self._is_plain = False
        self._inspects = False
        self.refusals = Refusals(contexts)
        self.garbling: Garbling | None = None
        """What turns messages into random bytes; None: nothing does."""

    def open(self, handled: Mapping[type[Message], object], shapes: frozenset[Spec], is_watched: bool) -> None:
        """Begin: all contexts are there, their protocol has these handlers, and somebody may watch what arrives.

        Args:
            shapes: what a model, or a part of one, may look like in a message that a mod has changed.
        """
        self._handled = handled
        self._mailboxes = [ctx.mailbox for ctx in self._contexts]
        self._inspects = self.garbling is not None or any(ctx.has_mods for ctx in self._contexts)
        self.refusals.open(shapes)
        is_wrapped = any(ctx.is_wrapped for ctx in self._contexts)
        self._is_plain = self._presence is None and not is_wrapped and not is_watched and not self._inspects

    def send(self, ctx: Context, to: Sequence[int], message: Message, request: int, reply: int) -> None:
        """Put a message on its way to each peer."""
        if to and not (min(to) >= 0 and max(to) < len(self._contexts)):
            raise ProtocolError(f"node {ctx.me} sends to {list(to)}; nodes are numbered 0 to {len(self._contexts) - 1}")
        self._flush_tape()
        size = codec.size_bytes(message, request, reply)
        count = len(to)
        if self.garbling is not None:
            to, garbled = self.garbling.part(ctx.me, to, self._clock.now)
            header_bytes = size - sum([ref.spec.size_bytes for ref in codec.refs(message)])
            self._carry(ctx.me, garbled, header_bytes, self._refuse, None)
        if self._is_plain and not reply and type(message) not in self._handled:
            self._carry(ctx.me, to, size, self._deposit, message)
        elif self._presence is None:
            self._carry(ctx.me, to, size, self._deliver, (message, request, reply))
        else:
            stamp = self._presence.stamp(ctx.me)
            self._carry(ctx.me, to, size, self._arrive, (message, request, reply, stamp))
        if self._is_own is not None:
            count -= sum(self._is_own(ctx.me, peer) for peer in to)
        ctx.bytes_sent += size * count
        self.bytes_sent += size * count
        self.traffic[message.wire_name] = self.traffic.get(message.wire_name, 0) + size * count
        self.messages += count

    def _deposit(self, arg: tuple[int, int, Message, int]) -> None:
        """Deliver to the mailbox at once, where there is no mod, observer, handler or request: most messages."""
        to, sender, message, size = arg
        self._take((self._clock.now, _DELIVERED, to, sender, size))
        self._mailboxes[to].put(sender, message)

    def _deliver(self, arg: tuple[int, int, tuple[Message, int, int], int]) -> None:
        to, sender, (message, request, reply), size = arg
        if self._inspects and self._is_turned_away(to, sender, message):
            return
        self._note(self._clock.now, _DELIVERED, to, sender, size)
        try:
            self._contexts[to].deliver(sender, message, request, reply)
        except Exception as error:
            self._fail(to, error)

    def _refuse(self, arg: tuple[int, int, None, int]) -> None:
        """Random bytes have come in place of a message."""
        to, sender, _, size = arg
        if (self._presence is not None and not self._presence.is_online(to)) or self.refusals.is_cut(to, sender):
            self.lose((to, sender, size))
            return
        self.refusals.offend(to, sender)
        self._lose_if_cut(to, sender)

    def _is_turned_away(self, to: int, sender: int, message: Message) -> bool:
        """Whether the receiver does not take a message in; who has sent too many of these is lost to it."""
        if self.refusals.is_cut(to, sender):
            self.lost += 1
            return True
        if not self.refusals.refuses(to, sender, message):
            return False
        self._lose_if_cut(to, sender)
        return True

    def _lose_if_cut(self, to: int, sender: int) -> None:
        """Whoever has been refused too often is lost to its receiver."""
        if self.refusals.is_cut(to, sender):
            self._note(self._clock.now, _LOST, to, sender)
            self._contexts[to].lose(sender)

    def _arrive(self, arg: tuple[int, int, tuple[Message, int, int, tuple[int, float]], int]) -> None:
        """Deliver where nodes come and go: not to whom was away when it was sent, nor from whom has crashed since."""
        to, sender, (message, request, reply, stamp), size = arg
        assert self._presence is not None
        clock = self._presence.clocks[to]
        if not self._presence.arrives(stamp, sender, to):
            self.lose((to, sender, size))
        elif clock.is_paused:
            clock.hold(self._arrive, arg)
        else:
            self._deliver((to, sender, (message, request, reply), size))

    def lose(self, arg: tuple[Any, ...]) -> None:
        """Note a message (receiver, sender, size in bytes) that reaches nobody."""
        to, sender, size = arg
        self.lost += 1
        self._note(self._clock.now, _LOST, to, sender, size)
