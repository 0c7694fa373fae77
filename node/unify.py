"""Making one predictor of several models: teachers and students, averages, ensembles.

What nodes know of each other's models here is what these say of public samples, which have no labels. ``ctx.unify``
records all of it as ops, and lets the time pass that a device needs for it. The named ways are in
:mod:`node.unifiers`; the pieces that they are made of can be put together otherwise, or at several nodes: a teacher's
logits may travel in place of the teacher.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, cast
from typing import Protocol as Interface

import numpy as np

from node.errors import ProtocolError
from node.op import Op, Ref
from node.unifiers import STUDENTS, UNIFIERS, Distillation, Generation, Given, Loss, Rule, Unifier, refusal

if TYPE_CHECKING:
    from node.compute import Compute
    from node.context import Context
    from node.world import World

ByLabel: TypeAlias = Sequence[Sequence[float]] | np.ndarray
"""How much each model counts for each class, [models, classes]: :func:`node.cohorts.teacher_weights` has them."""


class UnifyOps(Interface):
    """What a workload knows of its models for several to become one."""

    logits: Op[...]
    """What a model says of every public sample, [samples, classes]."""
    halved: Op[...]
    """Logits in half precision, to travel."""
    combined: Op[...]
    """Of several logits, what the models say together: static ``rule`` and ``weights``."""
    fresh: Op[...]
    """A student that has learned nothing, from the static argument draw."""
    distil: Op[...]
    """From a student and what a teacher says, the student that has learned it: static ``rule``, ``loss``,
    ``temperature``, ``steps``, ``batch_size``, ``lr``."""
    generated: Op[...]
    """From a student and models, the student that has learned from made-up samples what the models say of them: static
    ``epochs``, ``steps``, ``batch_size``, ``lr``, ``student_lr``, ``temperature``."""
    agreement: Op[...]
    """Of a student and what a teacher says: ``agreement`` of classes, on public samples that it has not seen."""
    familiarity: Op[...]
    """Of several logits: ``confidence`` and ``consensus`` of the teachers."""
    judge: Op[...]
    """Accuracy and loss of several models together on the test set: static ``rule`` and ``weights``."""
    judge_student: Op[...]
    """Accuracy and loss of a student on the test set."""
    fisher: Op[...]
    """The diagonal of a model's Fisher information on a node's own data: static ``samples``."""
    fisher_mean: Op[...]
    """Of models and their Fisher information: static ``weights``."""

    @property
    def classes(self) -> int:
        """How many there are."""
        ...

    @property
    def public_samples(self) -> int:
        """How many public samples there are; 0 for none."""
        ...

    @property
    def check_samples(self) -> int:
        """How many of them no student learns from."""
        ...

    @property
    def has_other_student(self) -> bool:
        """Whether a student is of another architecture than the experiment's model."""
        ...

    @property
    def training_flops(self) -> float:
        """FLOPs of training the experiment's model on one sample."""
        ...

    @property
    def inference_flops(self) -> float:
        """FLOPs of the experiment's model for what it says of one sample."""
        ...

    @property
    def student_flops(self) -> float:
        """FLOPs of training a student on one sample."""
        ...

    def samples(self, steps: int, batch_size: int) -> int:
        """Samples that so many steps of a student process."""
        ...

    def generation_samples(self, models: int, how: Generation) -> tuple[int, int]:
        """Samples that go through models, and that a student learns from, in a generation with so many models."""
        ...

    def fisher_samples(self, node: int, samples: int) -> int:
        """Samples that a node's Fisher information is the mean over, where so many are asked for."""
        ...


class Unified(NamedTuple):
    """What several models have become."""

    model: Ref | None
    """The one model; None for an ensemble, which is all of them."""
    metrics: Ref
    """Its ``accuracy`` and ``loss`` on the test set."""
    agreement: Ref | None
    """A student's ``agreement`` with its teacher on public samples that it has not seen, where there are some."""


class Unify:
    """Several models, and one that is made of them; ``ctx.unify`` gives it."""

    __slots__ = ("_ctx", "_known", "_world", "flops")

    def __init__(self, ctx: Compute, ops: UnifyOps | None, world: World) -> None:
        self._ctx = ctx
        self._known = ops
        self._world = world
        self.flops = 0.0
        """What has been asked of this object takes so many."""

    async def unified(
        self,
        name: str,
        models: Sequence[Ref],
        *,
        shares: Sequence[float] | None = None,
        by_label: ByLabel | None = None,
        fishers: Sequence[Ref] | None = None,
        common_start: bool = True,
        student: Ref | None = None,
        how: Distillation | None = None,
        generation: Generation | None = None,
    ) -> Unified:
        """One predictor of several models, as a name in :data:`node.unifiers.UNIFIERS` says; takes time.

        Args:
            models: in an order that every run has, as that of peers.
            shares: how much each model counts in an average, as its samples; None: all alike.
            by_label: how much each model counts for each class, where the unifier asks for it.
            fishers: :meth:`fisher` of each model, where the unifier asks for it.
            common_start: whether the models have begun as the same one.
            student: where the student begins; None: it has learned nothing.
            how: how the student learns; None: as :class:`Distillation` does by itself.
            generation: the same where its samples are made up.

        Raises:
            ProtocolError: the unifier is unknown, or something that it needs is not there.
        """
        self.check(name, by_label is not None, fishers is not None, common_start)
        unifier = UNIFIERS[name]
        if unifier.averages:
            by_fisher = fishers is not None and unifier.by_fisher
            model = self.fisher_mean(models, fishers or (), shares) if by_fisher else self.average(models, shares)
            return Unified(model, self._ctx.evaluate(model), None)
        if unifier.is_ensemble:
            return Unified(None, self.judge(models, *_speaking(unifier, by_label)), None)
        if unifier.is_generated:
            model = await self.generated(self.fresh() if student is None else student, models, generation)
            return Unified(model, self.judge_student(model), None)
        return await self.taught(name, [await self.logits(model) for model in models], by_label, student, how)

    async def taught(
        self,
        name: str,
        logits: Sequence[Ref],
        by_label: ByLabel | None = None,
        student: Ref | None = None,
        how: Distillation | None = None,
    ) -> Unified:
        """:meth:`unified` where a student learns, and of the teachers only the :meth:`logits` have come; takes time.

        A ``student`` that has learned from some teachers goes on with what all of them say, once there are more.
        """
        self.check(name, by_label is not None)
        unifier = UNIFIERS[name]
        if unifier.loss is None or unifier.is_generated:
            allowed = ", ".join(each for each in STUDENTS if UNIFIERS[each].needs_public)
            raise ProtocolError(f"unify: {name!r} teaches no student by logits; allowed: {allowed}")
        rule, weights = _speaking(unifier, by_label)
        teacher = self.combined(logits, rule, weights)
        model = await self.distilled(self.fresh() if student is None else student, teacher, rule, unifier.loss, how)
        agreement = self.agreement(model, teacher) if self._ops.check_samples else None
        return Unified(model, self.judge_student(model), agreement)

    def check(self, name: str, has_counts: bool = True, has_fishers: bool = True, common_start: bool = True) -> None:
        """Raise ProtocolError, in one line, where a unifier is unknown or lacks what it needs."""
        ops = self._known
        public, other = (False, False) if ops is None else (ops.public_samples > 0, ops.has_other_student)
        if reason := refusal(name, Given(public, has_counts, has_fishers, common_start, other)):
            raise ProtocolError(f"unify: {reason}")

    @property
    def public_samples(self) -> int:
        """How many public samples there are; 0 for none."""
        return 0 if self._known is None else self._known.public_samples

    @property
    def has_other_student(self) -> bool:
        """Whether students are of another architecture than the experiment's model."""
        return self._known is not None and self._known.has_other_student

    # Averages

    def average(self, models: Sequence[Ref], shares: Sequence[float] | None = None) -> Ref:
        """The mean of models that have begun alike, weighted by their shares."""
        return self._ctx.mix(models, _normalised(shares, len(models)))

    def fisher(self, model: Ref, samples: int = 128) -> Awaitable[Ref]:
        """How much a model depends on each of its parameters, on some of this node's samples; takes time.

        Raises ProtocolError where training is private: nothing covers what this tells of the node's data.
        """
        if self._ctx.is_private:
            raise ProtocolError("unify: Fisher information tells of records that no privacy budget covers; average")
        ops, node = self._ops, self._ctx.me
        task = self._ctx.apply(ops.fisher, model, samples=samples)
        taken = ops.fisher_samples(node, samples)
        return self._worked(task, taken, taken * ops.classes * ops.training_flops)

    def fisher_mean(self, models: Sequence[Ref], fishers: Sequence[Ref], shares: Sequence[float] | None = None) -> Ref:
        """The mean of models that have begun alike, parameter by parameter weighted by their Fisher information."""
        if len(models) != len(fishers):
            raise ProtocolError(f"fisher_mean got {len(models)} models and {len(fishers)} Fisher diagonals")
        return self._ctx.apply(self._ops.fisher_mean, *models, *fishers, weights=_normalised(shares, len(models)))

    # Teachers

    def logits(self, model: Ref) -> Awaitable[Ref]:
        """What a model says of every public sample, [samples, classes]; takes time. It may travel as a message."""
        ops = self._ops
        self._check_public()
        task = self._ctx.apply(ops.logits, model)
        return self._worked(task, 1, ops.public_samples * ops.inference_flops)

    def halved(self, logits: Ref) -> Ref:
        """Logits in half precision, two bytes a number: to travel. What is made of logits takes these too."""
        return self._ctx.apply(self._ops.halved, logits)

    def combined(self, logits: Sequence[Ref], rule: Rule, by_label: ByLabel | None = None) -> Ref:
        """What models say together of every public sample, [samples, classes]: a teacher."""
        return self._ctx.apply(self._ops.combined, *logits, rule=rule, weights=self._weights(by_label, len(logits)))

    def familiarity(self, logits: Sequence[Ref]) -> Ref:
        """Whether models know what public samples show: their mean ``confidence``, the probability of the class that
        each puts first, and their ``consensus``, the share of them that agree with most. Low ones speak for soft
        targets, and for a student that begins as the models' average."""
        return self._ctx.apply(self._ops.familiarity, *logits)

    # Students

    def fresh(self, draw: int = 0) -> Ref:
        """A student that has learned nothing; every ``draw`` is an independent one."""
        return self._ctx.apply(self._ops.fresh, draw=draw)

    async def distilled(
        self, student: Ref, teacher: Ref, rule: Rule, loss: Loss, how: Distillation | None = None
    ) -> Ref:
        """A student that has learned what a teacher says of public samples; takes time.

        Args:
            student: where it begins; it may have learned from other teachers before.
            teacher: what :meth:`combined` gave, by ``rule``.
        """
        ops, how = self._ops, how or Distillation()
        self._check_public()
        task = self._ctx.apply(
            ops.distil,
            student,
            teacher,
            rule=rule,
            loss=loss,
            temperature=how.temperature,
            steps=how.steps,
            batch_size=how.batch_size,
            lr=how.lr,
        )
        return await self._worked(task, how.steps, ops.samples(how.steps, how.batch_size) * ops.student_flops)

    async def generated(self, student: Ref, models: Sequence[Ref], how: Generation | None = None) -> Ref:
        """A student that has learned what models say of samples that a generator has made up; takes time."""
        ops, how = self._ops, how or Generation()
        _check_some(len(models))
        task = self._ctx.apply(ops.generated, student, *models, **asdict(how))
        through, learned = ops.generation_samples(len(models), how)
        flops = through * ops.training_flops + learned * ops.student_flops
        return await self._worked(task, how.epochs * how.steps, flops)

    def agreement(self, student: Ref, teacher: Ref) -> Ref:
        """``agreement``: how often a student and a teacher put the same class first, where it has not been taught."""
        if not self._ops.check_samples:
            raise ProtocolError("unify: no public samples are kept from students; set public.check_fraction above 0")
        return self._ctx.apply(self._ops.agreement, student, teacher)

    # Judgement

    def judge(self, models: Sequence[Ref], rule: Rule, by_label: ByLabel | None = None) -> Ref:
        """``accuracy`` and ``loss`` of an ensemble on the test set; it does not take part in what nodes learn."""
        for _ in models:
            self._world.evaluating(cast("Context", self._ctx), "test")
        return self._ctx.apply(self._ops.judge, *models, rule=rule, weights=self._weights(by_label, len(models)))

    def judge_student(self, student: Ref) -> Ref:
        """``accuracy`` and ``loss`` of a student on the test set, whatever its architecture."""
        if not self._ops.has_other_student:
            return self._ctx.evaluate(student)
        self._world.evaluating(cast("Context", self._ctx), "test")
        return self._ctx.apply(self._ops.judge_student, student)

    # What it stands on

    @property
    def _ops(self) -> UnifyOps:
        if self._known is None:
            raise ProtocolError("unify: this workload has no classes to tell apart; there is only 'average'")
        return self._known

    def _check_public(self) -> None:
        if not self._ops.public_samples:
            raise ProtocolError("unify: there are no public samples; set public.name")

    def _weights(self, by_label: ByLabel | None, models: int) -> tuple[tuple[float, ...], ...]:
        """As a static argument: one row for each model, or none at all where they all count alike."""
        _check_some(models)
        if by_label is None:
            return ()
        rows = tuple(tuple(float(weight) for weight in row) for row in by_label)
        classes = self._ops.classes
        if len(rows) != models or any(len(row) != classes for row in rows):
            found = sorted({len(row) for row in rows})
            raise ProtocolError(f"unify: weights [{len(rows)}, {found}] for {models} models and {classes} classes")
        return rows

    async def _worked(self, task: Ref, steps: int, flops: float) -> Ref:
        """Let the time pass in which this node's device could train the experiment's model with so many FLOPs."""
        self.flops += flops
        samples = flops / self._ops.training_flops
        return await self._world.train(cast("Context", self._ctx), task, task, steps, samples)


def _speaking(unifier: Unifier, by_label: ByLabel | None) -> tuple[Rule, ByLabel | None]:
    """How models speak together, and with which weights."""
    assert unifier.rule is not None
    return unifier.rule, by_label if unifier.by_label else None


def _check_some(models: int) -> None:
    if not models:
        raise ProtocolError("unify needs at least one model")


def _normalised(shares: Sequence[float] | None, models: int) -> tuple[float, ...]:
    _check_some(models)
    if shares is None:
        return (1.0 / models,) * models
    if len(shares) != models or min(shares) < 0 or not sum(shares) > 0:
        raise ProtocolError(f"unify: shares {list(shares)} of {models} models; one for each, not negative, not all 0")
    total = sum(shares)
    return tuple([share / total for share in shares])
