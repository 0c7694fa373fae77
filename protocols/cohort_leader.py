"""The leader of a cohort: rounds of federated averaging until the cohort stops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from node import Context, Future
from node.cohorts import Round, Stopping
from protocols.branching import branches
from protocols.choosing import Choosing
from protocols.cohort_round import Answer, Assignment, Hello, mean_loss, shares_of, tell, weight_of
from protocols.cohort_settings import Settings
from protocols.cohort_step import NOTHING, Outcome, next_state
from protocols.cohort_sums import MaskedGathering, announced
from protocols.gathering import Gathering
from protocols.handing import Handing
from protocols.leadership import Leadership
from protocols.versions import Shelf, Version


class Leader:
    """What a node does while it leads; its memory does not grow with the cohort."""

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        leadership: Leadership,
        cohort: int,
        roll: Mapping[int, Hello],
        handing: Handing,
    ) -> None:
        """``roll``: what members have said of themselves, and this node of itself where it trains too."""
        self._settings = settings
        self._shelf = shelf
        self._leadership = leadership
        self._cohort = cohort
        self._roll = roll
        self._handing = handing
        self._asked: dict[int, Assignment] = {}
        self._mustered: Future[None] | None = None

    async def lead(self, ctx: Context, term: int, round: int, digest: str) -> None:
        """Train on from a round's model until the cohort stops, or another node leads; then hand the model in."""
        settings = self._settings
        version, stopping = self._shelf[digest], Stopping(settings.stopping)
        for loss in version.losses:
            stopping.step(_seen(loss))
        began_s, began_bytes = ctx.now - version.time_s, ctx.bytes_sent - version.size_bytes
        # At first they may still be starting; later, who is there has followed within an election timeout.
        await self._muster(ctx, settings.muster_s if round < 0 else settings.election_timeout_s)
        choosing = Choosing(ctx, settings, self._cohort, version.sampler)
        while self._leadership.leads(term) and not stopping.is_stopped:
            round += 1
            assignment = Assignment(epoch=self._leadership.epoch, term=term, round=round, digest=version.digest)
            outcome = await self._round(ctx, assignment, choosing.draw(self._there(ctx), round))
            if not self._leadership.leads(term):
                return
            choosing.observe(outcome.answers, outcome.times_s)
            seen = _seen(mean_loss(outcome.answers.values()).loss, ctx.now - began_s, ctx.bytes_sent - began_bytes)
            stopping.step(seen)
            version = await self._next(ctx, version, outcome, seen, stopping, choosing.state())
            is_committed = await self._leadership.commit(ctx, term, round, version.digest)
            self._shelf.pinned = ""
            if not is_committed:
                return
            loss = version.losses[-1]
            self._record(ctx, round, version, loss, len(outcome.members))
            if not stopping.is_stopped:
                await self._leadership.settle(ctx, term, round)
        if self._leadership.leads(term):
            is_best = settings.checkpoint == "best" and stopping.best_round is not None
            digests = (version.best, version.digest) if is_best else (version.digest,)
            await self._handing.hand_in(ctx, self._leadership.leads, term, digests, round + 1, self._roll)

    # Members

    def greeted(self, ctx: Context, member: int) -> None:
        """A member has said who it is: it may be the last one, or be back, and have lost what it was asked."""
        for asked, assignment in self._asked.items():
            if member in (asked, assignment.to):
                tell(ctx, asked, assignment)
        if self._mustered is not None and not self._mustered.done() and not self._missing(ctx):
            self._mustered.set_result(None)

    async def _muster(self, ctx: Context, wait_s: float) -> None:
        """Wait for all members that are there, but not for ever."""
        if self._missing(ctx):
            self._mustered = ctx.future()
            ctx.spawn(self._begin_without(ctx, self._mustered, wait_s))
            await self._mustered

    async def _begin_without(self, ctx: Context, mustered: Future[None], wait_s: float) -> None:
        end_s = ctx.now + wait_s
        while ctx.now < end_s and self._missing(ctx):  # who is found to be gone meanwhile is not waited for
            await ctx.sleep(min(self._settings.election_timeout_s, end_s - ctx.now))
        if not mustered.done():
            mustered.set_result(None)

    def _missing(self, ctx: Context) -> bool:
        return any(member not in self._roll for member in ctx.alive(self._leadership.members) if member != ctx.me)

    # Rounds

    async def _round(self, ctx: Context, assignment: Assignment, asked: Sequence[int]) -> Outcome:
        """Ask members to train the model; gives who has, and the mean of what they made of it."""
        settings, began_s = self._settings, ctx.now
        if settings.secure:
            assignment, asked = announced(ctx, settings, assignment, asked, self._roll)
        if not asked:
            await ctx.sleep(settings.election_timeout_s)
            return NOTHING
        shares = shares_of({member: weight_of(self._roll[member], settings.weights) for member in asked})
        gathering = self._gathering(ctx, assignment, shares)
        times_s: dict[int, float] = {}

        def add(sender: int, sent: Any) -> Answer:
            for member in under[sender]:
                del told[member]
            times_s[sender] = ctx.now - began_s
            return gathering.take(sender, sent, under[sender])

        told = self._asked = branches(assignment, shares, settings.branching)
        under: dict[int, list[int]] = {}
        for member, each in told.items():
            under.setdefault(member if each.to is None else each.to, []).append(member)
            tell(ctx, member, each)
        ctx.spawn(self._remind(ctx, assignment.term, told))
        answers = await ctx.collect_each(
            gathering.kind,
            add,
            frm=tuple(under),
            quorum=min(max(settings.sample or len(under), gathering.least), len(under)),
            timeout_s=settings.deadline_s or None,
            term=assignment.term,
            round=assignment.round,
        )
        told.clear()  # and no other round's: an old term's may end late
        if not self._leadership.leads(assignment.term):
            return NOTHING
        model, change = await gathering.means()
        return Outcome(answers, gathering.members, model, change, times_s)

    async def _remind(self, ctx: Context, term: int, told: Mapping[int, Assignment]) -> None:
        """Tell those who have not answered once more, ever more seldom: one message that is lost must stop nobody."""
        wait_s = self._settings.election_timeout_s
        await ctx.sleep(wait_s)
        while told and self._leadership.leads(term):
            for member, assignment in told.items():
                tell(ctx, member, replace(assignment, epoch=self._leadership.epoch, again=True))
            wait_s *= 2
            await ctx.sleep(wait_s)

    def _gathering(
        self, ctx: Context, assignment: Assignment, shares: Mapping[int, float]
    ) -> Gathering | MaskedGathering:
        if not self._settings.secure:
            return Gathering(ctx, self._settings, shares)
        return MaskedGathering(ctx, self._settings, assignment, shares, self._shelf[assignment.digest].model)

    def _there(self, ctx: Context) -> tuple[int, ...]:
        """Members that can be asked."""
        roll = self._roll
        return tuple(
            [member for member in ctx.alive(self._leadership.members) if member in roll and roll[member].samples]
        )

    async def _next(
        self, ctx: Context, last: Version, outcome: Outcome, seen: Round, stopping: Stopping, sampler: bytes
    ) -> Version:
        """The cohort's model after a round. A round's loss is that of the model which entered it."""
        is_best = stopping.best_round == len(last.losses)
        cohort = {*self._leadership.members, *outcome.members}
        roll = {member: self._roll[member] for member in sorted(cohort) if member in self._roll}
        model, state = next_state(ctx, self._settings, last, outcome, roll)
        version = Version(
            digest=last.digest,
            model=model,
            losses=(*last.losses, math.nan if seen.loss is None else seen.loss),
            time_s=seen.time_s,
            size_bytes=seen.size_bytes,
            best=last.digest if is_best else last.best,
            state=state,
            sampler=sampler,
        )
        if outcome.model is not None:
            version = replace(version, digest=await ctx.digest(*version.tensors))
        self._shelf.pinned = version.digest
        self._shelf.add(version)
        return version

    def _record(self, ctx: Context, round: int, version: Version, loss: float, members: int) -> None:
        with ctx.aside():
            metrics = ctx.evaluate(version.model)
        ctx.record(round=round, accuracy=metrics, loss=metrics, validation_loss=loss, members=members)
        ctx.record(round=round, **{"cpfl/round.cohort": self._cohort})


def _seen(loss: float, time_s: float = 0.0, size_bytes: int = 0) -> Round:
    return Round(None if math.isnan(loss) else loss, time_s, size_bytes)
