"""The last phase of cohort-parallel learning: the models of the cohorts become one, at a node that a hash chooses."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any
from typing import Protocol as Interface

from node import Context, Message, Ref
from node.cohorts import Cohorts, Quantile, teacher_weights
from node.unifiers import UNIFIERS
from protocols import forming
from protocols.cohort_member import tell
from protocols.versions import Shelf

MOST_OVER_MEDIAN = 10.0
"""A cohort's claim of samples counts for no more than this many times the median claim."""


class Stopped(Message, name="cpfl/stopped/1"):
    """My cohort has converged; ask me for its model."""

    cohort: int
    digest: str
    rounds: int
    """That the cohort has trained for."""
    samples: int
    """That its members train on, all together."""
    counts: tuple[float, ...]
    """The same of each class; empty where nobody needs them."""


class Noted(Message, name="cpfl/noted/1"):
    """I have it, and do not forget it."""


class Result(Message, name="cpfl/result/1", any_shape=True):
    """The end of the run."""

    model: Ref | None
    """What the cohorts' models have become; None for an ensemble: everybody keeps its cohort's."""
    round: int
    """After the last of all cohorts."""
    accuracy: float
    """Of the result, on the test set."""
    loss: float


class Host(Interface):
    """The node whose office it is."""

    shelf: Shelf

    def keep(self, ctx: Context) -> Awaitable[None]:
        """Save what must survive a restart, and only then go on."""
        ...

    def finish(self, ctx: Context, result: Result) -> None:
        """There is a result."""
        ...


def unifier(ctx: Context) -> int:
    """The node that unifies: all agree on it as soon as they know of the same losses."""
    return forming.elected(ctx, "unifier")[0]


class Unification:
    """The cohorts that have stopped, as far as this node knows, and what becomes of them."""

    def __init__(self, host: Host, name: str, cohorts: Cohorts, quantile: float, check_s: float) -> None:
        """``check_s``: how often to look whether a cohort has lost all its members."""
        self.teachers: dict[int, Stopped] = {}
        self._host = host
        self._name = name
        self._cohorts = cohorts
        self._quantile = Quantile(len(cohorts), quantile)
        self._check_s = check_s
        self._is_watching = False

    async def admit(self, ctx: Context, sender: int, stopped: Stopped) -> None:
        """A cohort has stopped: once its model is safe here, its leader may rest."""
        if not await self._host.shelf.fetch(ctx, stopped.digest, (sender,)):
            return
        self.teachers[stopped.cohort] = stopped
        await self._host.keep(ctx)
        tell(ctx, sender, Noted())
        await self._go_on(ctx)

    async def _go_on(self, ctx: Context) -> None:
        """Unify, if enough cohorts have stopped."""
        for cohort in sorted(self.teachers):
            if self._quantile.stop(cohort, ctx.now):
                await self._unify(ctx)
        if not self._is_watching:
            self._is_watching = True
            ctx.spawn(self._watch(ctx))

    async def _watch(self, ctx: Context) -> None:
        """Do not wait for cohorts that nobody is left of."""
        while self._quantile.start_s is None:
            await ctx.sleep(self._check_s)
            for cohort, members in enumerate(self._cohorts):
                if not ctx.alive(members) and self._quantile.lose(cohort, ctx.now):
                    await self._unify(ctx)

    async def _unify(self, ctx: Context) -> None:
        """Make one model of those that are here in time, and give it to everybody."""
        teachers = [self.teachers[cohort] for cohort in self._quantile.in_time]
        began_s = ctx.now
        model, metrics = await self._unified(ctx, teachers)
        round = max(teacher.rounds for teacher in teachers)
        judged = await ctx.value(metrics)
        result = Result(model=model, round=round, accuracy=float(judged["accuracy"]), loss=float(judged["loss"]))
        ctx.record(round=round, teachers=len(teachers), converged_s=began_s, unify_s=ctx.now - began_s)
        await ctx.send(ctx.peers(None), result)
        self._host.finish(ctx, result)

    async def _unified(self, ctx: Context, teachers: Sequence[Stopped]) -> tuple[Ref | None, Ref]:
        """The one model, where there is one, and its metrics."""
        models = [self._host.shelf[teacher.digest].model for teacher in teachers]
        if len(self._cohorts) == 1:
            return models[0], ctx.evaluate(models[0])
        by_label: list[Any] | None = None
        if UNIFIERS[self._name].by_label:
            counts = {teacher.cohort: teacher.counts for teacher in teachers}
            by_label = list(teacher_weights(counts, MOST_OVER_MEDIAN).values())
        shares = [teacher.samples for teacher in teachers]
        unified = await ctx.unify.unified(self._name, models, shares=shares, by_label=by_label)
        return unified.model, unified.metrics

    # Over restarts

    def state(self) -> dict[str, str]:
        """For a checkpoint."""
        return {
            f"teacher {cohort}": " ".join([t.digest or "-", str(t.rounds), str(t.samples), *map(repr, t.counts)])
            for cohort, t in self.teachers.items()
        }

    def restore(self, ctx: Context, saved: Mapping[str, Any]) -> None:
        """Know again what a checkpoint has kept; go on where all that is needed was there."""
        for name, text in saved.items():
            if name.startswith("teacher "):
                digest, rounds, samples, *counts = text.split()
                cohort = int(name.split()[1])
                self.teachers[cohort] = Stopped(
                    cohort=cohort,
                    digest=digest.strip("-"),
                    rounds=int(rounds),
                    samples=int(samples),
                    counts=tuple(map(float, counts)),
                )
        if self.teachers:
            ctx.spawn(self._go_on(ctx))
