"""No communication: what each node reaches on its own data alone. The lower reference line of every comparison."""

from pydantic import Field

from node import Context, Protocol, Ref


class Local(Protocol):
    """Train, and never talk."""

    uses_topology = False
    aggregates = True  # nothing: no rule changes anything

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of local training."""

    config: Config

    @classmethod
    def aggregated(cls, config: Config, nodes: int) -> int:
        """A node has its own model, and no other."""
        return 1

    async def run(self, ctx: Context) -> Ref:
        """Train alone for all rounds."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        return model
