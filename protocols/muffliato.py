"""Muffliato: noise once, then gossip rounds that average it away before anybody far off sees the model.

Cyffers, Even, Bellet, Massoulié: Muffliato: Peer-to-Peer Privacy Amplification for Decentralized Optimization and
Averaging, NeurIPS 2022, algorithms 1 and 2.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Model(Message, name="muffliato/model/1", key=("round", "gossip")):
    """A node's model before a gossip round."""

    round: int
    gossip: int
    """Gossip rounds before this one."""
    model: Ref


class Muffliato(Protocol):
    """Every round: train, clip the update, add noise, and gossip until all have nearly the same model."""

    hides_models = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training, each with a gossip phase after it."""
        gossip_rounds: int = Field(10, ge=1)
        """Exchanges of models in a phase (``K``)."""
        accelerated: bool = True
        """Gossip by Chebyshev's recursion, which needs about the square root of the exchanges; every node works out its
        factor from the whole mixing matrix."""
        clip: float = Field(1.0, ge=0, allow_inf_nan=False)
        """Longest update of a round, as a norm; 0: as long as it is, and no guarantee."""
        noise: float = Field(0.1, ge=0, allow_inf_nan=False)
        """Standard deviation of the noise on every parameter, once a phase."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of an exchange; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last phase's."""
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            trained = await ctx.train(model)
            noised = ctx.privacy.noised_update(model, trained, self.config.clip, self.config.noise)
            model = await self.gossiped(ctx, noised, round)
            ctx.record(round=round, **ctx.judge(model))
            await ctx.checkpoint(round=round + 1, model=model)
        return model

    async def gossiped(self, ctx: Context, model: Ref, round: int) -> Ref:
        """The model after a phase: ``x_1 = W x_0``, then ``x_{k+1} = gamma W x_k + (1 - gamma) x_{k-1}``."""
        gamma = ctx.privacy.gamma(round) if self.config.accelerated else 1.0
        before = model
        for k in range(self.config.gossip_rounds):
            await ctx.send(ctx.neighbours(round), Model(round=round, gossip=k, model=model))
            heard = await ctx.collect(
                Model, frm=ctx.sources(round), timeout_s=self.config.deadline_s or None, round=round, gossip=k
            )
            models, weights = [model, *(m.model for m in heard.values())], ctx.weights(heard, round)
            if k > 0 and gamma != 1:
                models, weights = [*models, before], (*(gamma * weight for weight in weights), 1 - gamma)
            model, before = ctx.mix(models, weights), model
        return model
