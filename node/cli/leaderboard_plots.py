"""The pictures of the leaderboard. Entrants have numbers in all of them, which the table's first column explains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from node.cli import plots
from node.cli.leaderboard import Board
from node.cli.tradeoff_style import Picture
from node.experiment.comparison import Point, pareto_front
from node.experiment.oneshot_grid import Setting
from node.experiment.ranking import cliques

_MOST_LINES = 6
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
        _panels(board),
        *(_scaling(board, *figure) for figure in _SCALED),
        _dropout(board),
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
        _engineer(axes.xaxis)
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


def _engineer(axis: Any) -> None:
    """Thousands, millions and so on of whatever is counted; on a logarithmic axis at powers of ten only."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


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


# Clients, and damage

_SCALED = (
    ("accuracy", "accuracy", "Accuracy by the number of clients"),
    ("state_bytes", "bytes that the aggregator holds", "Aggregator's memory by the number of clients"),
    ("aggregator_flops", "FLOPs of the aggregator", "Aggregator's work by the number of clients"),
)


Series: TypeAlias = Mapping[str, tuple[list[float], list[float]]]
"""Positions and values, by entrant."""


def _series(board: Board, blocks: Mapping[str, float], figure: str) -> Series:
    """Of contenders that are in all of these blocks, which have positions; the most accurate first."""
    found = {}
    for name in sorted(board.contenders, key=lambda name: -(board.mean(name) or 0.0)):
        means = board.paired(name, list(blocks), figure)
        if None not in means:
            found[name] = [*blocks.values()], [mean for mean in means if mean is not None]
    return found


def _spaced(series: Series) -> list[str]:
    """Some of them, from the best to the worst: more lines than that nobody tells apart."""
    names = list(series)
    chosen = np.unique(np.linspace(0, len(names) - 1, min(len(names), _MOST_LINES)).astype(int))
    return [names[place] for place in chosen]


def _scaling(board: Board, figure: str, label: str, title: str) -> Picture | None:
    """One figure over numbers of clients with all else equal, among those blocks that differ in nothing else."""
    groups: dict[Setting, dict[str, float]] = {}
    for block, setting in board.settings.items():
        if not setting.damage:
            groups.setdefault(replace(setting, clients=0, seed=0), {})[block] = setting.clients
    blocks = max(groups.values(), key=len, default={})
    blocks = dict(sorted(blocks.items(), key=lambda item: item[1]))
    series = _series(board, blocks, figure)
    if len(blocks) < 3 or not series:
        return None
    is_cost = figure != "accuracy"
    caption = f"{min(blocks, key=blocks.__getitem__).rpartition(' ')[0]}."
    if is_cost:
        slopes = (f"{name} {_slope(*values):.2f}" for name, values in series.items())
        caption += f" Slopes of log over log: {', '.join(slopes)}."
    return Picture(title, _lines(series, "clients", label, x_log=True, y_log=is_cost), caption)


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    if min(ys) <= 0:
        return 0.0
    return float(np.polyfit(np.log(xs), np.log(ys), 1)[0])


def _dropout(board: Board) -> Picture | None:
    """Accuracy over clients that never upload."""
    hit = {block: setting for block, setting in board.settings.items() if setting.damage.startswith("drop ")}
    if not hit:
        return None
    first = next(iter(hit.values()))
    whole = replace(first, damage="").block
    blocks = {whole: 0.0} if whole in board.settings else {}
    blocks |= {block: float(setting.damage.split()[1]) for block, setting in hit.items()}
    series = _series(board, blocks, "accuracy")
    if not series or len(blocks) < 2:
        return None
    picture = _lines(series, f"clients of {first.clients} that never upload", "accuracy")
    return Picture("Accuracy by dropped clients", picture, f"{whole}; weights and counts are those of who uploaded.")


def _lines(series: Series, x: str, y: str, *, x_log: bool = False, y_log: bool = False) -> str:
    chosen = _spaced(series)

    def paint(axes: Any) -> None:
        for place, name in enumerate(chosen):
            look = {"color": plots.colour_of(place), "dashes": plots.dashes_of(place)}
            axes.plot(*series[name], marker="o", markersize=3.5, label=name, **look)
        axes.set(xlabel=x, ylabel=y)
        if x_log:
            axes.set_xscale("log")
        if y_log:
            axes.set_yscale("log")
            _engineer(axes.yaxis)
        positions = series[chosen[0]][0]
        axes.set_xticks(positions, [f"{position:g}" for position in positions], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(True)
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return plots.draw(paint, height=3.2 + _ROW * len(chosen) / 2)
