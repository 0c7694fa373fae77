"""Protocols and mods that fail in their second round, each in another place; copied into the folder of the run."""

import os

from node import Context, Message, Mod, Protocol, Ref, on

NODE = 3


class Note(Message, name="faulty/note/1"):
    round: int


class Model(Message, name="faulty/model/1", key=("round",)):
    round: int
    model: Ref


class Sound(Protocol):
    """What all of them do as long as nothing fails: exchange models with everybody, and notes."""

    class Config(Protocol.Config):
        rounds: int = 4

    async def run(self, ctx: Context) -> Ref:
        model = ctx.initial_model()
        for round in range(self.config.rounds):
            model = await ctx.train(model)
            self.step(ctx, round)
            await ctx.send(ctx.peers(), Note(round=round))
            await ctx.send(ctx.peers(), Model(round=round, model=model))
            heard = await ctx.collect(Model, frm=ctx.peers(), round=round)
            model = ctx.mix([model, *[m.model for m in heard.values()]])
            ctx.record(round=round, accuracy=ctx.evaluate(model))
            await ctx.value(ctx.evaluate(model))
        return model

    def step(self, ctx, round):
        """Nothing."""

    @on(Note)
    def note(self, ctx, sender, message):
        self.noted(ctx, message.round)

    def noted(self, ctx, round):
        """Nothing."""


def fails(ctx, round):
    return round == 2 and ctx.me == NODE


class InRun(Sound):
    def step(self, ctx, round):
        if fails(ctx, round):
            raise TypeError("no such\nthing")  # here: InRun


class InLibrary(Sound):
    def step(self, ctx, round):
        if fails(ctx, round):
            os.listdir("/nowhere/at/all")  # here: InLibrary


class InHandler(Sound):
    def noted(self, ctx, round):
        if fails(ctx, round):
            [][round]  # here: InHandler


class InSpawned(Sound):
    def step(self, ctx, round):
        if fails(ctx, round):
            ctx.spawn(self.later(ctx))

    async def later(self, ctx):
        await ctx.sleep(0.001)
        raise ZeroDivisionError  # here: InSpawned


class InMod(Mod):
    def incoming(self, ctx, sender, message):
        if isinstance(message, Note) and fails(ctx, message.round):
            raise KeyError("mod")  # here: InMod
        return message


class InConstructor(Sound):
    def __init__(self, config=None):
        super().__init__(config)
        raise RuntimeError("cannot be made")  # here: InConstructor


class AfterTheEnd(Sound):
    """A handler that fails when its own node's run has ended already."""

    async def run(self, ctx):
        if ctx.me == NODE:
            return ctx.initial_model()
        for round in range(3):
            await ctx.sleep(0.05)
            await ctx.value(ctx.evaluate(await ctx.train(ctx.initial_model())))
            ctx.record(round=round, value=1.0)
        await ctx.send(ctx.peers(), Note(round=2))
        await ctx.collect(Model, frm=ctx.peers(), timeout_s=20.0, round=0)
        return ctx.initial_model()

    def noted(self, ctx, round):
        if fails(ctx, round):
            raise LookupError("too late")  # here: AfterTheEnd


class Dies(Sound):
    """A process that ends without a word."""

    def step(self, ctx, round):
        if fails(ctx, round):
            os._exit(7)
