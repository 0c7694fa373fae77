"""Local training that looks at its models without moving the node's randomness on, as leaders of cohorts do."""

from protocols.local import Local


class Alone(Local):
    async def run(self, ctx):
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            model = await ctx.train(model)
            with ctx.aside():
                ctx.record(round=round, **ctx.judge(model))
        return model
