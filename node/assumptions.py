"""What a one-shot algorithm takes for granted: what clients reveal, which data there are, what they have to do.

Accuracies compare only between algorithms that assume the same, or between one and another that assumes less. So what
is assumed is data here: an experiment says what it allows, an algorithm declares what it needs, and whatever it has
not declared is not handed to it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

Reveal: TypeAlias = Literal["predictions", "model", "scalars", "histogram", "statistics", "generator", "samples"]
"""What a client may tell at most, each with all before it: what its model says of public samples; its parameters;
single numbers (samples, a score); its samples of each class; statistics of its features or of its loss; something that
makes samples like its own; samples made of its own."""

Public: TypeAlias = Literal["none", "unlabelled", "labelled"]
"""Which data the aggregator has besides uploads."""

Result: TypeAlias = Literal["model", "ensemble", "head"]
"""One model of the experiment's architecture; several models together; a classifier on a frozen extractor."""

Selection: TypeAlias = Literal["fixed", "clients", "labelled"]
"""What its settings were chosen by: nothing, what clients hold out, or labelled samples at the aggregator."""

Precision: TypeAlias = Literal["float32", "float16", "int8"]
"""In which numbers clients upload their models: 4, 2 or 1 bytes a parameter."""

REVEALS: tuple[Reveal, ...] = get_args(Reveal)
_PUBLIC: tuple[Public, ...] = get_args(Public)
_SELECTIONS: tuple[Selection, ...] = get_args(Selection)


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumptions:
    """What one algorithm needs."""

    reveals: Reveal = "model"
    public: Public = "none"
    proxy: bool = False
    """Clients keep samples back that they do not train on, and work on them later."""
    own_training: bool = False
    """Clients train something else than the experiment's model, or by another loss."""
    shared_start: bool = False
    """All clients start from one model."""
    extractor: bool = False
    """All clients have the same frozen features."""
    mixed_architectures: bool = False
    """Clients' models may differ in architecture."""
    result: Result = "model"
    rounds: int = 1
    """Exchanges: 1 is an upload and nothing else."""
    selection: Selection = "fixed"

    def tells(self, least: Reveal) -> bool:
        """Whether clients reveal so much, or more."""
        return REVEALS.index(self.reveals) >= REVEALS.index(least)

    @property
    def cell(self) -> str:
        """Where it stands in the lattice, in short: ``R1 D0 W2 H0 M1 F1 S0``; algorithms of one cell compare."""
        reveals = "R-" if self.reveals == "predictions" else f"R{REVEALS.index(self.reveals) - 1}"
        data = "D4" if self.proxy else {"none": "D0", "unlabelled": "D1", "labelled": "D3"}[self.public]
        work = "".join(
            f"W{level}"
            for level, is_needed in enumerate((False, self.own_training, self.shared_start, self.extractor))
            if is_needed
        )
        result = {"model": "M1", "ensemble": "M2", "head": "M3"}[self.result]
        rounds = f"F{min(self.rounds, 3)}"
        return " ".join(
            (
                reveals,
                data,
                work or "W0",
                f"H{int(self.mixed_architectures)}",
                result,
                rounds,
                f"S{_SELECTIONS.index(self.selection)}",
            )
        )

    def is_within(self, other: Assumptions) -> bool:
        """Whether it needs nothing that ``other`` does not need too: it may then be held against it."""
        less = (
            REVEALS.index(self.reveals) <= REVEALS.index(other.reveals),
            _PUBLIC.index(self.public) <= _PUBLIC.index(other.public),
            self.proxy <= other.proxy,
            self.own_training <= other.own_training,
            self.shared_start <= other.shared_start,
            self.extractor <= other.extractor,
            self.mixed_architectures >= other.mixed_architectures,
            self.result == other.result or other.result != "model",
            self.rounds <= other.rounds,
            _SELECTIONS.index(self.selection) <= _SELECTIONS.index(other.selection),
        )
        return all(less)


@dataclass(frozen=True, slots=True)
class Allowed:
    """What an experiment offers."""

    reveal: Reveal = "samples"
    public: bool = False
    """Whether there are public samples, without labels."""
    labelled: bool = False
    """Whether there are labels to them."""
    proxy: bool = False
    """Whether clients hold samples out."""
    mixed_architectures: bool = False
    """Whether clients' models differ."""
    private: bool = False
    """Whether what clients train carries noise that a privacy budget pays for."""


class Asked(NamedTuple):
    """The one-shot algorithm that a protocol is told to run."""

    algorithm: str
    options: Mapping[str, Any]
    reveal: Reveal


def refusal(name: str, needs: Assumptions, allowed: Allowed) -> str:
    """Why an algorithm cannot run where so much is allowed, with the setting that would let it; empty if it can."""
    if REVEALS.index(needs.reveals) > REVEALS.index(allowed.reveal):
        return (
            f"{name!r} needs clients to reveal {needs.reveals!r}, and protocol.reveal = {allowed.reveal!r} "
            f"forbids it; set it to {needs.reveals!r}, or choose another algorithm"
        )
    if needs.public != "none" and not allowed.public:
        return f"{name!r} needs public samples, and there are none; set public.name"
    if needs.public == "labelled" and not allowed.labelled:
        return f"{name!r} needs labels of the public samples; set public.labelled = true"
    if needs.selection == "labelled" and not allowed.labelled:
        return f"{name!r} chooses by labels of public samples; set public.labelled = true"
    if (needs.proxy or needs.selection == "clients") and not allowed.proxy:
        return f"{name!r} needs samples that clients hold out; set data.local_test_fraction above 0"
    if allowed.mixed_architectures and not needs.mixed_architectures:
        return f"{name!r} needs all clients to have the same architecture; choose one that takes any"
    return _not_private(name, needs) if allowed.private else ""


def _not_private(name: str, needs: Assumptions) -> str:
    """Why what clients upload would tell more than a budget pays for; empty where it does not."""
    what = ""
    if needs.own_training:
        what = "clients train by a loss of their own"
    elif needs.tells("histogram"):
        what = f"clients reveal {needs.reveals!r} of their data, without noise, beside the noised model"
    elif needs.proxy:
        what = "clients go on to learn from records that they hold out, which nothing protects"
    elif needs.selection == "clients":
        what = "clients reveal how good their model is on records that nothing protects"
    return what and f"{name!r}: {what}, which privacy.mechanism does not cover; choose another, or mechanism 'none'"
