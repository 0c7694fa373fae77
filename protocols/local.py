"""No communication: what each node reaches on its own data alone. The lower reference line of every comparison."""

from pydantic import Field

from node import Context, Protocol, Ref


class Local(Protocol):
    """Train, and never talk."""

    uses_topology = False

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of local training."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Train alone for all rounds."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            metrics = ctx.evaluate(model)
            ctx.record(round=round, accuracy=metrics, loss=metrics)
            await ctx.checkpoint(round=round + 1, model=model)
        return model
