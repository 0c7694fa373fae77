"""A protocol that uses what the bundled synchronous ones do not: requests, handlers, spawned work, values and mods.

It records ops only in ``run``: the counter that seeds them would otherwise depend on when messages come.
"""

from node import Context, Message, Mod, Observer, Protocol, Ref, on, op, scale


@op(seeded=True)
def noisy(model, *, by, rng):
    """``model`` with one value of noise on all of its elements."""
    return model + by * float(rng.normal())


class Question(Message, name="asking/question/1"):
    round: int
    weight: float
    model: Ref


class Answer(Message, name="asking/answer/1"):
    samples: int
    drawn: float
    model: Ref


class Done(Message, name="asking/done/1", key=("round",)):
    round: int


class Model(Message, name="asking/model/1", key=("round",)):
    round: int
    model: Ref


class Asking(Protocol):
    class Config(Protocol.Config):
        rounds: int = 3

    async def run(self, ctx: Context) -> Ref:
        self.weights = {}
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            neighbours = ctx.neighbours(round)
            model = await ctx.train(model)
            heard = []
            for peer in neighbours:
                weight = float(ctx.rng.random())
                heard.append(await ctx.request(peer, Question(round=round, weight=weight, model=model)))
            ctx.spawn(self.tell(ctx, neighbours, Done(round=round)))
            await ctx.collect(Done, frm=neighbours, round=round)
            # All questions of this round have been handled: a neighbour was done only when they were answered.
            asked = sum(self.weights[peer, round] for peer in neighbours)
            model = ctx.mix([model, *[answer.model for answer in heard]])
            await ctx.send(ctx.peers(), Model(round=round, model=model))
            others = await ctx.collect(Model, frm=self.tellers(ctx, round), round=round)
            model = ctx.mix([model, *[message.model for message in others.values()]])
            metrics = await ctx.value(ctx.evaluate(model))
            if metrics["accuracy"] > 0.3:
                model = ctx.apply(noisy, model, by=1e-3)
            await ctx.checkpoint(model=model, round=round)
            samples = sum(answer.samples for answer in heard)
            ctx.record(round=round, accuracy=ctx.evaluate(model), asked=asked, samples=samples)
        return model

    async def tell(self, ctx, neighbours, message):
        await ctx.send(neighbours, message)

    def tellers(self, ctx, round):
        """Those whose models come through the mods of all nodes: see :class:`Deaf`."""
        return [peer for peer in ctx.peers() if peer % 3]

    @on(Question)
    def answer(self, ctx, sender, message):
        self.weights[sender, message.round] = message.weight
        return Answer(samples=ctx.data.samples, drawn=message.weight / 2, model=message.model)


class Halved(Mod):
    """Models leave at half their size."""

    def outgoing(self, ctx, to, message):
        if isinstance(message, Model):
            return Model(round=message.round, model=ctx.apply(scale, message.model, by=0.5))
        return message

    def trained(self, ctx, before, after):
        return ctx.mix([before, after], weights=[0.25, 0.75])


class Deaf(Mod):
    """Hears no model of every third node."""

    def incoming(self, ctx, sender, message):
        return None if isinstance(message, Model) and sender % 3 == 0 else message


class Count(Observer):
    """Counts what its node sees, and fails where it sees nothing of its own training."""

    def __init__(self, config=None):
        super().__init__(config)
        self.sent_messages = self.trainings = 0

    def sent(self, ctx, to, message):
        assert self.trainings
        self.sent_messages += 1

    def trained(self, ctx, before, after):
        self.trainings += 1
