"""D-PSGD with secure aggregation: a node learns the weighted sum of its neighbours' models, and no single one.

Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017; without a server as in
Biswas et al.: CESAR, 2024, but with single masks: a sum that is not complete is dropped, and no mask is ever revealed.
"""

from collections.abc import Mapping

from pydantic import Field

from node import LEAST_SENDERS, ConfigError, Context, Message, Protocol, Ref, ShownKey
from protocols import greeting


class Senders(Message, name="secagg/senders/1", key=("round",)):
    """Whose models I add up in a round, under which keys, each signed by its owner; none: I add up nothing."""

    round: int
    keys: tuple[tuple[int, bytes, bytes], ...]
    """Node, public key and signature."""


class Masked(Message, name="secagg/masked/1", key=("round",), any_shape=True):
    """A node's part of the receiver's sum: noise to whoever has not all parts."""

    round: int
    total: bytes
    """Names the sum: run, round, receiver and senders."""
    part: Ref
    """The weighted model in steps of 2**-20, masked, int32."""


class SecAgg(Protocol):
    """Synchronous gossip of sums.

    A node whose own model grows out of the range of fixed-point numbers ends the run. A sum that no honest senders can
    have made is dropped, as one that is not complete.
    """

    hides_models = True
    side_channels = ("participant set",)

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours, at each of a round's three exchanges; 0: all are needed."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """A sum has at least three senders, and a receiver."""
        if nodes <= LEAST_SENDERS:
            raise ConfigError(f"nodes: {nodes} are too few for sums of {LEAST_SENDERS} senders; allowed: 4 or more")

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix, and ``senders`` says of how many others."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            model = await ctx.train(model)
            senders = await greeting.greeted(ctx, round, self.config.deadline_s)
            if len(senders) < LEAST_SENDERS:
                senders = {}
            await self.contribute(ctx, round, model, senders)
            total = await self.total(ctx, round, model, senders)
            if total is not None:
                model = ctx.mix([model, total], [ctx.weights(senders, round)[0], 1.0])
            ctx.record(round=round, **ctx.judge(model), senders=0 if total is None else len(senders))
            await ctx.checkpoint(round=round + 1, model=model)
        return model

    async def contribute(self, ctx: Context, round: int, model: Ref, senders: Mapping[int, ShownKey]) -> None:
        """Tell the senders of this node's sum of one another, and send the neighbours this node's parts of theirs."""
        keys = tuple((sender, *key) for sender, key in senders.items())
        await ctx.send(ctx.sources(round), Senders(round=round, keys=keys))
        announced = await ctx.collect(
            Senders, frm=ctx.neighbours(round), timeout_s=self.config.deadline_s or None, round=round
        )
        for receiver, message in announced.items():
            shown = {sender: ShownKey(public, signature) for sender, public, signature in message.keys}
            if shown and (masked := ctx.privacy.masked(model, receiver, round, shown)):
                part, total = masked
                await ctx.send(receiver, Masked(round=round, total=total, part=part))

    async def total(self, ctx: Context, round: int, own: Ref, senders: Mapping[int, ShownKey]) -> Ref | None:
        """The sum of the senders' weighted models; None where it is incomplete or a lie: then the round is dropped."""
        heard = await ctx.collect(Masked, frm=tuple(senders), timeout_s=self.config.deadline_s or None, round=round)
        parts = {peer: (message.part, message.total) for peer, message in heard.items()}
        return await ctx.privacy.unmasked(own, parts, senders, round)
