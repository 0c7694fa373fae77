"""The leader of a cohort: rounds of federated averaging until the cohort stops."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from node import Context, Future, Ref
from node.cohorts import Round, Stopping, by_capacity, generator, number_to_ask, uniform
from protocols.cohort_member import tell
from protocols.cohort_round import Answer, Assignment, Hello, RunningMean, Update, validation_loss
from protocols.cohort_settings import Settings
from protocols.leadership import Leadership
from protocols.unification import Stopped, unifier
from protocols.versions import Shelf, Version


class Leader:
    """What a node does while it leads; its memory does not grow with the cohort."""

    def __init__(
        self,
        settings: Settings,
        shelf: Shelf,
        leadership: Leadership,
        cohort: int,
        members: Sequence[int],
        roll: Mapping[int, Hello],
    ) -> None:
        """``roll``: what members have said of themselves, and this node of itself where it trains too."""
        self.noted_by: int | None = None
        """Who keeps the model of this leader's cohort, once it has stopped."""
        self._settings = settings
        self._shelf = shelf
        self._leadership = leadership
        self._cohort = cohort
        self._members = members
        self._roll = roll
        self._times_s: dict[int, float] = {}
        self._asked: dict[int, Assignment] = {}
        self._mustered: Future[None] | None = None

    async def lead(self, ctx: Context, epoch: int, term: int, round: int, digest: str) -> None:
        """Train on from a round's model until the cohort stops, or another node leads; then hand the model in."""
        settings, began_s = self._settings, ctx.now
        version, stopping = self._shelf[digest], Stopping(settings.stopping)
        for loss in version.losses:
            stopping.step(_seen(loss))
        # At first they may still be starting; later, who is there has followed within an election timeout.
        await self._muster(ctx, settings.muster_s if round < 0 else settings.election_timeout_s)
        while self._leadership.leads(term) and not stopping.is_stopped:
            round += 1
            heard, mean = await self._round(ctx, Assignment(epoch=epoch, term=term, round=round, digest=version.digest))
            loss = validation_loss(heard, by_samples=settings.weights == "samples")
            stopping.step(_seen(loss, ctx.now - began_s, ctx.bytes_sent))
            version = await self._next(ctx, version, mean, loss, stopping)
            if not await self._leadership.commit(ctx, term, round, version.digest):
                return
            self._record(ctx, round, version, loss, len(heard))
        if self._leadership.leads(term):
            is_best = settings.checkpoint == "best" and stopping.best_round is not None
            await self._hand_in(ctx, term, version.best if is_best else version.digest, round + 1)

    # Members

    def greeted(self, ctx: Context, member: int) -> None:
        """A member has said who it is: it may be the last one, or be back, and have lost what it was asked."""
        if member in self._asked:
            tell(ctx, member, self._asked[member])
        if self._mustered is not None and not self._mustered.done() and not self._missing(ctx):
            self._mustered.set_result(None)

    async def _muster(self, ctx: Context, wait_s: float) -> None:
        """Wait for all members that are there, but not for ever."""
        if self._missing(ctx):
            self._mustered = ctx.future()
            ctx.spawn(self._begin_without(ctx, self._mustered, wait_s))
            await self._mustered

    async def _begin_without(self, ctx: Context, mustered: Future[None], wait_s: float) -> None:
        await ctx.sleep(wait_s)
        if not mustered.done():
            mustered.set_result(None)

    def _missing(self, ctx: Context) -> bool:
        return any(member not in self._roll for member in ctx.alive(self._members) if member != ctx.me)

    # Rounds

    async def _round(self, ctx: Context, assignment: Assignment) -> tuple[Mapping[int, Answer], Ref | None]:
        """Ask this round's members to train the model; gives who has, and the mean of what they made of it."""
        settings, began_s = self._settings, ctx.now
        asked = self._drawn(ctx, assignment.round)
        if not asked:
            await ctx.sleep(settings.election_timeout_s)
            return {}, None
        is_by_samples = settings.weights == "samples"
        mean = RunningMean(ctx, {m: self._roll[m].samples if is_by_samples else 1 for m in asked}, settings.window)

        def add(member: int, update: Update) -> Answer:
            del self._asked[member]
            self._times_s[member] = ctx.now - began_s
            mean.add(member, update.model)
            return Answer(update.loss, update.held)

        self._asked = dict.fromkeys(asked, assignment)
        for member in asked:
            tell(ctx, member, assignment)
        heard = await ctx.collect_each(
            Update,
            add,
            frm=asked,
            quorum=min(settings.sample or len(asked), len(asked)),
            timeout_s=settings.deadline_s or None,
            term=assignment.term,
            round=assignment.round,
        )
        self._asked = {}
        return heard, mean.mean()

    def _drawn(self, ctx: Context, round: int) -> tuple[int, ...]:
        """Whom to ask: the same whoever leads, as long as the same members are there."""
        settings, roll = self._settings, self._roll
        there = [member for member in ctx.alive(self._members) if member in roll and roll[member].samples]
        if not settings.sample or not there:
            return tuple(there)
        count, rng = (
            number_to_ask(settings.sample, 1 + settings.over_select),
            generator(ctx.seed, self._cohort, round),
        )
        if settings.sampling == "random":
            return uniform(there, count, rng)
        usual_s = sorted(self._times_s.values())[len(self._times_s) // 2] if self._times_s else 1.0
        return by_capacity({member: self._times_s.get(member, usual_s) for member in there}, count, rng)

    async def _next(self, ctx: Context, last: Version, mean: Ref | None, loss: float, stopping: Stopping) -> Version:
        """The cohort's model after a round. A round's loss is that of the model which entered it."""
        is_best = stopping.best_round == len(last.losses)
        model = last.model if mean is None else mean
        version = Version(
            digest=last.digest if mean is None else await ctx.digest(model),
            model=model,
            losses=(*last.losses, loss),
            best=last.digest if is_best else last.best,
        )
        self._shelf.add(version)
        return version

    def _record(self, ctx: Context, round: int, version: Version, loss: float, members: int) -> None:
        with ctx.aside():
            metrics = ctx.evaluate(version.model)
        ctx.record(round=round, accuracy=metrics, loss=metrics, validation_loss=loss, members=members)

    # The end

    async def _hand_in(self, ctx: Context, term: int, digest: str, rounds: int) -> None:
        """Tell the node that unifies, and whoever takes its place, that this cohort has a model."""
        others = ctx.alive([member for member in self._members if member != ctx.me])
        if not await self._shelf.fetch(ctx, digest, others):
            ctx.log.warning("the best model is lost with those that had it", digest=digest)
            return
        hellos = [self._roll[member] for member in sorted(self._roll)]
        stopped = Stopped(
            cohort=self._cohort,
            digest=digest,
            rounds=rounds,
            samples=sum(hello.samples for hello in hellos),
            counts=tuple(math.fsum(column) for column in zip(*[hello.counts for hello in hellos], strict=True)),
        )
        while self._leadership.leads(term):
            if self.noted_by != (office := unifier(ctx)):
                tell(ctx, office, stopped)
            await ctx.sleep(self._settings.election_timeout_s)


def _seen(loss: float, time_s: float = 0.0, size_bytes: int = 0) -> Round:
    return Round(None if math.isnan(loss) else loss, time_s, size_bytes)
