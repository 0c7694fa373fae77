"""Zip-DL: D-PSGD whose nodes send every neighbour the model with other noise, which cancels in the average of all.

Biswas, Frey, Gaudel, Kermarrec, Lerévérend, Pires, Sharma, Taïani: Low-Cost Privacy-Preserving Decentralized Learning,
PoPETs 2025, algorithm 1.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref


class Share(Message, name="zipdl/share/1", key=("round",)):
    """A node's model after its local training of a round, with the noise for one receiver."""

    round: int
    model: Ref


class ZipDL(Protocol):
    """Synchronous gossip; a node keeps a noised share for itself, so that its neighbours together cannot cancel all."""

    hides_models = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and mixing."""
        clip: float = Field(0.0, ge=0, allow_inf_nan=False)
        """Longest update of a round, as a norm; 0, as in the paper: as long as it is, and no guarantee."""
        noise: float = Field(0.1, ge=0, allow_inf_nan=False)
        """Standard deviation of the draws that the shares' noise is made of, on every parameter: learning rate times
        ``s_a`` in the paper."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the neighbours of a round; 0: all are needed. Noise for those who are away does not
        cancel."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last mix.

        ``noise_variance`` is that of the neighbour who gets least noise, ``residual_variance`` what this node's noise
        leaves on the sum of all models, where neighbours have dropped out.
        """
        model, first = ctx.initial_model(), 0
        if saved := ctx.restore():
            model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            trained = await ctx.train(model)
            model = ctx.privacy.noised_update(model, trained, self.config.clip, 0.0)
            receivers, sources = ctx.alive(ctx.neighbours(round)), ctx.sources(round)
            shares = ctx.privacy.shares(model, receivers, round, self.config.noise)
            for receiver in receivers:
                await ctx.send(receiver, Share(round=round, model=shares.of(receiver)))
            heard = await ctx.collect(Share, frm=sources, timeout_s=self.config.deadline_s or None, round=round)
            own, *rest = ctx.weights(heard, round)
            models, weights = [shares.of(ctx.me), *(m.model for m in heard.values())], [own, *rest]
            if len(heard) < len(sources):  # what they would have weighed goes to the model without noise
                weights[0] = ctx.weights(sources, round)[0]
                models, weights = [*models, model], [*weights, own - weights[0]]
            model = ctx.mix(models, weights)
            absent = set(sources) - set(heard)
            residual = shares.residual_variance(absent)
            ctx.record(
                round=round,
                **ctx.judge(model),
                noise_variance=shares.least_variance,
                residual_variance=residual,
            )
            await ctx.checkpoint(round=round + 1, model=model)
        return model
