"""Mods that compress models on their way: every element in fewer bits, or few elements at a time.

A message keeps its type and its place; the models in it become packed bytes (:mod:`node.packing`) when it leaves and
models again before the protocol sees it. A receiver must know how to unpack, so compression wraps all nodes. Messages
that say ``any_shape`` are left as they are: what they carry is not a model, or masked; so are those that say ``whole``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import Field

from node import codec, packing
from node.errors import ConfigError
from node.message import Message
from node.mods import Mod
from node.op import Ref, Spec

if TYPE_CHECKING:
    from node.context import Context


class Compression(Mod, ABC):
    """What all compressions have in common: which models they pack, and that a model is packed once for many peers."""

    for_all_nodes = True

    def __init__(self, config: Mod.Config | None = None) -> None:
        super().__init__(config)
        self.carried(frozenset())

    @abstractmethod
    def packed_bytes(self, elements: int) -> int:
        """Bytes of a packed model."""

    @abstractmethod
    def pack(self, ctx: Context, stream: Stream, model: Ref) -> Ref:
        """What leaves in place of a model."""

    @abstractmethod
    def unpack(self, ctx: Context, stream: Stream, packed: Ref, dense: Spec) -> Ref:
        """The model that has come, of such a shape."""

    def heard_whole(self, stream: Stream, model: Ref) -> None:
        """A model has come as it is."""

    def carried(self, shapes: frozenset[Spec]) -> frozenset[Spec]:
        """Also packed models. ConfigError where two kinds of models could not be told apart."""
        self._packed: dict[Spec, Spec] = {}
        self._dense: dict[Spec, Spec] = {}
        self._message: Message | None = None
        self._made: dict[tuple[int, ...], Any] = {}
        for spec in sorted(shapes):
            if spec.dtype in ("float32", "float64") and len(spec.shape) == 1 and not spec.names:
                packed = Spec((self.packed_bytes(*spec.shape),), "uint8")
                if packed in self._dense:
                    sizes = f"{self._dense[packed].shape[0]} and {spec.shape[0]}"
                    raise ConfigError(
                        f"mods.share: models of {sizes} elements would look alike; allowed: another share"
                    )
                self._packed[spec], self._dense[packed] = packed, spec
        return shapes | self._dense.keys()

    def outgoing(self, ctx: Context, to: int, message: Message) -> Message | None:
        """Pack the models of a message."""
        refs = [] if message.any_shape or message.whole else codec.refs(message)
        if not any(ref.spec in self._packed for ref in refs):
            return message
        if message is not self._message:
            self._message, self._made = message, {}
        left = [
            self.pack(ctx, Stream(to, place, message.wire_name), ref) if ref.spec in self._packed else ref
            for place, ref in enumerate(refs)
        ]
        # One and the same message for all that are told the same: it is solved, encoded and simulated once.
        changed: Message = self.once(lambda: codec.with_refs(message, left), *left)
        return changed

    def incoming(self, ctx: Context, sender: int, message: Message) -> Message | None:
        """Unpack the models of a message."""
        refs = [] if message.any_shape or message.whole else codec.refs(message)
        if not refs:
            return message
        with ctx.aside():  # when a message comes must not change what the node draws
            models = [self._seen(ctx, Stream(sender, i, message.wire_name), ref) for i, ref in enumerate(refs)]
        return codec.with_refs(message, models)

    def _seen(self, ctx: Context, stream: Stream, ref: Ref) -> Ref:
        if ref.spec in self._packed:
            self.heard_whole(stream, ref)
        dense = self._dense.get(ref.spec)
        return ref if dense is None else self.unpack(ctx, stream, ref, dense)

    def once(self, make: Callable[[], Any], *of: Ref) -> Any:
        """What follows from some Refs, made for the first of a message's receivers."""
        key = tuple(ref.id for ref in of)
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]


class Stream(NamedTuple):
    """Models that pass between this node and one peer, in one direction."""

    peer: int
    place: int
    """Which of a message's models."""
    kind: str
    """Wire name of the messages."""


class BFloat16(Compression):
    """Half the bytes: models as bfloat16, which keeps the exponent and 8 bits of the fraction."""

    def packed_bytes(self, elements: int) -> int:
        """Two for each element."""
        return packing.bf16_bytes(elements)

    def pack(self, ctx: Context, stream: Stream, model: Ref) -> Ref:
        """Rounded to nearest."""
        packed: Ref = self.once(lambda: ctx.apply(packing.bf16_packed, model), model)
        return packed

    def unpack(self, ctx: Context, stream: Stream, packed: Ref, dense: Spec) -> Ref:
        """As float32."""
        return ctx.apply(packing.bf16_unpacked, ctx.initial_model(), packed, elements=dense.shape[0])


class Int8(Compression):
    """A quarter of the bytes: models as 8-bit integers and a scale, rounded at random so that the mean stays right."""

    def packed_bytes(self, elements: int) -> int:
        """One for each element, and the scale."""
        return packing.int8_bytes(elements)

    def pack(self, ctx: Context, stream: Stream, model: Ref) -> Ref:
        """Rounded by a draw of this node's own; all receivers of a message get the same."""
        packed: Ref = self.once(lambda: ctx.apply(packing.int8_packed, model), model)
        return packed

    def unpack(self, ctx: Context, stream: Stream, packed: Ref, dense: Spec) -> Ref:
        """As float32."""
        return ctx.apply(packing.int8_unpacked, ctx.initial_model(), packed, elements=dense.shape[0])


class Sparse(Compression):
    """Few elements a message, as they are; a receiver puts them into what it knows of the sender's model.

    Error feedback in the form of CHOCO-SGD (Koloskova, Stich, Jaggi, ICML 2019): what a receiver has not been told
    remains in the difference between the model and what it knows, until it is told. Unlike there the elements are sent,
    not their differences, so that a lost message leaves elements old, and not wrong for ever.
    """

    class Config(Mod.Config):
        """How much is told."""

        share: float = Field(0.1, gt=0, le=0.75)
        """Share of a model's elements that a message carries."""
        refresh_every: int = Field(100, ge=0)
        """Every so many messages of a kind to a peer, the whole model is sent: for elements that were lost on the way,
        or with a receiver's memory. 0: never."""

    config: Config

    def carried(self, shapes: frozenset[Spec]) -> frozenset[Spec]:
        """Also packed models; what was known before is forgotten."""
        self._told: dict[Stream, Ref] = {}
        """What each peer knows, if everything has arrived: this minus the model is the residual."""
        self._heard: dict[Stream, Ref] = {}
        self._since: dict[Stream, int] = {}
        return super().carried(shapes)

    @abstractmethod
    def packed(self, ctx: Context, model: Ref, known: Ref) -> Ref:
        """The elements to tell."""

    @abstractmethod
    def told(self, ctx: Context, known: Ref, packed: Ref) -> Ref:
        """What a receiver knows from now on."""

    def kept(self, elements: int) -> int:
        """How many elements a message carries."""
        return packing.kept_of(elements, self.config.share)

    def pack(self, ctx: Context, stream: Stream, model: Ref) -> Ref:
        """A few elements, or the whole where it is time, or where both ends have nothing in common to begin with."""
        known = self._told[stream] if stream in self._told else _common(ctx, model.spec)
        self._since[stream] = self._since.get(stream, 0) + 1
        if known is None or self._since[stream] == self.config.refresh_every:
            self._since[stream] = 0
            self._told[stream] = model
            return model
        made: tuple[Ref, Ref] = self.once(lambda: self._packed_and_told(ctx, model, known), model, known)
        packed, self._told[stream] = made
        return packed

    def unpack(self, ctx: Context, stream: Stream, packed: Ref, dense: Spec) -> Ref:
        """What is known of the sender's model, with what this message tells."""
        known = self._heard[stream] if stream in self._heard else _common(ctx, dense)
        if known is None:  # the whole with which the stream began has been lost
            known = ctx.apply(packing.nothing, ctx.initial_model(), elements=dense.shape[0])
        self._heard[stream] = self.told(ctx, known, packed)
        return self._heard[stream]

    def heard_whole(self, stream: Stream, model: Ref) -> None:
        """From now on this is known."""
        self._heard[stream] = model

    def state(self) -> dict[str, Ref | float | str]:
        """What each peer has been told, and what each has told."""
        state: dict[str, Ref | float | str] = {}
        for name, streams in (("told", self._told), ("heard", self._heard), ("since", self._since)):
            for stream, value in streams.items():
                state[f"{name}.{stream.peer}.{stream.place}.{stream.kind}"] = value
        return state

    def restored(self, state: Mapping[str, Any]) -> None:
        """Go on from there. What a peer was told after the checkpoint, it is told again."""
        for key, value in state.items():
            name, peer, place, kind = key.split(".", 3)
            own: dict[str, dict[Stream, Any]] = {"told": self._told, "heard": self._heard, "since": self._since}
            own[name][Stream(int(peer), int(place), kind)] = value

    def _packed_and_told(self, ctx: Context, model: Ref, known: Ref) -> tuple[Ref, Ref]:
        packed = self.packed(ctx, model, known)
        return packed, self.told(ctx, known, packed)


class TopK(Sparse):
    """The elements that have moved furthest from what the receiver knows of them; mods.share says how many."""

    def packed_bytes(self, elements: int) -> int:
        """A float for each that is kept, and which they are."""
        return packing.top_k_bytes(elements, self.kept(elements))

    def packed(self, ctx: Context, model: Ref, known: Ref) -> Ref:
        """Those with the largest residual."""
        return ctx.apply(packing.top_k_packed, model, known, kept=self.kept(model.spec.shape[0]))

    def told(self, ctx: Context, known: Ref, packed: Ref) -> Ref:
        """With these elements."""
        return ctx.apply(packing.top_k_unpacked, known, packed, kept=self.kept(known.spec.shape[0]))


class RandomK(Sparse):
    """Elements drawn at random, which a seed of eight bytes tells; mods.share says how many."""

    def packed_bytes(self, elements: int) -> int:
        """A float for each that is kept, and the seed."""
        return packing.random_k_bytes(elements, self.kept(elements))

    def packed(self, ctx: Context, model: Ref, known: Ref) -> Ref:
        """Drawn anew for every message."""
        return ctx.apply(packing.random_k_packed, model, kept=self.kept(model.spec.shape[0]))

    def told(self, ctx: Context, known: Ref, packed: Ref) -> Ref:
        """With these elements."""
        return ctx.apply(packing.random_k_unpacked, known, packed, kept=self.kept(known.spec.shape[0]))


def _common(ctx: Context, spec: Spec) -> Ref | None:
    """What both ends know before the first message: the model that all start from; of its parts nothing."""
    initial = ctx.initial_model()
    return initial if initial.spec == spec else None
