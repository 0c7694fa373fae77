"""One model of what cohorts have learned, by the unifier that was chosen, and by others to compare it with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from node import Context, ProtocolError, Ref
from node.cohorts import teacher_weights
from node.unifiers import AUTO, LEAST_FAMILIARITY, UNIFIERS, Distillation, advised
from node.unify import Unified, Unify
from protocols.cohort_outcome import WHOLE_RUN
from protocols.handing import Extract, Stopped
from protocols.unify_settings import UnifyOptions

MOST_OVER_MEDIAN = 10.0
"""A cohort's claim of samples counts for no more than this many times the median claim."""


class Teacher(NamedTuple):
    """A cohort that has stopped, and what it has handed in."""

    stopped: Stopped
    leader: int
    members: int
    extract: Extract
    model: Ref | None
    """None where it stays in its cohort."""


class Made(NamedTuple):
    """What teachers have become, and what that took."""

    name: str
    model: Ref | None
    """None for an ensemble, and where every leader makes its own."""
    metrics: Ref
    agreement: Ref | None
    time_s: float
    flops: float
    size_bytes: int
    """Tensors that had to travel for it: to the node that unifies, and the result to everybody."""

    async def record(self, ctx: Context) -> tuple[float, float]:
        """Keep its figures for the summary; gives accuracy and loss."""
        judged = await ctx.value(self.metrics)
        fields = {
            "accuracy": float(judged["accuracy"]),
            "loss": float(judged["loss"]),
            "time_s": self.time_s,
            "flops": self.flops,
            "bytes": self.size_bytes,
        }
        if self.agreement is not None:
            fields["agreement"] = float((await ctx.value(self.agreement))["agreement"])
        ctx.record(round=WHOLE_RUN, **{f"cpfl/unified/{self.name}.{name}": value for name, value in fields.items()})
        return fields["accuracy"], fields["loss"]


def label_weights(teachers: Sequence[Teacher]) -> list[Any]:
    """How much each teacher counts for each class; those of one class sum to 1, over the teachers that are present.

    Cohorts count themselves: what one claims over ten times the median of all claims does not count.
    """
    counts = {teacher.stopped.cohort: teacher.stopped.counts for teacher in teachers}
    weights = teacher_weights(counts, MOST_OVER_MEDIAN)
    return [weights[teacher.stopped.cohort] for teacher in teachers]


def together(unify: Unify, name: str, teachers: Sequence[Teacher]) -> Ref:
    """What the teachers say together of public samples."""
    way = UNIFIERS[name]
    assert way.rule is not None
    return unify.combined(spoken(teachers), way.rule, label_weights(teachers) if way.by_label else None)


def spoken(teachers: Sequence[Teacher]) -> list[Ref]:
    """What each teacher says of public samples, as its leader has handed it in."""
    return [teacher.extract.logits for teacher in teachers if teacher.extract.logits is not None]


class Unifying:
    """The work of the node that unifies."""

    def __init__(self, options: UnifyOptions) -> None:
        self._options = options
        self._name = options.unify
        self._starts_average = options.distillation.start == "average"

    async def settle(self, ctx: Context, teachers: Sequence[Teacher]) -> None:
        """Choose a unifier by what there is, where none is named: whether the teachers know the public samples."""
        if self._name != AUTO:
            return
        unify = ctx.unify
        if not unify.public_samples:
            self._name = advised(False)
            return
        with ctx.aside():
            speaking = [unify.logits(model) for model in _models(teachers)]
        said = [await each for each in speaking]
        with ctx.aside():
            known = unify.familiarity(said)
        judged = await ctx.value(known)
        familiarity = float(judged["confidence"]) * float(judged["consensus"])
        self._name, self._starts_average = advised(True, familiarity >= LEAST_FAMILIARITY), True
        ctx.log.info("unifier chosen by the public samples", unifier=self._name, familiarity=round(familiarity, 3))

    async def made(self, ctx: Context, teachers: Sequence[Teacher], student: Ref | None = None) -> Made:
        """What the teachers become; a ``student`` that has learned from some of them goes on for ``late_steps``."""
        return await self._made(ctx, self._name, teachers, student)

    async def compared(self, ctx: Context, teachers: Sequence[Teacher]) -> None:
        """Try all others, and keep their figures."""
        for name in self._options.compare:
            if name != self._name:
                await (await self._made(ctx, name, teachers)).record(ctx)

    async def _made(self, ctx: Context, name: str, teachers: Sequence[Teacher], student: Ref | None = None) -> Made:
        unify, began_s = ctx.unify, ctx.now
        how = self._options.distillation.how
        if student is not None:
            how = replace(how, steps=self._options.late_steps)
        elif UNIFIERS[name].loss and self._starts_average and not unify.has_other_student:
            student = unify.average(_models(teachers), shares(teachers))
        if self._options.needs.model:
            unified = await self._from_models(ctx, unify, name, teachers, student, how)
        else:
            by_label = label_weights(teachers) if UNIFIERS[name].by_label else None
            unified = await unify.taught(name, spoken(teachers), by_label, student, how)
        size = _travelled(ctx, name, teachers, unified.model)
        return Made(name, unified.model, unified.metrics, unified.agreement, ctx.now - began_s, unify.flops, size)

    async def _from_models(
        self,
        ctx: Context,
        unify: Unify,
        name: str,
        teachers: Sequence[Teacher],
        student: Ref | None,
        how: Distillation,
    ) -> Unified:
        fishers = [teacher.extract.fisher for teacher in teachers if teacher.extract.fisher is not None]
        way = UNIFIERS[name]
        if way.by_fisher and len(fishers) < len(teachers):
            ctx.log.warning("a cohort's Fisher information has not come; its models are averaged as they are")
            name = "average"
        return await unify.unified(
            name,
            _models(teachers),
            shares=shares(teachers),
            by_label=label_weights(teachers) if way.by_label else None,
            fishers=fishers if way.by_fisher else None,
            student=student,
            how=how,
            generation=self._options.distillation.generation,
        )


def alone(ctx: Context, teacher: Teacher) -> Made:
    """The only cohort's model is the result."""
    (model,) = _models([teacher])
    return Made("alone", model, ctx.evaluate(model), None, 0.0, 0.0, _travelled(ctx, "average", [teacher], model))


def _models(teachers: Sequence[Teacher]) -> list[Ref]:
    models = [teacher.model for teacher in teachers if teacher.model is not None]
    if len(models) < len(teachers):
        raise ProtocolError("unify: a model that has not left its cohort is asked for")
    return models


def shares(teachers: Sequence[Teacher]) -> list[float]:
    """How many samples each teacher counts for: what it claims, but not over ten times their (lower) median."""
    claims = [teacher.stopped.samples for teacher in teachers]
    positive = sorted([claim for claim in claims if claim]) or [0]
    most = MOST_OVER_MEDIAN * positive[(len(positive) - 1) // 2]
    return [min(claim, most) for claim in claims]


def _travelled(ctx: Context, name: str, teachers: Sequence[Teacher], result: Ref | None) -> int:
    """Bytes of tensors: what the unifier takes of each cohort, and what it gives to everybody."""
    size = 0
    for teacher in teachers:
        fisher = teacher.extract.fisher if UNIFIERS[name].by_fisher else None
        parts = (teacher.model, teacher.extract.logits, fisher)
        size += sum(part.spec.size_bytes for part in parts if part is not None)
        size += 0 if fisher is None else teacher.members * fisher.spec.size_bytes
    return size + (0 if result is None else result.spec.size_bytes * (len(ctx.nodes) - 1))
