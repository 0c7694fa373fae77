"""One-shot learning as a protocol sees it: what a client uploads, what an aggregator makes of it, and how good it is.

The algorithms themselves are in :mod:`node.learn.oneshot`; ``ctx.oneshot`` records them as ops, and lets the time pass
that they take.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from typing import Protocol as Interface

from node import codec
from node.assumptions import Assumptions, Precision
from node.errors import ProtocolError
from node.message import Message
from node.op import Op, Ref, Spec
from node.stacking import StackingOps

if TYPE_CHECKING:
    from node.compute import Compute
    from node.context import Context
    from node.world import World

LARGEST = 1e15
"""The largest magnitude of a number in a sound upload: squares of such still add up in float32."""


class Sent(NamedTuple):
    """What one client has uploaded, as far as its algorithm lets it."""

    client: int
    model: Ref | None
    parts: tuple[Ref, ...] = ()
    samples: int = 0
    counts: tuple[int, ...] = ()
    """Samples of each class."""
    score: float = 0.0
    """Accuracy on what it holds out; 0 where that is nothing."""

    @property
    def tensors(self) -> tuple[Ref, ...]:
        """The model, if there is one, then the parts."""
        return self.parts if self.model is None else (self.model, *self.parts)

    @property
    def size_bytes(self) -> int:
        """Of the tensors."""
        return sum(ref.spec.size_bytes for ref in self.tensors)

    def claiming(self, most: int) -> Sent:
        """The same with at most so many samples, and so many in all classes together.

        What a client says of its samples is its weight, and nobody can check it.
        """
        samples, counted = min(self.samples, most), sum(self.counts)
        if counted <= samples:
            return self._replace(samples=samples)
        return self._replace(samples=samples, counts=tuple(count * samples // counted for count in self.counts))


class OneShotOps(Interface):
    """What a workload knows of one-shot algorithms."""

    fit: Op[...]
    """From the initial model, what a client trains: static ``algorithm``, ``options``."""
    part: Op[...]
    """From what a client has trained and the initial model, something else that it sends: static ``algorithm``,
    ``options``, ``name``, and ``counts``, its samples of each class."""
    narrow: Op[...]
    """What a client has trained in another ``precision``."""
    widen: Op[...]
    """The same back again: static ``algorithm``, ``options``, ``precision``."""
    aggregate: Op[...]
    """Of the initial model and all that clients have sent, a predictor, flat: static ``algorithm``, ``options``;
    ``told``, each client's number, samples, counts and score; ``sent``, whether each has sent a model; ``uploads``, how
    many there are."""
    add: Op[...]
    """Of the initial model, what has been added before (static ``has_state``) and what one client has sent, both: the
    same where that is not sound. Static besides as ``aggregate``."""
    finish: Op[...]
    """Of the initial model and what has been added, a predictor: static ``algorithm``, ``options``, ``uploads``."""
    sound: Op[...]
    """Of what a client has sent: ``sound`` is 1 where no number is beyond ``LARGEST`` or none at all, else 0."""
    judge: Op[...]
    """Of the initial model and a predictor, how good it is on the test set: static ``algorithm``, ``options``."""

    @property
    def stacking(self) -> StackingOps:
        """What learns how much to believe which model."""
        ...

    @property
    def classes(self) -> int:
        """How many there are."""
        ...

    def declared(self, algorithm: str, options: str) -> Assumptions:
        """What an algorithm assumes. Raises ConfigError for one that does not exist, or does not take the options."""
        ...

    def sends_model(self, algorithm: str, options: str) -> bool:
        """Whether clients upload what they have trained."""
        ...

    def trains(self, algorithm: str, options: str) -> bool:
        """Whether clients train anything."""
        ...

    def trains_itself(self, algorithm: str, options: str) -> bool:
        """Whether clients train by ``fit``."""
        ...

    def streams(self, algorithm: str, options: str) -> bool:
        """Whether uploads can be added up as they come, by ``add`` and ``finish``."""
        ...

    def fit_samples(self, algorithm: str, options: str, node: int) -> float:
        """Samples that the experiment's model could be trained on during a client's ``fit``."""
        ...

    def measuring_samples(self, algorithm: str, options: str, node: int) -> float:
        """Samples that the experiment's model could be trained on while a client's parts are computed."""
        ...

    def parts(self, algorithm: str, options: str, counts: Sequence[int]) -> Mapping[str, Spec]:
        """What a client with so many samples of each class sends besides, by name."""
        ...

    def sent(self, algorithm: str, options: str, precision: Precision = "float32") -> Spec:
        """What clients send as what they have trained."""
        ...

    def aggregation_samples(self, algorithm: str, options: str, uploads: int) -> float:
        """Samples that the experiment's model could be trained on while so many uploads are aggregated."""
        ...


class OneShot:
    """One algorithm, at one node; ``ctx.oneshot(name, options)`` gives it."""

    __slots__ = ("_ctx", "_ops", "_precision", "_static", "_world", "declares")

    def __init__(
        self,
        ctx: Compute,
        ops: OneShotOps | None,
        world: World,
        algorithm: str,
        options: Mapping[str, Any],
        precision: Precision,
    ) -> None:
        if ops is None:
            raise ProtocolError("oneshot: this workload has no classes to tell apart")
        self._ctx = ctx
        self._ops = ops
        self._world = world
        self._precision: Precision = precision
        self._static: dict[str, Any] = {"algorithm": algorithm, "options": json.dumps(options, sort_keys=True)}
        self.declares = ops.declared(**self._static)
        """What the algorithm assumes."""

    # A client

    async def trained(self) -> Ref:
        """What this client has learned from its own data; takes time. Where nobody learns anything, the start."""
        ctx, ops = self._ctx, self._ops
        start = ctx.initial_model()
        if not ops.trains(**self._static):
            return start
        if not ops.trains_itself(**self._static):
            return await ctx.train(start)
        if ctx.is_private:
            raise ProtocolError(f"oneshot: {self._static['algorithm']!r} trains by itself, which no budget covers")
        task = ctx.apply(ops.fit, start, **self._static)
        samples = ops.fit_samples(**self._static, node=ctx.me)
        return await self._world.train(cast("Context", ctx), task, task, ctx.steps, samples)

    async def upload(self, trained: Ref) -> Sent:
        """What this client tells: what the algorithm has declared, and nothing else; takes time to find out."""
        ctx = cast("Context", self._ctx)
        counts = tuple(int(count) for count in ctx.data.label_histogram) if self.declares.tells("histogram") else ()
        parts = tuple(
            ctx.apply(self._ops.part, trained, ctx.initial_model(), **self._static, name=name, counts=counts)
            for name in self._ops.parts(**self._static, counts=counts)
        )
        samples = self._ops.measuring_samples(**self._static, node=ctx.me)
        if parts and samples:
            await self._world.train(ctx, parts[-1], parts[-1], 1, samples)
        told = Sent(ctx.me, self._narrowed(trained), parts, counts=counts)
        if not self.declares.tells("scalars"):
            return told
        score = 0.0
        if self.declares.selection == "clients" and ctx.data.held_samples:
            score = float((await ctx.value(ctx.evaluate(trained, on="local")))["accuracy"])
        return told._replace(samples=ctx.data.samples, score=score)

    def sizes(self, message: Message) -> Mapping[str, int]:
        """Bytes of an upload on its way, by what they are for: its ``model``, its ``parts``, and the header around."""
        sizes = {"model": 0, "parts": 0}
        for place, ref in codec.placed(message):
            sizes["model" if place == "model" else "parts"] += ref.spec.size_bytes
        return {**sizes, "control": codec.size_bytes(message) - sum(sizes.values())}

    def _narrowed(self, trained: Ref) -> Ref | None:
        if not self._ops.sends_model(**self._static):
            return None
        if self._precision == "float32":
            return trained
        return self._ctx.apply(self._ops.narrow, trained, precision=self._precision)

    # The aggregator

    @property
    def streams(self) -> bool:
        """Whether uploads can be added up as they come: :meth:`added`, :meth:`finished`."""
        return self._ops.streams(**self._static)

    def refusal(self, sent: Sent) -> str:
        """Why what a client has sent is not what its algorithm asks for, in one line; empty where it is."""
        ops = self._ops
        model = ops.sent(**self._static, precision=self._precision) if ops.sends_model(**self._static) else None
        given = None if sent.model is None else sent.model.spec
        if given != model:
            return f"a model of {_shown(given)}; asked for: {_shown(model)}"
        if reason := self._false_claim(sent):
            return reason
        wanted = [*ops.parts(**self._static, counts=sent.counts).values()]
        if [part.spec for part in sent.parts] != wanted:
            return f"parts of {[_shown(part.spec) for part in sent.parts]}; asked for: {[*map(_shown, wanted)]}"
        return ""

    def _false_claim(self, sent: Sent) -> str:
        """Why what a client says of its samples cannot be."""
        if not self.declares.tells("scalars") and (sent.samples or sent.score):
            return "a number of samples or a score, which the algorithm has not declared"
        wanted = self._ops.classes if self.declares.tells("histogram") else 0
        if len(sent.counts) != wanted:
            return f"{len(sent.counts)} label counts; asked for: {wanted}"
        if min((sent.samples, *sent.counts)) < 0 or not 0 <= sent.score <= 1 or sum(sent.counts) > sent.samples:
            return f"{sent.samples} samples, {sum(sent.counts)} of them counted, score {sent.score}"
        return "no samples" if self.declares.tells("scalars") and not sent.samples else ""

    def opened(self, sent: Sent) -> Sent:
        """What a client has sent, its model in full precision."""
        if sent.model is None or self._precision == "float32":
            return sent
        model = self._ctx.apply(self._ops.widen, sent.model, **self._static, precision=self._precision)
        return sent._replace(model=model)

    @property
    def unsound(self) -> str:
        """What an upload has that is not sound, in words."""
        return f"a NaN, an infinity or a number beyond {LARGEST:g}"

    def sound(self, sent: Sent) -> Ref:
        """``sound``: 1 where a client has sent no NaN, no infinity and nothing beyond ``LARGEST``, else 0."""
        return self._ctx.apply(self._ops.sound, *sent.tensors)

    def added(self, state: Ref | None, sent: Sent) -> Ref:
        """A state with one more upload in it, or as it was where that is not sound; None: before the first."""
        before = () if state is None else (state,)
        inputs = self._ctx.initial_model(), *before, *sent.tensors
        return self._ctx.apply(self._ops.add, *inputs, **self._static, **_told([sent]), has_state=bool(before))

    async def finished(self, state: Ref, uploads: int) -> Ref:
        """One predictor of a state to which so many uploads have been added; takes time."""
        inputs = self._ctx.initial_model(), state
        task = self._ctx.apply(self._ops.finish, *inputs, **self._static, uploads=uploads)
        return await self._aggregated(task, uploads)

    async def aggregated(self, uploads: Sequence[Sent]) -> Ref:
        """One predictor of what clients have sent, in the order of their numbers; takes time."""
        ordered = sorted(uploads, key=lambda sent: sent.client)
        inputs = [ref for sent in ordered for ref in sent.tensors]
        count = len(ordered)
        task = self._ctx.apply(
            self._ops.aggregate, self._ctx.initial_model(), *inputs, **self._static, **_told(ordered), uploads=count
        )
        return await self._aggregated(task, count)

    async def _aggregated(self, task: Ref, uploads: int) -> Ref:
        samples = self._ops.aggregation_samples(**self._static, uploads=uploads)
        return await self._world.train(cast("Context", self._ctx), task, task, 1, samples)

    def judge(self, predictor: Ref) -> Ref:
        """How good a predictor is on the test set, which no algorithm sees: ``accuracy``, ``loss`` and more."""
        self._world.evaluating(cast("Context", self._ctx), "test")
        return self._ctx.apply(self._ops.judge, self._ctx.initial_model(), predictor, **self._static)


def _told(uploads: Sequence[Sent]) -> dict[str, Any]:
    """What of uploads is known before any of their tensors, as static arguments."""
    told = tuple((sent.client, sent.samples, sent.counts, sent.score) for sent in uploads)
    return {"told": told, "sent": tuple(sent.model is not None for sent in uploads)}


def _shown(spec: Spec | None) -> str:
    return "none" if spec is None else f"{spec.dtype}{list(spec.shape)}"
