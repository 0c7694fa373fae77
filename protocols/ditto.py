"""Two models a node: one learned with all others, and one of its own that is held near it.

Li, Hu, Beirami, Smith: Ditto: Fair and Robust Federated Learning Through Personalization, ICML 2021; the global track
here is D-PSGD (Lian et al., NeurIPS 2017).
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Model(Message, name="ditto/model/1", key=("round",)):
    """A node's model of the global track, after its local training of a round."""

    round: int
    model: Ref


class Ditto(Protocol):
    """D-PSGD beside a personal model, which is never sent.

    A node trains twice in a round, both times at the rate that the experiment's schedule gives the round.
    """

    aggregates = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        pull: float = Field(0.5, ge=0)
        """Strength (lambda) of the pull of the personal model to the global one; 0: it is learned alone."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the personal one."""
        w = v = ctx.initial_model()
        first = 0
        if saved := ctx.restore():
            w, v, first = saved["w"], saved["v"], saved["round"]
        for round in range(first, self.config.rounds):
            lr = ctx.lr
            w = await self.mixed(ctx, Model(round=round, model=await ctx.train(w)))
            v = await ctx.train(v, proximal=self.config.pull, toward=w, lr=lr)
            ctx.record(round=round, **ctx.judge(v, is_personal=True))
            await ctx.checkpoint(round=round + 1, w=w, v=v)
        return v

    async def mixed(self, ctx: Context, own: Model) -> Ref:
        """Exchange models of the global track with the neighbours."""
        round = own.round
        await ctx.send(ctx.neighbours(round), own)
        heard = await ctx.collect(Model, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round)
        others = {peer: message.model for peer, message in heard.items()}
        return ctx.aggregate(own.model, others, ctx.weights(heard, round), progress=round / self.config.rounds)
