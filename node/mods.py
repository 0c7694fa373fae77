"""Mods and observers: privacy, compression, attack and defence wrap any protocol, node by node, without editing it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.config import Section
from node.message import Message
from node.op import Ref

if TYPE_CHECKING:
    from node.context import Context


class Observer:
    """Sees what its node sees, and changes nothing. One instance per node.

    It may record ops on the Refs that it sees (``ctx.apply``) and keep metrics (``ctx.record``): the node computes what
    it would compute without. It must not draw from ``ctx.rng``.
    """

    class Config(Section):
        """An observer's own options: keys of its ``[[mods]]`` table."""

    config: Any

    def __init__(self, config: Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    def sent(self, ctx: Context, to: int, message: Message) -> None:
        """A message has left for ``to``, after every mod."""

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """A message has come from ``sender``, before any mod."""

    def trained(self, ctx: Context, before: Ref, after: Ref) -> None:
        """The node trains ``before`` into ``after``, after every mod."""

    def restored(self, ctx: Context, trainings: int) -> None:
        """The node goes on from what it has kept in an earlier life, of whose messages this instance has seen none.

        ``trainings`` are those of that life that were steps of the learning-rate schedule.
        """

    def ended(self, ctx: Context) -> None:
        """The node's protocol has ended."""


class Mod:
    """Wraps a node's traffic and training. One instance per node; several apply in the order of the experiment file.

    Every method may record ops on the Refs it is given (``ctx.apply``) and return new ones.
    """

    class Config(Section):
        """A mod's own options: keys of its ``[[mods]]`` table."""

    config: Any

    def __init__(self, config: Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message | None:
        """What leaves for ``to`` in place of ``message``; None: nothing does."""
        return message

    def incoming(self, ctx: Context, sender: int, message: Message) -> Message | None:
        """What the protocol sees of a message from ``sender``; None: nothing."""
        return message

    def trained(self, ctx: Context, before: Ref, after: Ref) -> Ref:
        """The model that training ``before`` yields, in place of ``after``."""
        return after


class Wrapping:
    """The mods and observers of one node, applied in order."""

    def __init__(self, mods: list[Mod], observers: list[Observer]) -> None:
        self.mods = mods
        self.observers = observers

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message | None:
        """Pass a message out through every mod, then show it to every observer."""
        changed: Message | None = message
        for mod in self.mods:
            if changed is None:
                return None
            changed = mod.outgoing(ctx, to, changed)
        if changed is not None and self.observers:
            with ctx.aside():
                for observer in self.observers:
                    observer.sent(ctx, to, changed)
        return changed

    def incoming(self, ctx: Context, sender: int, message: Message) -> Message | None:
        """Show a message to every observer, then pass it in through every mod, the last one first."""
        if self.observers:
            with ctx.aside():
                for observer in self.observers:
                    observer.received(ctx, sender, message)
        changed: Message | None = message
        for mod in reversed(self.mods):
            if changed is None:
                return None
            changed = mod.incoming(ctx, sender, changed)
        return changed

    def trained(self, ctx: Context, before: Ref, after: Ref) -> Ref:
        """Pass a trained model through every mod, then show it to every observer."""
        for mod in self.mods:
            after = mod.trained(ctx, before, after)
        if self.observers:
            with ctx.aside():
                for observer in self.observers:
                    observer.trained(ctx, before, after)
        return after

    def restored(self, ctx: Context, trainings: int) -> None:
        """Tell every observer that the node goes on from an earlier life."""
        with ctx.aside():
            for observer in self.observers:
                observer.restored(ctx, trainings)

    def ended(self, ctx: Context) -> None:
        """Tell every observer that the protocol has ended."""
        with ctx.aside():
            for observer in self.observers:
                observer.ended(ctx)
