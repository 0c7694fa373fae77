"""Asynchronous decentralized parallel SGD: train, average with one random neighbour, never wait for a round.

Lian, Zhang, Zhang, Liu: Asynchronous Decentralized Parallel Stochastic Gradient Descent, ICML 2018.

Both ends of an exchange move by half of the difference of the two models that were exchanged, whatever happened to
either in between: so the sum of all models is preserved exactly, and no node ever blocks another.

Absent neighbours: a node draws among those that are not known to be gone, and trains on alone where there are none. One
that does not answer in ``deadline_s`` costs it that time, and no exchange takes place; only where the answer alone was
lost has the other moved, and then the sum changes. One that comes back takes the round and model of a neighbour that is
further (``protocols/catching_up.py``), which changes the sum too, or else has its saved ones; and is drawn again.
"""

from pydantic import Field

from node import Context, DeadlineExceeded, Message, Protocol, Ref, Unreachable, on, shift
from protocols.catching_up import CatchingUp


class Exchange(Message, name="adpsgd/exchange/1"):
    """A node's model at the moment of an exchange; the answer carries the other's."""

    model: Ref


class ADPSGD(CatchingUp):
    """Asynchronous pairwise gossip; goes on when neighbours die."""

    aggregates = True

    class Config(Protocol.Config):
        """Options of ``[protocol]``."""

        rounds: int = Field(100, ge=1)
        """Trainings of each node; nodes do not wait for one another."""
        deadline_s: float = Field(5.0, gt=0)
        """Longest wait for the answer of a neighbour."""

    config: Config
    model: Ref
    progress: float = 0.0
    """The share of its trainings that this node has done."""

    @classmethod
    def aggregated(cls, config: Config, nodes: int) -> int:
        """The two models of an exchange."""
        return 2

    async def run(self, ctx: Context) -> Ref:
        """Train and exchange at this node's own pace."""
        self.model = ctx.initial_model()
        first = 0
        if saved := ctx.restore():
            self.model, first = await self.resumed(ctx, saved["model"], saved["round"])
        for round in range(first, self.config.rounds):
            start, self.progress = self.model, round / self.config.rounds
            self.begin(round, start)
            trained = await ctx.train(start)
            self.model = ctx.apply(shift, self.model, trained, start)
            self.hold(self.model)
            await self.exchange_with_one(ctx, round)
            ctx.record(round=round, **ctx.judge(self.model))
            await ctx.checkpoint(round=round + 1, model=self.model)
        self.begin(self.config.rounds, self.model)
        return self.model

    async def resumed(self, ctx: Context, saved: Ref, round: int) -> tuple[Ref, int]:
        """The model and round to go on with; exchanges that others have begun meanwhile count."""
        self.model = saved
        first, model = await self.caught_up(ctx, round, saved, self.config.deadline_s)
        return (ctx.apply(shift, self.model, model, saved) if first > round else self.model), first

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
            self.average(ctx, sent, answer.model)

    @on(Exchange)
    def answer(self, ctx: Context, sender: int, message: Exchange) -> Exchange:
        """The passive side: average, and answer with the model from before."""
        mine = self.model
        self.average(ctx, mine, message.model)
        return Exchange(model=mine)

    def average(self, ctx: Context, sent: Ref, heard: Ref) -> None:
        """Move as the model that was sent moves when it is averaged with the other."""
        if ctx.is_robust:
            averaged = ctx.aggregate(sent, [heard], progress=self.progress)
            self.model = ctx.apply(shift, self.model, averaged, sent)
        else:
            self.model = ctx.apply(shift, self.model, heard, sent, by=0.5)
        self.hold(self.model)
