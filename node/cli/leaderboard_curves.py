"""Curves of the leaderboard: over numbers of clients, clients that are lost, and how long the aggregator waits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from node.cli import plots
from node.cli.leaderboard import Board
from node.cli.tradeoff_style import Picture
from node.experiment.oneshot_grid import Setting

_MOST_LINES = 6
_LEAST_NUMBERS = 3
"""Of clients, to make a curve."""
_ROW = 0.17
_SCALED = (
    ("accuracy", "accuracy", "Accuracy by the number of clients"),
    ("state_bytes", "bytes that the aggregator holds", "Aggregator's memory by the number of clients"),
    ("aggregator_flops", "FLOPs of the aggregator", "Aggregator's work by the number of clients"),
)

Series: TypeAlias = Mapping[str, tuple[list[float], list[float]]]
"""Positions and values, by entrant."""


def curves(board: Board) -> Iterator[Picture]:
    """All that the board has the figures for."""
    for blocks, each in _numbers_of_clients(board):
        for figure, label, title in _SCALED:
            if series := _series(board, blocks, figure):
                yield _scaling(series, blocks, figure, label, title + (f", {each} samples each" if each else ""))
    if (lost := _damaged(board, "drop ", 0)) and (series := _series(board, lost, "accuracy")):
        areas = ", ".join(f"{name} {_area(*values):.3f}" for name, values in series.items())
        caption = (
            f"{_whole(lost)}; weights and counts are those of who uploaded. Area under each, over its width: {areas}."
        )
        yield Picture("Accuracy by dropped clients", _lines(series, "clients that never upload", "accuracy"), caption)
    if (late := _damaged(board, "deadline ", 100)) and (series := _series(board, late, "accuracy")):
        caption = f"{_whole(late)}; devices are alike, so that clients with most samples are late."
        label = "deadline, as a percentile of the times at which clients have uploaded"
        yield Picture("Accuracy by deadline", _lines(series, label, "accuracy"), caption)


def engineered(axis: Any) -> None:
    """Thousands, millions and so on of whatever is counted; on a logarithmic axis at powers of ten only."""
    from matplotlib.ticker import EngFormatter, NullFormatter

    axis.set_major_formatter(EngFormatter(sep=""))
    axis.set_minor_formatter(NullFormatter())


# What lies on a curve


def _numbers_of_clients(board: Board) -> Iterator[tuple[Mapping[str, float], int]]:
    """Blocks that differ in the number of clients alone, with it, and how many samples each client has, 0 for a share.

    Of several such groups with enough numbers, the largest.
    """
    groups: dict[Setting, dict[str, float]] = {}
    for block, setting in board.settings.items():
        if not setting.damage and not setting.epsilon:
            groups.setdefault(replace(setting, clients=0, seed=0), {})[block] = setting.clients
    for is_alike in (False, True):
        found = {alike: blocks for alike, blocks in groups.items() if bool(alike.each) == is_alike}
        alike = max(found, key=lambda alike: len(found[alike]), default=None)
        if alike is not None and len(found[alike]) >= _LEAST_NUMBERS:
            yield dict(sorted(found[alike].items(), key=lambda item: item[1])), alike.each


def _damaged(board: Board, kind: str, whole: float) -> Mapping[str, float]:
    """Blocks with one kind of damage, with how much of it, and the one without; nothing where there is no curve."""
    hit = {block: setting for block, setting in board.settings.items() if setting.damage.startswith(kind)}
    found = {block: float(setting.damage.removeprefix(kind)) for block, setting in hit.items()}
    well = {replace(setting, damage="").block: whole for setting in hit.values()}
    found |= {block: amount for block, amount in well.items() if block in board.settings}
    return dict(sorted(found.items(), key=lambda item: item[1])) if len(found) > 1 else {}


def _whole(blocks: Mapping[str, float]) -> str:
    """What they have in common, in words."""
    return next(iter(blocks)).partition(",")[0]


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


def _slope(xs: Sequence[float], ys: Sequence[float]) -> float:
    if min(ys) <= 0:
        return 0.0
    slope = float(np.polyfit(np.log(xs), np.log(ys), 1)[0])
    return round(slope, 2) + 0.0  # no minus at nothing


def _area(xs: Sequence[float], ys: Sequence[float]) -> float:
    """Under a curve, over its width: the mean height."""
    return float(np.trapezoid(ys, xs)) / (xs[-1] - xs[0])


# Drawing


def _scaling(series: Series, blocks: Mapping[str, float], figure: str, label: str, title: str) -> Picture:
    """One figure over numbers of clients with all else equal."""
    is_cost = figure != "accuracy"
    caption = f"{_whole(blocks).partition(' N=')[0]}."
    if is_cost:
        slopes = (f"{name} {_slope(*values):.2f}" for name, values in series.items())
        caption += f" Slopes of log over log: {', '.join(slopes)}."
    return Picture(title, _lines(series, "clients", label, x_log=True, y_log=is_cost), caption)


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
            engineered(axes.yaxis)
        positions = series[chosen[0]][0]
        axes.set_xticks(positions, [f"{position:g}" for position in positions], minor=False)
        axes.set_xticks([], minor=True)
        axes.grid(True)
        axes.figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)

    return plots.draw(paint, height=3.2 + _ROW * len(chosen) / 2)
