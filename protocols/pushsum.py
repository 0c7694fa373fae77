"""Stochastic gradient push: gossip over directed, time-varying graphs whose weights need not be doubly stochastic.

Averaging: Kempe, Dobra, Gehrke: Gossip-Based Computation of Aggregate Information, FOCS 2003. Learning: Assran, Loizou,
Ballas, Rabbat: Stochastic Gradient Push for Distributed Deep Learning, ICML 2019.

Each node splits its mass, a model ``x`` and a weight ``w``, evenly among itself and those it sends to. Sums of both are
preserved, so ``z = x / w`` goes to the average of all. What a lost message carries is lost from both sums alike.

Absent neighbours: without ``deadline_s`` all are needed, and one that is gone ends the run. With it, a round closes at
the deadline, or when all that are not gone have sent. In place of a share that has not come, or whose weight cannot be
(all together are as many as there are nodes), a node takes its own once more. That does not change its estimate; to
leave it out would from round to round drain its weight, until steps of training, which are not divided, are too long.
A node that comes back, or finds that most are past its round, goes on in the round of its neighbours with the estimate
of one and its own weight (``protocols/catching_up.py``); where they are no further, with what it has saved.
"""

from pydantic import Field

from node import Context, Message, Protocol, Ref, scale, shift
from protocols.catching_up import CatchingUp


class Share(Message, name="pushsum/share/1", key=("round",)):
    """The part of its mass that a node gives to one other."""

    round: int
    model: Ref
    weight: float


class PushSum(CatchingUp):
    """Synchronous push-sum over the topology's outgoing edges."""

    awaited = Share

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Rounds of training and pushing."""
        deadline_s: float = Field(0.0, ge=0)
        """Longest wait for the shares of a round; 0: all are needed."""

    config: Config

    async def run(self, ctx: Context) -> Ref:
        """Take part in every round; the final model is the last estimate ``z`` of the average."""
        mass = estimate = own = ctx.initial_model()
        round, weight, deadline_s = 0, 1.0, self.config.deadline_s or None
        if saved := ctx.restore():
            round, mass, own, weight = saved["round"], saved["mass"], saved["estimate"], saved["weight"]
            round, estimate = await self.caught_up(ctx, round, own, deadline_s)
        while round < self.config.rounds:
            if estimate is not own:  # a peer's takes its place, with the same weight
                mass = ctx.apply(scale, estimate, by=weight)
            self.begin(round, estimate)
            trained = await ctx.train(estimate)
            mass = ctx.apply(shift, mass, trained, estimate)

            receivers = ctx.neighbours(round)
            part = 1.0 / (len(receivers) + 1)
            share = Share(round=round, model=ctx.apply(scale, mass, by=part), weight=weight * part)
            await self.tell(ctx, receivers, share, estimate)
            sources = ctx.sources(round)
            heard = await ctx.collect(Share, frm=sources, timeout_s=deadline_s, round=round)
            given = [heard.get(source, share) for source in sources]
            shares = [share, *(other if 0 < other.weight <= len(ctx.nodes) else share for other in given)]
            mass = ctx.mix([s.model for s in shares], weights=[1.0] * len(shares))
            weight = sum(s.weight for s in shares)
            own = ctx.apply(scale, mass, by=1.0 / weight)
            ctx.record(round=round, **ctx.judge(own))
            await ctx.checkpoint(round=round + 1, mass=mass, estimate=own, weight=weight)
            round, estimate = await self.after(ctx, round, own, heard, sources, deadline_s)
        self.begin(round, estimate)
        return estimate
