"""What each relaxation of the assumptions buys: the best that is reached with ever more of one of them."""

from __future__ import annotations

from typing import NamedTuple

from node.cli.leaderboard import Board

AXES = {
    "R": ("clients reveal", ("R-", "R0", "R1", "R2", "R3", "R4", "R5")),
    "D": ("public data", ("D0", "D1", "D2", "D3", "D4")),
    "W": ("client work", ("W0", "W1", "W2", "W3")),
    "M": ("result", ("M1", "M2", "M3")),
    "F": ("exchanges", ("F1", "F2", "F3")),
}
"""Axes of the lattice, and their levels from the least that is assumed."""

MEANINGS = {
    "R-": "predictions only",
    "R0": "a model",
    "R1": "single numbers",
    "R2": "a label histogram",
    "R3": "statistics of features or loss",
    "R4": "a generator",
    "R5": "samples made of its own",
    "D0": "none",
    "D1": "unlabelled",
    "D2": "unlabelled, of the same domain",
    "D3": "labelled",
    "D4": "held by clients",
    "W0": "ordinary training",
    "W1": "training of the algorithm's own",
    "W2": "a shared start",
    "W3": "shared features",
    "M1": "one model",
    "M2": "an ensemble",
    "M3": "a head on shared features",
    "F1": "one upload",
    "F2": "an upload and a broadcast",
    "F3": "more",
}


class Relaxation(NamedTuple):
    """The best entrant up to one level of an axis, all other axes free."""

    axis: str
    level: str
    best: str
    accuracy: float
    """Mean over main blocks."""
    gain: float
    """Over what is reached one level below; 0 for the first."""


def relaxations(board: Board) -> list[Relaxation]:
    """For each axis, the levels that some ranked entrant stands at; an axis on which all stand alike is left out."""
    found: list[Relaxation] = []
    for axis, (_, levels) in AXES.items():
        steps: list[Relaxation] = []
        for level in levels:
            if not any(highest(board.assumptions(name), axis) == level for name in board.contenders):
                continue
            within = [name for name in board.contenders if _place(board, name, axis) <= levels.index(level)]
            best = max(within, key=lambda name: board.mean(name) or 0.0)
            accuracy = board.mean(best) or 0.0
            steps.append(Relaxation(axis, level, best, accuracy, accuracy - steps[-1].accuracy if steps else 0.0))
        found += steps if len(steps) > 1 else []
    return found


def highest(assumptions: str, axis: str) -> str:
    """The level of an axis in ``R1 D0 W2 H0 …``; of several kinds of client work (``W1W2``) the highest."""
    part = next((part for part in assumptions.split() if part.startswith(axis)), "")
    return part[-2:]


def _place(board: Board, name: str, axis: str) -> int:
    return AXES[axis][1].index(highest(board.assumptions(name), axis))
