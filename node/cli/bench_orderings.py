"""What every right implementation shows, over five seeds: who is ahead of whom, where, and by how much.

The claims are measured on the digits data; a difference is of accuracies in points, of the means or for each seed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from node.cli.leaderboard import Board
from node.experiment.oneshot_grid import CENTRAL, Setting

LEAST_SEEDS = 5
PLACES = ("iid", "dirichlet(0.5)", "dirichlet(0.1)", "shards(2)")

LABEL, PLAIN, LOGITS = "ensemble label-weighted probabilities", "ensemble probabilities", "ensemble logits"


@dataclass(frozen=True)
class Bound:
    """What a difference in points has to be."""

    kind: Literal["above", "below", "within"]
    points: float
    each: bool = False
    """For each seed, and not only on average."""

    def holds(self, differences: Mapping[int, float]) -> bool:
        """Whether differences by seed are so."""
        values = [*differences.values()] if self.each else [sum(differences.values()) / len(differences)]
        match self.kind:
            case "above":
                return min(values) > self.points
            case "below":
                return max(values) < self.points
        return max(map(abs, values)) <= self.points

    def __str__(self) -> str:
        sign = {"above": ">", "below": "<", "within": "within"}[self.kind]
        return f"{sign} {self.points:g}{', each' if self.each else ''}"


def _above(points: float, each: bool = True) -> Bound:
    return Bound("above", points, each)


def _within(points: float, each: bool = False) -> Bound:
    return Bound("within", points, each)


_BELOW = Bound("below", 0.0)

CLAIMS: tuple[tuple[str, str, Mapping[str, Bound]], ...] = (
    (LABEL, PLAIN, dict(zip(PLACES, (_within(1), _above(1), _above(4), _above(10)), strict=True))),
    (PLAIN, "average", dict(zip(PLACES, (_within(2), _above(5), _above(0), _above(0)), strict=True))),
    (PLAIN, LOGITS, dict(zip(PLACES, (_within(1), _above(0), _above(10), _above(0, each=False)), strict=True))),
    ("RegMean 0.9", "average", dict(zip(PLACES, (_within(2), _above(5), _above(10), _above(30)), strict=True))),
    ("RegMean 0.9", "RegMean 0.1", dict(zip(PLACES, (_within(2), _above(2), _above(8), _above(10)), strict=True))),
    ("FENS", PLAIN, dict(zip(PLACES, (_BELOW, _BELOW, _above(4), _above(15)), strict=True))),
    ("Co-Boosting", "DENSE", dict(zip(PLACES[2:], (_above(10), _above(10)), strict=True))),
    (PLAIN, "DENSE", dict(zip(PLACES[2:], (_above(15), _above(8)), strict=True))),
    ("ridge", CENTRAL, dict.fromkeys(PLACES, _within(3.5, each=True))),
    ("Gaussian head", CENTRAL, dict.fromkeys(PLACES, _within(3.5, each=True))),
)
"""First less second, and the bound in each place."""


@dataclass(frozen=True)
class Verdict:
    """What became of one claim in one place."""

    first: str
    second: str
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


def verdicts(board: Board) -> list[Verdict]:
    """All claims, as far as the board can tell."""
    found = []
    for first, second, bounds in CLAIMS:
        for place, bound in bounds.items():
            block = Setting("digits", place).block
            ours, theirs = board.seeds(first, block), board.seeds(second, block)
            differences = {seed: 100 * (ours[seed] - theirs[seed]) for seed in ours if seed in theirs}
            found.append(Verdict(first, second, place, bound, differences))
    return found


def lines(found: list[Verdict]) -> Iterator[str]:
    """One table, a line for each claim and place."""
    yield f"{'claim':<62}  {'where':<15}  {'must be':<14}  {'is':>6}  {'least':>6}  {'most':>6}"
    for verdict in found:
        claim = f"{verdict.first} less {verdict.second}"
        told = ["–"] * 3
        if values := list(verdict.differences.values()):
            told = [f"{value:.1f}" for value in (sum(values) / len(values), min(values), max(values))]
        figures = "  ".join(f"{text:>6}" for text in told)
        seeds = f" ({len(values)} of {LEAST_SEEDS} seeds)" if verdict.status == "not measured" else ""
        yield f"{claim:<62}  {verdict.place:<15}  {verdict.bound!s:<14}  {figures}  {verdict.status}{seeds}"
