"""Honest but curious: a node that follows its protocol, and attacks a sample of the messages that it receives.

Which messages depends on nothing but the seed, the round, the senders and the messages' key fields: neither on the
order in which messages came nor on how long anything took, so that a simulation and separate processes attack the same
ones. Only messages of one sender, kind and key are told apart by their order.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Container, Iterator, Sequence
from itertools import count
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from node import codec
from node.attack.attacker import Attack, Scene
from node.attack.linkability import completed
from node.learn.oneshot.precision import narrowed_spec, widened, widened_spec
from node.learn.parts import join, part
from node.message import Message
from node.mods import Observer
from node.op import Ref, Spec, op
from node.privacy.chunks import chunk_size, partition
from node.sparse import bits_of, unpacked_mask

if TYPE_CHECKING:
    from node.context import Context

FROM = "from/"
"""Begins the names of metrics of one attacked message; the sender's number follows."""
_STATISTICS = "parts."
"""Begins the places of what an upload carries besides its model."""
PICTURE, ORIGINAL = "picture.", "original."
"""Begin the names of metrics that are pixels, of what an attack has reconstructed and of what it really was."""


class Seen(NamedTuple):
    """One message to be attacked."""

    sender: int
    """The node behind it: the evaluator's knowledge, where it came under another name."""
    model: Ref
    """The model in it; what it leaves out is the attacker's own."""
    observed: int
    """How many of the model's elements, from the first on, have come with the message; 0 where they are scattered."""
    chunk: int | None = None
    """Of which chunk of Shatter's public partition of the round they are; None: of none."""


class Piece(NamedTuple):
    """A chunk of Shatter that one of the attacker's virtual nodes has handed it."""

    round: int
    chunk: int
    values: Ref


class Heard(NamedTuple):
    """One message that may be attacked; those that compare least are."""

    priority: float
    """Drawn by seed."""
    sender: int
    lane: tuple[str, ...]
    """Its kind, and its key fields other than the round."""
    number: int
    """How many others of this lane came before it in the round."""
    message: Message | Piece

    @property
    def place(self) -> tuple[int, tuple[str, ...], int]:
        """Tells it from all others of the round."""
        return self.sender, self.lane, self.number


class Own(NamedTuple):
    """What the attacker has had itself in the round of the messages."""

    start: Ref
    """The model that its training started from: what it had mixed last."""
    trained: Ref
    """What it trained from it; the start, where it does not train."""


class Curious(Attack, ABC):
    """An attack on received messages. Subclasses say what to do with a round's sample in :meth:`attack`."""

    class Config(Attack.Config):
        """Options of every such attack."""

        every: int = Field(10, ge=1)
        """Attack the messages of every n-th round, from round 0 on."""
        most: int = Field(4, ge=1)
        """Attack at most so many messages of a round, drawn by seed."""

    config: Config
    metrics: tuple[str, ...]
    """Those of a message's metrics whose means over the messages of a round are kept too."""

    def wrapping(self, node: int) -> Sequence[Observer]:
        """The observer that collects messages, on attackers."""
        return (Sampler(self, node),) if node in self.nodes else ()

    @abstractmethod
    def attack(self, ctx: Context, round: int, seen: Sequence[Seen], own: Own) -> Sequence[Ref]:
        """Record ops that attack the messages of one round; gives the metrics of each."""

    def conclude(self, ctx: Context) -> None:
        """Called at the end of an attacker's run, after the last of its messages has been attacked."""


class Sampler(Observer):
    """Keeps a sample of each attacked round's messages, and has it attacked once the round is over.

    After a restart it goes on with the round that its node goes on with: what was heard before is lost or attacked.
    """

    def __init__(self, attack: Curious, me: int) -> None:
        super().__init__()
        self._attack = attack
        self._me = me
        self._round = -1
        self._trainings = 0
        self._own: Own | None = None
        self._waiting: dict[int, list[Heard]] = {}
        self._heard: dict[tuple[int, int, tuple[str, ...]], int] = {}
        self._over = -1
        self._is_restored = False

    def restored(self, ctx: Context, trainings: int) -> None:
        """Count trainings on; messages that the earlier life had heard and not attacked are lost."""
        self._trainings, self._is_restored = trainings, True
        ctx.log.warning("attacker started again", lost="messages that were not attacked yet")

    def trained(self, ctx: Context, before: Ref, after: Ref) -> None:
        """A training begins: what has come for the rounds before it is complete."""
        self._close(ctx, self._round)
        self._own = Own(before, after)
        self._trainings += 1

    def sent(self, ctx: Context, to: int, message: Message) -> None:
        """The first message of a round tells which round it is. A node that never trains starts from what it sends."""
        round = self._round_of(message)
        if round > self._round:
            if self._is_restored and self._round < 0:
                self._forget(round - 1)
            self._close(ctx, self._round)
            self._round = round
        if not self._trainings and (seen := seen_in(ctx, self._me, message, self._attack.scene, None)):
            self._own = Own(seen[0].model, seen[0].model)

    def received(self, ctx: Context, sender: int, message: Message) -> None:
        """Take a message in, or all that a virtual node of the attacker's hands it."""
        if not hasattr(message, "sources"):
            self._take(sender, message)
        elif self._attack.scene.participants.owner(sender) == self._me:
            for source, piece in _pieces(message):
                self._take(source, piece)

    def _take(self, sender: int, message: Message | Piece) -> None:
        """Keep a message, and let one of lower priority go where there are too many."""
        round, config, scene = self._round_of(message), self._attack.config, self._attack.scene
        victim = scene.participants.device(sender)
        if victim == scene.participants.device(self._me) or not scene.truth.has_data(victim):
            return
        if round % config.every or round <= self._over or not _models(message, scene):
            return
        lane = _lane(message)
        number = self._heard[round, sender, lane] = self._heard.get((round, sender, lane), -1) + 1
        seed = [scene.config.seed, self._me, round, sender, number, *"".join(lane[1:]).encode(), *b"sample"]
        waiting = self._waiting.setdefault(round, [])
        waiting.append(Heard(float(np.random.default_rng(seed).random()), sender, lane, number, message))
        waiting.sort(key=lambda heard: (heard.priority, heard.place))
        del waiting[config.most :]

    def ended(self, ctx: Context) -> None:
        """No more messages are expected."""
        self._close(ctx, max(self._waiting, default=-1))
        self._attack.conclude(ctx)

    def _round_of(self, message: Message | Piece) -> int:
        """The message's own round; where it has none, the attacker's count of its own trainings."""
        return int(getattr(message, "round", self._trainings))

    def _close(self, ctx: Context, last: int) -> None:
        """Attack the messages of all rounds up to the last one."""
        for round in sorted(round for round in self._waiting if round <= last):
            chosen = sorted(self._waiting[round], key=lambda heard: heard.place)
            scene = self._attack.scene
            seen = [
                each
                for heard in chosen
                for each in seen_in(ctx, scene.participants.device(heard.sender), heard.message, scene, self._own)
            ]
            if seen:
                start = ctx.initial_model()  # of a node that neither trains nor sends: an aggregator of uploads
                leaks = self._attack.attack(ctx, round, seen, self._own or Own(start, start))
                record(ctx, round, [message.sender for message in seen], leaks, self._attack.metrics)
        self._forget(last)

    def _forget(self, last: int) -> None:
        """Take no more messages of rounds up to the last one, nor keep any."""
        self._waiting = {round: waiting for round, waiting in self._waiting.items() if round > last}
        self._heard = {place: number for place, number in self._heard.items() if place[0] > last}
        self._over = max(self._over, last)


def seen_in(ctx: Context, sender: int, message: Message | Piece, scene: Scene, own: Own | None) -> list[Seen]:
    """The models in a message.

    They are whole; or a core, with every head in the same message, or else the attacker's own; or, completed with what
    the attacker had mixed itself, a chunk of Shatter, or what a mask of DisPFL keeps.
    """
    models, size = _models(message, scene), scene.model.dimension
    whole = [
        _single(ctx, ref) for ref in models if ref.spec.shape == scene.model.spec.shape or ref.spec == _bytes_of(scene)
    ]
    if whole:
        return [Seen(sender, ref, size) for ref in whole]
    if models and own is not None and hasattr(message, "chunk") and hasattr(scene.options, "beacon"):
        return _of_chunk(ctx, sender, message, models[0], scene, own)
    if own is not None and hasattr(message, "bits") and hasattr(message, "values"):
        return _of_mask(ctx, sender, message, scene, own)
    core = next((ref for ref in models if ref.spec.shape == (scene.cut,)), None)
    if core is None:
        return []
    heads = [ref for ref in models if ref.spec.shape == (size - scene.cut,) and ref is not core]
    observed = size if heads else scene.cut
    if not heads and own is not None:
        heads = [ctx.apply(part, own.trained, start=scene.cut, stop=size)]
    return [Seen(sender, ctx.apply(join, core, head), observed) for head in heads]


def _pieces(message: Any) -> Iterator[tuple[int, Piece]]:
    """What a virtual node has heard, each with the virtual node that it came from."""
    for source, chunk, values in zip(message.sources, message.chunks, message.values, strict=True):
        yield source, Piece(message.round, chunk, values)


def _lane(message: Message | Piece) -> tuple[str, ...]:
    """What tells a sender's messages of a round apart, whenever they come: kind, and keys other than the round."""
    if isinstance(message, Piece):
        return "", repr(message.chunk)
    return message.wire_name, *[repr(getattr(message, key)) for key in message.key_fields if key != "round"]


def _models(message: Message | Piece, scene: Scene) -> list[Ref]:
    """What of a message may be weights: all but metrics, masks, other whole numbers, and statistics beside a model."""
    if isinstance(message, Piece):
        refs = [message.values]
    else:
        refs = [ref for place, ref in codec.placed(message) if not place.startswith(_STATISTICS)]
    in_bytes = _bytes_of(scene)
    return [ref for ref in refs if ref.spec == in_bytes or (not ref.spec.names and ref.spec.dtype.startswith("float"))]


def _bytes_of(scene: Scene) -> Spec:
    """What a model in a byte a parameter looks like."""
    return narrowed_spec(scene.model.spec, "int8")


def _of_chunk(ctx: Context, sender: int, message: Any, values: Ref, scene: Scene, own: Own) -> list[Seen]:
    """The model of a chunk; none where it is not what the round's public partition says."""
    sizes = tuple(part.stop - part.start for _, part, _ in scene.model.parts)
    chunks, beacon, round = scene.options.chunks, scene.options.beacon, message.round
    if not 0 <= message.chunk < chunks:
        return []
    if values.spec.shape != (chunk_size(scene.model.dimension, chunks, message.chunk, beacon, round),):
        return []
    static = {"sizes": sizes, "chunks": chunks, "chunk": message.chunk, "beacon": beacon, "round": round}
    return [Seen(sender, ctx.apply(with_chunk, own.start, values, **static), 0, message.chunk)]


def _of_mask(ctx: Context, sender: int, message: Any, scene: Scene, own: Own) -> list[Seen]:
    """The model of what a mask keeps; none where the mask is of no such model."""
    bits, values = message.bits, message.values
    if bits.spec != bits_of(scene.model.spec) or len(values.spec.shape) != 1:
        return []
    mask = ctx.apply(unpacked_mask, own.start, bits, count=values.spec.shape[0])
    return [Seen(sender, ctx.apply(with_kept, own.start, mask, values), 0)]


def _single(ctx: Context, ref: Ref) -> Ref:
    """A model in single precision, whatever it was sent in."""
    if ref.spec.dtype == "uint8":
        return ctx.apply(from_bytes, ref)
    return ref if ref.spec.dtype == "float32" else ctx.apply(single, ref)


@op(spec=lambda inputs, static: widened_spec(inputs[0], "int8"))
def from_bytes(sent: Tensor) -> Tensor:
    """A model in single precision, of one in a byte a parameter."""
    return widened(sent, "int8")


@op(spec=lambda inputs, static: inputs[0]._replace(dtype="float32"))
def single(model: Tensor) -> Tensor:
    """A model in single precision."""
    return model.float()


@op
def with_chunk(
    own: Tensor, values: Tensor, *, sizes: tuple[int, ...], chunks: int, chunk: int, beacon: str, round: int
) -> Tensor:
    """A model with a chunk's values in their places (:func:`node.privacy.chunks.partition`)."""
    return completed(values, torch.tensor(partition(sizes, chunks, beacon, round)[chunk]), own)


@op
def with_kept(own: Tensor, mask: Tensor, values: Tensor) -> Tensor:
    """A model with what a mask keeps of another in its place; as it was, where the mask keeps nothing."""
    kept = mask.nonzero().flatten()
    return completed(values, kept, own) if len(kept) else own.clone()


def record(ctx: Context, round: int, victims: Sequence[int], leaks: Sequence[Ref], averaged: Sequence[str]) -> None:
    """Keep the metrics of each message under its sender's number, and the means of some over all of them."""
    fields: dict[str, Ref | float] = {}
    for victim, leak in zip(victims, leaks, strict=True):
        fields[numbered(f"{FROM}{victim}", fields)] = leak
    mean = leaks[0] if len(leaks) == 1 else ctx.apply(mean_of, *leaks)
    ctx.record(round=round, **fields, **dict.fromkeys(averaged, mean))


def numbered(name: str, taken: Container[str]) -> str:
    """A name, if it is not taken; else the first of ``name#2``, ``name#3``, ... that is not."""
    return next(each for i in count(1) if (each := name if i == 1 else f"{name}#{i}") not in taken)


@op
def mean_of(*metrics: dict[str, float]) -> dict[str, float]:
    """The mean of each metric over those that have a number for it; not a number where none has."""
    known = {name: [m[name] for m in metrics if not math.isnan(m[name])] for name in metrics[0]}
    return {name: float(np.mean(values)) if values else math.nan for name, values in known.items()}
