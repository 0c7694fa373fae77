"""Mods and observers: privacy, compression, attack and defence wrap any protocol, node by node, without editing it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from node.config import Section
from node.message import Message
from node.op import Ref, Spec

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

    for_all_nodes: ClassVar[bool] = False
    """Whether it must wrap every node, because what one changes another has to change back."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = self.Config() if config is None else config

    def carried(self, shapes: frozenset[Spec]) -> frozenset[Spec]:
        """What models in messages may look like on their way, where without this mod they have these shapes.

        Called once for every node, before anything is sent; whatever else comes is refused.
        """
        return shapes

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message | None:
        """What leaves for ``to`` in place of ``message``; None: nothing does."""
        return message

    def incoming(self, ctx: Context, sender: int, message: Message) -> Message | None:
        """What the protocol sees of a message from ``sender``; None: nothing."""
        return message

    def trained(self, ctx: Context, before: Ref, after: Ref) -> Ref:
        """The model that training ``before`` yields, in place of ``after``."""
        return after

    def state(self) -> Mapping[str, Ref | float | str]:
        """What it needs to go on in a node's next life: kept with every checkpoint of the protocol."""
        return {}

    def restored(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state` gave in an earlier life."""


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

    def carried(self, shapes: frozenset[Spec]) -> frozenset[Spec]:
        """What models in messages may look like on their way through every mod."""
        for mod in self.mods:
            shapes = mod.carried(shapes)
        return shapes

    def state(self) -> dict[str, Ref | float | str]:
        """What the mods keep for a next life, under names that no keyword argument can have."""
        return {f".mod.{i}.{name}": value for i, mod in enumerate(self.mods) for name, value in mod.state().items()}

    def restored(self, ctx: Context, trainings: int, state: dict[str, Any]) -> None:
        """Tell mods and observers that the node goes on from an earlier life; what is theirs leaves ``state``."""
        for i, mod in enumerate(self.mods):
            prefix = f".mod.{i}."
            own = {name: state.pop(name) for name in list(state) if name.startswith(prefix)}
            mod.restored({name.removeprefix(prefix): value for name, value in own.items()})
        with ctx.aside():
            for observer in self.observers:
                observer.restored(ctx, trainings)

    def ended(self, ctx: Context) -> None:
        """Tell every observer that the protocol has ended."""
        with ctx.aside():
            for observer in self.observers:
                observer.ended(ctx)
