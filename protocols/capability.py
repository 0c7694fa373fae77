"""Who is fit to lead: how fast a member trains, how fast its model gets to others, and how often it has been lost.

A leader sends its cohort a model in every round, and hears one from each. So what counts is the time that a node needs
to train, and to send one model to another member, which it tries out once; a life that it has lost counts like as much
time again. Members tell each other; all of it is said by a node of itself, and decides only who stands for election
first.
"""

from __future__ import annotations

from collections.abc import Sequence

from node import Context, DeadlineExceeded, Future, Message, Ref, Unreachable
from node.election import Entry
from protocols.cohort_round import tell
from protocols.round_trips import Pong


class Load(Message, name="cpfl/load/1"):
    """A model, only to see how long it takes to come."""

    model: Ref


class Able(Message, name="cpfl/able/1"):
    """What a round of mine takes, and all the more the less I can be relied on."""

    round_s: float


class Capability:
    """What one node knows of its cohort's members."""

    def __init__(self, lives: int) -> None:
        """``lives``: of this node, with the present one."""
        self.lives = lives
        self._round_s: dict[int, float] = {}
        self._told: dict[int, None] = {}
        self._others: Sequence[int] = ()
        self._complete: Future[None] | None = None

    def prefer(self, entry: Entry) -> Sequence[int]:
        """The members of an entry, the fittest first; nobody knows what those are that have said nothing."""
        return sorted(entry.members, key=lambda node: (self._round_s.get(node, float("inf")), node))

    async def compare(self, ctx: Context, members: Sequence[int], timeout_s: float) -> None:
        """Find out what this node needs for a round, tell the others, and hear the same of them, if they are there."""
        others = [member for member in ctx.alive(members) if member != ctx.me]
        began_s = ctx.now
        with ctx.aside():
            training = ctx.train(ctx.initial_model(), steps=1, lr=0.0)
        await training
        step_s, began_s = ctx.now - began_s, ctx.now
        for member in others[:1]:
            try:
                await ctx.request(member, Load(model=ctx.initial_model()), timeout_s=timeout_s)
            except (Unreachable, DeadlineExceeded):
                continue
        self._round_s[ctx.me] = (ctx.steps * step_s + ctx.now - began_s) * self.lives
        for member in others:
            self._tell(ctx, member)
        if any(member not in self._round_s for member in others):
            self._others, self._complete = others, ctx.future()
            ctx.spawn(self._go_on(ctx, self._complete, timeout_s))
            await self._complete

    async def _go_on(self, ctx: Context, complete: Future[None], timeout_s: float) -> None:
        await ctx.sleep(timeout_s)
        if not complete.done():
            complete.set_result(None)

    def hear(self, ctx: Context, sender: int, able: Able) -> None:
        """A member has told what it needs; who is back has to hear the same of this one."""
        self._round_s[sender] = able.round_s
        if self._complete is not None and not self._complete.done() and self._round_s.keys() >= {*self._others}:
            self._complete.set_result(None)
        if sender not in self._told and ctx.me in self._round_s:
            self._tell(ctx, sender)

    def _tell(self, ctx: Context, member: int) -> None:
        self._told[member] = None
        tell(ctx, member, Able(round_s=self._round_s[ctx.me]))


def loaded() -> Pong:
    """The answer to a load."""
    return Pong()
