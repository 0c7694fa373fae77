"""D-PSGD with secure aggregation: a node learns the weighted sum of its neighbours' models, and no single one.

Bonawitz et al.: Practical Secure Aggregation for Privacy-Preserving Machine Learning, CCS 2017; without a server as in
Biswas et al.: CESAR, 2024. Parts are masked twice, and shares of the masks' seeds go with them, sealed: who is there at
a receiver's deadline opens the sum of those who are, and no more. What that takes, and what a receiver that lies or has
friends among the senders can learn, is in :mod:`node.privacy.recovery`.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from node import LEAST_SENDERS, ConfigError, Context, Gathered, Message, Part, Protocol, Ref, ShownKey, on
from protocols import greeting
from protocols.opening import Opened, Survivors, openings


class Senders(Message, name="secagg/senders/1", key=("round",)):
    """Whose models I add up in a round, under which keys, each signed by its owner; none: I add up nothing."""

    round: int
    keys: tuple[tuple[int, bytes, bytes], ...]
    """Node, public key and signature."""


class Masked(Message, name="secagg/masked/2", key=("round",), any_shape=True):
    """A node's part of the receiver's sum: noise until the others of the sum are there, and have opened it."""

    round: int
    total: bytes
    """Names the sum: run, round, receiver and senders."""
    part: Ref
    """The weighted model in steps of 2**-20, masked, int32."""
    shares: tuple[bytes, ...]
    """What each sender of the sum, in their order, can help to open it with, sealed; none: all parts are needed."""


class SecAgg(Protocol):
    """Synchronous gossip of sums.

    A node whose own model grows out of the range of fixed-point numbers ends the run. A sum that no honest senders can
    have made is dropped, as one of too few.
    """

    hides_models = True
    side_channels = ("participant set",)

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours, at each of a round's exchanges; 0: all are needed."""
        dropout: Literal["recover", "drop"] = "recover"
        """What becomes of a sum with missing senders: the sum of the others, if they are more than two thirds, or
        nothing. To recover costs one more exchange of small messages in every round, and more than two thirds of the
        senders in league with the receiver can then expose the others; otherwise it takes all but one."""

    config: Config

    @property
    def recovers(self) -> bool:
        """Whether sums can be opened without some of their senders."""
        return self.config.dropout == "recover"

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
            greeters = await greeting.greeted(ctx, round, self.config.deadline_s)
            senders = greeters if len(greeters) >= LEAST_SENDERS else {}
            await self.contribute(ctx, round, model, senders)
            added: tuple[int, ...] = ()
            if senders:
                model, added = await self.mixed(ctx, round, model, senders)
            ctx.record(round=round, **ctx.judge(model), senders=len(added))
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
            if shown and (part := ctx.privacy.masked(model, receiver, round, shown, self.recovers)):
                await ctx.send(receiver, Masked(round=round, total=part.total, part=part.value, shares=part.shares))

    async def mixed(
        self, ctx: Context, round: int, model: Ref, senders: Mapping[int, ShownKey]
    ) -> tuple[Ref, tuple[int, ...]]:
        """The model and the sum of the senders' ones, and whose these are: nobody's where the sum is dropped."""
        heard = await ctx.collect(Masked, frm=tuple(senders), timeout_s=self.config.deadline_s or None, round=round)
        parts = {peer: Part(message.part, message.total, message.shares) for peer, message in heard.items()}
        gathered = ctx.privacy.gathered(parts, senders, round, self.recovers)
        total = await gathered.total(model, await self.openings(ctx, gathered))
        if total is None:
            return model, ()
        return ctx.mix([model, total], [ctx.weights(gathered.alive, round)[0], 1.0]), gathered.alive

    async def openings(self, ctx: Context, gathered: Gathered) -> dict[int, bytes]:
        """What those who are there have to open the sum of theirs with: of all of them, or of enough in time."""
        if not self.recovers:
            return {}
        limits: dict[str, Any] = {}
        if self.config.deadline_s:
            limits = {"quorum": gathered.threshold, "timeout_s": self.config.deadline_s}
        return await openings(ctx, gathered, **limits)

    @on(Survivors)
    def open(self, ctx: Context, receiver: int, asked: Survivors) -> Opened | None:
        """This node's shares, where it has a part in the sum and nothing speaks against opening it."""
        shares = ctx.privacy.opened(receiver, asked.total, asked.alive, asked.shares)
        return None if shares is None else Opened(round=asked.round, shares=shares)
