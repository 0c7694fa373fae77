"""The pictures of the leaderboard. Entrants have numbers in all of them, which the table's first column explains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from node.cli import leaderboard_reliability, plots
from node.cli.leaderboard import Board
from node.cli.leaderboard_curves import curves, engineered
from node.cli.tradeoff_style import Picture
from node.experiment.comparison import Point, pareto_front
from node.experiment.ranking import cliques

_ROW = 0.17


def pictures(board: Board) -> list[Picture]:
    """Every picture that the board has the figures for."""
    numbers = numbered(board)
    found = (
        _against(board, numbers, "up_bytes", "bytes that a client sends", "Accuracy against bytes"),
        _against(board, numbers, "client_flops", "FLOPs of a client", "Accuracy against clients' work"),
        _against(
            board, numbers, "aggregator_flops", "FLOPs of the aggregator", "Accuracy against the aggregator's work"
        ),
        _against(board, numbers, "inference_flops", "FLOPs of an answer", "Accuracy against the cost of an answer"),
        _critical_difference(board),
        leaderboard_reliability.picture(board),
        _panels(board),
        *curves(board),
    )
    return [picture for picture in found if picture is not None]


def numbered(board: Board) -> Mapping[str, int]:
    """Each entrant's number."""
    return {name: number for number, name in enumerate(board.names, 1)}


def _against(board: Board, numbers: Mapping[str, int], figure: str, label: str, title: str) -> Picture | None:
    """Mean accuracy over main blocks against a cost; the front is that of the closed division."""
    costs = {name: board.mean_anywhere(name, figure) or 0.0 for name in numbers}
    shown = [name for name in numbers if costs[name] > 0 and board.mean(name) is not None]
    closed = [name for name in shown if board.division(name) == "closed"]
    if len(closed) < 2:
        return None
    points = [Point(board.mean(name) or 0.0, costs[name]) for name in closed]
    front = [points[place] for place in pareto_front(points)]

    def paint(axes: Any) -> None:
        axes.plot(
            [*(point.cost for point in front), max(costs[name] for name in shown)],
            [*(point.gain for point in front), front[-1].gain],
            drawstyle="steps-post",
            color=plots.INK,
            linewidth=0.9,
            dashes=(4, 2),
        )
        for division, (marker, colour) in _LOOK.items():
            own = [name for name in shown if board.division(name) == division]
            if own:
                at = [costs[name] for name in own], [board.mean(name) for name in own]
                axes.plot(*at, marker, color=colour, markersize=5, label=division)
        axes.set(xlabel=label, ylabel="mean accuracy", xscale="log")
        _number(axes, {numbers[name]: (costs[name], board.mean(name) or 0.0) for name in shown})
        engineered(axes.xaxis)
        axes.figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8)
        axes.grid(True)

    names = ", ".join(f"{numbers[closed[place]]} {closed[place]}" for place in pareto_front(points))
    return Picture(title, plots.draw(paint, height=3.4), f"Dashed: Pareto front of the closed division: {names}.")


def _number(axes: Any, places: Mapping[int, tuple[float, float]]) -> None:
    """Numbers beside dots, the most accurate first; one that would lie on another is left out."""
    taken: list[Any] = []
    for number, place in sorted(places.items(), key=lambda item: -item[1][1]):
        at = axes.transAxes.inverted().transform(axes.transData.transform(place))
        if all(abs(at[0] - other[0]) > 0.05 or abs(at[1] - other[1]) > 0.035 for other in taken):
            taken.append(at)
            axes.annotate(str(number), place, (4, -2), textcoords="offset points", fontsize=7)


_LOOK = {"closed": ("o", plots.COLOURS[0]), "reference": ("s", plots.COLOURS[1]), "open": ("D", plots.COLOURS[3])}


def _critical_difference(board: Board) -> Picture | None:
    """Mean ranks on a line, best to the left; bars join entrants that Nemenyi's test does not tell apart."""
    ranking = board.ranking
    if ranking is None:
        return None
    order = np.argsort(ranking.ranks, kind="stable")
    ranks = ranking.ranks[order]
    names = [board.contenders[place] for place in order]
    half = (len(names) + 1) // 2
    bars = cliques(ranks.tolist(), ranking.critical_difference)
    top = -0.4 - 0.22 * len(bars)

    def paint(axes: Any) -> None:
        last = len(names)
        axes.plot([1, last], [0, 0], color=plots.INK, linewidth=1.0)
        for rank in range(1, last + 1):
            axes.plot([rank, rank], [0, 0.12], color=plots.INK, linewidth=1.0)
            if last <= 12 or rank % 5 == 0 or rank == 1:
                axes.annotate(str(rank), (rank, 0.2), ha="center", fontsize=8)
        for place, (name, rank) in enumerate(zip(names, ranks, strict=True)):
            is_left = place < half
            y = top - 0.4 * (1 + (place if is_left else last - 1 - place))
            end = 1 - 0.04 * last if is_left else last + 0.04 * last
            axes.plot([rank, rank, end], [0, y, y], color=plots.INK, linewidth=0.6)
            text = f"{name} {rank:.2f} " if is_left else f" {rank:.2f} {name}"
            axes.annotate(text, (end, y), ha="right" if is_left else "left", va="center", fontsize=7)
        for level, (first, final) in enumerate(bars):
            ends = ranks[first] - 0.05, ranks[final] + 0.05
            axes.plot(ends, [-0.3 - 0.22 * level] * 2, color=plots.COLOURS[0], linewidth=3.0, solid_capstyle="butt")
        axes.plot([1, 1 + ranking.critical_difference], [0.95, 0.95], color=plots.INK, linewidth=1.6)
        axes.annotate(f"critical difference {ranking.critical_difference:.2f}", (1, 1.1), fontsize=8)
        axes.set(xlim=(1 - 0.75 * last, last + 0.75 * last), ylim=(top - 0.4 * (half + 1), 1.7))
        axes.set_axis_off()

    caption = (
        f"{len(board.main)} blocks, {len(names)} entrants: Friedman χ² = {ranking.friedman:.2f}, Iman-Davenport F = "
        f"{ranking.iman_davenport:.2f}, p = {ranking.p_value:.2g}. Bars join what Nemenyi's test does not tell apart "
        "(5 %)."
    )
    return Picture("Critical differences", plots.draw(paint, height=1.6 + 0.2 * half + 0.1 * len(bars)), caption)


def _panels(board: Board) -> Picture | None:
    """Mean accuracy by assumption cell: like is compared with like."""
    cells: dict[str, list[str]] = {}
    for name in board.contenders:
        cells.setdefault(board.assumptions(name), []).append(name)
    if not cells:
        return None
    rows = [
        (cell, name)
        for cell, names in sorted(cells.items())
        for name in sorted(names, key=lambda name: -(board.mean(name) or 0.0))
    ]

    def paint(axes: Any) -> None:
        kinds = {cell: place for place, cell in enumerate(sorted(cells))}
        values = [board.mean(name) or 0.0 for _, name in rows]
        axes.barh(range(len(rows)), values, color=[plots.colour_of(kinds[cell]) for cell, _ in rows], height=0.75)
        labels = [f"{name}  [{cell}]" for cell, name in rows]
        axes.set_yticks(range(len(rows)), labels, fontsize=6)
        axes.set(xlabel="mean accuracy", ylim=(len(rows) - 0.4, -0.6), xlim=(0, 1))
        axes.grid(True, axis="x")

    caption = "One colour for each set of assumptions: only these compare."
    return Picture("By assumptions", plots.draw(paint, height=1.0 + _ROW * len(rows)), caption)
