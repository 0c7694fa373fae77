"""How far entrants' confidence is to be believed: what is right in each bin of it, drawn and as CSV."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from node.cli import plots
from node.cli.leaderboard import Board
from node.cli.tradeoff_style import Picture
from node.experiment.sweep import write_table
from node.learn.oneshot.judging import BINS, RELIABILITY

_MOST = 6


class Bin(NamedTuple):
    """Samples whose largest probability is in one bin, over main blocks, which count alike."""

    low: float
    high: float
    share: float
    """Of all samples."""
    confidence: float | None
    """Their mean largest probability; None where there are none."""
    accuracy: float | None
    """How many of them are right."""


def bins(board: Board, name: str) -> list[Bin]:
    """An entrant's, from the lowest; none where they are not known."""
    found = []
    for place in range(BINS):
        share, confidence, right = (
            board.mean_anywhere(name, f"{RELIABILITY}{place}/{what}") for what in ("share", "confidence", "right")
        )
        if share is None or confidence is None or right is None:
            return []
        means = (confidence / share, right / share) if share else (None, None)
        found.append(Bin(place / BINS, (place + 1) / BINS, share, *means))
    return found


def write_csv(board: Board, path: Path) -> None:
    """A row for each entrant and bin."""
    rows = [{"entrant": name, **each._asdict()} for name in board.names for each in bins(board, name)]
    if rows:
        write_table(path, rows)


def picture(board: Board) -> Picture | None:
    """Accuracy over confidence, by bin, of some entrants from the best to the worst; area by share of samples."""
    known = {name: found for name in board.contenders if (found := bins(board, name))}
    if not known:
        return None
    ordered = sorted(known, key=lambda name: -(board.mean(name) or 0.0))
    places = np.unique(np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST)).astype(int))
    chosen = [ordered[place] for place in places]

    def paint(axes: Any) -> None:
        axes.plot([0, 1], [0, 1], color=plots.INK, linewidth=0.8, dashes=(2, 2))
        for number, name in enumerate(chosen):
            there = [each for each in known[name] if each.confidence is not None and each.accuracy is not None]
            xs, ys = [each.confidence for each in there], [each.accuracy for each in there]
            colour = plots.colour_of(number)
            axes.plot(xs, ys, color=colour, dashes=plots.dashes_of(number), linewidth=1.2, label=name)
            axes.scatter(xs, ys, [4 + 120 * each.share for each in there], color=colour)
        axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
        axes.grid(True)
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    caption = (
        f"{BINS} bins of the largest probability, over all main settings; dots are as large as the share of samples. "
        "Below the dotted line an entrant is over-confident. All entrants: reliability.csv."
    )
    return Picture("Reliability", plots.draw(paint, height=3.8), caption)
