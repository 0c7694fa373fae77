"""A small model that learns how much to believe which of several models: what they say is its input.

Wolpert: Stacked Generalization, Neural Networks, 1992; trained by federated learning: FENS (Allouah, Dhasade,
Guerraoui, Gupta, Kermarrec, Pinot, Pires, Sharma, NeurIPS 2024). It learns from samples that nodes hold out, which no
model has been trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast
from typing import Protocol as Interface

from node.errors import ProtocolError
from node.op import Op, Ref, Spec

if TYPE_CHECKING:
    from node.compute import Compute
    from node.context import Context
    from node.world import World


class StackingOps(Interface):
    """What a workload knows of stacking."""

    said: Op[...]
    """Of models, what they say of the samples that a node holds out: logits [samples, models x classes]; static
    ``samples``, how many these are."""
    moments: Op[...]
    """Of logits, their ``sum`` and the sum of their ``squares``."""
    fresh: Op[...]
    """A stack that has learned nothing: static ``members`` and ``hidden``."""
    step: Op[...]
    """Of a stack and logits, the stack after one step of gradient descent: static ``members``, ``hidden``, ``scale``,
    ``lr`` and ``batch_size``."""
    judge: Op[...]
    """Of a stack and its models, how good they are on the test set: static ``hidden`` and ``scale``."""

    @property
    def classes(self) -> int:
        """How many there are."""
        ...

    def said_samples(self, node: int, members: int) -> float:
        """Samples that the experiment's model could be trained on while so many models speak of a node's samples."""
        ...

    def step_samples(self, members: int, hidden: int, batch_size: int) -> float:
        """The same for one step."""
        ...


class Stacking:
    """A stack on so many models, at one node: fully connected, with one hidden layer.

    Args:
        members: how many models.
        hidden: units for each of them.
    """

    __slots__ = ("_ctx", "_ops", "_shape", "_world")

    def __init__(self, ctx: Compute, ops: StackingOps | None, world: World, members: int, hidden: int) -> None:
        if ops is None:
            raise ProtocolError("stacking: this workload has no classes to tell apart")
        self._ctx = cast("Context", ctx)
        self._ops = ops
        self._world = world
        self._shape: dict[str, Any] = {"members": members, "hidden": hidden * members}

    async def said(self, models: Sequence[Ref]) -> Ref:
        """What models say of the samples that this node holds out; takes time. It need never leave the node."""
        ctx = self._ctx
        self._world.evaluating(ctx, "local")
        said = ctx.apply(self._ops.said, *models, samples=ctx.data.held_samples)
        return await self._world.train(ctx, said, said, 1, self._ops.said_samples(ctx.me, len(models)))

    async def moments(self, said: Ref) -> tuple[int, float, float]:
        """How many numbers models have said, their sum, and the sum of their squares."""
        found = await self._ctx.value(self._ctx.apply(self._ops.moments, said))
        samples, width = said.spec.shape
        return samples * width, float(found["sum"]), float(found["squares"])

    def fresh(self) -> Ref:
        """A stack that has learned nothing, the same at every node."""
        return self._ctx.apply(self._ops.fresh, **self._shape)

    @property
    def spec(self) -> Spec:
        """What a stack looks like."""
        return self._ops.fresh.spec((), self._shape)

    async def stepped(self, stack: Ref, said: Ref, scale: float, lr: float, batch_size: int) -> Ref:
        """The stack after a step on some of the samples that this node holds out; takes time.

        Args:
            said: of :meth:`said`.
            scale: what all logits are divided by.
        """
        ctx, batch = self._ctx, min(batch_size, said.spec.shape[0])
        after = ctx.apply(self._ops.step, stack, said, **self._shape, scale=scale, lr=lr, batch_size=batch)
        return await self._world.train(ctx, after, after, 1, self._ops.step_samples(**self._shape, batch_size=batch))

    def judge(self, stack: Ref, models: Sequence[Ref], scale: float) -> Ref:
        """How good a stack on its models is on the test set: ``accuracy``, ``loss`` and more."""
        self._world.evaluating(self._ctx, "test")
        return self._ctx.apply(self._ops.judge, stack, *models, hidden=self._shape["hidden"], scale=scale)
