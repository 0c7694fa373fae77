"""The last phase of cohort-parallel learning: the models of the cohorts become one, at a node that a hash chooses.

It begins with the ceil(quantile * cohorts)-th cohort that has stopped. Time to convergence is the time of that one, and
the unification: a run tells both, as ``converged_s`` and ``unify_s``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import replace
from typing import Any
from typing import Protocol as Interface

from node import Context, Future, Message, Ref
from node.cohorts import Cohorts, Quantile
from protocols.cohort_outcome import WHOLE_RUN
from protocols.cohort_round import tell
from protocols.handing import Extract, Handing, Noted, Sought, Stopped, extracted, is_whole
from protocols.unify_settings import Needs, UnifyOptions
from protocols.unifying import Made, Teacher, Unifying, alone, together
from protocols.versions import Shelf, Version
from protocols.vouching import Claim, Vote, vouched

_ALONE = Needs(model=True, logits=False, fisher=False)
"""Of the only cohort: its model is the result."""


class Result(Message, name="cpfl/result/1", any_shape=True):
    """The end of the run."""

    model: Ref | None
    """What the cohorts' models have become; None for an ensemble: everybody keeps its cohort's."""
    digests: tuple[str, ...] = ()
    """Of an ensemble: every cohort's model, which the node that unifies has; empty for one that was left out."""
    round: int
    """After the last of all cohorts."""
    accuracy: float
    """Of the result, on the test set."""
    loss: float


class Taught(Message, name="cpfl/taught/1", any_shape=True):
    """What all cohorts say of public samples: teach a student of your own, and give it to your cohort."""

    teacher: Ref
    """Logits, float16 [samples, classes]."""
    round: int


class Host(Interface):
    """The node whose office it is."""

    shelf: Shelf

    def keep(self, ctx: Context) -> Awaitable[None]:
        """Save what must survive a restart, and only then go on."""
        ...

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        ...

    def vote(self, ctx: Context, claim: Claim) -> Vote:
        """What this node says of who leads its cohort."""
        ...


def needs(options: UnifyOptions, cohorts: int) -> Needs:
    """What has to reach the node that unifies so many cohorts."""
    return options.needs if cohorts > 1 else _ALONE


class Unification:
    """The cohorts that have stopped, as far as this node knows, and what becomes of them."""

    def __init__(
        self,
        host: Host,
        handing: Handing,
        options: UnifyOptions,
        cohorts: Cohorts,
        check_s: float,
        transfer_s: float,
    ) -> None:
        """``check_s``: how often to look whether a cohort has lost all its members."""
        self.taught: Taught | None = None
        """What leaders learn from, each by itself, once it is there."""
        self.handing = handing
        """This node's own part as a leader, in the cohort that it belongs to now."""
        self._host = host
        self._options = options
        self._cohorts = cohorts
        self._needs = needs(options, len(cohorts))
        self._teachers: dict[int, Teacher] = {}
        self._quantile = Quantile(len(cohorts), options.quantile)
        self._work = Unifying(options)
        self._check_s = check_s
        self._transfer_s = transfer_s
        self._under_way: set[tuple[int, str]] = set()
        self._left: dict[int, set[int]] = {}
        self._has_begun = self._is_watching = False
        self._news: Future[None] | None = None
        self._unified: list[Teacher] = []
        self._rounds = 0

    @property
    def digests(self) -> list[str]:
        """Models that must not be lost."""
        return [teacher.stopped.digest for teacher in self._teachers.values() if teacher.model is not None]

    # Cohorts that have stopped

    async def admit(self, ctx: Context, sender: int, stopped: Stopped) -> None:
        """A cohort has stopped: once what it hands in is safe here, its leader may rest."""
        handed = (sender, stopped.digest)
        if handed in self._under_way:
            return
        self._under_way.add(handed)
        rounds = await self._vouched(ctx, sender, stopped)
        extract = None if rounds is None else await self._extract(ctx, sender, stopped.digest)
        self._under_way.discard(handed)
        if extract is None or rounds is None:
            return
        stopped = replace(stopped, rounds=rounds)
        if extract.model is not None and stopped.digest not in self._host.shelf:
            self._host.shelf.add(Version(digest=stopped.digest, model=extract.model))
        known = self._teachers.get(stopped.cohort)
        teacher = known or self._teacher(stopped, sender, extract)
        self._teachers[stopped.cohort] = teacher._replace(leader=sender)
        await self._host.keep(ctx)
        tell(ctx, sender, Noted())
        if self.taught is not None:  # it comes late, or in the place of a leader that is lost
            tell(ctx, sender, self.taught)
        self._go_on(ctx)

    async def _vouched(self, ctx: Context, leader: int, stopped: Stopped) -> int | None:
        """For how many rounds its members say that this leader has trained their cohort; None: it does not lead it."""
        members = self._cohorts[stopped.cohort]
        if not ctx.alive(members):  # those that have come since speak for it
            return None if any(leader in each for each in self._cohorts) else stopped.rounds
        claim = Claim(cohort=stopped.cohort, leader=leader, rounds=stopped.rounds)
        rounds = await vouched(ctx, members, claim, self._host.vote(ctx, claim), self._check_s)
        if rounds is None:
            ctx.log.warning(
                "most members of a cohort do not confirm what is handed in", peer=leader, cohort=stopped.cohort
            )
        return rounds

    async def _extract(self, ctx: Context, leader: int, digest: str) -> Extract | None:
        shelf, needs = self._host.shelf, self._needs
        if digest in shelf and not needs.logits and not needs.fisher:
            return Extract(digest=digest, model=shelf[digest].model)
        extract = await extracted(ctx, self.handing, leader, Sought(digest=digest), self._transfer_s)
        return extract if extract is not None and await is_whole(ctx, extract, needs, leader) else None

    def _teacher(self, stopped: Stopped, leader: int, extract: Extract) -> Teacher:
        model = self._host.shelf[stopped.digest].model if self._needs.model else None
        return Teacher(stopped, leader, len(self._cohorts[stopped.cohort]), extract, model)

    def _go_on(self, ctx: Context) -> None:
        """Note who has stopped; unify, once these are enough."""
        for cohort in sorted(self._teachers):
            self._quantile.stop(cohort, ctx.now)
        self._tell(ctx)
        if not self._is_watching:
            self._is_watching = True
            ctx.spawn(self._watch(ctx))

    async def _watch(self, ctx: Context) -> None:
        """Do not wait for cohorts that nobody is left of."""
        while self._quantile.missing:
            await ctx.sleep(self._check_s)
            for cohort in self._quantile.missing:
                if not ctx.alive(self._cohorts[cohort]):
                    self._lose(ctx, cohort, is_dissolved=False)
            self._tell(ctx)

    def dissolve(self, ctx: Context, member: int, cohort: int) -> None:
        """One that has belonged to a cohort has left it, as one that is no more: most of them must say so."""
        if cohort in self._quantile.missing and member in self._cohorts[cohort]:
            left, there = self._left.setdefault(cohort, set()), ctx.alive(self._cohorts[cohort])
            left.add(member)
            if 2 * sum([each in left for each in there]) > len(there):
                self._lose(ctx, cohort, is_dissolved=True)
                self._tell(ctx)

    def _lose(self, ctx: Context, cohort: int, *, is_dissolved: bool) -> None:
        ctx.log.warning("a cohort is gone before it has stopped: what it has learned is left out", cohort=cohort)
        ctx.record(round=WHOLE_RUN, **{"cpfl/lost.cohort": cohort, "cpfl/lost.is_dissolved": float(is_dissolved)})
        self._quantile.lose(cohort, ctx.now)

    def _tell(self, ctx: Context) -> None:
        if self._quantile.start_s is not None and not self._has_begun:
            self._has_begun = True
            ctx.spawn(self._unify(ctx))
        elif self._news is not None and not self._news.done():
            self._news.set_result(None)

    # Unifying them

    async def _unify(self, ctx: Context) -> None:
        """Make one model of those that are here in time, and of late ones as they come; give it to everybody."""
        began_s = ctx.now
        self._unified = [self._teachers[cohort] for cohort in self._quantile.in_time]
        self._rounds = max(teacher.stopped.rounds for teacher in self._unified)
        made = None
        if len(self._cohorts) == 1:
            made = alone(ctx, self._unified[0])
        elif self._options.is_exchanged:
            await self._exchange(ctx)
        else:
            await self._work.settle(ctx, self._unified)
            made = await self._work.made(ctx, self._unified)
        judged = None if made is None else await made.record(ctx)
        ctx.record(round=self._rounds, teachers=len(self._unified))
        ctx.record(round=WHOLE_RUN, **{"cpfl/converged_s": began_s, "cpfl/unify_s": ctx.now - began_s})
        if made is not None and judged is not None:
            await self._give(ctx, *(await self._folded(ctx, made, judged)))

    async def _folded(self, ctx: Context, made: Made, judged: tuple[float, float]) -> tuple[Made, tuple[float, float]]:
        """The student goes on with what all say, each time that a late cohort comes."""
        late = 0
        while self._options.late == "fold" and (self._quantile.missing or late < len(self._quantile.late)):
            if late == len(self._quantile.late):
                self._news = ctx.future()
                await self._news
                continue
            self._unified.append(self._teachers[self._quantile.late[late]])
            late += 1
            self._unified.sort(key=lambda teacher: teacher.stopped.cohort)
            self._rounds = max(self._rounds, self._unified[-1].stopped.rounds)
            made = await self._work.made(ctx, self._unified, made.model)
            judged = await made.record(ctx)
            ctx.record(round=WHOLE_RUN, **{"cpfl/folded_s": ctx.now})
        return made, judged

    async def _give(self, ctx: Context, made: Made, judged: tuple[float, float]) -> None:
        accuracy, loss = judged
        known = {teacher.stopped.cohort: teacher.stopped.digest for teacher in self._unified}
        digests = tuple(known.get(cohort, "") for cohort in range(len(self._cohorts))) if made.model is None else ()
        result = Result(model=made.model, digests=digests, round=self._rounds, accuracy=accuracy, loss=loss)
        await ctx.send(ctx.peers(None), result)
        self._host.finish(ctx, result)

    async def _exchange(self, ctx: Context) -> None:
        """Every leader gets what all say together."""
        unify = ctx.unify
        teacher = unify.halved(together(unify, self._options.unify, self._unified))
        self.taught = Taught(teacher=teacher, round=self._rounds)
        for each in self._unified:
            tell(ctx, each.leader, self.taught)

    async def compare(self, ctx: Context) -> None:
        """Try other unifiers too, at the node that has unified, once everybody has the result."""
        if len(self._cohorts) > 1 and not self._options.is_exchanged and self._unified:
            if self._needs.fisher_later:
                self._unified = [await self._completed(ctx, teacher) for teacher in self._unified]
            await self._work.compared(ctx, self._unified)

    async def _completed(self, ctx: Context, teacher: Teacher) -> Teacher:
        """With the Fisher information that its members have been computing since it has stopped."""
        sought = Sought(digest=teacher.stopped.digest, is_fisher_only=True)
        until_s = ctx.now + self._transfer_s
        while teacher.extract.fisher is None and ctx.now < until_s:
            extract = await extracted(ctx, self.handing, teacher.leader, sought, self._transfer_s)
            if extract is None:
                await ctx.sleep(self._check_s)
            else:
                teacher = teacher._replace(extract=replace(teacher.extract, fisher=extract.fisher))
        return teacher

    # Over restarts

    def state(self) -> dict[str, Ref | str]:
        """For a checkpoint."""
        kept: dict[str, Ref | str] = {}
        for cohort, (stopped, leader, _, extract, _) in self._teachers.items():
            numbers = [str(leader), str(stopped.rounds), str(stopped.samples), *map(repr, stopped.counts)]
            kept[f"teacher {cohort}"] = " ".join([stopped.digest or "-", *numbers])
            for name, part in (("logits", extract.logits), ("fisher", extract.fisher)):
                if part is not None:
                    kept[f"{name} {cohort}"] = part
        return kept

    def restore(self, ctx: Context, saved: Mapping[str, Any]) -> None:
        """Know again what a checkpoint has kept; go on where all that is needed was there."""
        for name, text in saved.items():
            if name.startswith("teacher "):
                digest, leader, rounds, samples, *counts = text.split()
                cohort = int(name.split()[1])
                stopped = Stopped(
                    cohort=cohort,
                    digest=digest.strip("-"),
                    rounds=int(rounds),
                    samples=int(samples),
                    counts=tuple(map(float, counts)),
                )
                parts = {part: saved.get(f"{part} {cohort}") for part in ("logits", "fisher")}
                extract = Extract(digest=stopped.digest, **parts)
                self._teachers[cohort] = self._teacher(stopped, int(leader), extract)
        if self._teachers:
            self._go_on(ctx)
