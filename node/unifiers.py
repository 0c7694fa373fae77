"""The ways to make one predictor of several models, and what each of them needs.

Distillation with label-weighted logits: Gong, Sharma, Karanam, Wu, Chen, Doermann, Innanje: Preserving Privacy in
Federated Learning with Ensemble Cross-Domain Knowledge Distillation, AAAI 2022; of cohorts' models: Dhasade, Kermarrec,
Nguyen, Pires, de Vos, EuroMLSys 2025. Of mean logits: Lin, Kong, Stich, Jaggi, NeurIPS 2020. On generated samples:
Zhang, Chen, Li, Lyu, Wu, Ding, Shen, Wu: DENSE, NeurIPS 2022. Averages weighted by Fisher information: Matena and
Raffel, NeurIPS 2022.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

Rule: TypeAlias = Literal["logits", "probabilities", "votes"]
"""What several models say of a sample together: the weighted sum of their logits, or of their probabilities (normalised
to sum to 1), or how many put each class first, with the mean of their probabilities between equals."""

Loss: TypeAlias = Literal["l1", "kl", "hard", "confident"]
"""What a student minimises: the mean distance to its teacher's logits; the Kullback-Leibler divergence of the
teacher's probabilities from its own; the cross-entropy with the class that its teacher puts first; the same, where a
sample counts as much as its teacher is sure of it."""


@dataclass(frozen=True, slots=True)
class Unifier:
    """One way."""

    rule: Rule | None = None
    """How the models speak together; None: their parameters are what is combined."""
    loss: Loss | None = None
    """How a student learns from that; None: there is no student."""
    by_label: bool = False
    """Whether a model counts, for each class, as much as it has seen of it: needs counts of all classes."""
    by_fisher: bool = False
    """Whether a parameter counts as much as its model depends on it: needs each model's Fisher information."""
    is_generated: bool = False
    """Whether the samples that a student learns from are made up, by a generator that learns from the models."""
    is_exchanged: bool = False
    """Whether who has a model tells only what it says of public data, and everybody has a student of its own."""

    @property
    def is_ensemble(self) -> bool:
        """Whether the result is all the models together, and not one."""
        return self.rule is not None and self.loss is None

    @property
    def needs_public(self) -> bool:
        """Whether a student learns from public data."""
        return self.loss is not None and not self.is_generated

    @property
    def averages(self) -> bool:
        """Whether parameters are averaged: all models must have begun alike, and the result is of their kind."""
        return self.rule is None


UNIFIERS: Mapping[str, Unifier] = MappingProxyType(
    {
        "average": Unifier(),
        "fisher": Unifier(by_fisher=True),
        "ensemble-uniform": Unifier("probabilities"),
        "ensemble-label": Unifier("probabilities", by_label=True),
        "kd-uniform": Unifier("logits", "l1"),
        "kd-label-logit": Unifier("logits", "l1", by_label=True),
        "kd-label-prob": Unifier("probabilities", "kl", by_label=True),
        "kd-hard": Unifier("probabilities", "hard", by_label=True),
        "kd-generated": Unifier("logits", "kl", is_generated=True),
        "logit-exchange": Unifier("logits", "l1", by_label=True, is_exchanged=True),
    }
)


STUDENTS = tuple(name for name, unifier in UNIFIERS.items() if unifier.loss)
"""Those that teach a student."""

AUTO = "auto"
"""Stands for the unifier that :func:`advised` names."""

LEAST_FAMILIARITY = 0.5
"""Of public samples that models know, their mean confidence times their consensus is at least this. On handwritten
digits, with cohorts' models, these come to 0.6 and more; pixels in another order, or noise, to 0.4 and less."""


@dataclass(frozen=True, slots=True)
class Distillation:
    """How a student learns: by Adam, for a number of steps that nothing cuts short."""

    steps: int = 1500
    """Few public samples still take this many."""
    batch_size: int = 128
    lr: float = 1e-3
    temperature: float = 1.0
    """What logits are divided by, for ``kl``; its square scales the loss."""


@dataclass(frozen=True, slots=True)
class Generation:
    """How a generator and a student learn from each other, as in DENSE; the paper takes 200 epochs."""

    epochs: int = 30
    """Each adds a batch of samples to those that the student learns from."""
    steps: int = 30
    """Of the generator, in each epoch."""
    batch_size: int = 128
    lr: float = 1e-3
    """Of the generator."""
    student_lr: float = 0.01
    temperature: float = 20.0
    """At which the student learns what the models say."""


def advised(has_public: bool, is_familiar: bool = True) -> str:
    """The unifier for what there is.

    Without public data the models' average; with samples that they know, a student of the classes that they choose
    together; with samples of another kind, soft targets. A student had better begin as the average.
    """
    if not has_public:
        return "average"
    return "kd-hard" if is_familiar else "kd-label-logit"


@dataclass(frozen=True, slots=True)
class Given:
    """What there is for a unifier to work with."""

    public: bool = True
    """Public data."""
    counts: bool = True
    """How many samples of each class every model has seen."""
    fishers: bool = True
    """The Fisher information of every model."""
    common_start: bool = True
    """All models have begun as the same one."""
    other_student: bool = False
    """The result is to be of another architecture."""
    private: bool = False
    """Training is accounted for, record by record."""


def refusal(name: str, given: Given) -> str:
    """Why a unifier cannot work with what there is, in one line; empty where it can, or where none is named."""
    if not name:
        return ""
    if name not in UNIFIERS:
        near = difflib.get_close_matches(name, UNIFIERS, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"no unifier is called {name!r}{hint}; known: {', '.join(UNIFIERS)}"
    unifier = UNIFIERS[name]
    students = ", ".join(STUDENTS)
    if unifier.needs_public and not given.public:
        return f"{name!r} teaches a student on public data, and there is none; set public.name, or choose 'average'"
    if unifier.by_label and not given.counts:
        return f"{name!r} weighs models by the classes they have seen, and nobody has told these; give their counts"
    if unifier.by_fisher and not given.fishers:
        return f"{name!r} weighs parameters by Fisher information, and nobody has told it; give one for each model"
    if unifier.by_fisher and given.private:
        return f"{name!r} needs what no privacy budget covers: squared gradients of records; choose 'average'"
    if unifier.averages and not given.common_start:
        return f"{name!r} averages parameters, and the models have not begun alike; allowed: {students}"
    if not unifier.loss and given.other_student:
        result = "keeps all models as they are" if unifier.is_ensemble else "averages parameters"
        return f"{name!r} {result}, and the student has another architecture (student.name); allowed: {students}"
    return ""
