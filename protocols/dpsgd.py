"""Decentralized parallel SGD: train, exchange models with the neighbours, mix.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu: Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017.

Absent neighbours: without ``deadline_s`` all are needed, and one that is gone ends the run. With it, a round closes at
the deadline, or when all that are not gone have sent; the mixing weight of those that have not goes to a node's own
model in that round. A node that comes back, or finds that most are past its round, goes on in the round of its
neighbours with the model of one (``protocols/catching_up.py``); where they are no further, in the round after the one
that it has saved.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref
from protocols.catching_up import CatchingUp


class Model(Message, name="dpsgd/model/1", key=("round",)):
    """A node's model after its local training of a round."""

    round: int
    model: Ref


class DPSGD(CatchingUp):
    """Synchronous gossip over a fixed or changing undirected or circulant topology."""

    aggregates = True
    awaited = Model

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix."""
        round, model, deadline_s = 0, ctx.initial_model(), self.config.deadline_s or None
        if saved := ctx.restore():
            round, model = saved["round"], saved["model"]
            round, model = await self.caught_up(ctx, round, model, deadline_s)
        while round < self.config.rounds:
            self.begin(round, model)
            model = await ctx.train(model)
            await self.tell(ctx, ctx.neighbours(round), Model(round=round, model=model), model)
            heard = await ctx.collect(Model, frm=ctx.sources(round), timeout_s=deadline_s, round=round)
            others = {peer: message.model for peer, message in heard.items()}
            model = ctx.aggregate(model, others, ctx.weights(heard, round), progress=round / self.config.rounds)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
            round, model = await self.after(ctx, round, model, heard, ctx.sources(round), deadline_s)
        self.begin(round, model)
        return model
