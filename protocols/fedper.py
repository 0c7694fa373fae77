"""A common core under heads of one's own: train all layers, share all but the last ones.

Arivazhagan, Aggarwal, Singh, Choudhary: Federated Learning with Personalization Layers, 2019; here without a server.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Core(Message, name="fedper/core/1", key=("round",)):
    """The layers that a node shares, after its local training of a round."""

    round: int
    core: Ref


class FedPer(Protocol):
    """Synchronous gossip of cores; heads never leave their nodes."""

    aggregates = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        head_layers: int = Field(1, ge=1)
        """The model's last layers, which stay with their node."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    @classmethod
    def private_layers(cls, config: Config) -> int:
        """The head."""
        return config.head_layers

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix of cores under this node's head."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            core, head = ctx.split(await self.learn(ctx, model))
            model = ctx.join(await self.mixed(ctx, Core(round=round, core=core)), head)
            ctx.record(round=round, **ctx.judge(model, is_personal=True))
            await ctx.checkpoint(round=round + 1, model=model)
        return model

    async def learn(self, ctx: Context, model: Ref) -> Ref:
        """A round's local training."""
        return await ctx.train(model)

    async def mixed(self, ctx: Context, own: Core) -> Ref:
        """Exchange cores with the neighbours; what is no core is left out."""
        round = own.round
        await ctx.send(ctx.neighbours(round), own)
        heard = await ctx.collect(Core, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round)
        cores = {peer: message.core for peer, message in heard.items() if message.core.spec == own.core.spec}
        return ctx.aggregate(own.core, cores, ctx.weights(cores, round), progress=round / self.config.rounds)
