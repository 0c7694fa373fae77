"""Asynchronous decentralized parallel SGD: train, average with one random neighbour, never wait for a round.

Lian, Zhang, Zhang, Liu: Asynchronous Decentralized Parallel Stochastic Gradient Descent, ICML 2018.

Both ends of an exchange move by half of the difference of the two models that were exchanged, whatever happened to
either in between: so the sum of all models is preserved exactly, and no node ever blocks another.
"""

from pydantic import Field

from node import Context, DeadlineExceeded, Message, Protocol, Ref, Unreachable, on, shift


class Exchange(Message, name="adpsgd/exchange/1"):
    """A node's model at the moment of an exchange; the answer carries the other's."""

    model: Ref


class ADPSGD(Protocol):
    """Asynchronous pairwise gossip; goes on when neighbours die."""

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Trainings of each node; nodes do not wait for one another."""
        deadline_s: float = Field(5.0, gt=0)
        """Longest wait for the answer of a neighbour."""

    config: Config
    model: Ref

    async def run(self, ctx: Context) -> Ref:
        """Train and exchange at this node's own pace."""
        self.model = ctx.initial_model()
        first = 0
        if saved := ctx.restore():
            self.model, first = saved["model"], saved["round"]
        for round in range(first, self.config.rounds):
            start = self.model
            trained = await ctx.train(start)
            self.model = ctx.apply(shift, self.model, trained, start)
            await self.exchange_with_one(ctx, round)
            metrics = ctx.evaluate(self.model)
            ctx.record(round=round, accuracy=metrics, loss=metrics)
            await ctx.checkpoint(round=round + 1, model=self.model)
        return self.model

    async def exchange_with_one(self, ctx: Context, round: int) -> None:
        """Average with a random neighbour, unless there is none or it does not answer."""
        neighbours = ctx.alive(ctx.neighbours(round))
        if not neighbours:
            return
        peer = neighbours[ctx.rng.integers(len(neighbours))]
        sent = self.model
        try:
            answer = await ctx.request(peer, Exchange(model=sent), timeout_s=self.config.deadline_s)
        except (Unreachable, DeadlineExceeded) as error:
            ctx.log.info("exchange failed", peer=peer, round=round, reason=str(error))
            return
        if isinstance(answer, Exchange):
            self.model = ctx.apply(shift, self.model, answer.model, sent, by=0.5)

    @on(Exchange)
    def answer(self, ctx: Context, sender: int, message: Exchange) -> Exchange:
        """The passive side: average, and answer with the model from before."""
        mine = self.model
        self.model = ctx.apply(shift, mine, message.model, mine, by=0.5)
        return Exchange(model=mine)
