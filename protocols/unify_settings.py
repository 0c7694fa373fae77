"""The options by which cohorts' models become one."""

from __future__ import annotations

from typing import Literal, NamedTuple

from pydantic import Field

from node import ConfigError, Context, Protocol
from node.unifiers import AUTO, UNIFIERS, Distillation, Generation, Unifier


class DistillationSection(Protocol.Config):
    """``[protocol.distillation]``: how a student learns."""

    steps: int = Field(1500, ge=1)
    """Of Adam, on public samples; few samples still take this many. Nothing is chosen by the test set."""
    batch_size: int = Field(128, ge=1)
    """Public samples in a step."""
    lr: float = Field(1e-3, gt=0)
    """Learning rate."""
    temperature: float = Field(1.0, gt=0)
    """What logits are divided by, for ``kd-label-prob``."""
    start: Literal["fresh", "average"] = "fresh"
    """What a student begins as: it has learned nothing, or it is the average of the cohorts' models."""
    generator_epochs: int = Field(30, ge=1)
    """``kd-generated``: batches of made-up samples; each takes 30 steps of a generator. The paper takes 200."""

    @property
    def how(self) -> Distillation:
        """For ``ctx.unify``."""
        return Distillation(self.steps, self.batch_size, self.lr, self.temperature)

    @property
    def generation(self) -> Generation:
        """For ``ctx.unify``, where samples are made up."""
        return Generation(epochs=self.generator_epochs, batch_size=self.batch_size)


class Needs(NamedTuple):
    """What the node that unifies has to be given of each cohort."""

    model: bool
    logits: bool
    """In place of the model: what it says of public samples."""
    fisher: bool
    """How much the model depends on each parameter, on its members' samples."""
    fisher_later: bool = False
    """The same, but not before there is a result: only to compare."""


class UnifyOptions(Protocol.Config):
    """Keys of ``[protocol]``."""

    quantile: float = Field(1.0, gt=0, le=1)
    """Share of the cohorts that must have stopped for unification to begin."""
    late: Literal["leave", "fold"] = "leave"
    """What becomes of cohorts that stop later: they are left out, or folded in as they come; the run then ends with the
    last of them."""
    late_steps: int = Field(500, ge=1)
    """``late = "fold"``: steps that a student goes on for, with each of them."""
    unify: str = AUTO
    """What becomes of the cohorts' models: a name in :data:`node.unifiers.UNIFIERS`, or ``auto``: ``average`` without
    public data; with it, from the models' average on, ``kd-hard`` where they know what it shows, and otherwise
    ``kd-label-logit``."""
    unify_at: Literal["node", "split"] = "node"
    """Where: one node is given all models, or leaders tell it what their models say of public samples, and it
    distils."""
    compare: tuple[str, ...] = ()
    """Further unifiers, which the same node tries once the result is out: they change nothing but the report."""
    distillation: DistillationSection = DistillationSection()
    """How a student learns."""

    @property
    def ways(self) -> tuple[Unifier, ...]:
        """All unifiers that are asked for; ``auto`` may come to weigh by labels."""
        names = ["kd-hard" if name == AUTO else name for name in (self.unify, *self.compare)]
        return tuple(UNIFIERS[name] for name in names if name in UNIFIERS)

    @property
    def by_label(self) -> bool:
        """Whether cohorts may count, for each class, as much as they have seen of it."""
        return any(way.by_label for way in self.ways)

    @property
    def is_exchanged(self) -> bool:
        """Whether every leader has a student of its own."""
        return self.unify in UNIFIERS and UNIFIERS[self.unify].is_exchanged

    @property
    def needs(self) -> Needs:
        """What has to reach the node that unifies."""
        stay = self.unify_at == "split" or self.is_exchanged
        return Needs(not stay, stay, self.unify == "fisher", "fisher" in self.compare)

    def tells_labels(self, ctx: Context) -> bool:
        """Whether members have to say how many samples of each class they have."""
        if self.unify == AUTO and not self.compare:
            return ctx.unify.public_samples > 0
        return self.by_label

    def check_unification(self) -> None:
        """Raise ConfigError for options that do not go together."""
        for name in self.compare:
            if name not in UNIFIERS or UNIFIERS[name].is_exchanged:
                allowed = ", ".join(each for each in UNIFIERS if not UNIFIERS[each].is_exchanged)
                raise ConfigError(f"protocol.compare: {name!r} cannot be compared; allowed: {allowed}")
        if len({self.unify, *self.compare}) <= len(self.compare):
            raise ConfigError(
                f"protocol.compare: {list(self.compare)} names a unifier twice, or that of protocol.unify"
            )
        if self.is_exchanged and (self.unify_at == "split" or self.late == "fold"):
            key = "unify_at: 'split'" if self.unify_at == "split" else "late: 'fold'"
            raise ConfigError(f"protocol.{key} is for one student, and 'logit-exchange' has many; leave it out")
        if not self.needs.model:
            self._check_logits_suffice()

    def _check_logits_suffice(self) -> None:
        allowed = ", ".join(each for each, way in UNIFIERS.items() if way.needs_public and not way.is_exchanged)
        why = "no model leaves its cohort"
        for key, names in (("unify", () if self.is_exchanged else (self.unify,)), ("compare", self.compare)):
            for name in names:
                if name not in UNIFIERS or not UNIFIERS[name].needs_public:
                    raise ConfigError(f"protocol.{key}: {name!r} needs the models, but {why}; allowed: {allowed}")
        if self.distillation.start != "fresh":
            raise ConfigError(f"protocol.distillation.start: 'average' needs the models, but {why}; allowed: fresh")
