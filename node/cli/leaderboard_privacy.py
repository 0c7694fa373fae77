"""What uploads give away and what protecting them costs: accuracy, leakage and epsilon, side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from node.cli.leaderboard import Board


class Exposed(NamedTuple):
    """One entrant in one block; None is not known."""

    entrant: str
    block: str
    accuracy: float | None
    auc: float | None
    """Of membership inference on the uploads: 0.5 tells nothing."""
    auc_interval: tuple[float, float] | None
    tpr: float | None
    """The share of members that are found at 1 % false positives."""
    tpr_interval: tuple[float, float] | None
    epsilon: float | None
    """What the client that spends most has spent; None: nothing is protected."""
    remark: str
    """Why uploads were not attacked, or not protected."""


def exposed(board: Board) -> list[Exposed]:
    """All that is known: each entrant in the blocks that have protected ones beside them, and in these."""
    return [row for name in board.names if board.division(name) == "closed" for row in _of(board, name)]


def compared(board: Board) -> dict[str, list[str]]:
    """Blocks in which nothing is protected, each with those that differ in nothing but that; the first of all, alone,
    where no block is protected."""
    beside: dict[str, list[str]] = {}
    for block, setting in board.settings.items():
        if setting.epsilon:
            beside.setdefault(replace(setting, epsilon=0.0).block, []).append(block)
    return beside or {block: [] for block in board.main[:1]}


def _of(board: Board, name: str) -> Iterator[Exposed]:
    for plain, protected in compared(board).items():
        blocks = [block for block in (plain, *protected) if board.spread(name, block) is not None]
        accuracies = dict(zip(blocks, board.paired(name, blocks), strict=True))
        for block in blocks:
            alone = bool(protected) and len(blocks) == 1
            remarks = (board.unattacked.get(name, ""), "no noise covers all that its clients tell" if alone else "")
            yield _row(board, name, block, accuracies[block], "; ".join(filter(None, remarks)))


def _row(board: Board, name: str, block: str, accuracy: float | None, remark: str) -> Exposed:
    def figure(which: str) -> float | None:
        spread = board.spread(name, block, which)
        return None if spread is None else spread.mean

    def interval(which: str) -> tuple[float, float] | None:
        low, high = figure(f"{which}_low"), figure(f"{which}_high")
        return None if low is None or high is None else (low, high)

    auc, tpr = "leakage_auc", "leakage_tpr"
    leaks = figure(auc), interval(auc), figure(tpr), interval(tpr)
    return Exposed(name, block, accuracy, *leaks, figure("epsilon"), remark if figure(auc) is None or remark else "")
