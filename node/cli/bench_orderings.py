"""What every right implementation shows, over five seeds: who is ahead of whom, where, and by how much.

The claims are measured on digits, on the divisions of :mod:`node.experiment.oneshot_reference`; a difference is of
accuracies in points, of the means or for each seed. What accuracies are known to be is :mod:`node.cli.bench_bands`'s.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

from node.cli.bench_bands import PLACES, bands
from node.cli.leaderboard import Board
from node.experiment.oneshot_grid import CENTRAL, Setting

LEAST_SEEDS = 5
_ROUNDING = 1e-9
"""Points that differences of equal accuracies may be apart."""
LABEL, PLAIN, LOGITS = "ensemble label-weighted probabilities", "ensemble probabilities", "ensemble logits"
AVERAGE = "weighted average"
_COMPARED = ((LABEL, PLAIN), (PLAIN, LOGITS))
_ENSEMBLES = (LABEL, PLAIN, LOGITS, "ensemble label-weighted logits", "ensemble vote")


@dataclass(frozen=True)
class Bound:
    """What points have to be: a difference of two accuracies, or one of them."""

    kind: Literal["above", "below", "within"]
    points: float
    each: bool = False
    """For each seed, and not only on average."""
    of: float = 0.0
    """What they must be ``within`` so many points of."""

    def holds(self, differences: Mapping[int, float]) -> bool:
        """Whether differences by seed are so."""
        values = [*differences.values()] if self.each else [sum(differences.values()) / len(differences)]
        match self.kind:
            case "above":
                return min(values) > self.points
            case "below":
                return max(values) < self.points
        return max(abs(value - self.of) for value in values) <= self.points + _ROUNDING

    def __str__(self) -> str:
        if self.kind == "within" and self.of:
            return f"{self.of:g} ± {self.points:g}"
        sign = {"above": ">", "below": "<", "within": "within"}[self.kind]
        return f"{sign} {self.points:g}{', each' if self.each else ''}"


def _above(points: float, each: bool = True) -> Bound:
    return Bound("above", points, each)


def _within(points: float, each: bool = False) -> Bound:
    return Bound("within", points, each)


_BELOW = Bound("below", 0.0)

CLAIMS: tuple[tuple[str, str, Mapping[str, Bound]], ...] = (
    (LABEL, PLAIN, dict(zip(PLACES, (_within(1), _above(1), _above(4), _above(10)), strict=True))),
    (PLAIN, AVERAGE, dict(zip(PLACES, (_within(2), _above(5), _above(0), _above(0)), strict=True))),
    (PLAIN, LOGITS, dict(zip(PLACES, (_within(1), _above(0), _above(10), _above(0, each=False)), strict=True))),
    ("RegMean 0.9", AVERAGE, dict(zip(PLACES, (_within(2), _above(5), _above(10), _above(30)), strict=True))),
    ("RegMean 0.9", "RegMean 0.1", dict(zip(PLACES, (_within(2), _above(2), _above(8), _above(10)), strict=True))),
    ("FENS", PLAIN, dict(zip(PLACES, (_BELOW, _BELOW, _above(4), _above(15)), strict=True))),
    ("Co-Boosting", "DENSE", dict(zip(PLACES[2:], (_above(10), _above(10)), strict=True))),
    (PLAIN, "DENSE", dict(zip(PLACES[2:], (_above(15), _above(8)), strict=True))),
    ("ridge", CENTRAL, dict.fromkeys(PLACES, _within(3.5, each=True))),
    ("Gaussian head", CENTRAL, dict.fromkeys(PLACES, _within(3.5, each=True))),
    *((name, CENTRAL, {"iid": _within(4)}) for name in _ENSEMBLES),
    *((one, other, {"iid": _within(1)}) for one, other in combinations(_ENSEMBLES, 2) if (one, other) not in _COMPARED),
)
"""First less second, and the bound in each place."""

SAME = ("ridge", "Gaussian head")
"""Whose accuracy does not depend on how samples are divided: what they are elsewhere less what they are under iid."""


@dataclass(frozen=True)
class Verdict:
    """What became of one claim in one place."""

    first: str
    second: str
    """Empty: the claim is of the accuracy of the first alone."""
    place: str
    bound: Bound
    differences: Mapping[int, float]
    """In points, by seed; empty where one of both has not been measured."""

    @property
    def status(self) -> Literal["holds", "FAILS", "not measured"]:
        """In words; without all seeds, a claim for their mean is none yet."""
        if len(self.differences) < LEAST_SEEDS:
            return "not measured"
        return "holds" if self.bound.holds(self.differences) else "FAILS"

    @property
    def claim(self) -> str:
        """What it is about, in words."""
        return f"{self.first} less {self.second}" if self.second else self.first


def verdicts(board: Board) -> list[Verdict]:
    """All claims, as far as the board can tell: the orderings, then who is the same everywhere, then the bands."""
    found = []
    for first, second, bounds in CLAIMS:
        for place, bound in bounds.items():
            differences = _less(points(board, first, place), points(board, second, place))
            found.append(Verdict(first, second, place, bound, differences))
    for name in SAME:
        for place in PLACES[1:]:
            differences = _less(points(board, name, place), points(board, name, "iid"))
            found.append(Verdict(name, f"{name} under iid", place, _within(0, each=True), differences))
    for name, place, mean, width in bands():
        found.append(Verdict(name, "", place, Bound("within", width, of=mean), points(board, name, place)))
    return found


def points(board: Board, name: str, place: str) -> dict[int, float]:
    """Accuracy of one entrant on digits in %, by seed."""
    return {seed: 100 * value for seed, value in board.seeds(name, Setting("digits", place).block).items()}


def _less(first: Mapping[int, float], second: Mapping[int, float]) -> dict[int, float]:
    return {seed: first[seed] - second[seed] for seed in first if seed in second}


def lines(found: list[Verdict]) -> Iterator[str]:
    """One table, a line for each claim and place."""
    yield f"{'claim':<62}  {'where':<15}  {'must be':<14}  {'is':>6}  {'least':>6}  {'most':>6}"
    for verdict in found:
        told = ["–"] * 3
        if values := list(verdict.differences.values()):
            told = [f"{value:.1f}" for value in (sum(values) / len(values), min(values), max(values))]
        figures = "  ".join(f"{text:>6}" for text in told)
        seeds = f" ({len(values)} of {LEAST_SEEDS} seeds)" if verdict.status == "not measured" else ""
        yield f"{verdict.claim:<62}  {verdict.place:<15}  {verdict.bound!s:<14}  {figures}  {verdict.status}{seeds}"
