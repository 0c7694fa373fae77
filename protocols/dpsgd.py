"""Decentralized parallel SGD: train, exchange models with the neighbours, mix.

Lian, Zhang, Zhang, Hsieh, Zhang, Liu: Can Decentralized Algorithms Outperform Centralized Algorithms?, NeurIPS 2017.

Absent neighbours: without ``deadline_s`` all are needed, and one that is gone ends the run. With it, a round closes at
the deadline, or when all that are not gone have sent; the mixing weight of those that have not goes to a node's own
model in that round. A node that comes back goes on with the round after the one that it has saved; models of rounds
that it has missed are gone, and of later ones they wait for it, so that it is soon where the others are.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Model(Message, name="dpsgd/model/1", key=("round",)):
    """A node's model after its local training of a round."""

    round: int
    model: Ref


class DPSGD(Protocol):
    """Synchronous gossip over a fixed or changing undirected or circulant topology."""

    aggregates = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            await ctx.send(ctx.neighbours(round), Model(round=round, model=model))
            heard = await ctx.collect(
                Model, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round
            )
            others = {peer: message.model for peer, message in heard.items()}
            model = ctx.aggregate(model, others, ctx.weights(heard, round), progress=round / self.config.rounds)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        return model
