"""Moreau envelopes: the common model moves towards what each node's own one becomes while it is held near it.

Dinh, Tran, Nguyen: Personalized Federated Learning with Moreau Envelopes, NeurIPS 2020; here without a server.

The inner steps have no weight decay of their own: the pull is the only regularizer of the paper.
"""

from pydantic import Field

from node import ConfigError, Context, Message, Protocol, Ref, shift


class Model(Message, name="pfedme/model/1", key=("round",)):
    """A node's common model ``w`` after its local batches of a round."""

    round: int
    model: Ref


class PFedMe(Protocol):
    """Synchronous gossip of ``w``; the personal ``theta`` is never sent."""

    aggregates = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        batches: int = Field(20, ge=1)
        """Local updates of ``w`` in a round, each on one batch, in place of the experiment's steps."""
        inner_steps: int = Field(5, ge=1)
        """Steps (K) of ``theta`` on each batch."""
        inner_lr: float = Field(0.05, gt=0)
        """Learning rate of ``theta``; times ``pull`` it is the share of the way back to ``w`` in a step."""
        pull: float = Field(15.0, gt=0)
        """Strength (lambda) of the pull of ``theta`` to ``w``: the larger, the less personal."""
        lr: float = Field(0.005, gt=0)
        """Learning rate (eta) of ``w``; times ``pull`` it is the share of the way to ``theta``."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed."""

    config: Config

    @classmethod
    def check(cls, config: Config, nodes: int) -> None:
        """Neither model may jump beyond the other by more than it was away."""
        for name in ("lr", "inner_lr"):
            if getattr(config, name) * config.pull >= 2:
                raise ConfigError(
                    f"protocol.{name}: {getattr(config, name):g} x pull {config.pull:g} diverges; "
                    f"allowed: less than {2 / config.pull:g}"
                )

    @classmethod
    def first_steps(cls, config: Config) -> int:
        """Those on one batch."""
        return config.inner_steps

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last ``theta``."""
        w = theta = ctx.initial_model()
        first = 0
        if saved := ctx.restore():
            w, theta, first = saved["w"], saved["theta"], saved["round"]
        for round in range(first, self.config.rounds):
            w, theta = await self.learn(ctx, w)
            w = await self.mixed(ctx, Model(round=round, model=w))
            ctx.record(round=round, **ctx.judge(theta, is_personal=True))
            await ctx.checkpoint(round=round + 1, w=w, theta=theta)
        return theta

    async def learn(self, ctx: Context, w: Ref) -> tuple[Ref, Ref]:
        """Batch by batch: K steps of ``theta``, then one of ``w`` towards it."""
        c, theta = self.config, w
        for _ in range(c.batches):
            theta = await ctx.train(theta, 1, c.pull, toward=w, lr=c.inner_lr, repeats=c.inner_steps)
            w = ctx.apply(shift, w, theta, w, by=c.lr * c.pull)
        return w, theta

    async def mixed(self, ctx: Context, own: Model) -> Ref:
        """Exchange common models with the neighbours."""
        round = own.round
        await ctx.send(ctx.neighbours(round), own)
        heard = await ctx.collect(Model, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round)
        others = {peer: message.model for peer, message in heard.items()}
        return ctx.aggregate(own.model, others, ctx.weights(heard, round), progress=round / self.config.rounds)
