"""Gossip within the true cluster: an upper bound for protocols that have to find out who is like them.

For evaluation only: the nodes read from the experiment what no node could know, namely whose data are of which group.
The reference that FACADE (Biswas et al., SaTML 2025), DAC (Listo Zec et al., 2022) and PENS (Onoszko et al., 2021) are
held to.
"""

from __future__ import annotations

from pydantic import Field

from node import Context, Message, Ref
from protocols import pulling


class Model(Message, name="oracle/model/1", key=("round",)):
    """A node's model after its local training of a round, and how many samples that was trained on."""

    round: int
    model: Ref
    samples: int


class Oracle(pulling.Pulling):
    """Every round, the average with some random members of the node's own group of ``data.groups``."""

    class Config(pulling.Pulling.Config):
        """Options of ``[protocol]``."""

        sample: int = Field(4, ge=1)
        """Members of the group that a node hears in a round; all, where there are fewer."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last average."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        fellows = tuple([node for node in ctx.data.true_group if node != ctx.me])
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            mine = Model(round=round, model=model, samples=ctx.data.samples)
            heard = await self.exchange(ctx, round, pulling.draw(ctx, fellows, self.config.sample), mine)
            model = pulling.average(ctx, model, heard.values())
            ctx.record(round=round, **ctx.judge(model, is_personal=True))
            await ctx.checkpoint(round=round + 1, model=model)
        return model
