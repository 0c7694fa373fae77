"""DECOR: D-PSGD with noise that every two neighbours share; one adds what the other subtracts.

Allouah, Koloskova, El Firdoussi, Jaggi, Guerraoui: The Privacy Power of Correlated Noise in Decentralized Learning,
ICML 2024, algorithm 1. Here updates are clipped, not gradients: with one local step that is the same, and the norms and
deviations below are the paper's times the learning rate.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref
from protocols import greeting


class Model(Message, name="decor/model/1", key=("round",)):
    """A node's model after its local training of a round, with noise of its own and of its edges."""

    round: int
    model: Ref


class DECOR(Protocol):
    """Synchronous gossip; the noise of an edge is added by both ends, or by none, as far as they can tell."""

    hides_models = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        clip: float = Field(1.0, ge=0, allow_inf_nan=False)
        """Longest update of a round, as a norm; 0: as long as it is, and no guarantee."""
        noise: float = Field(0.05, ge=0, allow_inf_nan=False)
        """Standard deviation of a node's own noise on every parameter (``sigma_cdp``)."""
        pairwise: float = Field(0.2, ge=0, allow_inf_nan=False)
        """Standard deviation of the noise of an edge on every parameter (``sigma_cor``)."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed. Without them for a while, the noise of an edge
        may stay."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix.

        ``residual_variance`` is what the noise of edges has left on the sum of all models, because the other end said
        that it takes part and then was not heard.
        """
        model, first, deadline_s = ctx.initial_model(), 0, self.config.deadline_s
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            trained = await ctx.train(model)
            noised = ctx.privacy.noised_update(model, trained, self.config.clip, self.config.noise)
            neighbours, sources = ctx.neighbours(round), ctx.sources(round)
            partners = [peer for peer in await greeting.greeted(ctx, round, deadline_s) if peer in neighbours]
            sent = ctx.privacy.decorrelated(noised, partners, round, self.config.pairwise)
            await ctx.send(neighbours, Model(round=round, model=sent))
            heard = await ctx.collect(Model, frm=sources, timeout_s=deadline_s or None, round=round)
            model = ctx.mix([sent, *(m.model for m in heard.values())], ctx.weights(heard, round))
            residual = self.config.pairwise**2 * len(set(partners) - set(heard))
            ctx.record(round=round, **ctx.judge(model), residual_variance=residual)
            await ctx.checkpoint(round=round + 1, model=model)
        return model
