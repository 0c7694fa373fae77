"""FACADE: one shared core and a few heads, of which each node trains the one that suits its data.

Biswas, Kermarrec, Sharma, Trinca, de Vos: Fair Decentralized Learning, IEEE SaTML 2025. With ``risk_weight`` above 0 a
head is chosen by what it would leak, too: the rule of IFCA-MIR (arXiv 2503.09414), carried over from a server.

The paper's graph is a fresh random regular one each round: ``[topology] kind = "random-regular"``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Shared(Message, name="facade/model/1", key=("round",)):
    """A node's core and the head that it has trained, under its number; in warm-up rounds all of its heads."""

    round: int
    core: Ref
    heads: dict[str, Ref]


class FACADE(Protocol):
    """Every round: choose a head, train it with the core, and average core and heads with the neighbours'."""

    side_channels = ("head id",)
    judges_on_data = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        heads: int = Field(2, ge=1)
        """Heads of each node: kinds of data that there may be (``k``)."""
        head_layers: int = Field(1, ge=1)
        """Last layers of the model that make a head."""
        warm_up_rounds: int = Field(0, ge=0)
        """Rounds, from the first on, in which all heads are sent; the paper's experiments have 10."""
        explore: float = Field(0.0, ge=0, le=1)
        """Share of the rounds, from the first on, in which the head to train is drawn by lot."""
        risk_weight: float = Field(0.0, ge=0)
        """What counts against a head besides its loss: this times how well a membership attack on its losses does
        (AUC - 0.5) on the node's own data. Above 0 it needs ``data.local_test_fraction``."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    @classmethod
    def private_layers(cls, config: Config) -> int:
        """The head."""
        return config.head_layers

    @classmethod
    def uses_local_tests(cls, config: Config) -> bool:
        """For the risk of a head."""
        return config.risk_weight > 0

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the core with the head that suits best."""
        k, rounds = self.config.heads, self.config.rounds
        core, _ = ctx.split(ctx.initial_model())
        heads, first = [ctx.split(ctx.initial_model(draw))[1] for draw in range(k)], 0
        if saved := ctx.restore():
            core, heads, first = saved["core"], [saved[f"head_{b}"] for b in range(k)], saved["round"]
        for round in range(first, rounds):
            is_drawn = round < self.config.explore * rounds
            a = int(ctx.rng.integers(k)) if is_drawn else await self.best(ctx, core, heads)
            core, heads[a] = ctx.split(await ctx.train(ctx.join(core, heads[a])))
            sent = {str(b): heads[b] for b in (range(k) if round < self.config.warm_up_rounds else [a])}
            await ctx.send(ctx.neighbours(round), Shared(round=round, core=core, heads=sent))
            heard = await ctx.collect(
                Shared, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round
            )
            core, heads = averaged(ctx, core, heads, heard.values())
            model = ctx.join(core, heads[a])
            ctx.record(round=round, **ctx.judge(model, is_personal=True), head=a)
            await ctx.checkpoint(round=round + 1, core=core, **{f"head_{b}": head for b, head in enumerate(heads)})
        return ctx.join(core, heads[await self.best(ctx, core, heads)])

    async def best(self, ctx: Context, core: Ref, heads: Sequence[Ref]) -> int:
        """``argmin_a loss_a + risk_weight * risk_a`` on this node's own data; the first of equals."""
        if len(heads) == 1:
            return 0
        models, weight = [ctx.join(core, head) for head in heads], self.config.risk_weight
        losses = [ctx.evaluate(model, on="train") for model in models]
        risks = [ctx.membership_risk(model) for model in models] if weight else []
        values = await ctx.values([*losses, *risks])
        scores = [value["loss"] for value in values[: len(heads)]]
        if risks:
            scores = [loss + weight * value["risk"] for loss, value in zip(scores, values[len(heads) :], strict=True)]
        return min(range(len(heads)), key=scores.__getitem__)


def averaged(ctx: Context, core: Ref, heads: Sequence[Ref], heard: Iterable[Shared]) -> tuple[Ref, list[Ref]]:
    """The core and every head, each averaged with those that were heard of it; what has another shape is left out."""
    fitting = [message for message in heard if message.core.spec == core.spec]
    mixed = []
    for b, head in enumerate(heads):
        others = [message.heads[str(b)] for message in fitting if str(b) in message.heads]
        others = [other for other in others if other.spec == head.spec]
        mixed.append(ctx.mix([head, *others]) if others else head)
    return ctx.mix([core, *(message.core for message in fitting)]), mixed
