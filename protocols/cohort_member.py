"""A member of a cohort: it trains what its leader assigns, newest first."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Mapping
from typing import Any
from typing import Protocol as Interface

from node import Context, Ref
from protocols.cohort_round import Assignment, Partial, Update, tell
from protocols.cohort_settings import Settings
from protocols.cohort_sums import Masked, contributed
from protocols.drift import Drift
from protocols.gathering import gather_partial
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
    """One node's local training; for a part of a big cohort it also adds up what others have trained."""

    def __init__(self, host: Host, settings: Settings) -> None:
        self.newest: Assignment | None = None
        """What this node trains, or has trained last."""
        self.rounds = 0
        """Up to the newest one that a leader has asked this node for."""
        self.training_s = 0.0
        """How long all of its trainings took."""
        self._host = host
        self._settings = settings
        self._drift = Drift() if settings.correction == "scaffold" else None
        self._next: tuple[int, Assignment] | None = None
        self._is_working = False
        self._added_up = (-1, -1)
        self._partial: tuple[Partial, float] | None = None  # and when the leader must have it
        self._turn = (-1, -1)
        self._again_s = -math.inf  # when the answer to that must have come, or be lost

    def assign(self, ctx: Context, leader: int, assignment: Assignment) -> None:
        """Train this after what is under way, unless something newer comes, or a newer leader is known already.

        Nobody keeps a model in case that it is lost: whose answer must be lost, trains again, as for a new leader. A
        sum is kept, though, as those who are in it could not be heard again.
        """
        if not self._host.leadership.admits(assignment.epoch, assignment.term):
            return
        self.rounds = assignment.round + 1
        turn = (assignment.term, assignment.round)
        if assignment.shares and turn > self._added_up:
            self._added_up, self._partial = turn, None
            ctx.spawn(self._add_up(ctx, leader, assignment))
        elif assignment.shares and self._partial is not None and ctx.now >= self._partial[1]:
            self._report(ctx, leader, self._partial[0])
        if assignment.again and not self._lacks(ctx, turn):
            return
        if turn != self._turn:
            self._partial = None
        self._turn, self._again_s = turn, math.inf
        self._next = (leader, assignment)
        if not self._is_working:
            self._is_working = True
            ctx.spawn(self._work(ctx))

    def _lacks(self, ctx: Context, turn: tuple[int, int]) -> bool:
        """Whether this node has never heard of it, could not get its model, or has answered so long ago in vain."""
        return turn > self._turn or (turn == self._turn and ctx.now >= self._again_s)

    async def _work(self, ctx: Context) -> None:
        while self._next is not None:
            (leader, assignment), self._next = self._next, None
            self.newest, patience_s = assignment, 0.0
            if await self._host.shelf.fetch(ctx, assignment.digest, (leader,)):
                update = await self._answer(ctx, leader, assignment)
                await self._host.keep(ctx)  # learning rate and batches go on from here after a crash
                to = leader if assignment.to is None else assignment.to
                tell(ctx, to, update)
                patience_s = math.inf if to == ctx.me else self._settings.transfer_s
            if self._next is None:
                self._again_s = ctx.now + patience_s
        self._is_working = False

    async def _add_up(self, ctx: Context, leader: int, assignment: Assignment) -> None:
        if (partial := await gather_partial(ctx, self._settings, assignment)) is not None:
            self._report(ctx, leader, partial)

    def _report(self, ctx: Context, leader: int, partial: Partial) -> None:
        self._partial = partial, ctx.now + self._settings.transfer_s
        tell(ctx, leader, partial)

    async def _answer(self, ctx: Context, leader: int, assignment: Assignment) -> Update | Masked:
        if not self._settings.secure:
            return await self._trained(ctx, assignment)
        return await contributed(ctx, self._settings, self._host.leadership, leader, assignment, self._trained)

    async def _trained(self, ctx: Context, assignment: Assignment) -> Update:
        """What becomes of a model here; its losses are taken first, as it came."""
        version, held, drift = self._host.shelf[assignment.digest], ctx.data.held_samples, self._drift
        with ctx.aside():
            judged = ctx.evaluate(version.model, on="local") if held else None
        tried = ctx.utility(version.model) if self._settings.sampling == "oort" else None
        correction = None if drift is None else drift.correction(ctx, version, assignment.round)
        lr, began_s = ctx.lr, ctx.now
        training = ctx.train(version.model, proximal=self._settings.proximal, correction=correction)
        loss = await _read(ctx, judged, "loss")
        utility = await _read(ctx, tried, "utility")
        model = await training
        self.training_s += ctx.now - began_s
        return Update(
            term=assignment.term,
            round=assignment.round,
            model=model,
            loss=loss,
            held=held,
            change=None if drift is None else drift.trained(ctx, version, model, lr),
            utility=0.0 if tried is None else ctx.data.samples * utility,
        )

    # Over restarts

    def state(self) -> dict[str, Ref | float]:
        """For a checkpoint."""
        return {
            "training_s": self.training_s,
            "rounds": self.rounds,
            **({} if self._drift is None else self._drift.state()),
        }

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has kept."""
        self.training_s = float(saved.get("training_s", 0.0))
        self.rounds = int(saved.get("rounds", 0))
        if self._drift is not None:
            self._drift.restore(saved)


async def _read(ctx: Context, metrics: Ref | None, name: str) -> float:
    """One of some metrics; NaN where there are none."""
    return math.nan if metrics is None else float((await ctx.value(metrics))[name])
