"""The ways to make one predictor of several models, and what each of them needs.

Distillation with label-weighted logits: Gong, Sharma, Karanam, Wu, Chen, Doermann, Innanje: Preserving Privacy in
Federated Learning with Ensemble Cross-Domain Knowledge Distillation, AAAI 2022; of cohorts' models: Dhasade, Kermarrec,
Nguyen, Pires, de Vos, EuroMLSys 2025. Of mean logits: Lin, Kong, Stich, Jaggi, NeurIPS 2020. Averages weighted by
Fisher information: Matena and Raffel, NeurIPS 2022.
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

Loss: TypeAlias = Literal["l1", "kl", "hard"]
"""What a student minimises: the mean distance to its teacher's logits; the Kullback-Leibler divergence of the
teacher's probabilities from its own; the cross-entropy with the class that its teacher puts first."""


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

    @property
    def is_ensemble(self) -> bool:
        """Whether the result is all the models together, and not one."""
        return self.rule is not None and self.loss is None

    @property
    def needs_public(self) -> bool:
        """Whether a student learns from public data."""
        return self.loss is not None

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
    }
)


STUDENTS = tuple(name for name, unifier in UNIFIERS.items() if unifier.loss)
"""Those that teach a student."""


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
    if unifier.averages and not given.common_start:
        return f"{name!r} averages parameters, and the models have not begun alike; allowed: {students}"
    if not unifier.loss and given.other_student:
        result = "keeps all models as they are" if unifier.is_ensemble else "averages parameters"
        return f"{name!r} {result}, and the student has another architecture (student.name); allowed: {students}"
    return ""
