"""What a protocol computes: the half of its context that records ops on models.

Whatever is only recorded (``mix``, ``evaluate``, ``apply``) takes no time and returns a :class:`~node.op.Ref` at once;
training is awaited, because it takes time, and so is reading a value.
"""

from __future__ import annotations

from collections.abc import Awaitable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np

from node.assumptions import Precision
from node.errors import ProtocolError
from node.oneshot import OneShot
from node.op import Op, Ref, Value
from node.sparse import Sparse
from node.stacking import Stacking
from node.unify import Unify
from node.world import Done, World

if TYPE_CHECKING:
    from node.context import Context
    from node.inference import Inference
    from node.mods import Wrapping
    from node.protocol import Protocol

_MIXED_AT_ONCE = 32
"""A longer sum is recorded in parts, the same to the last bit: it can then consume models as they are trained."""

_ASIDE_COUNTER = 2**31
"""Ops that observers record count from here on; a node's own never reach it."""


class Compute:
    """Models of one node: initialise, train, mix, split, evaluate, read."""

    __slots__ = ("_aside", "_counter", "_protocol", "_refused", "_trains", "_world", "_wrapping", "me")

    def __init__(self, me: int, world: World, protocol: Protocol, wrapping: Wrapping | None) -> None:
        self.me = me
        self._world = world
        self._protocol = protocol
        self._wrapping = wrapping
        self._counter = 0
        self._aside = _ASIDE_COUNTER
        self._refused: Ref | None = None
        self._trains = 0

    def initial_model(self, draw: int = 0) -> Ref:
        """The model that every node of the experiment starts from; every other ``draw`` is an independent one."""
        return self.apply(self._world.workload.fresh, draw=draw) if draw else self._world.initial

    def train(
        self,
        model: Ref,
        steps: int | None = None,
        proximal: float = 0.0,
        *,
        toward: Ref | None = None,
        part: Literal["all", "core", "head"] = "all",
        mask: Ref | None = None,
        correction: Ref | None = None,
        lr: float | None = None,
        repeats: int = 1,
    ) -> Awaitable[Ref]:
        """Train on this node's data; takes time. Where a privacy budget is kept, it is charged first.

        Args:
            model: where to start.
            steps: training steps; None: as the experiment says.
            proximal: strength of the pull back to ``model`` (FedProx), or to ``toward``; 0 for none.
            toward: the model that ``proximal`` pulls to.
            part: which layers move; the others are frozen.
            mask: of the model's shape: gradients are multiplied by it.
            correction: of the model's shape: added to every gradient, before the mask.
            lr: learning rate; None: as the experiment's schedule says, of which only such trainings are steps.
            repeats: times that each batch is used in a row.

        Raises:
            BudgetSpent: the budget does not allow these steps.
        """
        world, workload = self._world, self._world.workload
        if not workload.shard_size(self.me):
            raise ProtocolError(f"node {self.me} has no data to train on: its role is not learner")
        if steps is None:
            steps = workload.steps(self.me)
        if world.ledger is not None and not world.ledger.charge(self.me, steps * repeats):
            return Done(model)
        static: dict[str, Any] = {"steps": steps, "lr": workload.lr(self._trains) if lr is None else lr}
        static["proximal"] = proximal
        self._trains += lr is None
        named = (("toward", toward), ("mask", mask), ("correction", correction))
        guides = {name: ref for name, ref in named if ref is not None}
        if not guides and part == "all" and repeats == 1:
            task = self.apply(workload.train, model, **static)
        else:
            cut = 0 if part == "all" else self._cut()
            task = self.apply(
                workload.adapt,
                model,
                *guides.values(),
                **static,
                guides=tuple(guides),
                part=part,
                cut=cut,
                repeats=repeats,
            )
        trained = task
        if self._wrapping is not None:
            trained = self._wrapping.trained(cast("Context", self), model, task)
        return world.train(cast("Context", self), task, trained, steps * repeats)

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

    def aggregate(
        self,
        own: Ref,
        others: Mapping[int, Ref] | Sequence[Ref],
        weights: Sequence[float] | None = None,
        progress: float = 0.0,
    ) -> Ref:
        """One model of this node's own and others', by the experiment's ``[aggregation]``.

        With the rule ``mean`` this is :meth:`mix` of all of them. Other rules refuse models that have a NaN or an
        infinity, whose number is recorded with the node's next metrics as ``refused_models``, and keep the own model
        where too few are left.

        Args:
            own: this node's model.
            others: by peer, or in the order of peers.
            weights: as for :meth:`mix`, the own one first; most other rules weigh all alike. With 0 the own model is
                no part of the result: it is what rules judge others by, and what stays where these are too few.
            progress: the share of all rounds that is over, for rules that grow stricter.
        """
        models = [own, *(others.values() if isinstance(others, Mapping) else others)]
        robust = self._world.workload.aggregation
        if robust is not None:
            if len(models) > 1:
                before = () if self._refused is None else (self._refused,)
                self._refused = self.apply(robust.refused, *models[1:], *before)
            return robust.record(self, models, weights, progress)
        if weights is not None and not weights[0]:
            models, weights = models[1:], weights[1:]
        return self.mix(models, weights)

    @property
    def is_robust(self) -> bool:
        """Whether :meth:`aggregate` follows another rule than the mean."""
        return self._world.workload.aggregation is not None

    def split(self, model: Ref) -> tuple[Ref, Ref]:
        """A model's core, which may be shared, and its head: the protocol's ``private_layers`` last layers."""
        part, size, cut = self._world.workload.part, model.spec.shape[0], self._cut()
        return self.apply(part, model, start=0, stop=cut), self.apply(part, model, start=cut, stop=size)

    def join(self, core: Ref, head: Ref) -> Ref:
        """The model of a core and a head."""
        return self.apply(self._world.workload.join, core, head)

    def _cut(self) -> int:
        return self._world.workload.cut(self._protocol.private_layers(self._protocol.config))

    def sparse(self, density: float) -> Sparse:
        """Masks that keep a share ``density`` (above 0, at most 1) of the model's elements."""
        return Sparse(self, self._world.workload.sparse, density)

    @property
    def unify(self) -> Unify:
        """What makes one model of several: teachers and students, averages, ensembles. It counts its FLOPs anew."""
        return Unify(self, self._world.workload.unify, self._world)

    def oneshot(
        self, algorithm: str, options: Mapping[str, Any] | None = None, precision: Precision = "float32"
    ) -> OneShot:
        """What a client uploads, and an aggregator makes of it, by one algorithm with its options.

        Raises:
            ConfigError: there is none of that name, or it does not take the options.
        """
        return OneShot(self, self._world.workload.oneshot, self._world, algorithm, options or {}, precision)

    def stacking(self, members: int, hidden: int) -> Stacking:
        """What learns how much to believe which of so many models, with so many hidden units for each."""
        oneshot = self._world.workload.oneshot
        return Stacking(self, None if oneshot is None else oneshot.stacking, self._world, members, hidden)

    @property
    def lr(self) -> float:
        """Learning rate of this node's next training, as the experiment says."""
        return self._world.workload.lr(self._trains)

    @property
    def inference(self) -> Inference:
        """Models and adapters to serve. Raises ProtocolError where the protocol has not declared any."""
        if self._world.inference is None:
            raise ProtocolError("this world serves nothing: declare what with the protocol's inference(config, nodes)")
        return self._world.inference

    def missed(self, trainings: int) -> None:
        """So many trainings of the schedule have gone by without this node: its learning rate is that of the next."""
        self._trains += trainings

    @property
    def steps(self) -> int:
        """Steps of this node's training, as the experiment says."""
        return self._world.workload.steps(self.me)

    @property
    def is_private(self) -> bool:
        """Whether training is private: every one is accounted for, with a budget or without."""
        return self._world.ledger is not None

    def evaluate(self, model: Ref, on: str = "test") -> Ref:
        """Accuracy and loss of a model on the global ``test`` set, or this node's ``local`` test or ``train`` data.

        ``own`` is the test set of this node's own distribution, where the data has groups.
        """
        self._world.evaluating(cast("Context", self), on)
        return self.apply(self._world.workload.evaluate, model, on=on)

    def membership_risk(self, model: Ref) -> Ref:
        """What a model gives away of this node's data: ``risk`` is AUC - 0.5 of the attack by loss.

        The attack tells the samples that this node trains on from those that it holds out
        (``data.local_test_fraction``) by the model's loss on each (Yeom et al., CSF 2018).
        """
        for on in ("train", "local"):
            self._world.evaluating(cast("Context", self), on)
        return self.apply(self._world.workload.risk, model)

    def utility(self, model: Ref) -> Ref:
        """What there is to learn for a model here: ``utility`` is the root mean square of its losses on one batch.

        Training's first forward pass has these losses at hand: reading them takes no time of its own. Unlike training,
        nothing accounts for what they tell of the data (Oort: Lai, Zhu, Madhyastha, Chowdhury, OSDI 2021).
        """
        return self.apply(self._world.workload.utility, model)

    def judge(self, model: Ref, *, is_personal: bool = False) -> dict[str, Ref]:
        """What a round's record says of a model: ``ctx.record(round=round, **ctx.judge(model))``.

        Accuracy and loss on the ``test`` set, and ``own_accuracy`` where the data has groups, or the model is meant for
        this node alone.
        """
        metrics = self.evaluate(model)
        if self._world.workload.groups == 1 and not is_personal:
            return {"accuracy": metrics, "loss": metrics}
        return {"accuracy": metrics, "loss": metrics, "own_accuracy": self.evaluate(model, on="own")}

    def apply(self, op: Op[...], *inputs: Ref, **static: Any) -> Ref:
        """Record a pure op on some values; takes no time, and is computed only if somebody needs it."""
        world = self._world
        self._counter += 1
        ref = world.graph.record(world.graph.call(op, inputs, static), inputs, self.me, self._counter)
        if world.lineage is not None:
            world.lineage.made(self.me, ref, op.name, inputs, static)
        return ref

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Ops recorded within are counted by themselves: the node's own keep their keys, and so their randomness."""
        own, self._counter = self._counter, self._aside
        try:
            yield
        finally:
            self._aside, self._counter = self._counter, own

    def value(self, ref: Ref) -> Awaitable[Value]:
        """Read a value: solves just what it needs, while virtual time stands still."""
        return self._world.value(ref)

    async def digest(self, *refs: Ref) -> str:
        """Names tensors by their bits, in 32 hexadecimal digits (BLAKE2b): reads them, as :meth:`value` does."""
        hashed = blake2b(digest_size=16)
        for ref in refs:
            hashed.update(np.ascontiguousarray(await self._world.value(ref)).data)
        return hashed.hexdigest()

    async def values(self, refs: Sequence[Ref]) -> list[Value]:
        """Read several values, which are solved together."""
        await self._world.solved(refs)
        return [await self._world.value(ref) for ref in refs]

    def record(self, round: int, **fields: Ref | float) -> None:
        """Keep metrics of this node's round: numbers, or Refs of metrics (``accuracy=ctx.evaluate(model)``).

        Of an identity beyond the nodes, only what it has sent is kept, and what observers measure there.
        """
        ctx, kept = cast("Context", self), fields
        if self._counter < _ASIDE_COUNTER:
            is_node = self.me < self._world.participants.nodes
            kept = {**fields, **self._standing()} if is_node else {"bytes_sent": ctx.bytes_sent}
        self._world.record(ctx, round, kept)

    def _standing(self) -> Mapping[str, Ref | float]:
        """Where the node itself stands: what it has spent and sent, and refused since it last recorded."""
        ledger, refused, self._refused = self._world.ledger, self._refused, None
        spent = {} if ledger is None else ledger.spent(self.me)
        refusals = {} if refused is None else {"refused_models": refused}
        return {**spent, **refusals, "bytes_sent": cast("Context", self).bytes_sent}
