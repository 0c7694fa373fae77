"""Sparse personal models: every node keeps weights of its own choice, and averages those that others keep too.

Dai, Shen, He, Tian, Tao: DisPFL: Towards Communication-Efficient Personalized Federated Learning via Decentralized
Sparse Training, ICML 2022.
"""

import math

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Kept(Message, name="dispfl/kept/1", key=("round",), any_shape=True):
    """What a node's mask keeps of its model, and the mask itself, which depends on the node's data."""

    round: int
    values: Ref
    """The kept weights, in their order in the model."""
    bits: Ref
    """The mask, uint8: eight weights a byte, the first one lowest."""


class DisPFL(Protocol):
    """Synchronous gossip of sparse models under masks that change by pruning and regrowth."""

    side_channels = ("mask",)

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of mixing and training."""
        density: float = Field(0.5, gt=0, le=1)
        """Share of the model's weights that a node keeps, trains and sends."""
        prune: float = Field(0.5, ge=0, le=1)
        """Share (a0) of each layer's kept weights that is exchanged after the first round; it falls along a cosine to
        0 at the last. 0: masks stay as they are drawn."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is as sparse as all before it."""
        sparse = ctx.sparse(self.config.density)
        model, mask, first = ctx.initial_model(), sparse.mask(), 0
        if saved := ctx.restore():
            model, mask, first = saved["model"], saved["mask"], saved["round"]
        for round in range(first, self.config.rounds):
            own = sparse.pack(model, mask)
            mixed = sparse.mean([own, *await self.exchange(ctx, round, own)], mask)
            model = await ctx.train(mixed, mask=mask)
            ctx.record(round=round, **ctx.judge(model, is_personal=True))
            mask = sparse.regrow(model, mask, prune_share(self.config.prune, round, self.config.rounds))
            await ctx.checkpoint(round=round + 1, model=model, mask=mask)
        return model

    async def exchange(self, ctx: Context, round: int, own: tuple[Ref, Ref]) -> list[tuple[Ref, Ref]]:
        """Send what is kept here, and give what the neighbours keep; what is of another size is left out."""
        await ctx.send(ctx.neighbours(round), Kept(round=round, values=own[0], bits=own[1]))
        heard = await ctx.collect(Kept, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round)
        sizes = [part.spec for part in own]
        return [(kept.values, kept.bits) for kept in heard.values() if [kept.values.spec, kept.bits.spec] == sizes]


def prune_share(start: float, round: int, rounds: int) -> float:
    """The share of kept weights that is exchanged after a round: cosine annealing from ``start`` to 0."""
    return start / 2 * (1 + math.cos(math.pi * round / rounds))
