"""A member of a cohort: it trains what its leader assigns, newest first."""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Protocol as Interface

from node import Context, Message
from protocols.cohort_round import Assignment, Update
from protocols.leadership import Leadership
from protocols.versions import Shelf


class Host(Interface):
    """The node that it is a part of."""

    shelf: Shelf
    leadership: Leadership

    def keep(self, ctx: Context) -> Awaitable[None]:
        """Save what must survive a restart, and only then go on."""
        ...


class Member:
    """One node's local training."""

    def __init__(self, host: Host, proximal: float) -> None:
        self.newest: Assignment | None = None
        """What this node trains, or has trained last."""
        self._host = host
        self._proximal = proximal
        self._next: tuple[int, Assignment] | None = None
        self._is_working = False

    def assign(self, ctx: Context, leader: int, assignment: Assignment) -> None:
        """Train this after what is under way, unless something newer comes, or a newer leader is known already."""
        if not self._host.leadership.admits(assignment.epoch, assignment.term):
            return
        self._next = (leader, assignment)
        if not self._is_working:
            self._is_working = True
            ctx.spawn(self._work(ctx))

    async def _work(self, ctx: Context) -> None:
        while self._next is not None:
            (leader, self.newest), self._next = self._next, None
            if await self._host.shelf.fetch(ctx, self.newest.digest, (leader,)):
                update = await self._trained(ctx, self.newest)
                await self._host.keep(ctx)  # learning rate and batches go on from here after a crash
                tell(ctx, leader, update)
        self._is_working = False

    async def _trained(self, ctx: Context, assignment: Assignment) -> Update:
        """What becomes of a model here; its loss is judged first, as it came."""
        model, held = self._host.shelf[assignment.digest].model, ctx.data.held_samples
        with ctx.aside():
            judged = ctx.evaluate(model, on="local") if held else None
        training = ctx.train(model, proximal=self._proximal)
        loss = math.nan if judged is None else float((await ctx.value(judged))["loss"])
        return Update(term=assignment.term, round=assignment.round, model=await training, loss=loss, held=held)


def tell(ctx: Context, node: int, message: Message) -> None:
    """Send beside whatever goes on; what a node tells itself is no traffic."""
    if node == ctx.me:
        ctx.deliver(node, message)
    else:
        ctx.spawn(ctx.send(node, message))
