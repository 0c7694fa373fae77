"""Everybody trains alone; node 0 hears models, Fisher information and logits, and gives back what they become."""

from node import Context, Message, Protocol, Ref
from node.unifiers import UNIFIERS
from node.unify import Distillation

HOW = Distillation(steps=200, batch_size=32, lr=1e-2)


class Taught(Message, name="teaching/taught/1"):
    model: Ref
    fisher: Ref
    samples: int
    counts: tuple[int, ...]


class Said(Message, name="teaching/said/1", any_shape=True):
    """What a model says of public samples: it may stay where it is."""

    logits: Ref


class Unified(Message, name="teaching/unified/1"):
    model: Ref


class Teaching(Protocol):
    side_channels = ("label counts",)

    class Config(Protocol.Config):
        unify: str = "kd-hard"
        """How models become one."""

    @classmethod
    def unifier(cls, config):
        return config.unify

    async def run(self, ctx: Context) -> Ref:
        model = await ctx.train(ctx.initial_model(), steps=30)
        unify = ctx.unify
        fisher, logits = await unify.fisher(model, 16), await unify.logits(model)
        counts = tuple(int(count) for count in ctx.data.label_histogram)
        await ctx.send(0, Taught(model=model, fisher=fisher, samples=ctx.data.samples, counts=counts))
        await ctx.send(0, Said(logits=logits))
        if ctx.me == 0:
            model = await self.unified(ctx)
            await ctx.send(ctx.peers(), Unified(model=model))
        else:
            model = (await ctx.collect(Unified, frm=(0,)))[0].model
        ctx.record(round=0, **ctx.judge(model))
        return model

    async def unified(self, ctx: Context) -> Ref:
        everybody = (0, *ctx.peers())
        taught = list((await ctx.collect(Taught, frm=everybody)).values())
        said = list((await ctx.collect(Said, frm=everybody)).values())
        unify, models = ctx.unify, [each.model for each in taught]
        weights = by_label([each.counts for each in taught])
        if UNIFIERS[self.config.unify].loss:
            result = await unify.taught(self.config.unify, [each.logits for each in said], weights, how=HOW)
        else:
            shares, fishers = [each.samples for each in taught], [each.fisher for each in taught]
            result = await unify.unified(self.config.unify, models, shares=shares, fishers=fishers)
        ensemble = await unify.unified("ensemble-label", models, by_label=weights)
        agreement = {} if result.agreement is None else {"agreement": result.agreement}
        ctx.record(round=1, ensemble_accuracy=await first(ctx, ensemble.metrics), unify_flops=unify.flops, **agreement)
        return result.model


async def first(ctx: Context, metrics: Ref) -> float:
    return float((await ctx.value(metrics))["accuracy"])


def by_label(counts):
    sums = [sum(column) for column in zip(*counts, strict=True)]
    even = 1 / len(counts)
    return [[each / total if total else even for each, total in zip(row, sums, strict=True)] for row in counts]
